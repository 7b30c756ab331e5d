"""A run that a sweep stops is judged there, and goes on as if it had never stopped."""

import json
import signal
from pathlib import Path

import pytest
from conftest import losses

from llmkit import process
from llmkit.runs import directory as runs
from llmkit.training.resumable_trainer import StoppedInEvaluation
from llmkit.training.trainer import Trainer

# Evaluations, early stopping and the choice of the best step: a rung's own evaluation must leave them alone.
WORDS = (
    *("pretrain", "causal.toml", "trainer.max_steps=9", "trainer.eval_strategy=steps", "trainer.eval_steps=3"),
    *("trainer.save_steps=3", "trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=loss"),
    *("early_stopping.early_stopping_patience=2", "model.config.resid_pdrop=0.1"),
)


@pytest.fixture
def to(llmkit, monkeypatch):
    """`to("1/3", ...)`: train until this share of the steps."""

    def train(share, *words):
        if share is None:
            monkeypatch.delenv(process.STOP_AT, raising=False)
        else:
            monkeypatch.setenv(process.STOP_AT, share)
        return llmkit(*WORDS, *words)

    return train


def test_promoted_twice_it_ends_like_the_run_left_alone(workplace, to):
    assert to(None, "--output-dir", "whole").exit_code == 0
    for number, (share, step) in enumerate((("1/9", 1), ("1/2", 5))):
        done = to(share, "--output-dir", "run", *(["--resume"] if number else []))
        assert done.exit_code == 0, done.stderr
        assert f"stopped at step {step} of 9, where the sweep compares its trials" in done.stderr
        record = runs.read_record(Path("run"))
        assert record["status"] == "stopped"
        assert record["rungs"][share]["step"] == step
        assert record["rungs"][share]["eval_loss"] > 0
        assert Path(f"run/checkpoint-{step}").is_dir()
    assert to(None, "--output-dir", "run", "--resume").exit_code == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert losses(Path("run")) == losses(Path("whole"))

    def evaluated(run):
        entries = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
        return [(entry["step"], entry["eval_loss"]) for entry in entries if "eval_loss" in entry]

    assert evaluated("run") == evaluated("whole")
    ours, theirs = (runs.read_record(Path(name)) for name in ("run", "whole"))
    assert ours["metrics"]["eval_loss"] == theirs["metrics"]["eval_loss"]
    assert ours["best"] == theirs["best"]
    assert set(ours["rungs"]) == {"1/9", "1/2"}


def test_killed_before_it_was_judged_it_is_judged_without_a_step(workplace, to, monkeypatch):
    assert to("1/3", "--output-dir", "run").exit_code == 0
    expected = runs.read_record(Path("run"))["rungs"]
    record = {key: value for key, value in runs.read_record(Path("run")).items() if key != "rungs"}
    runs.write_json(Path("run/run.json"), {**record, "status": "running"})
    monkeypatch.setattr(Trainer, "training_step", None)  # none is made
    assert to("1/3", "--output-dir", "run", "--resume").exit_code == 0
    assert runs.read_record(Path("run"))["rungs"] == expected


def test_a_signal_while_it_is_judged_leaves_that_to_the_next(workplace, to, monkeypatch):
    with monkeypatch.context() as patch:

        def signalled(trainer, *_):
            trainer._stop.signal = signal.SIGTERM
            raise StoppedInEvaluation

        patch.setattr("llmkit.training.train.judged", signalled)
        assert to("1/3", "--output-dir", "run").exit_code == process.STOPPED
    assert "rungs" not in runs.read_record(Path("run"))
    assert to("1/3", "--output-dir", "run", "--resume").exit_code == 0
    assert runs.read_record(Path("run"))["rungs"]["1/3"]["step"] == 3


def test_a_share_that_rounds_up_to_all_steps_is_the_whole_run(workplace, to):
    assert to("1/3", "--output-dir", "run", "trainer.max_steps=1").exit_code == 0
    assert "rungs" not in runs.read_record(Path("run"))


def test_two_processes_stop_together(workplace, two_processes, monkeypatch):
    monkeypatch.setenv(process.STOP_AT, "1/3")
    done = two_processes(*WORDS, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert runs.read_record(Path("run"))["rungs"]["1/3"]["step"] == 3
