"""A finished run is trained longer: as if it had been so long from the start, and it stays finished until then."""

import json
import os
import shutil
import signal
from pathlib import Path

import forks
import pytest
from conftest import losses

from llmkit.recipe import load
from llmkit.runs import checkpoint, finished
from llmkit.runs import directory as runs
from llmkit.training.progress import MetricsFile

CONSTANT = ("pretrain", "causal.toml", "trainer.lr_scheduler_type=constant", "model.config.resid_pdrop=0.1")
WEIGHTS = ("model.safetensors", "checkpoint-9/model.safetensors", "checkpoint-9/optimizer.safetensors")
DECAY = (
    *("pretrain", "causal.toml", "trainer.lr_scheduler_type=warmup_stable_decay", "trainer.warmup_steps=2"),
    'trainer.lr_scheduler_kwargs={num_decay_steps = 2, decay_type = "linear"}',
)


def at_step(monkeypatch, step, act):
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == step:
            act()

    monkeypatch.setattr(MetricsFile, "on_log", on_log)


def signalled(number):
    return lambda: os.kill(os.getpid(), number)


# For a process of its own (a fork of this one may hang, after other tests' threads), which ends itself by SIGKILL.
AT_STEP_7 = """
import os, signal
from llmkit.training.progress import MetricsFile
logged = MetricsFile.on_log
def on_log(self, args, state, control, **kwargs):
    logged(self, args, state, control, **kwargs)
    if state.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsFile.on_log = on_log
"""
WHILE_MOVING = """
import os, signal
from pathlib import Path
moved, replace = [], Path.replace
def counted(self, target):
    if self.parent.name == ".draft-model":
        if len(moved) == AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(self)
    return replace(self, target)
Path.replace = counted
"""


def killed(first, *words):
    """Run the command in a process that begins with the code `first`, and is to be killed by SIGKILL."""
    done = forks.run("-m", "llmkit", *words, first=first)
    assert done.returncode == -signal.SIGKILL, done.stderr


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def rates(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["learning_rate"] for entry in entries if "learning_rate" in entry}


