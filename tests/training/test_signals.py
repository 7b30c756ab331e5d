"""Signals in every phase of a run, and what it goes on with."""

import errno
import json
import os
import signal
import subprocess
import time
from threading import Event, Thread

import forks
import pytest
from conftest import corpus, losses
from forks import Fork
from tqdm import tqdm

from llmkit.data.text import token_cache
from llmkit.runs import checkpoint, state
from llmkit.training import train
from llmkit.training.progress import MetricsFile
from llmkit.training.signals import StopOnSignal
from llmkit.training.trainer import Trainer

EVALUATED = ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.per_device_eval_batch_size=2")
RANDOM = ("model.config.resid_pdrop=0.1", "trainer.max_steps=9")


def log_of(run):
    """What was logged, without the clock's figures."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "_runtime", "_per_second", "_preparation_time")
    return [{key: value for key, value in entry.items() if not key.endswith(timed)} for entry in entries]


def same(workplace, one, two):
    for file in ("model.safetensors", "checkpoint-9/optimizer.safetensors", "checkpoint-9/process-0.safetensors"):
        assert (workplace / one / file).read_bytes() == (workplace / two / file).read_bytes(), file
    assert log_of(workplace / one) == log_of(workplace / two)


def test_in_preparation_the_run_ends_at_once_and_prepared_parts_are_kept(workplace, llmkit, monkeypatch):
    (workplace / "corpus.txt").write_text(corpus(333))  # which no other test has prepared
    append, done = token_cache._append, []

    def stopping(*args):
        append(*args)
        done.append(args)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(token_cache, "_append", stopping)
    found = llmkit("pretrain", "causal.toml")
    assert found.exit_code == 75
    assert not (workplace / "runs").exists()
    assert len(done) == 2  # the training and the validation data
    found = llmkit("pretrain", "causal.toml", "--resume")
    assert found.exit_code == 0, found.stderr
    assert len(done) == 2
    assert "starting from the beginning" in found.stderr


@pytest.mark.parametrize(
    ("at", "number", "code"), [(2, signal.SIGTERM, 75), (6, signal.SIGINT, 130), (8, signal.SIGHUP, 75)]
)
def test_in_evaluation_it_is_broken_off_and_done_again(at, number, code, workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", *EVALUATED, *RANDOM, "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    step, predicted = Trainer.prediction_step, []

    def stopping(self, *args, **kwargs):
        if self.state.global_step == at:
            predicted.append(1)
            if len(predicted) == 3:
                os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "prediction_step", stopping)
        done = llmkit(*words, "parts")
    assert done.exit_code == code, done.stderr
    assert len(predicted) == 3
    assert f"stopped at step {at}" in done.stderr
    assert not (workplace / "parts/model.safetensors").exists()
    assert llmkit(*words, "parts", "--resume").exit_code == 0
    same(workplace, "whole", "parts")


def test_in_the_last_evaluation_nothing_is_exported(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", *RANDOM, "trainer.save_strategy=no", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    step = Trainer.prediction_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "prediction_step", stopping)
        done = llmkit(*words, "parts")
    assert done.exit_code == 75, done.stderr
    assert not (workplace / "parts/model.safetensors").exists()
    done = llmkit(*words, "parts", "--resume")
    assert done.exit_code == 0, done.stderr
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert losses(workplace / "parts") == losses(workplace / "whole")


def test_while_a_checkpoint_is_saved_it_is_finished_first(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", *RANDOM, "trainer.save_steps=4", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    seal = checkpoint.seal

    def stopping(draft, manifest):
        if manifest["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return seal(draft, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "seal", stopping)
        done = llmkit(*words, "parts")
    assert done.exit_code == 75, done.stderr
    assert {path.name for path in (workplace / "parts").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert llmkit(*words, "parts", "--resume").exit_code == 0
    same(workplace, "whole", "parts")


def test_epoch_by_epoch_what_was_due_at_its_end_is_done(workplace, llmkit, monkeypatch):
    """Stopped in the evaluation at an epoch's end, and killed (as if) between its last step and its end."""
    words = (
        "pretrain",
        "causal.toml",
        "trainer.max_steps=",
        "trainer.num_train_epochs=2",
        "model.config.resid_pdrop=0.1",
    )
    words += ("trainer.eval_strategy=epoch", "trainer.save_strategy=epoch", "trainer.load_best_model_at_end=true")
    assert llmkit(*words, "--output-dir", "whole").exit_code == 0
    step = Trainer.prediction_step
    (end,) = {entry["step"] for entry in log_of(workplace / "whole") if entry.get("epoch") == 1 and "loss" in entry}

    def stopping(self, *args, **kwargs):
        if self.state.global_step == end:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "prediction_step", stopping)
        assert llmkit(*words, "--output-dir", "parts").exit_code == 75
    done = llmkit(*words, "--output-dir", "parts", "--resume")
    assert done.exit_code == 0, done.stderr
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert log_of(workplace / "parts") == log_of(workplace / "whole")


