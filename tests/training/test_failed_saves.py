"""A library that fails while a run saves: what is said is true of what is on the disk."""

import itertools
import time
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from llmkit.errors import RunError
from llmkit.training import train
from llmkit.training.trainer import Trainer

WORDS = ("pretrain", "causal.toml", "--output-dir", "run")
FULL = OSError(28, "No space left on device")


def trainer(problem: Exception, saved_at: int) -> SimpleNamespace:
    def fail(_: str) -> None:
        raise problem

    return SimpleNamespace(args=SimpleNamespace(should_save=True), saved_at=saved_at, save_model=fail)


@pytest.mark.parametrize(
    ("problem", "saved_at", "said", "hint"),
    [
        (FULL, 4, "No space left on device; checkpoint-4 holds them", "--resume writes them"),
        (FULL, -1, "No space left on device; there is no checkpoint", "--resume trains from the beginning"),
        (
            SafetensorError("I/O error"),
            -1,
            "I/O error; there is no checkpoint",
            "free some disk space; --resume trains",
        ),
        (RuntimeError("shared tensors"), -1, "shared tensors; there is no checkpoint", "--resume trains from the"),
        (KeyError("lm_head"), -1, "KeyError: 'lm_head'; there is no checkpoint", "--resume trains from the beginning"),
        (TypeError("odd"), 4, "TypeError: odd; checkpoint-4 holds them", "that checkpoint is a model"),
    ],
)
def test_what_resume_does_is_said_by_what_is_there(problem, saved_at, said, hint, tmp_path):
    with pytest.raises(RunError) as caught:
        train.export(trainer(problem, saved_at), tmp_path)
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert ("disk space" in caught.value.hint) == isinstance(problem, OSError | RuntimeError | SafetensorError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "left"), [(3, "there is no checkpoint"), (6, "goes on from checkpoint-3")])
def test_an_upstream_failure_in_a_checkpoint_ends_the_run_in_words(step, left, workplace, llmkit, monkeypatch):
    write = Trainer._write

    def fails(self, draft):
        if self.state.global_step >= step:
            raise KeyError("lm_head.weight")
        write(self, draft)

    monkeypatch.setattr(Trainer, "_write", fails)
    done = llmkit(*WORDS, "trainer.save_steps=3")
    assert done.exit_code == 1
    assert done.stderr.count("error: ") == 1
    assert f"error: step {step} could not be saved: KeyError: 'lm_head.weight'; " in done.stderr
    assert left in done.stderr
    assert not list((workplace / "run").glob(".draft*"))


def test_a_failure_in_training_is_told_and_not_that_of_the_save_behind_it(workplace, llmkit, monkeypatch):
    def fails(self, draft):
        raise KeyError("lm_head.weight")

    def broken(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise LookupError("a row that is gone")
        return step(self, *args, **kwargs)

    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "_write", fails)
    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(LookupError, match="a row that is gone"):
        llmkit(*WORDS)


@pytest.mark.parametrize("tick", [0.0, -3600.0], ids=["still", "back"])
def test_a_run_ends_well_by_a_clock_that_stands_still(tick, workplace, llmkit, monkeypatch):
    calls = itertools.count(1)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + tick * next(calls))
    for name in ("causal", "causal-2"):
        done = llmkit("pretrain", "causal.toml", "trainer.eval_strategy=steps", "trainer.eval_steps=3")
        assert done.exit_code == 0, done.stderr
        assert f"runs/{name}" in done.stderr
    asked = llmkit("generate", "fox", "max_new_tokens=1")
    assert asked.stderr.startswith("model: runs/causal-2 (the newest finished run")
