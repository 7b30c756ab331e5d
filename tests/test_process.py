"""The garbage collector, which is off from the start of the command until the libraries and the model are there.

And the settings of the libraries in the environment that are empty.
"""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CAUSAL, MASKED, ROOT, corpus
from typer.testing import CliRunner

from llmkit import process
from llmkit.cli import app

CLASSIFIER = """task = "text-classification"
model.name = "masked"
[data]
path = "rows.csv"
[trainer]
max_steps = 1
"""
# Of each verb that loads a model, a command line for each way in which it does.
LOADING = {
    "pretrain": ["pretrain causal.toml --output-dir out"],
    "finetune": ["finetune classifier.toml --output-dir out"],
    "generate": [
        "generate fox --model causal max_new_tokens=1",
        "generate --input prompts.txt --output out.jsonl --model causal max_new_tokens=1",
        "generate --chat hello --model chat max_new_tokens=1",
    ],
    "predict": ["predict masked [MASK]", "predict adapted fox"],
    "evaluate": ["evaluate masked", "evaluate adapted"],
    "merge": ["merge adapted --output out"],
    "export": ["export causal --output out"],
    "report": ["report adapted"],
}
NOT_LOADING = (
    "check",
    "compare",
    "completion",
    "data",
    "doctor",
    "explain",
    "plan",
    "prepare",
    "push",
    "recipes",
    "runs",
)
ELSEWHERE = ("serve",)  # it ends at a signal: tests/serve/test_serve.py


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, recipes and a finished run of each kind."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        Path("corpus.txt").write_text(corpus(60))
        Path("prompts.txt").write_text("fox\nhen\n")
        Path("rows.csv").write_text("text,label\n" + "the fox,one\nthe hen,two\n" * 4)
        for name, text in {"causal": CAUSAL, "masked": MASKED, "classifier": CLASSIFIER}.items():
            Path(f"{name}.toml").write_text(text.replace("max_steps = 6", "max_steps = 1"))
        run("pretrain causal.toml --output-dir causal")
        run("pretrain masked.toml --output-dir masked")
        run("finetune classifier.toml lora.r=2 --output-dir adapted")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained("causal")
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        tokenizer.save_pretrained("chat")
        AutoModelForCausalLM.from_pretrained("causal").save_pretrained("chat")
    return home


def run(line: str) -> None:
    done = CliRunner().invoke(app, line.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr


def test_of_every_verb_it_is_known_whether_it_loads_a_model():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert verbs | {group.name for group in app.registered_groups} == {*LOADING, *NOT_LOADING, *ELSEWHERE}


@pytest.mark.parametrize("line", [line for lines in LOADING.values() for line in lines])
def test_a_verb_that_loads_a_model_switches_the_collector_on(line, home, tmp_path, monkeypatch):
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    gc.disable()
    try:
        run(line)
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_one_place_switches_it_off_and_one_on():
    sources = {file.relative_to(ROOT).as_posix(): file.read_text() for file in (ROOT / "llmkit").rglob("*.py")}
    sources.pop("llmkit/api/guest.py")  # which gives back what its caller had
    assert [name for name, text in sources.items() if "gc.disable" in text] == ["llmkit/__main__.py"]
    assert [name for name, text in sources.items() if "gc.enable" in text] == ["llmkit/process.py"]


def test_settings_of_the_hub_that_are_empty_are_not_set(monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which says that there is none
    monkeypatch.setenv("HF_DATASETS_CACHE", "here")
    process.forget_empty_settings()
    assert {name for name in os.environ if name.startswith(("HF_", "HUGGING"))} >= {"HF_DATASETS_CACHE"}
    assert [
        name for name, value in os.environ.items() if name.startswith(("HF_", "HUGGING", "XDG_CA")) and not value
    ] == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.long
def test_an_empty_hf_home_does_not_put_the_cache_into_the_working_directory(workplace):
    environment = {**os.environ, "HF_HOME": "", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": "", "HOME": str(workplace / "me")}
    command = [sys.executable, "-m", "llmkit", "pretrain", "causal.toml", "trainer.max_steps=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in workplace.iterdir()) == [
        "causal.toml",
        "corpus.txt",
        "masked.toml",
        "me",
        "runs",
    ]
    assert (workplace / "me/.cache/huggingface/llmkit").is_dir()