def test_what_was_done_at_the_end_of_the_last_epoch_is_not_done_again(workplace, llmkit, monkeypatch):
    """Stopped in the last evaluation, which was made up for and saved, and killed (as if) before the run's end."""
    words = ("pretrain", "causal.toml", "trainer.max_steps=20")  # in the second epoch
    words += ("trainer.eval_strategy=epoch", "trainer.save_strategy=epoch", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    last = log_of(workplace / "whole")[-1]["step"]
    step, seal = Trainer.prediction_step, checkpoint.seal

    def stopping(self, *args, **kwargs):
        if self.state.global_step == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    def killed(draft, manifest):
        seal(draft, manifest)
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "prediction_step", stopping)
        assert llmkit(*words, "parts").exit_code == 75
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "seal", killed)
        assert llmkit(*words, "parts", "--resume").exit_code == 9
    assert llmkit(*words, "parts", "--resume").exit_code == 0
    assert log_of(workplace / "parts") == log_of(workplace / "whole")


def test_a_second_signal_leaves_at_once(workplace):
    """In a process of its own, which it ends."""
    process = Fork("-m", "llmkit", "pretrain", "causal.toml", "trainer.max_steps=1000000", "trainer.logging_steps=1")
    for line in process.stderr:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGSTOP)  # so that both are there when it goes on
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGINT, "stopping after this step, which is saved; Ctrl-C again leaves at once\n"),
        (signal.SIGTERM, "stopping after this step, which is saved\n"),
    ],
)
def test_a_signal_is_answered_before_the_step_is_over(number, told, workplace, llmkit, monkeypatch, capfd):
    step, said = Trainer.training_step, []

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 3:
            capfd.readouterr()
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            said.append(capfd.readouterr().err)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", stopping)
    done = llmkit("pretrain", "causal.toml")
    assert said == [told]
    assert "stopped at step 4; " in done.stderr


def test_the_answer_to_a_signal_waits_for_no_lock(capfd):
    lock = tqdm.get_lock()
    held, over = Event(), Event()

    def hold():
        with lock:
            held.set()
            over.wait()

    thread = Thread(target=hold)
    thread.start()
    held.wait()
    try:
        StopOnSignal()._note(signal.SIGINT, None)
        assert capfd.readouterr().err.startswith("stopping after this step")
        StopOnSignal(speaks=False)._note(signal.SIGINT, None)  # of several processes one speaks
        assert not capfd.readouterr().err
    finally:
        over.set()
        thread.join()


def test_two_runs_in_one_directory_one_trains_and_one_is_told_who_does(workplace):
    words = ("-m", "llmkit", "pretrain", "causal.toml", "trainer.max_steps=100000", "--output-dir", "run")
    first = Fork(*words)
    try:
        for line in first.stderr:
            if line.startswith("step"):
                break
        second = forks.run(*words, "--resume")
        assert second.returncode == 2
        assert f"`run` is in use by process {first.pid} on " in second.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    left = json.loads((workplace / "run/.holder.json").read_text())
    assert left["pid"] == first.pid
    third = Fork(*words, "--resume")
    for line in third.stderr:
        if line.startswith("step"):
            break
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=60)
    assert third.returncode == 75


