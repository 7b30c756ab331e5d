"""Every step is looked at before it is taken: one whose loss or gradient is not finite changes nothing."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmkit.recipe.schema import Guard as Table

READ_EVERY = 10  # steps between two looks at what an accelerator has found, for each look waits for it
WINDOW = 128  # steps whose loss and gradient norm a spike is held against
ENOUGH = 64  # of them, before anything is called a spike


@dataclass(frozen=True)
class Skipped:
    """A step that was not taken, why, and the examples of its batch by their number in the training data."""

    step: int
    loss: float
    grad_norm: float
    spike: bool
    examples: list[int]
    in_a_row: int
    overflow: bool = False  # the loss was finite: its scale was too large, and the scaler lowers it


class Guard:
    """Checks each step on its device, without waiting for it, and remembers what to tell.

    A spike (with `table.spike_sigma`) is a loss or gradient norm further above the mean of the last WINDOW steps than
    so many of their standard deviations. What was skipped does not enter the window: one NaN in it would make every
    later comparison false. With a loss scale (`scaled`, of fp16) gradients overflow until it is small enough: such a
    step is told of, and does not count among those in a row that end a run.
    """

    def __init__(self, table: Table, device: torch.device, scaled: bool = False) -> None:
        self.table = table
        self.scaled = scaled
        self.every = 1 if device.type == "cpu" else READ_EVERY
        self.in_a_row = 0  # as far as has been read
        self._zero = torch.zeros((), device=device)
        self._counted = torch.zeros((), device=device)  # steps since the last `drain` that were taken
        self._waiting: deque[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, Sequence[Any]]] = deque()
        if table.spike_sigma is not None:
            self._window = torch.zeros(2, WINDOW, device=device)
            self._filled = torch.zeros((), dtype=torch.int64, device=device)

    def check(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, examples: Sequence[Any]) -> torch.Tensor:
        """Check a step before it is taken.

        Args:
            step: its number.
            loss: of the whole step, the same on every process where `table.spike_sigma` is set.
            grad_norm: of the whole step.
            examples: the numbers of its batches' examples, a tensor a batch.

        Returns:
            Whether it may be taken (bool, on the device).
        """
        norm = grad_norm.detach().to(loss.device)  # of weights that FSDP offloads, it is on the CPU
        figures = torch.stack([loss.detach().float(), norm.float()])
        finite = figures.isfinite().all()
        ok = finite
        if self.table.spike_sigma is not None:
            ok = finite & ~self._is_spike(figures)
            here = torch.arange(WINDOW, device=figures.device) == self._filled % WINDOW
            self._window = torch.where(here & ok, figures[:, None], self._window)
            self._filled += ok
        return self.note(step, ok, finite, figures, examples)

    def note(
        self, step: int, ok: torch.Tensor, finite: torch.Tensor, figures: torch.Tensor, examples: Sequence[Any]
    ) -> torch.Tensor:
        """Count a step that is taken if it is `ok`; return that.

        `finite` is whether its `figures`, loss and gradient norm, are; `step` and `examples` are those of `check`.
        """
        self._counted += ok
        self._waiting.append((step, ok, finite, figures, examples))
        return ok

    def _is_spike(self, figures: torch.Tensor) -> torch.Tensor:
        filled = torch.arange(WINDOW, device=figures.device) < self._filled
        number = filled.sum().clamp(min=1)
        mean = (self._window * filled).sum(1) / number
        deviation = (((self._window - mean[:, None]) ** 2 * filled).sum(1) / number).sqrt()
        above: torch.Tensor = (figures > mean + self.table.spike_sigma * deviation).any() & (self._filled >= ENOUGH)
        return above

    def read(self, step: int, gather: Callable[[list[int]], list[int]], now: bool = False) -> list[Skipped]:
        """List the steps that were skipped since the last look.

        Args:
            step: the last one that was made; an accelerator is looked at every READ_EVERY steps.
            gather: from the numbers of this process to those of all.
            now: look whatever the step is.
        """
        if not now and step % self.every:
            return []
        skipped = []
        while self._waiting:
            at, ok, finite, figures, examples = self._waiting.popleft()
            if bool(ok):
                self.in_a_row = 0
                continue
            numbers = gather([int(number) for batch in examples for number in batch])
            loss, norm = figures.tolist()
            overflow = self.scaled and not bool(finite) and not any(gather([int(not math.isfinite(loss))]))
            self.in_a_row += not overflow
            skipped.append(Skipped(at, loss, norm, bool(finite), numbers, self.in_a_row, overflow))
        return skipped

    def drain(self) -> int:
        """Return how many steps were taken since the last call."""
        taken = int(self._counted)
        self._counted = torch.zeros_like(self._counted)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        saved: dict[str, Any] = {"in_a_row": self.in_a_row, "counted": int(self._counted)}
        if self.table.spike_sigma is not None:
            saved |= {"window": self._window.cpu(), "filled": int(self._filled)}
        return saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; other keys are ignored."""
        self.in_a_row = saved["in_a_row"]
        self._counted = self._zero + saved["counted"]
        if self.table.spike_sigma is not None and "window" in saved:
            self._window = saved["window"].to(self._zero.device)
            self._filled = torch.tensor(saved["filled"], device=self._zero.device)


def skip_step(
    optimizer: Any, parameters: Sequence[torch.nn.Parameter], ok: torch.Tensor, on_device: bool = True
) -> None:
    """Skip the optimizer's next step unless it is `ok`: parameters, moments and step counts stay as they are.

    Args:
        optimizer: torch's, or Accelerate's wrapper around it.
        parameters: what it trains.
        ok: whether the step may be taken (bool, on the device).
        on_device: fused Adam and AdamW read `ok` themselves (torch/optim/adam.py, `found_inf`), where their weights
            are on its device. For others it is waited for, and the gradients are taken away.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    on_device = on_device and all(parameter.device.type == ok.device.type for parameter in parameters)
    if on_device and isinstance(inner, torch.optim.Adam) and all(group.get("fused") for group in inner.param_groups):
        inner.found_inf = (~ok).float()
    elif not bool(ok):
        for parameter in parameters:
            parameter.grad = None
