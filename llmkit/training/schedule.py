"""The course of the learning rate over a run: how much of it is warm-up and decay, and what another length changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.runs.compatibility import in_steps

PARTS = ("num_stable_steps", "num_decay_steps")  # of lr_scheduler_kwargs: numbers of steps, or shares of them
WARMUP = 0.1  # the share of a run whose warm-up, as it was asked for, would leave nothing to what follows it
WITHOUT = ("constant", "reduce_lr_on_plateau", "greedy")  # schedules that have no warm-up
MANY_EPOCHS = 100  # of a text: a model knows it by heart long before
FEW_STEPS = 20  # in an epoch: with smaller batches there are more
DECAYING = "warmup_stable_decay"  # until its decay it is the same, however long the run


@dataclass(frozen=True)
class Schedule:
    """A learning rate as [trainer] asks for it.

    `rate` is its peak, `warmup` a number of steps or below 1 a share of them, `settings` are lr_scheduler_kwargs.
    """

    kind: str = "linear"
    rate: float = 5e-5
    warmup: float = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    fits: bool = True  # parts that are too long for the run are shortened

    @classmethod
    def of(cls, args: TrainingArguments, fits: bool = True) -> "Schedule":
        """Return that of upstream's arguments."""
        return cls(
            args.lr_scheduler_type.value, args.learning_rate, args.warmup_steps, args.lr_scheduler_kwargs or {}, fits
        )

    def fit(self, args: TrainingArguments, steps: int) -> str:
        """Let the arguments ask for the parts of a run of `steps`; return in words what did not fit into it, or ""."""
        warmup, settings, words = self.parts(steps)
        if settings != self.settings:
            args.lr_scheduler_kwargs = settings
        if words:
            args.warmup_steps = warmup
        return words

    def parts(self, steps: int) -> tuple[int, dict[str, Any], str]:
        """Return warm-up steps and settings for a run of `steps`; and in words what did not fit into it, or ""."""
        given = {"warmup_steps": self.warmup} | {key: self.settings[key] for key in PARTS if self.settings.get(key)}
        asked = {key: in_steps(value, steps) for key, value in given.items()}
        total, counts = sum(asked.values()), dict(asked)
        fits = not self.fits or self.kind in WITHOUT
        if not fits and len(asked) > 1 and total > steps:
            counts = {key: count * steps // total for key, count in asked.items()}
        elif not fits and len(asked) == 1 and 0 < steps <= total:
            counts = {
                "warmup_steps": max(1, int(WARMUP * steps)) if steps > 1 else 0
            }  # else the only step learns nothing
        changed = {key: count for key, count in counts.items() if count != asked[key]}
        names = {key: f"trainer.{'' if key == 'warmup_steps' else 'lr_scheduler_kwargs.'}{key}" for key in changed}
        said = ", ".join(f"{names[key]} = {asked[key]:,} becomes {count:,}" for key, count in changed.items())
        words = f"the schedule does not fit into {steps:,} steps and is scaled: {said}" if said else ""
        return counts.pop("warmup_steps"), {**self.settings, **counts}, words

    def rates(self, steps: int) -> Callable[[int], float] | None:
        """Return the learning rate by the number of steps made, in a run of `steps`; None if it follows the loss."""
        import torch
        from torch.optim.lr_scheduler import LambdaLR
        from transformers import get_scheduler

        warmup, settings, _ = self.parts(steps)
        nothing = torch.optim.SGD([torch.zeros(1)], lr=self.rate)
        scheduler = get_scheduler(self.kind, nothing, warmup, steps, settings)
        if not isinstance(scheduler, LambdaLR):
            return None
        factor = scheduler.lr_lambdas[0]
        return lambda step: float(self.rate * factor(step))

    def is_same(self, before: int, now: int, step: int, warm: bool = False) -> bool:
        """Tell whether runs of `before` and of `now` steps have the same learning rates up to `step`.

        With `warm` those of a warm-up do not count, which must be over in both.
        """
        old, new = self.rates(before), self.rates(now)
        first = self._warm(before, now) if warm else 0
        return old is None or new is None or (first <= step and all(old(n) == new(n) for n in range(first, step)))

    def longer(self, before: int, now: int, step: int) -> str:
        """Say what becomes of the learning rate where a run of `before` steps goes on from `step` as one of `now`."""
        old, new = self.rates(before), self.rates(now)
        rate = f'the learning rate ("{self.kind}")'
        if old is None or new is None:
            return f"{rate} goes on unchanged"
        if self.is_same(before, now, step):
            return f"{rate} goes on unchanged: up to step {step:,} it is the same for {now:,} and for {before:,} steps"
        if step > self._warm(before, now) and self.is_same(before, now, step + 1, warm=True):
            return f"{rate} goes on at {new(step):.2g}; only the warm-up differs from that of a run of {now:,} steps"
        return (
            f"{rate} is stretched from {before:,} to {now:,} steps: it was {old(step):.2g} and goes on from "
            f"{new(step):.2g}; a run of {now:,} steps from the start would have other values up to here"
        )

    def _warm(self, *lengths: int) -> int:
        """Return the step at which the warm-up is over in runs of all these lengths."""
        return max(self.parts(steps)[0] for steps in lengths)


def repetition(recipe: Recipe, steps: int | None, an_epoch: float | None) -> str:
    """Say that pretraining repeats a text too often for as many `steps` as the recipe has, or return "".

    `an_epoch` is the number of steps in an epoch. Of either, None is a number that is not known.
    """
    asked = recipe.task in PRETRAINING and recipe.trainer.get("max_steps", -1) > 0
    if not asked or steps is None or an_epoch is None or (epochs := steps / max(an_epoch, 1)) <= MANY_EPOCHS:
        return ""
    words = ["trainer.max_steps=", "trainer.num_train_epochs=10"]
    words += ["data.global_batch_size=8"] if an_epoch < FEW_STEPS else []
    words += ["model.init=pretrained"] if recipe.model.name is not None and recipe.model.init == "scratch" else []
    return f"{steps:,} steps are {epochs:,.0f} epochs, far more than so little text can teach; try {' '.join(words)}"
