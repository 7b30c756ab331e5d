"""A run goes on where it was: another batch size, another number of processes, a stream, and what may not change."""

import json
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import corpus, losses
from safetensors.torch import load_file, save_file

from llmkit.data.text.pack import Blocks, Endless, StreamedBlocks, Unread, Window
from llmkit.errors import UserError
from llmkit.runs import checkpoint, compatibility
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.training import build
from llmkit.training.progress import MetricsFile
from llmkit.training.resumable_trainer import ResumableTrainer, SavedRun
from llmkit.training.saving_trainer import SavingTrainer
from llmkit.training.trainer import Trainer


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """The signal comes when this step is logged: the one after it is the last."""
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricsFile, "on_log", on_log)


def note_examples(monkeypatch):
    """The numbers of the examples of every training batch, in order."""
    seen, step = [], Trainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        seen.append(inputs["index"].tolist())
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    return seen


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize(
    ("at", "batch"),
    [(3, ("16", "1")), (3, ("4", "2")), (3, ("2", "1")), (13, ("16", "1")), (3, ("5", "1")), (13, ("3", "2"))],
)
def test_with_another_batch_size_every_example_is_seen_once_an_epoch(at, batch, workplace, llmkit, monkeypatch):
    """118 blocks an epoch; the second epoch begins in step 15 of 8 blocks."""
    seen = note_examples(monkeypatch)
    words = ("pretrain", "causal.toml", "trainer.max_steps=", "trainer.num_train_epochs=3", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    order = [number for each in seen for number in each]
    seen.clear()
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        assert llmkit(*words, "parts").exit_code == 75
    size, times = batch
    more = (f"trainer.per_device_train_batch_size={size}", f"trainer.gradient_accumulation_steps={times}")
    done = llmkit(*words, "parts", "--resume", *more)
    assert done.exit_code == 0, done.stderr
    assert [number for each in seen for number in each] == order
    assert record(workplace / "parts")["metrics"]["eval_loss"] > 0
    same = int(size) * int(times) == 8
    assert ("a step now learns from" in done.stderr) is not same
    entries = [json.loads(line) for line in (workplace / "parts/metrics.jsonl").read_text().splitlines()]
    epochs = [entry["epoch"] for entry in entries if "loss" in entry]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 3


def test_by_steps_another_batch_size_makes_as_many(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "trainer.max_steps=30", "--output-dir", "run")
    with monkeypatch.context() as patch:
        stop_at(patch, 17)
        assert llmkit(*words).exit_code == 75
    done = llmkit(*words, "--resume", "trainer.per_device_train_batch_size=32")
    assert done.exit_code == 0, done.stderr
    assert record(workplace / "run")["steps"] == 30
    assert len(losses(workplace / "run")) == 30


@pytest.mark.parametrize(("first", "then"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.long)])
def test_another_number_of_processes_goes_on_with_the_same_losses(first, then, workplace, llmkit, two_processes):
    """The model has no dropout: nothing random is drawn, and the losses are those of a run that was left alone."""
    (workplace / "corpus.txt").write_text(corpus(400))

    def run(processes, *words):
        batch = f"trainer.per_device_train_batch_size={8 // processes}"
        words = ("pretrain", "causal.toml", batch, *words, "trainer.save_steps=4", "trainer.lr_scheduler_type=constant")
        return {1: llmkit, 2: two_processes}[processes](*words)

    assert run(first, "trainer.max_steps=12", "--output-dir", "whole").exit_code == 0
    begun = run(first, "trainer.max_steps=8", "--output-dir", "parts")
    assert begun.exit_code == 0, begun.stderr
    (workplace / "parts/model.safetensors").unlink()
    changed = ("--resume", "--allow-change", "trainer.max_steps", "trainer.max_steps=12")
    done = run(then, "--output-dir", "parts", *changed)
    assert done.exit_code == 0, done.stderr
    assert "resuming from parts/checkpoint-8" in done.stderr
    assert losses(workplace / "parts") == pytest.approx(losses(workplace / "whole"), rel=1e-5)
    assert record(workplace / "parts")["steps"] == 12


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at", [5, 20])
def test_a_shuffled_stream_is_replayed_up_to_its_place(at, workers, workplace, llmkit, monkeypatch):
    """Its first pass has 14 steps: the stop comes in it, or in the second."""
    words = ("pretrain", "causal.toml", "data.streaming=true", "data.buffer_size=16", "data.max_eval_samples=4")
    words += ("trainer.max_steps=24", f"trainer.dataloader_num_workers={workers}", "model.config.resid_pdrop=0.1")
    assert llmkit(*words, "--output-dir", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        assert llmkit(*words, "--output-dir", "parts").exit_code == 75
    done = llmkit(*words, "--output-dir", "parts", "--resume")
    assert done.exit_code == 0, done.stderr
    if not workers:
        assert f"skipped {at * 8 + 8} blocks of the stream" in done.stderr
    assert losses(workplace / "parts") == losses(workplace / "whole")
    for file in ("model.safetensors", "checkpoint-24/optimizer.safetensors"):
        assert (workplace / "parts" / file).read_bytes() == (workplace / "whole" / file).read_bytes()


def test_a_buffer_gives_every_block_of_each_pass_in_an_order_of_its_own():
    class Stream:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return (Window(torch.zeros(1).numpy(), None, index, self.epoch) for index in range(50))

    blocks = iter(Endless(Stream(), 8, seed=3))
    first, second = ([next(blocks) for _ in range(50)] for _ in range(2))
    assert sorted(window.index for window in first) == list(range(50))
    assert [window.index for window in first] != [window.index for window in second] != list(range(50))
    assert {window.epoch for window in second} == {1}
    again = Endless(Stream(), 8, seed=3)
    again.skip = 60
    assert next(iter(again)).index == second[10].index


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("trainer.learning_rate=0.02", "trainer.learning_rate: 0.01 -> 0.02"),
        ("trainer.max_steps=9", "trainer.max_steps: 6 -> 9"),
        ("trainer.seed=7", "trainer.seed: not set -> 7"),
        ("model.config.n_layer=3", "model.config.n_layer: 2 -> 3"),
        ("data.block_size=8", "data.block_size: 16 -> 8"),
        ("tokenizer.vocab_size=290", "tokenizer.vocab_size: 300 -> 290"),
        ("guard.spike_sigma=6", "guard.spike_sigma: not set -> 6.0"),
    ],
)
def test_what_makes_it_another_run_is_shown_and_refused(change, shown, workplace, llmkit, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit("pretrain", "causal.toml", "--output-dir", "run").exit_code == 75
    before = {path: path.stat().st_mtime_ns for path in (workplace / "run").rglob("*")}
    done = llmkit("pretrain", "causal.toml", change, "--output-dir", "run", "--resume")
    assert done.exit_code == 2
    assert shown in done.stderr
    key = change.partition("=")[0]
    assert f"--allow-change {key}" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (workplace / "run").rglob("*")} == before


