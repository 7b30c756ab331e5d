"""The garbage collector, which is off from the start of the command until the libraries and the model are there."""

import gc
from pathlib import Path

import pytest
from conftest import CAUSAL, MASKED, ROOT, corpus
from typer.testing import CliRunner

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
    "report": ["report adapted"],
}
NOT_LOADING = ("check", "compare", "completion", "data", "doctor", "explain", "push", "recipes", "runs")


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
    assert verbs | {group.name for group in app.registered_groups} == {*LOADING, *NOT_LOADING}


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
    sources.pop("llmkit/api.py")  # which gives back what its caller had
    assert [name for name, text in sources.items() if "gc.disable" in text] == ["llmkit/__main__.py"]
    assert [name for name, text in sources.items() if "gc.enable" in text] == ["llmkit/process.py"]
