"""What a run says while it trains: lines that stay, a bar below them in a terminal, `metrics.jsonl` on the disk."""

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.errors import say
from llmkit.metrics import evaluation_metrics
from llmkit.runs.directory import METRICS_FILE
from llmkit.terminal import TOGETHER, USUAL, columns, is_terminal
from llmkit.training import samples
from llmkit.training.max_time import MaxTime
from llmkit.training.max_time import clock as clock
from llmkit.training.samples import Sample

WINDOW = 10  # steps that are timed together; the very first one, which is slower, does not count
ALIKE = 1.25  # the time left is said once a window takes at most so many times as long as the one beside it
ECHO = 3  # columns behind the bar, where a terminal shows Ctrl-C as ^C
LEAST_LEFT = 10  # seconds that are worth a line


class Progress(TrainerCallback):
    """Shows the lines, and the bar with what changes at every step, from the main process alone."""

    def __init__(self, per_step: int, unit: str, limit: MaxTime | None = None) -> None:
        self.per_step = per_step  # tokens, or examples
        self.unit = unit
        self.limit = limit  # the end, where the clock decides it
        self.bar: tqdm[Any] | None = None
        self.steps = 0  # of this process
        self.begun, self.seconds = 0.0, 0.0  # the step; in the steps of this window
        self.pace = 0.0  # seconds a step took in the window before
        self.told = False  # how much time is left

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_terminal(sys.stderr):
            self.bar = tqdm(
                total=state.max_steps if self.limit is None else self.limit.seconds,
                initial=state.global_step if self.limit is None else int(self.limit.passed),
                file=sys.stderr,
                unit="step",
                leave=False,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                + ("[{elapsed}<{remaining}]{postfix}" if self.limit is None else "s{postfix}"),
            )
            self.bar.dynamic_ncols = lambda stream: ((columns(sys.stderr) or USUAL) - ECHO, None)
        self._mark(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begun = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            with suppress(OSError):  # the terminal is gone, the run is not
                passed = 1 if self.limit is None else min(int(self.limit.passed), self.limit.seconds) - self.bar.n
                self.bar.update(passed)
        self.steps += 1
        if not self.told and self.limit is None:
            self._time(args, state)

    def _time(self, args: TrainingArguments, state: TrainerState) -> None:
        """Say how much time is left, once two windows took alike: steps that fill caches take several times as long."""
        ends = self.steps % WINDOW == 0
        if (ends or self.steps == 1) and args.device.type == "cuda":
            torch.cuda.synchronize(args.device)  # steps are only queued so far
        if self.steps > 1:
            self.seconds += time.monotonic() - self.begun
        if not ends:
            return
        before, self.pace = self.pace, self.seconds / (WINDOW - (self.steps == WINDOW))
        self.seconds = 0.0
        self.told = 0 < max(before, self.pace) <= ALIKE * min(before, self.pace)
        left = self.pace * (state.max_steps - state.global_step)
        if self.told and left >= LEAST_LEFT:
            say(f"time     about {clock(left)} of training left")

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
        line = f"{self._step(state)}  loss {logs['loss']:.4f}  lr {logs.get('learning_rate', 0):.2e}"
        if self.bar is not None:
            self.bar.set_postfix_str(rate, refresh=False)
            say(line)
        else:
            left = clock((state.max_steps - state.global_step) / speed) if speed else "?"
            left = left if self.limit is None else clock(self.limit.left)
            say(f"{line}  {rate}  {left} left")
        self._mark(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = evaluation_metrics(metrics or {})
        say(f"{self._step(state)}  " + "  ".join(f"{k}{TOGETHER}{v:.4f}" for k, v in shown.items()))
        self._mark(state)

    def on_samples(self, state: TrainerState, found: list[Sample]) -> None:
        width = (columns(sys.stderr) or USUAL) - len("sample   ")
        for sample in found:
            say(f"sample   {samples.line(sample, width)}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._mark(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()
            self.bar = None

    def _step(self, state: TrainerState) -> str:
        return f"step {state.global_step}" + (f"/{state.max_steps}" if self.limit is None else "")

    def _mark(self, state: TrainerState) -> None:
        """Measure speed from here on: evaluation and saving do not count as training."""
        self.since = time.monotonic()
        self.from_step = state.global_step


class MetricsFile(TrainerCallback):
    """Writes each log event as one line of JSON."""

    def __init__(self, directory: Path, per_step: int = 0, unit: str = "") -> None:
        self.path = directory / METRICS_FILE
        self.failed = False
        self.per_step, self.unit = per_step, unit  # tokens, or examples
        self.since, self.from_step = time.monotonic(), 0

    def _mark(self, state: TrainerState) -> None:
        """Measure speed from here on: evaluation and saving do not count as training."""
        self.since, self.from_step = time.monotonic(), state.global_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._mark(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._mark(state)

    @staticmethod
    def cut(directory: Path, length: int) -> None:
        """Keep the first `length` bytes: what an earlier start wrote beyond its checkpoint comes again."""
        path = directory / METRICS_FILE
        if path.exists():
            with path.open("r+b") as lines:
                lines.truncate(min(length, path.stat().st_size))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {key: _in_json(value) for key, value in (logs or {}).items()}
        seconds, steps = time.monotonic() - self.since, state.global_step - self.from_step
        if "loss" in figures and self.per_step and steps and seconds > 0:
            figures[f"{self.unit}_per_second"] = round(steps * self.per_step / seconds, 1)
            self._mark(state)
        self._write(state, figures)

    def on_samples(self, state: TrainerState, found: list[Sample]) -> None:
        self._write(state, {"samples": found})
        self._mark(state)

    def _write(self, state: TrainerState, figures: dict[str, Any]) -> None:
        line = json.dumps({"step": state.global_step, "time": round(time.time(), 3), **figures}) + "\n"
        try:
            with self.path.open("ab", buffering=0) as lines:
                before = lines.tell()
                if lines.write(line.encode()) != len(line):
                    lines.truncate(before)
        except OSError as problem:
            if not self.failed:
                say(f"warning  {self.path} cannot be written, and training goes on: {problem}")
            self.failed = True


def _in_json(value: Any) -> Any:
    """Write what is not finite as "nan" or "inf": JSON has no number for it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