def test_what_is_allowed_to_change_does(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "--output-dir", "run", "trainer.lr_scheduler_type=constant")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words).exit_code == 75
    changed = (*words, "trainer.learning_rate=0.002", "trainer.weight_decay=0.5", "--resume")
    assert llmkit(*changed, "--allow-change", "trainer.learning_rate").exit_code == 2
    done = llmkit(*changed, "--allow-change", "trainer")
    assert done.exit_code == 0, done.stderr
    entries = [json.loads(line) for line in (workplace / "run/metrics.jsonl").read_text().splitlines()]
    assert [entry["learning_rate"] for entry in entries if "loss" in entry] == [0.01] * 4 + [0.002] * 2
    kept = json.loads((workplace / "run/checkpoint-6/optimizer.json").read_text())
    assert '["weight_decay", 0.5]' in json.dumps(kept)


def test_changed_data_is_refused_by_what_it_holds(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words).exit_code == 75
    (workplace / "corpus.txt").write_text(corpus(210))
    done = llmkit(*words, "--resume")
    assert done.exit_code == 2
    assert "data.train.documents: " in done.stderr
    assert "data.fingerprint: " in done.stderr
    assert llmkit(*words, "--resume", "--allow-change", "data", "--allow-change", "tokenizer").exit_code == 0


