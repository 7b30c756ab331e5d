"""How a run that did not finish ends: what it died of, in words, and what is left of it."""

import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import torch

from llmkit.errors import RunError, say
from llmkit.process import STOPPED
from llmkit.runs import directory as runs
from llmkit.training.signals import StopOnSignal
from llmkit.training.trainer import Trainer

LEAVE_FIRST = 5.0  # seconds: the launcher ends all others when one ends, and who is to blame should be first


LOST = re.compile(r"Connection (closed|reset) by peer|Timed out waiting|gloo/transport|Broken pipe")  # as gloo says it


def known_failure(problem: Exception) -> RunError | None:
    """Say in words what a data worker or the memory died of; None of anything else, which is shown as it is."""
    said = " ".join(str(problem).split())
    if isinstance(problem, KeyError) and "metric_for_best_model" in said:
        return RunError(said.strip("\"'"), "trainer.metric_for_best_model is to be one of them")
    if isinstance(problem, torch.OutOfMemoryError):
        return RunError(
            f"out of memory: {said}", "a smaller trainer.per_device_train_batch_size, and more accumulation"
        )
    if "DataLoader worker" in said and ("exited unexpectedly" in said or "is killed by signal" in said):
        return RunError(
            f"a data worker was killed: {said}",
            "by too little memory, or too little of it in /dev/shm? trainer.dataloader_num_workers=0 needs none",
        )
    if isinstance(problem, torch.distributed.DistError) or LOST.search(said):
        time.sleep(LEAVE_FIRST)
        return RunError(
            "another process of this run is gone, or has not answered for trainer.ddp_timeout: "
            + said.partition(". This is")[0],
            "--resume goes on from the last checkpoint",
        )
    if "DataLoader timed out" in said:
        return RunError(
            f"a data worker hung: {said}", "guard.dataloader_timeout is how long to wait; is the storage there?"
        )
    return None


def stopped(trainer: Trainer, stop: StopOnSignal, directory: Path, seconds: float) -> int:
    """Say what is left of a run that a signal ended; return the exit code."""
    step, saved = trainer.state.global_step, trainer.saved_at
    if trainer.args.process_index == 0:
        with suppress(OSError):
            runs.set_status(directory, "stopped", seconds=round(seconds, 1))
        if saved == step:
            say(f"stopped at step {step}; the same command with --resume goes on from there")
    if saved != step:
        behind = f"checkpoint-{saved} is there, from which --resume goes on" if saved >= 0 else "no checkpoint is there"
        raise RunError(f"stopped at step {step}, which could not be saved; {behind}", "is the disk full?")
    return 130 if stop.signal == signal.SIGINT else STOPPED