@pytest.mark.parametrize("longer", ["trainer.max_steps=9", "trainer.num_train_epochs=3"])
def test_a_longer_run_is_what_it_would_have_been_from_the_start(longer, workplace, llmkit):
    words = (*CONSTANT, "trainer.save_steps=9", "trainer.logging_steps=2")
    first = "trainer.max_steps=4"
    if "epochs" in longer:  # 3 of 3 steps each
        words = (*words, "trainer.max_steps=", "trainer.per_device_train_batch_size=40")
        first = "trainer.num_train_epochs=2"
    assert llmkit(*words, longer, "--output-dir", "whole").exit_code == 0
    assert llmkit(*words, first, "--output-dir", "run").exit_code == 0
    done = llmkit(*words, longer, "--output-dir", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    assert '("constant") goes on unchanged: up to step ' in done.stderr
    for name in WEIGHTS:
        assert (workplace / "run" / name).read_bytes() == (workplace / "whole" / name).read_bytes()
    assert losses(workplace / "run") == losses(workplace / "whole")
    record = runs.read_record(Path("run"))
    assert (record["status"], record["steps"]) == ("finished", 9)
    assert "longer" not in record
    assert load("run/recipe.toml") == load("whole/recipe.toml")
    assert llmkit("check", "run").exit_code == 0


def test_a_decay_is_not_trained_upon_where_a_checkpoint_is_older(workplace, llmkit):
    words = (*DECAY, "trainer.save_steps=3")
    assert llmkit(*words, "trainer.max_steps=9", "--output-dir", "whole").exit_code == 0
    assert llmkit(*words, "trainer.max_steps=6", "--output-dir", "run").exit_code == 0
    done = llmkit(*words, "trainer.max_steps=9", "--output-dir", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "resuming from run/checkpoint-3" in done.stderr
    assert (
        "goes on unchanged: up to step" in done.stderr
        and "to checkpoint-6 were the decay, and are trained again" in done.stderr
    )
    for name in WEIGHTS:
        assert (workplace / "run" / name).read_bytes() == (workplace / "whole" / name).read_bytes()


def test_a_warmup_that_was_a_share_is_not_made_again(workplace, llmkit):
    words = (*DECAY, "trainer.save_steps=3", "trainer.warmup_steps=0.3")
    assert llmkit(*words, "trainer.max_steps=6", "--output-dir", "run").exit_code == 0
    done = llmkit(*words, "trainer.max_steps=9", "--output-dir", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "resuming from run/checkpoint-3" in done.stderr
    found = rates(workplace / "run")
    assert [found[step] for step in range(1, 10)] == pytest.approx([0, 0.005, *[0.01] * 6, 0.005])


def test_without_an_older_checkpoint_the_rate_goes_up_again(workplace, llmkit):
    assert llmkit(*DECAY, "--output-dir", "run").exit_code == 0
    done = llmkit(*DECAY, "trainer.max_steps=9", "--output-dir", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "it was 0 and goes on from 0.01" in done.stderr
    assert rates(workplace / "run")[7] == 0.01


def test_another_schedule_is_stretched_and_that_is_said(workplace, llmkit):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    assert llmkit(*words, "trainer.max_steps=4").exit_code == 0
    done = llmkit(*words, "trainer.max_steps=8", "--resume", "--allow-change", "trainer.max_steps")
    assert done.exit_code == 0, done.stderr
    assert '("linear") is stretched from 4 to 8 steps: it was 0 and goes on from 0.005' in done.stderr
    assert rates(workplace / "run")[5] == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["trainer.max_steps=3"], "has already trained for 4 steps, and trainer.max_steps = 3 asks for no more"),
        (["trainer.max_steps=9", "trainer.learning_rate=1"], "trainer.learning_rate: 0.01 -> 1"),
        (["trainer.learning_rate=1"], "--allow-change trainer.learning_rate"),
        (["trainer.num_train_epochs=9"], "trainer.num_train_epochs has no effect: trainer.max_steps = 4 is set"),
        (["trainer.max_steps=", "trainer.num_train_epochs=0.1"], "has already trained for 0.2"),
    ],
)
def test_less_and_something_else_are_refused(changes, said, workplace, llmkit):
    words = ("pretrain", "causal.toml", "trainer.max_steps=4", "--output-dir", "run")
    assert llmkit(*words).exit_code == 0
    before = tree(workplace / "run")
    done = llmkit(*words, *changes, "--resume")
    assert done.exit_code == 2
    assert said in done.stderr
    assert tree(workplace / "run") == before


def test_without_a_checkpoint_there_is_a_way(workplace, llmkit):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    assert llmkit(*words, "trainer.max_steps=2").exit_code == 0
    shutil.rmtree(workplace / "run/checkpoint-2")
    done = llmkit(*words, "trainer.max_steps=4", "--resume")
    assert done.exit_code == 2
    assert "no checkpoint to resume from" in done.stderr and "model.name=run" in done.stderr
    assert runs.is_finished(workplace / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_finished_weights_stay_until_the_longer_run_is_whole(number, workplace, llmkit, monkeypatch):
    words = (*CONSTANT, "trainer.save_steps=3")
    longer = (*words, "trainer.max_steps=9", "--output-dir", "run", "--resume")
    assert llmkit(*words, "trainer.max_steps=9", "--output-dir", "whole").exit_code == 0
    assert llmkit(*words, "trainer.max_steps=4", "--output-dir", "run").exit_code == 0
    finished_files = {name: (workplace / "run" / name).read_bytes() for name in ("model.safetensors", "recipe.toml")}
    if number == signal.SIGKILL:
        killed(AT_STEP_7, *longer)
    else:
        with monkeypatch.context() as patch:
            at_step(patch, 7, signalled(number))
            assert llmkit(*longer).exit_code == 75
    assert {name: (workplace / "run" / name).read_bytes() for name in finished_files} == finished_files
    record = runs.read_record(Path("run"))
    expected = "running" if number == signal.SIGKILL else "stopped"
    assert (record["status"], record["steps"], record["longer"]["status"]) == ("finished", 4, expected)
    finished.check_model("run")
    seen = llmkit("check", "run")
    assert seen.exit_code == 0
    assert f"longer training, to 9 steps, is {expected}" in seen.stdout
    assert "finished       intact" in seen.stdout
    assert "is finished" in llmkit(*words, "trainer.max_steps=4", "--output-dir", "run", "--resume").stderr
    too_few = llmkit(*words, "trainer.max_steps=5", "--output-dir", "run", "--resume")
    assert too_few.exit_code == 2 and "already past the end of the training asked for" in too_few.stderr
    done = llmkit(*longer)
    assert done.exit_code == 0 and "learning rate (" not in done.stderr  # nothing is another now
    assert (workplace / "run/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("after", [0, 2])
def test_killed_while_weights_are_replaced_it_is_not_called_finished(after, workplace, llmkit):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    assert llmkit(*words, "trainer.max_steps=2").exit_code == 0
    longer = (*words, "trainer.max_steps=4", "--resume")
    killed(WHILE_MOVING.replace("AFTER", str(after)), *longer)
    assert not runs.is_finished(Path("run"))
    seen = llmkit("check", "run")
    assert seen.exit_code == 0 and "goes on from checkpoint-4" in seen.stdout
    assert llmkit(*longer).exit_code == 0
    assert runs.read_record(Path("run"))["steps"] == 4
    assert llmkit("check", "run").exit_code == 0


def test_after_early_stopping_the_last_checkpoint_goes_on_with_new_patience(workplace, llmkit):
    """A learning rate that ruins the model: the first evaluation stays the best."""
    words = (
        *("pretrain", "causal.toml", "trainer.learning_rate=3.0", "--output-dir", "run"),
        *("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2"),
        *("trainer.load_best_model_at_end=true", "early_stopping.early_stopping_patience=2"),
        "trainer.lr_scheduler_type=constant",
    )
    assert llmkit(*words, "trainer.max_steps=40").exit_code == 0
    stopped = runs.read_record(Path("run"))["steps"]
    assert stopped < 40
    done = llmkit(*words, f"trainer.max_steps={stopped + 4}", "--resume")
    assert done.exit_code == 0, done.stderr
    assert f"resuming from run/checkpoint-{stopped}" in done.stderr
    assert runs.read_record(Path("run"))["steps"] == stopped + 4
    found, _ = checkpoint.newest(Path("run"), None)
    assert found.step == stopped + 4


def test_a_run_by_the_clock_has_no_other_length(workplace, llmkit):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    assert llmkit(*words, "trainer.max_steps=2").exit_code == 0
    runs.update_record(Path("run"), max_time=10)
    done = llmkit(*words, "trainer.max_steps=4", "--resume")
    assert done.exit_code == 2
    assert "with --max-time, and its length cannot be changed" in done.stderr


@pytest.mark.long
def test_two_processes_train_longer_together(workplace, llmkit, two_processes):
    words = (*CONSTANT, "trainer.max_steps=", "trainer.per_device_train_batch_size=20", "data.global_batch_size=40")
    words = (*words, "trainer.save_steps=9", "--output-dir")
    for name, more in (
        ("whole", ("trainer.num_train_epochs=3",)),
        ("run", ("trainer.num_train_epochs=2",)),
        ("run", ("trainer.num_train_epochs=3", "--resume")),
    ):
        done = two_processes(*words, name, *more)
        assert done.exit_code == 0, done.stderr
    assert "goes on unchanged: up to step" in done.stderr
    assert (workplace / "run/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert runs.read_record(Path("run"))["steps"] == 9
