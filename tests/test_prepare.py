"""What `llmkit prepare` puts into the cache is what pretrain finds there; what it cannot prepare it says."""

import builtins
import multiprocessing

import pytest
from conftest import CAUSAL, corpus

from llmkit import recipe
from llmkit.data import engines
from llmkit.data.text import token_cache
from llmkit.training.assemble import assemble

CLEAN = CAUSAL + "\n[data.clean]\nwhitespace = true\nexact_duplicates = true\nnear_duplicates = true\noverlap = true\n"


@pytest.fixture
def place(workplace):
    (workplace / "corpus.txt").write_text(corpus() + corpus(50))
    (workplace / "clean.toml").write_text(CLEAN)
    return workplace


def test_pretrain_finds_what_was_prepared(place, llmkit, monkeypatch):
    done = llmkit("prepare", "clean.toml", "--workers", "1", "--shard-size", "0.01")
    assert done.exit_code == 0, done.stderr
    assert "cleaning of training: " in done.stderr
    assert "pretrain finds it in" in done.stderr
    monkeypatch.setattr(token_cache, "_write", lambda *words: pytest.fail("tokenized again"))
    monkeypatch.setattr("llmkit.data.cleaning.pipeline._write", lambda *words: pytest.fail("cleaned again"))
    assert len(assemble(recipe.load("clean.toml", [], "run"), 42).train) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.streaming=true",), "data.streaming reads the text anew while it trains"),
        (("--engine", "ray", "--workers", "2"), "--workers has no effect with --engine ray"),
        (("--shard-size", "0.001"), "--shard-size must be 0.01 or more"),
        (("--engine", "dask"), "'dask' is not one of"),
    ],
)
def test_what_cannot_be_prepared_is_said(place, llmkit, words, said):
    done = llmkit("prepare", "clean.toml", *words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_rows_are_not_prepared(llmkit):
    done = llmkit("prepare", "--task", "sst2")
    assert done.exit_code == 2
    assert "text-classification reads rows" in done.stderr


def test_ray_that_is_missing_is_named(place, llmkit, monkeypatch):
    importing = builtins.__import__

    def without(name, *words):
        if name == "ray":
            raise ImportError(name)
        return importing(name, *words)

    monkeypatch.setattr(builtins, "__import__", without)
    done = llmkit("prepare", "clean.toml", "--engine", "ray")
    assert done.exit_code == 2
    assert "--engine ray needs the package ray" in done.stderr


def test_an_engine_takes_few_items_ahead_and_gives_results_in_order():
    taken, ahead = [], []

    def items():
        for number in range(9):
            taken.append(number)
            yield number

    for result in engines._ahead(lambda item: item * item, lambda done: done, items(), 3):
        ahead.append(len(taken) - len(ahead))
        assert result == (len(ahead) - 1) ** 2
    assert max(ahead) == 3
    assert multiprocessing.active_children() == []
