"""Small models of every kind that `llmkit predict` knows, and what it says."""

import json
from pathlib import Path

import pytest
from conftest import CAUSAL, MASKED
from predictions import BERT, RECIPES, TRAINER, write_data
from typer.testing import CliRunner

from llmkit.cli import app


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder with data and a finished run of every kind, a second each."""
    folder = tmp_path_factory.mktemp("home")
    recipes = {n: f'task = "{task}"\n{BERT}[data]\n{data}\n{TRAINER}' for n, (task, data) in RECIPES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        for name, text in {**recipes, "masked": MASKED, "causal": CAUSAL}.items():
            Path(f"{name}.toml").write_text(text)
            verb = "finetune" if name in RECIPES else "pretrain"
            longer = ["trainer.max_steps=160"] if name == "qa" else []
            words = [verb, f"{name}.toml", *longer, "--output-dir", name]
            done = CliRunner().invoke(app, words, catch_exceptions=False)
            assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch) -> Path:
    """An empty working directory from which the runs and their data are `home/...`."""
    (tmp_path / "home").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(llmkit, place):
    """What a command line answers, as the objects on stdout."""

    def call(*words: str) -> list[dict]:
        done = llmkit("predict", *words)
        assert done.exit_code == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


@pytest.fixture
def refused(llmkit, place):
    """What a command line is refused with: exit code 2, nothing on stdout."""

    def call(*words: str) -> str:
        done = llmkit("predict", *words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        return done.stderr

    return call