def test_what_leaves_the_weights_as_they_are_may_change(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words, "parts").exit_code == 75
    others = ("trainer.logging_steps=2", "trainer.save_steps=5", "trainer.eval_strategy=steps", "trainer.eval_steps=2")
    done = llmkit(*words, "parts", "--resume", *others)
    assert done.exit_code == 0, done.stderr
    assert (workplace / "parts/checkpoint-5").is_dir()
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()


def test_every_free_key_is_one_of_upstreams():
    from dataclasses import fields

    from transformers import TrainingArguments

    names = [field.name for field in fields(TrainingArguments)]
    assert compatibility.is_free("speed.threads") and not compatibility.is_free("speed.fast_dropout")
    assert [prefix for prefix in compatibility.FREE if not any(name.startswith(prefix) for name in names)] == []


def test_evaluation_leaves_training_as_it_is(workplace, llmkit):
    words = ("pretrain", "causal.toml", "model.config.resid_pdrop=0.2", "--output-dir")
    assert llmkit(*words, "without").exit_code == 0
    assert llmkit(*words, "with", "trainer.eval_strategy=steps", "trainer.eval_steps=2").exit_code == 0
    weights = [(workplace / run / "model.safetensors").read_bytes() for run in ("without", "with")]
    assert weights[0] == weights[1]


def test_too_large_a_batch_is_made_smaller_before_the_first_step(workplace, llmkit, monkeypatch):
    assert llmkit("pretrain", "causal.toml", "--output-dir", "whole").exit_code == 0
    sound = FusedLMLoss.losses

    def losses_of(self, model, inputs, labels, label_smoothing=0.0, summed=False):
        if summed and len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sound(self, model, inputs, labels, label_smoothing, summed)

    monkeypatch.setattr(FusedLMLoss, "losses", losses_of)
    monkeypatch.setattr("llmkit.training.batch_size.is_tried", lambda args: True)
    done = llmkit("pretrain", "causal.toml", "--output-dir", "smaller", "trainer.per_device_eval_batch_size=2")
    assert done.exit_code == 0, done.stderr
    assert "a batch of 8 does not fit into memory: using batches of 4 and 2 accumulation steps" in done.stderr
    assert "a batch of 4 does not fit into memory: using batches of 2 and 4 accumulation steps" in done.stderr
    assert losses(workplace / "smaller") == pytest.approx(losses(workplace / "whole"), rel=1e-5)


