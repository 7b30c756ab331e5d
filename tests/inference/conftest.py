"""Small models of every kind that `llmkit predict` knows, and what it says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, MASKED, byte_tokenizer
from predictions import BERT, RECIPES, TRAINER, write_data
from prompts import POSITIONS
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a GPT-2, a BERT and a T5 of two layers and less, not trained."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    size = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=POSITIONS, **size)).save_pretrained(
        folder / "gpt2"
    )
    bert = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32)
    BertForMaskedLM(bert).save_pretrained(folder / "bert")
    T5ForConditionalGeneration(T5Config(num_layers=1, d_model=32, d_kv=16, d_ff=32, num_heads=2)).save_pretrained(
        folder / "t5"
    )
    for name in ("gpt2", "bert", "t5"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def models(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds copies of the models."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