def test_two_that_begin_at_once_in_one_directory(workplace):
    words = ("-m", "llmkit", "pretrain", "causal.toml", "--output-dir", "run")
    both = [Fork(*words) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert json.loads((workplace / "run/run.json").read_text())["status"] == "finished"


# ---- a full disk ---------------------------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["begin", "model", "optimizer", "seal", "synced"])
def test_a_full_disk_costs_the_checkpoint_and_no_more(where, workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", *RANDOM, "trainer.save_steps=3", "trainer.save_total_limit=9", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    kinds = {
        "begin": (checkpoint, "begin"),
        "model": (Trainer, "save_model"),
        "optimizer": (state, "_save"),
        "seal": (checkpoint, "seal"),
        "synced": (checkpoint, "synced"),
    }
    place, name = kinds[where]
    sound = getattr(place, name)

    def fails(*args, **kwargs):
        if now[0] == 6:
            full()
        return sound(*args, **kwargs)

    now = [0]
    save = Trainer._save_checkpoint

    def saving(self, *args):
        now[0] = self.state.global_step
        save(self, *args)
        now[0] = 0

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", saving)
        patch.setattr(place, name, fails)
        done = llmkit(*words, "parts")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("step 6 was not saved: [Errno 28] No space left on device; training goes on") >= 1
    assert {path.name for path in (workplace / "parts").glob("*checkpoint-*")} == {"checkpoint-3", "checkpoint-9"}
    same(workplace, "whole", "parts")


def test_without_room_for_another_checkpoint_none_is_begun(workplace, llmkit, monkeypatch):
    usage = checkpoint.shutil.disk_usage

    def little(path):
        return usage(path)._replace(free=1000)

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", little)
    done = llmkit("pretrain", "causal.toml", "trainer.save_steps=2", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert "step 4 was not saved" in done.stderr
    assert "0 MB are free" in done.stderr
    assert [path.name for path in (workplace / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_stop_that_cannot_be_saved_says_so(workplace, llmkit, monkeypatch):
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(checkpoint, "seal", full)

    monkeypatch.setattr(MetricsFile, "on_log", on_log)
    done = llmkit("pretrain", "causal.toml", "trainer.save_steps=2", "--output-dir", "run")
    assert done.exit_code == 1
    assert "stopped at step 5, which could not be saved; --resume goes on from checkpoint-2" in done.stderr


def test_finished_weights_that_do_not_fit_are_written_by_who_goes_on(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", *RANDOM, "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    save = Trainer.save_model

    def fails(self, output_dir=None, _internal_call=False):
        save(self, output_dir, _internal_call)
        if output_dir.endswith(train.EXPORT):
            full()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_model", fails)
        done = llmkit(*words, "parts")
    assert done.exit_code == 1
    assert "the finished weights could not be written to `parts`" in done.stderr
    assert "checkpoint-9 holds them" in done.stderr
    assert not (workplace / "parts/model.safetensors").exists()
    assert not (workplace / "parts" / train.EXPORT).exists()
    assert llmkit(*words, "parts", "--resume").exit_code == 0
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()


def test_a_small_disk(workplace, llmkit, tmp_path):
    """A file system of a megabyte, where mounting is allowed."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        words = ("pretrain", "causal.toml", "trainer.save_steps=2", "trainer.save_total_limit=3", "--output-dir")
        done = llmkit(*words, str(small / "run"))
        assert done.exit_code in (0, 1), done.stderr
        assert "was not saved" in done.stderr
        whole = [checkpoint.examine(path) for path in checkpoint.folders(small / "run")]
        assert whole
        assert not [each for each in whole if isinstance(each, str)]
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ---- what was due ----------------------------------------------------------------------------------------------------


def in_evaluation(monkeypatch, when):
    """SIGTERM in the first evaluation for which `when` says so; the number of its batch is told, too."""
    step, done, batches = Trainer.prediction_step, [], []

    def stopping(self, *args, **kwargs):
        batches.append(self.state.global_step)
        if not done and when(self.state.global_step, batches.count(self.state.global_step)):
            done.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "prediction_step", stopping)


def test_at_the_last_step_of_an_epoch_its_evaluation_is_left_to_who_goes_on(workplace, llmkit, monkeypatch):
    words = (
        "pretrain",
        "causal.toml",
        "trainer.max_steps=",
        "trainer.num_train_epochs=2",
        "trainer.eval_strategy=epoch",
    )
    words += ("model.config.resid_pdrop=0.1", "trainer.save_strategy=best", "trainer.metric_for_best_model=loss")
    assert llmkit(*words, "--output-dir", "whole").exit_code == 0
    (end,) = {entry["step"] for entry in log_of(workplace / "whole") if entry.get("epoch") == 1 and "loss" in entry}
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == end - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", on_log)
        done = llmkit(*words, "--output-dir", "parts")
    assert done.exit_code == 75
    assert f"stopped at step {end}" in done.stderr
    assert llmkit(*words, "--output-dir", "parts", "--resume").exit_code == 0
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert log_of(workplace / "parts") == log_of(workplace / "whole")


def test_of_several_sources_those_that_were_evaluated_are_evaluated_again(workplace, llmkit, monkeypatch):
    (workplace / "other.txt").write_text(corpus(120))
    text = (workplace / "causal.toml").read_text().replace('path = "corpus.txt"\nsample_by = "line"\n', "")
    sources = "".join(
        f'[data.sources.{name}]\npath = "{file}"\nsample_by = "line"\n'
        for name, file in (("a", "corpus.txt"), ("b", "other.txt"))
    )
    (workplace / "causal.toml").write_text(text + "\n" + sources)
    words = ("pretrain", "causal.toml", *EVALUATED, *RANDOM)
    done = llmkit(*words, "--output-dir", "whole")
    assert done.exit_code == 0, done.stderr
    with monkeypatch.context() as patch:
        in_evaluation(patch, lambda step, batch: step == 4 and batch == 15)
        assert llmkit(*words, "--output-dir", "parts").exit_code == 75
    done = llmkit(*words, "--output-dir", "parts", "--resume")
    assert done.exit_code == 0, done.stderr
    same(workplace, "whole", "parts")


def test_a_run_that_stopped_early_stays_stopped(workplace, llmkit, monkeypatch):
    """A learning rate that ruins the model: the second evaluation is worse, and the run is over in step 4."""
    words = ("pretrain", "causal.toml", "trainer.learning_rate=3.0", "trainer.lr_scheduler_type=constant")
    words += ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2", "trainer.max_steps=40")
    words += ("trainer.load_best_model_at_end=true", "early_stopping.early_stopping_patience=1", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    last = max(entry["step"] for entry in log_of(workplace / "whole"))
    assert last < 40
    with monkeypatch.context() as patch:  # in the evaluation of the best weights, when all is over
        in_evaluation(patch, lambda step, batch: step == last and batch == 6)
        found = llmkit(*words, "parts")
    assert found.exit_code == 75, found.stderr
    assert llmkit(*words, "parts", "--resume").exit_code == 0
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert max(entry["step"] for entry in log_of(workplace / "parts")) == last


def test_a_log_that_cannot_be_written_does_not_end_the_run(workplace, llmkit, monkeypatch):
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == 3 and self.path.is_file():
            self.path.unlink()
            self.path.mkdir()
        logged(self, args, state, control, **kwargs)

    monkeypatch.setattr(MetricsFile, "on_log", on_log)
    done = llmkit("pretrain", "causal.toml", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("metrics.jsonl cannot be written, and training goes on") == 1
