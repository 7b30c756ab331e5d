"""Training by the clock: where the learning rate stands at each share of the time, the end, and what is left later."""

import json
import math
import os
import signal
from functools import partial
from itertools import count
from multiprocessing import Queue, get_context

import pytest
import torch
from accelerate import PartialState
from transformers import TrainerControl, TrainerState, TrainingArguments, get_scheduler

from llmkit.data.text.pack import Endless
from llmkit.errors import UserError
from llmkit.training import train
from llmkit.training.max_time import NO_END, MaxTime, clock
from llmkit.training.progress import MetricsFile

RATE = 1e-2


def arguments(**settings) -> TrainingArguments:
    return TrainingArguments(output_dir="x", use_cpu=True, learning_rate=RATE, **settings)


def rates(args: TrainingArguments, times, seconds=100, saved=None, step=0) -> tuple[list[float], TrainerState]:
    """The learning rates of steps that are made at these times, as Trainer's loop asks for them, until the end."""
    times = iter(times)
    limit = MaxTime(seconds, args, now=lambda: next(times))
    args.max_steps = NO_END
    model = torch.nn.Linear(2, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 10 * RATE}]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    scheduler = get_scheduler("constant", optimizer)
    state, control = TrainerState(max_steps=NO_END, global_step=step), TrainerControl()
    state.stateful_callbacks = dict(saved or {})
    limit.on_train_begin(args, state, control)
    found: list[float] = []
    ends = NO_END
    while state.global_step < ends:
        limit.on_step_begin(args, state, control)
        limit.on_pre_optimizer_step(args, state, control, optimizer=optimizer, lr_scheduler=scheduler)
        ends = state.max_steps
        assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr()
        assert scheduler.get_last_lr()[1] == pytest.approx(10 * scheduler.get_last_lr()[0])
        found.append(scheduler.get_last_lr()[0] / RATE)
        optimizer.step()
        scheduler.step()
        state.global_step += 1
        limit.on_step_end(args, state, control)
    assert state.max_steps == NO_END
    return found, state


SHARES = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]


@pytest.mark.parametrize(
    ("settings", "course"),
    [
        ({}, lambda t: 1 - t),
        ({"lr_scheduler_type": "cosine"}, lambda t: 0.5 * (1 + math.cos(math.pi * t))),
        ({"lr_scheduler_type": "constant"}, lambda t: 1),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            lambda t: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t)),
        ),
        ({"warmup_steps": 0.2}, lambda t: t / 0.2 if t < 0.2 else (1 - t) / 0.8),
        ({"warmup_steps": 0.2, "max_steps": 40}, lambda t: t / 0.2 if t < 0.2 else (1 - t) / 0.8),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 10, "decay_type": "linear"},
                "warmup_steps": 0.1,
                "max_steps": 40,
            },
            lambda t: t / 0.1 if t < 0.1 else 1 if t < 0.75 else (1 - t) / 0.25,
        ),
    ],
)
def test_the_learning_rate_is_that_of_the_share_of_the_time(settings, course):
    """Warm-up as a share is a share of the time, and so are the steps that the recipe says of its `max_steps`."""
    found, _ = rates(arguments(**settings), [7.0, *(7 + 100 * share for share in SHARES)])
    assert found == pytest.approx([course(share) for share in SHARES], abs=1e-9)


@pytest.mark.parametrize("max_steps", [-1, 40])
def test_a_warm_up_of_so_many_steps_stays_one(max_steps):
    """Four steps up, ten seconds each; then down over the 60 seconds that are left of the hundred."""
    found, _ = rates(arguments(warmup_steps=4, max_steps=max_steps), [0.0, 0, 10, 20, 30, 40, 55, 70, 85, 100])
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0], abs=1e-9)


def test_a_warm_up_longer_than_the_time_is_cut_off():
    found, _ = rates(arguments(warmup_steps=10), [0.0, 30, 60, 120])
    assert found == pytest.approx([0, 0.1, 0.2])


def test_the_step_in_which_the_time_runs_out_is_the_last():
    found, state = rates(arguments(), [5.0, 45, 104, 106])
    assert found == pytest.approx([0.6, 0.01, 0])
    assert state.global_step == 3


def test_what_is_left_of_the_time_is_in_the_checkpoint(capsys):
    _, state = rates(arguments(warmup_steps=2), [0.0, 10, 20, 30, 60], seconds=60)
    kept = json.loads(json.dumps(state.stateful_callbacks))
    assert kept == {"max_time": {"passed": 60.0, "warm": 30.0}}
    assert capsys.readouterr().err == ""
    found, state = rates(arguments(warmup_steps=2), [1000.0, 1005, 1010, 1040], 100, kept, state.global_step)
    assert "0:40 of 1:40 are left; with --max-time the number of steps varies" in capsys.readouterr().err
    assert found == pytest.approx([35 / 70, 30 / 70, 0])
    assert state.stateful_callbacks["max_time"] == {"passed": 100.0, "warm": 30.0}