def test_out_of_memory_for_one_example_ends_in_words(workplace, llmkit, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(FusedLMLoss, "losses", full)
    monkeypatch.setattr("llmkit.training.batch_size.is_tried", lambda args: True)
    done = llmkit("pretrain", "causal.toml")
    assert done.exit_code == 1
    assert "not enough memory for even one example" in done.stderr
    assert not (workplace / "runs").exists()


def test_a_crash_in_the_data_is_saved_before_it_is_shown(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "model.config.resid_pdrop=0.1", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    sound, asked = Blocks.__getitem__, []

    def broken(self, index):
        asked.extend([1] * (not self.evaluation))
        if len(asked) == 8 * 4 + 3:
            raise ValueError("row 35 is on fire")
        return sound(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "__getitem__", broken)
        with pytest.raises(ValueError, match="row 35"):
            llmkit(*words, "parts")
    assert "row 35 is on fire" in record(workplace / "parts")["problem"]
    (saved,) = (workplace / "parts").glob("checkpoint-*")
    assert int(saved.name.removeprefix("checkpoint-")) in (3, 4)
    assert llmkit(*words, "parts", "--resume").exit_code == 0
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert losses(workplace / "parts") == losses(workplace / "whole")


def test_a_tracker_that_fails_is_told_nothing_more(workplace, llmkit, monkeypatch):
    from transformers import TrainerCallback

    calls = []

    class Tracker(TrainerCallback):
        __module__ = "transformers.integrations.tracker"

        def on_log(self, args, state, control, **kwargs):
            calls.append(state.global_step)
            raise ConnectionError("the tracker has gone")

    sound = build.make_trainer
    monkeypatch.setattr(
        build,
        "make_trainer",
        lambda a, model, args, callbacks, **o: sound(a, model, args, [*callbacks, Tracker()], **o),
    )
    done = llmkit("pretrain", "causal.toml")
    assert done.exit_code == 0, done.stderr
    assert calls == [1]
    assert done.stderr.count("Tracker failed, and the run goes on without it: ConnectionError") == 1


def test_a_tensor_that_the_checkpoint_lacks_is_not_made_up(workplace, llmkit, monkeypatch):
    from llmkit.runs import checkpoint

    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit("pretrain", "causal.toml", "--output-dir", "run").exit_code == 75
    place = workplace / "run/checkpoint-4"
    weights = load_file(place / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    found = checkpoint.read_manifest(place)
    (place / "manifest.json").unlink()
    checkpoint.seal(place.rename(place.with_name(".draft-checkpoint-4")), found)
    done = llmkit("pretrain", "causal.toml", "--output-dir", "run", "--resume")
    assert done.exit_code == 1
    assert "it lacks transformer.h.1.mlp.c_fc.weight" in done.stderr


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("killed", "a data worker was killed: "),
        pytest.param("hangs", "a data worker hung: DataLoader timed out", marks=pytest.mark.long),
    ],
)
def test_a_data_worker_that_is_lost_ends_the_run_in_words(fate, said, workplace, llmkit, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # how long a lost worker is waited for
    words = ("pretrain", "causal.toml", "--output-dir")
    sound, main = Blocks.__getitem__, os.getpid()

    def lost(self, index):
        if os.getpid() != main and not self.evaluation and index == 17:
            if fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return sound(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "__getitem__", lost)
        more = ("trainer.dataloader_num_workers=2", "guard.dataloader_timeout=2", "trainer.max_steps=30")
        done = llmkit(*words, "run", *more)
    assert done.exit_code == 1
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert record(workplace / "run")["status"] == "failed"
    assert llmkit(*words, "run", "trainer.max_steps=30", "--resume").exit_code == 0


def test_a_run_that_was_moved_finds_its_best_checkpoint(workplace, llmkit, monkeypatch):
    """A learning rate that ruins the model: the first evaluation's weights are the best."""
    words = ("pretrain", "causal.toml", "trainer.learning_rate=3.0", "trainer.lr_scheduler_type=constant")
    words += ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2", "trainer.max_steps=8")
    words += ("trainer.load_best_model_at_end=true", "trainer.save_total_limit=1", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert llmkit(*words, "before").exit_code == 75
    (workplace / "before").rename(workplace / "after")
    done = llmkit(*words, "after", "--resume")
    assert done.exit_code == 0, done.stderr
    assert (workplace / "after/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    best = {path.name for path in (workplace / "after").glob("checkpoint-*")}
    assert best == {path.name for path in (workplace / "whole").glob("checkpoint-*")}
    assert len(best) == 2


def test_data_that_was_moved_is_known_by_what_it_holds(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words).exit_code == 75
    (workplace / "corpus.txt").rename(workplace / "elsewhere.txt")
    done = llmkit(*words, "--resume", "data.path=elsewhere.txt")
    assert done.exit_code == 0, done.stderr
    assert "resuming from run/checkpoint-4" in done.stderr


def test_an_adapter_does_not_go_on_upon_other_weights(workplace, llmkit, monkeypatch):
    assert llmkit("pretrain", "causal.toml", "--output-dir", "base").exit_code == 0
    words = ("pretrain", "causal.toml", "model.config=", "tokenizer=", "model.name=base", "model.init=pretrained")
    words += ("lora.r=4", "--output-dir", "run")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words).exit_code == 75
    weights = load_file("base/model.safetensors")
    weights["transformer.wpe.weight"][0, 0] += 1
    save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
    done = llmkit(*words, "--resume")
    assert done.exit_code == 2
    assert "base.model.safetensors.xxh3_128" in done.stderr


def test_an_allowed_change_outlives_a_kill_before_the_next_checkpoint(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "--output-dir", "run", "trainer.lr_scheduler_type=constant")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words).exit_code == 75
    logged = MetricsFile.on_log

    def killed(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        raise SystemExit(9)  # which nothing in the run answers to

    again = (*words, "trainer.learning_rate=0.002", "--resume", "--allow-change", "trainer.learning_rate")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", killed)
        assert llmkit(*again).exit_code == 9
    assert not (workplace / "run/checkpoint-5").exists()
    assert llmkit(*again).exit_code == 0
    entries = [json.loads(line) for line in (workplace / "run/metrics.jsonl").read_text().splitlines()]
    assert [entry["learning_rate"] for entry in entries if "loss" in entry] == [0.01] * 4 + [0.002] * 2


def test_another_optimizer_does_not_go_on_from_the_state_of_the_first(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "--output-dir", "run")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words).exit_code == 75
    done = llmkit(*words, "trainer.optim=adafactor", "--resume", "--allow-change", "trainer.optim")
    assert done.exit_code == 2
    assert "the optimizer cannot be changed" in done.stderr


def both_find(monkeypatch, find):
    """What `of_first` returns or raises on two processes, and how often it looked."""
    sent, looked, results = [], [], []

    def broadcast(told):
        if sent:
            told[:] = pickle.loads(sent[0])
        else:
            sent.append(pickle.dumps(told))

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    for rank in range(2):
        trainer = SimpleNamespace(args=SimpleNamespace(world_size=2, process_index=rank))
        try:
            results.append(SavingTrainer.of_first(trainer, lambda: looked.append(1) or find()))
        except UserError as problem:
            results.append((problem.message, problem.hint, problem.details))
    return results, len(looked)


def test_of_several_processes_one_verifies_a_checkpoint(monkeypatch, tmp_path):
    found = checkpoint.Checkpoint(tmp_path / "checkpoint-6", {"step": 6})
    assert both_find(monkeypatch, lambda: found) == ([found, found], 1)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (UserError("no checkpoint is intact", "start anew", ("checkpoint-6: cut",)), None),
        (OSError(5, "Input/output error"), ("[Errno 5] Input/output error", "", ())),
    ],
)
def test_what_is_wrong_with_it_ends_all(problem, told, monkeypatch):
    def find():
        raise problem

    told = told or (problem.message, problem.hint, problem.details)
    assert both_find(monkeypatch, find) == ([told, told], 1)


