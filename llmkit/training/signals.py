"""Signals: the ones that end a run with a checkpoint, and the one that asks for a checkpoint and lets it go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.process import SAVING, handle, leave_at_once, stopping
from llmkit.terminal import put_at_once
from llmkit.training.resumable_trainer import StoppedInEvaluation

AGREE_EVERY = 10  # steps between two agreements to stop on an accelerator, where each costs a synchronisation
SAVE, STOP = 1, 100  # what processes agree on: to save, or STOP + the number of the signal


class StopOnSignal(TrainerCallback):
    """Ends a run on a signal: finishes the step, saves a checkpoint, breaks evaluation off. A second leaves at once.

    So it ends one at the step `at_step`, with no number in `signal`.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.speaks = speaks  # one of several processes does
        self.received = 0  # by this process, at any moment: also while the ranks agree
        self.asked = False  # for a checkpoint
        self.signal = 0  # what they agreed on
        self.stopped = False  # training was ended by it, before its last step
        self.at_step: int | None = None  # where a sweep stops the run, as a signal would
        self._predicted = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the signals that come in meanwhile; what they did before holds again afterwards."""
        before = handle(dict.fromkeys((*stopping(), SAVING), self._note))
        try:
            yield
        finally:
            handle(before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == SAVING:
            self.asked = True
            return
        if self.received:
            leave_at_once(number)
        self.received = number
        if self.speaks:
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            put_at_once(f"stopping after this step, which is saved{again}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stopped = self._is_there(state)

    def _is_there(self, state: TrainerState) -> bool:
        """Tell whether the run is where a sweep stops it."""
        return self.at_step is not None and self.at_step <= state.global_step < state.max_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        there = self._is_there(state)
        if args.world_size > 1 and args.device.type != "cpu" and state.global_step % AGREE_EVERY and not there:
            return
        agreed = self._agree(args)
        if there or (agreed >= STOP and state.global_step < state.max_steps):
            self.signal = max(0, agreed - STOP)
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
        elif agreed:
            self.asked = False
            control.should_save = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._predicted += 1
        if args.world_size > 1 and args.device.type != "cpu" and self._predicted % AGREE_EVERY:
            return
        agreed = self._agree(args)
        if agreed >= STOP:
            self.signal = agreed - STOP
            self.stopped = True
            raise StoppedInEvaluation

    def _agree(self, args: TrainingArguments) -> int:
        """Agree on what the processes do together: the most that any of them was told."""
        own = STOP + self.received if self.received else SAVE if self.asked else 0
        if args.world_size == 1:
            return own
        agreed = torch.tensor(own, device=args.device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return int(agreed)
