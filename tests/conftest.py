"""What the tests share: no network, caches of their own, a command that runs in this process, tiny recipes."""

import gc
import os
import socket
import sys
import tempfile

# Before any Hugging Face library is imported: they read these once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="llmkit-tests-")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # commands that tests start are as fast as a user's

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
from typer.testing import CliRunner, Result

ROOT = Path(__file__).parents[1]
_imported = 0  # modules, when the collector was last told of them

REST = """[data]
path = "corpus.txt"
sample_by = "line"
validation_fraction = 0.2
block_size = 16
[trainer]
max_steps = 6
per_device_train_batch_size = 8
learning_rate = 1e-2
logging_steps = 1
"""
# Small enough to train in a second, with everything that a real recipe has.
CAUSAL = (
    """
task = "causal-lm"
[model.config]
model_type = "gpt2"
n_layer = 2
n_head = 2
n_embd = 32
n_positions = 32
embd_pdrop = 0.0
resid_pdrop = 0.0
[tokenizer]
type = "byte-bpe"
vocab_size = 300
"""
    + REST
)
CLASSIFY = """
task = "text-classification"
[model]
name = "bert"
[data]
path = "rows.csv"
validation_fraction = 0.2
"""
MASKED = (
    """
task = "masked-lm"
[model.config]
model_type = "bert"
num_hidden_layers = 2
num_attention_heads = 2
hidden_size = 32
intermediate_size = 64
max_position_embeddings = 32
hidden_dropout_prob = 0.0
[tokenizer]
type = "wordpiece"
vocab_size = 300
"""
    + REST
)


def corpus(lines: int = 200) -> str:
    """Text with something to learn and no two lines alike."""
    animals = ("fox", "hen", "owl", "cat", "dog")
    deeds = ("saw", "fed", "led", "met")
    return "".join(
        f"the {animals[i % 5]} {deeds[i % 4]} {i % 7} of the {animals[(i // 5) % 5]}s at {i}\n" for i in range(lines)
    )


@pytest.fixture(autouse=True)
def the_libraries_are_no_garbage() -> None:
    """Trainer collects garbage at its end: a million objects of modules, which stay, cost more than the training."""
    global _imported
    if len(sys.modules) > _imported + 50:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.fixture(autouse=True)
def the_hub_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That a test went on without the Hub is none of the next one's business."""
    from huggingface_hub import constants

    from llmkit import hub

    monkeypatch.setattr(hub, "_trouble", hub._trouble)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    yield
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = before["HF_DATASETS_OFFLINE"] == "1"
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def reports() -> None:
    """Let trainings of a test write their reports."""


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of other tests write no report: a quarter of a second each."""
    if "reports" not in request.fixturenames:
        monkeypatch.setattr("llmkit.launch.write_report", lambda *run: None)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with two small recipes and the text that they learn from."""
    (tmp_path / "causal.toml").write_text(CAUSAL)
    (tmp_path / "masked.toml").write_text(MASKED)
    (tmp_path / "corpus.txt").write_text(corpus())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def llmkit() -> Callable[..., Result]:
    """The command, run in this process: `llmkit("pretrain", "causal.toml")`; crashes are not swallowed."""
    from llmkit.cli import app

    def call(*words: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, words, input=stdin, catch_exceptions=False, prog_name="llmkit")

    return call


@pytest.fixture
def two_processes(
    llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """`llmkit WORDS --processes 2`; the ranks are forked, and `accelerate launch` is left to tests/test_launch.py.

    `first` is code that each rank runs before all else.
    """

    def call(*words: str, first: str = "") -> SimpleNamespace:
        words = (*words, "--processes", "2")
        monkeypatch.setattr(sys, "argv", ["llmkit", *words])
        launched = SimpleNamespace(Popen=partial(forks.Ranks, first=first), DEVNULL=None)
        monkeypatch.setattr("llmkit.accelerate_launch.subprocess", launched)
        done = llmkit(*words)
        said = done.stderr + capfd.readouterr().err
        return SimpleNamespace(exit_code=done.exit_code, stdout=done.stdout, stderr=said)

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = set((ROOT / "tests/slow.txt").read_text().splitlines())
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker("slow")


def pytest_sessionfinish() -> None:
    forks.stop()


def pretrained(folder: Path, file: str, recipe: str, output: str) -> Path:
    """A finished run of `recipe` on the corpus, in a folder with both."""
    from llmkit.cli import app

    (folder / file).write_text(recipe)
    (folder / "corpus.txt").write_text(corpus())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["pretrain", file, "--output-dir", output], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return folder / output


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, pretrained for six steps by llmkit: its pooler and any head are new to it."""
    return pretrained(tmp_path_factory.mktemp("base"), "masked.toml", MASKED, "base")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to reach another machine (or to find its address) fails and is noted in the list."""
    attempts: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        attempts.append(args[1:] or args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def byte_tokenizer() -> Any:
    """A tokenizer of bytes, and of the few pairs that "Once upon a time" has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["Once upon a time there was a cat. The cat was happy."] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)


def losses(run: Path) -> list[float]:
    """The training losses that a run logged, in order."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]