def as_rank(rank: int, store: str, times: list[float], told: Queue) -> None:
    """What one of two processes is told by a clock of its own."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    PartialState._reset_state()
    args = arguments()
    assert args.world_size == 2
    told.put((rank, rates(args, times)[0]))
    torch.distributed.destroy_process_group()


def test_two_processes_follow_the_clock_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forked = get_context("fork")
    told = forked.Queue()
    clocks_of = ([0.0, 20, 60, 110], [0.0, 30, 140, 180])
    ranks = [
        forked.Process(target=as_rank, args=(rank, str(tmp_path / "store"), times, told))
        for rank, times in enumerate(clocks_of)
    ]
    for each in ranks:
        each.start()
    found = dict(told.get(timeout=60) for _ in ranks)
    for each in ranks:
        each.join(60)
    assert found[0] == found[1] == pytest.approx([0.8, 0.4, 0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}, "reduce_lr_on_plateau"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "steps"}, "greedy"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 9}},
            "num_decay_steps",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "[trainer]: "),
        ({"eval_steps": 0.1, "eval_strategy": "steps"}, "trainer.eval_steps = 0.1 is a share of the steps"),
        ({"save_steps": 0.5}, "trainer.save_steps = 0.5"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["x"]}, "galore_adamw_layerwise"),
    ],
)
def test_what_does_not_go_by_the_clock_is_refused_in_words(settings, said):
    with pytest.raises(UserError) as refused:
        MaxTime(60, arguments(**settings))
    assert said in refused.value.message


def test_a_time_is_shown_in_hours_and_minutes():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 5400)] == ["0:00", "1:00", "1:01", "1:00:00", "1:30:00"]


def test_a_stream_is_read_again_and_again():
    epochs: list[int] = []

    class Stream:
        def set_epoch(self, epoch):
            epochs.append(epoch)

        def __iter__(self):
            return iter((len(epochs), "end"))

    found = Endless(Stream())
    assert [item for item, _ in zip(found, range(5), strict=False)] == [1, "end", 2, "end", 3]
    assert epochs == [0, 1, 2]


# ---- whole runs, in which each look at the clock takes a second ----------------------------------------------------


@pytest.fixture
def ticking(monkeypatch):
    def by_the_tick(seconds, args):
        return MaxTime(seconds, args, now=partial(next, count()))

    monkeypatch.setattr(train, "MaxTime", by_the_tick)


def record(run):
    return json.loads((run / "run.json").read_text())


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", [[], ["data.streaming=true", "data.max_train_samples=20", "data.max_eval_samples=4"]])
def test_a_run_by_the_clock_ends_as_any_run_does(how, workplace, llmkit, ticking):
    """Ten ticks are ten steps where the recipe says six, and go over the data (or the stream) more than once."""
    words = ("trainer.eval_strategy=steps", "trainer.eval_steps=100", "trainer.per_device_train_batch_size=32")
    done = llmkit("pretrain", "causal.toml", "--max-time", "10s", *words, *how, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    facts = record(workplace / "run")
    assert (facts["status"], facts["max_time"], facts["steps"]) == ("finished", 10, 10)
    entries = logged(workplace / "run")
    found = [entry["learning_rate"] for entry in entries if "learning_rate" in entry]
    assert found == pytest.approx([RATE * (1 - tick / 10) for tick in range(1, 11)], abs=1e-12)
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [10]
    assert (workplace / "run/checkpoint-10/trainer_state.json").is_file()
    assert (workplace / "run/model.safetensors").is_file()
    assert facts["metrics"]["train_samples_per_second"] == pytest.approx(
        32 * facts["metrics"]["train_steps_per_second"], rel=0.01
    )
    assert "--max-time 10s: training stops this long after its first step starts" in done.stderr
    assert "trainer.max_steps is ignored" in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1  loss")
    assert lines[0].endswith("  0:09 left")


def test_a_stopped_run_goes_on_with_what_is_left_of_its_time(workplace, llmkit, ticking, monkeypatch):
    words = ("pretrain", "causal.toml", "trainer.warmup_steps=3", "--output-dir", "run")
    write = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        write(self, args, state, control, **kwargs)
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        assert llmkit(*words, "--max-time", "12s").exit_code == 75
    facts = record(workplace / "run")
    assert (facts["status"], facts["max_time"]) == ("stopped", 12)
    stopped_at = max(entry["step"] for entry in logged(workplace / "run"))
    refused = llmkit(*words, "--resume")
    assert refused.exit_code == 2
    assert "was started with --max-time" in refused.stderr
    assert "--max-time 12s" in refused.stderr
    done = llmkit(*words, "--max-time", "12s", "--resume")
    assert done.exit_code == 0, done.stderr
    assert f"0:{12 - stopped_at:02} of 0:12 are left; with --max-time the number of steps varies" in done.stderr
    facts = record(workplace / "run")
    assert (facts["status"], facts["steps"]) == ("finished", 12)
    found = [entry["learning_rate"] for entry in logged(workplace / "run") if "learning_rate" in entry]
    warm = [RATE * step / 3 for step in range(4)]
    assert found == pytest.approx([*warm, *(RATE * (1 - tick / 8) for tick in range(1, 9))], abs=1e-12)
