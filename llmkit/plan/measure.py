"""Train a few steps of a recipe, as a run does, in a folder that is thrown away: how long they take."""

import io
import time
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback

from llmkit import temporary
from llmkit.recipe.schema import Recipe
from llmkit.recipe.table import ReadOnly
from llmkit.training import train

WARM, STEPS = 2, 10  # the first steps are slower: kernels are chosen, the optimizer's state is made


@dataclass(frozen=True)
class Measured:
    """Steps that were trained: wall-clock seconds of each, processor seconds of all, the most memory of the process."""

    seconds: tuple[float, ...]
    processor_seconds: float
    peak_bytes: int

    @property
    def step(self) -> float:
        """Seconds of a step, the mean."""
        return sum(self.seconds) / len(self.seconds)


class _Enough(BaseException):
    """All steps are measured."""


class _Watch(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.ends.append(time.monotonic())
        if len(self.ends) == WARM:
            self.processor = time.process_time()
        if len(self.ends) == WARM + STEPS:
            self.processor = time.process_time() - self.processor
            raise _Enough


def measure(recipe: Recipe) -> Measured:
    """Train WARM steps and then STEPS that are timed; raise UserError as the run would."""
    short: dict[str, Any] = {
        "max_steps": WARM + STEPS,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "eval_on_start": False,
        "report_to": [],
        "logging_steps": WARM + STEPS,
    }
    without = {"early_stopping": None, "samples": None, "fits_rows": False}
    recipe = recipe.model_copy(update={"trainer": ReadOnly({**recipe.trainer, **short}), **without})
    watch = _Watch()
    with temporary.folder() as folder, redirect_stderr(io.StringIO()), suppress(_Enough):
        train.run(recipe, folder, resume=False, watch=watch)
    ends = watch.ends[WARM - 1 :]
    times = tuple(later - earlier for earlier, later in pairwise(ends))
    return Measured(times, watch.processor, train.peak_memory())
