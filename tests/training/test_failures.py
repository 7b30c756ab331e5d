"""What a run dies of, in words: by the sentences that the libraries really say."""

import os
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import Queue

import pytest
import torch

from llmkit.training import failures
from llmkit.training.trainer import Trainer


def as_rank(rank: int, store: str, seconds: float, told: Queue) -> None:
    """The first of two processes waits for the second, which dies, or sleeps for longer than that."""
    torch.distributed.init_process_group(
        "gloo", f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=seconds)
    )
    number = torch.ones(1)
    torch.distributed.all_reduce(number)  # both are there
    if rank == 1:
        if told.get(timeout=60) == "dies":
            os._exit(9)
        told.get(timeout=60)
        os._exit(0)
    try:
        torch.distributed.all_reduce(number)
    except RuntimeError as problem:
        failures.LEAVE_FIRST = 0.0
        told.put(str(failures.known_failure(problem)))


@pytest.mark.parametrize(("fate", "seconds"), [("dies", 60.0), ("hangs", 1.0)])
def test_a_process_that_is_lost_is_said_to_be(fate, seconds, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forked = get_context("fork")
    orders, told = forked.Queue(), forked.Queue()
    ranks = [
        forked.Process(target=as_rank, args=(rank, str(tmp_path / "store"), seconds, orders if rank else told))
        for rank in range(2)
    ]
    for each in ranks:
        each.start()
    orders.put(fate)
    known = told.get(timeout=60)
    orders.put("end")
    for each in ranks:
        each.join(60)
    assert "another process of this run has exited, or has not answered within trainer.ddp_timeout: " in known
    assert "--resume goes on from the last checkpoint" in known


def test_a_metric_that_is_none_of_those_there_are_is_said_to_be(workplace, llmkit):
    words = ("trainer.max_steps=2", "trainer.eval_strategy=steps", "trainer.eval_steps=1", "trainer.save_steps=1")
    done = llmkit(
        *("pretrain", "masked.toml", *words, "--output-dir", "run"),
        *("trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=eval_nope"),
    )
    assert done.exit_code == 1
    assert "eval_nope" in done.stderr and "hint: set trainer.metric_for_best_model to one of them" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", 1, "error: a data worker was killed: DataLoader"),
        ("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0", 0, "step 2 was not saved: [enforce"),
    ],
)
def test_a_data_worker_that_dies_while_a_checkpoint_is_written_is_no_full_disk(
    words, code, said, workplace, llmkit, monkeypatch
):
    """torch raises it in the main process, wherever that is; of a disk that is full it raises a RuntimeError too."""

    sound = Trainer.save_model

    def fail(self, output_dir=None, _internal_call=False):
        if _internal_call:
            raise RuntimeError(words)
        sound(self, output_dir)

    monkeypatch.setattr(Trainer, "save_model", fail)
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=2", "trainer.save_steps=2", "--output-dir", "run")
    assert done.exit_code == code, done.stderr
    assert said in done.stderr