@pytest.mark.parametrize(("processes", "read"), [(4, [2]), (2, [0, 1, 2, 3])])
def test_a_process_reads_its_own_state_and_that_of_others_where_their_number_differs(processes, read, monkeypatch):
    names = []
    states = {**{f"process-{number}": {"loss": float(number)} for number in range(4)}, "training": {}}
    monkeypatch.setattr("llmkit.runs.state.read", lambda folder, name: names.append(name) or states[name])
    saved = checkpoint.Checkpoint(Path("checkpoint-6"), {"processes": 4})
    rank = 2 if processes == 4 else 1
    found = SavedRun.read(saved, rank, processes)
    assert names == [*(f"process-{number}" for number in read), "training"]
    assert found.rank_state["loss"] == (2.0 if processes == 4 else 1.5)


def test_other_processes_than_the_first_do_not_begin_to_read_a_stream():
    stream = StreamedBlocks(None, None, [], None, None)
    assert list(Unread()) == []
    made = []

    class Loader(Trainer):
        def __init__(self, rank, dispatch):
            self.args = SimpleNamespace(process_index=rank)
            self.accelerator = SimpleNamespace(dispatch_batches=dispatch)

    def loader(self, dataset, *rest):
        made.append(type(dataset).__name__)
        return SimpleNamespace(num_workers=0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResumableTrainer, "_get_dataloader", loader)
        for rank, dispatch in ((0, None), (1, None), (1, False)):
            Loader(rank, dispatch)._get_dataloader(Endless(stream), "Training", 8)
    assert made == ["Endless", "Unread", "Endless"]
