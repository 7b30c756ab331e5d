"""A training that ends by the clock (`--max-time`), and whose learning rate follows the time that has passed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from llmkit.errors import UserError, say
from llmkit.runs.compatibility import in_steps
from llmkit.training.schedule import PARTS

TICKS = 10_000  # steps that the schedule is made for where the recipe names none: as fine as anybody would notice
NO_END = 10**9  # steps: the time is up before


def clock(seconds: float) -> str:
    """Write seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class MaxTime(TrainerCallback):
    """Ends training `seconds` after its first step began, and sets the learning rate by the share that has passed.

    The schedule is the recipe's own, over `trainer.max_steps` steps (or TICKS) stretched or shortened to the time; a
    warm-up that is given as a number of steps stays one, and what follows it gets the rest of the time. Whatever
    happens in between counts: evaluation and saving too. The step in which the time runs out is the last, and is
    saved and evaluated as the last of `max_steps` would be. All processes follow the clock of the first one, which
    costs an accelerator a synchronisation a step. A checkpoint holds the time that had passed.

    Raises UserError for a schedule that is not a function of the step, and for what the recipe gives as a share of its
    steps.
    """

    def __init__(self, seconds: int, args: TrainingArguments, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.now = now
        self.passed = 0.0  # seconds
        self.warm = 0.0  # of these, when the warm-up was over
        self._before = 0.0  # passed when this process began
        self._since: float | None = None
        self.by_steps = args.warmup_steps >= 1
        self.warmup = args.get_warmup_steps(args.max_steps if args.max_steps > 0 else TICKS)
        self.length = args.max_steps if args.max_steps > 0 else TICKS + self.by_steps * self.warmup
        self.factor = _schedule(args, self.warmup, self.length)
        for kind in ("logging", "eval", "save"):
            steps = getattr(args, f"{kind}_steps")
            if getattr(args, f"{kind}_strategy") == "steps" and steps is not None and 0 < steps < 1:
                raise UserError(
                    f"trainer.{kind}_steps = {steps:g} is a share of the steps, and with --max-time their number "
                    "is not "
                    "known in advance",
                    "give a number of steps",
                )

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return max(0.0, self.seconds - self.passed)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saved = state.stateful_callbacks.get("max_time")
        if saved is not None:
            self.load_state_dict(saved)
            if args.process_index == 0:
                say(
                    f"{clock(self.left)} of {clock(self.seconds)} are left; with --max-time the number of steps "
                    "varies, so "
                    "the final weights will differ from those of an uninterrupted run"
                )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._since is None:
            self._since = self.now()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the learning rate of the step that is about to be made; if the time is up, it is the last."""
        assert self._since is not None
        self.passed = self._before + self.now() - self._since
        if args.world_size > 1:  # one clock, or the learning rates and with them the weights would drift apart
            shared = torch.tensor(self.passed, device=args.device)
            torch.distributed.broadcast(shared, 0)
            self.passed = float(shared)
        if self.by_steps and state.global_step <= self.warmup:
            self.warm = self.passed
        scheduler, factor = kwargs["lr_scheduler"], self.factor(self._position(state.global_step))
        scheduler._last_lr = [rate * factor for rate in scheduler.base_lrs]  # what Trainer logs
        for group, rate in zip(kwargs["optimizer"].param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate
        state.stateful_callbacks["max_time"] = self.state_dict()
        if self.passed >= self.seconds:
            state.max_steps = state.global_step + 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.max_steps = args.max_steps  # Trainer divides by it what it thinks of `NO_END` steps

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps, in seconds."""
        return {"passed": self.passed, "warm": self.warm}

    def load_state_dict(self, saved: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._before, self.warm = saved["passed"], saved["warm"]
        self.passed = self._before

    def _position(self, step: int) -> float:
        """Return where in the schedule, 0..length, a step stands that is made now."""
        if not self.by_steps:
            return min(1.0, self.passed / self.seconds) * self.length
        if step <= self.warmup:
            return float(step)
        share = min(1.0, (self.passed - self.warm) / max(self.seconds - self.warm, 1e-9))
        return self.warmup + share * (self.length - self.warmup)


def _schedule(args: TrainingArguments, warmup: int, length: int) -> Callable[[float], float]:
    """Return the factor of the learning rate as a function of the position in the schedule, 0..length."""
    settings = args.lr_scheduler_kwargs or {}
    shares = {key: in_steps(value, length) for key, value in settings.items() if key in PARTS and 0 < value < 1}
    kind = args.lr_scheduler_type
    counted = [key for key in ("num_decay_steps", "num_stable_steps", "timescale") if key in settings.keys() - shares]
    if counted and args.max_steps <= 0:
        raise UserError(
            f"trainer.lr_scheduler_kwargs.{counted[0]} is a number of steps, and with --max-time their total is not "
            "known in advance",
            "also set trainer.max_steps: the number is then converted to the same share of the time",
        )
    if args.deepspeed is not None or "layerwise" in args.optim:
        which = "DeepSpeed" if args.deepspeed is not None else f'trainer.optim = "{args.optim.value}"'
        raise UserError(f"--max-time does not work with {which}, which sets the learning rate itself", "leave one out")
    nothing = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        scheduler = get_scheduler(kind, nothing, warmup, length, {**settings, **shares})
    except (TypeError, ValueError) as problem:
        raise UserError(f"[trainer]: {' '.join(str(problem).split())}") from problem
    if not isinstance(scheduler, LambdaLR):
        raise UserError(
            f'--max-time does not work with trainer.lr_scheduler_type = "{kind.value}", which follows the loss',
            'use a fixed schedule, such as "cosine" or "linear"',
        )
    factor: Callable[[float], float] = scheduler.lr_lambdas[0]
    return factor
