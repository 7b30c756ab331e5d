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
    message = " ".join(str(problem).split())
    if isinstance(problem, KeyError) and "metric_for_best_model" in message:
        return RunError(message.strip("\"'"), "set trainer.metric_for_best_model to one of them")
    if isinstance(problem, torch.OutOfMemoryError):
        return RunError(
            f"out of memory: {message}",
            "lower trainer.per_device_train_batch_size and raise trainer.gradient_accumulation_steps",
        )
    if "DataLoader worker" in message and ("exited unexpectedly" in message or "is killed by signal" in message):
        return RunError(
            f"a data worker was killed: {message}",
            "memory or /dev/shm may have run out; trainer.dataloader_num_workers=0 does without workers",
        )
    if isinstance(problem, torch.distributed.DistError) or LOST.search(message):
        time.sleep(LEAVE_FIRST)
        return RunError(
            "another process of this run has exited, or has not answered within trainer.ddp_timeout: "
            + message.partition(". This is")[0],
            "--resume goes on from the last checkpoint",
        )
    if "DataLoader timed out" in message:
        return RunError(f"a data worker hung: {message}", "check the storage, or raise guard.dataloader_timeout")
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
        behind = f"--resume goes on from checkpoint-{saved}" if saved >= 0 else "there is no checkpoint"
        raise RunError(f"stopped at step {step}, which could not be saved; {behind}", "is the disk full?")
    return 130 if stop.signal == signal.SIGINT else STOPPED
