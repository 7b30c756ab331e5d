"""What a run says while it trains: a live bar in a terminal, plain lines in a log, `metrics.jsonl` on the disk."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.clock import MaxTime
from llmkit.clock import clock as clock
from llmkit.errors import say
from llmkit.run import METRICS_FILE, STOPPING

AGREE_EVERY = 10  # steps between two agreements to stop on an accelerator, where each costs a synchronisation


def is_terminal() -> bool:
    """A terminal is at the other end of stderr (or of the launcher's, which passes our bytes on)."""
    return "LLMKIT_TERMINAL" in os.environ or sys.stderr.isatty()


class Progress(TrainerCallback):
    """The bar or the lines, from the main process alone."""

    def __init__(self, per_step: int, unit: str, limit: MaxTime | None = None) -> None:
        self.per_step = per_step  # tokens, or examples
        self.unit = unit
        self.limit = limit  # the end, where the clock decides it
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_terminal():
            columns = os.environ.get("LLMKIT_TERMINAL")
            self.bar = tqdm(
                total=state.max_steps if self.limit is None else self.limit.seconds,
                initial=state.global_step if self.limit is None else int(self.limit.passed),
                file=sys.stderr,
                ncols=int(columns) if columns else None,
                dynamic_ncols=not columns,
                unit="step",
                leave=False,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                + ("[{elapsed}<{remaining}]{postfix}" if self.limit is None else "s{postfix}"),
            )
        self._mark(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(1 if self.limit is None else min(int(self.limit.passed), self.limit.seconds) - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        seconds = time.monotonic() - self.since
        steps = state.global_step - self.from_step
        speed = steps / seconds if seconds > 0 else 0.0
        rate = f"{speed * self.per_step:,.0f} {self.unit}/s"
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}, {rate}", refresh=False)
        else:
            left = clock((state.max_steps - state.global_step) / speed) if speed else "?"
            left = left if self.limit is None else clock(self.limit.left)
            self._say(
                f"{self._step(state)}  loss {logs['loss']:.4f}  "
                f"lr {logs.get('learning_rate', 0):.2e}  {rate}  {left} left"
            )
        self._mark(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        quiet = ("_runtime", "_per_second", "_preparation_time")
        shown = {k: v for k, v in (metrics or {}).items() if not k.endswith(quiet)}
        shown.pop("epoch", None)
        self._say(f"{self._step(state)}  " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        self._mark(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._mark(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _step(self, state: TrainerState) -> str:
        return f"step {state.global_step}" + (f"/{state.max_steps}" if self.limit is None else "")

    def _mark(self, state: TrainerState) -> None:
        """Speed is measured from here: evaluation and saving do not count as training."""
        self.since = time.monotonic()
        self.from_step = state.global_step

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            say(line)


class MetricsFile(TrainerCallback):
    """Each log event as one line of JSON."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / METRICS_FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What an earlier start wrote beyond the checkpoint that this one goes on from comes again."""
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            self.path.write_text("".join(line for line in lines if json.loads(line)["step"] <= state.global_step))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        with self.path.open("a") as lines:
            lines.write(json.dumps({"step": state.global_step, "time": round(time.time(), 3), **(logs or {})}) + "\n")


class Epochs(TrainerCallback):
    """Tells the data which epoch it is: under several processes accelerate tells only the sampler.

    Counted here, for Trainer calls every pass over a stream the first one.
    """

    epoch: int | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset = kwargs["train_dataloader"].dataset
        while hasattr(dataset, "dataset"):  # accelerate's shard around a stream
            dataset = dataset.dataset
        self.epoch = int(state.epoch or 0) if self.epoch is None else self.epoch + 1
        dataset.set_epoch(self.epoch)


class StopOnSignal(TrainerCallback):
    """A signal to end: finish the step, save a checkpoint, stop. A second one leaves at once."""

    def __init__(self) -> None:
        self.received = 0  # by this process, at any moment: also while the ranks agree
        self.signal = 0  # what they agreed on
        self.stopped = False  # training was ended by it, before its last step

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Signals that come in here are noted; what they did before holds again afterwards."""
        before = {number: signal.signal(number, self._note) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.signal = self.received
        if args.world_size > 1:
            if args.device.type != "cpu" and state.global_step % AGREE_EVERY:
                return
            agreed = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
            self.signal = int(agreed)
        if self.signal and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
