"""Every step is looked at before it is taken: one whose loss or gradient is not finite changes nothing."""

from collections import deque
from collections.abc import Callable, Sequence
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


class Guard:
    """Judges each step on its device, without waiting for it, and remembers what to tell.

    A spike (with `table.spike_sigma`) is a loss or gradient norm further above the mean of the last WINDOW steps than
    so many of their standard deviations. What was skipped does not enter the window: one NaN in it would make every
    later comparison false.
    """

    def __init__(self, table: Table, device: torch.device) -> None:
        self.table = table
        self.every = 1 if device.type == "cpu" else READ_EVERY
        self.in_a_row = 0  # as far as has been read
        self._zero = torch.zeros((), device=device)
        self._counted = torch.zeros((), device=device)  # steps since the last `drain` that were taken
        self._waiting: deque[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, Sequence[Any]]] = deque()
        if table.spike_sigma is not None:
            self._window = torch.zeros(2, WINDOW, device=device)
            self._filled = torch.zeros((), dtype=torch.int64, device=device)

    def judge(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, examples: Sequence[Any]) -> torch.Tensor:
        """Whether `step` may be taken (bool, on the device). `examples` are the numbers of its batches' examples."""
        seen = torch.stack([loss.detach().float(), grad_norm.detach().float()])
        finite = seen.isfinite().all()
        fine = finite
        if self.table.spike_sigma is not None:
            fine = finite & ~self._is_spike(seen)
            here = torch.arange(WINDOW, device=seen.device) == self._filled % WINDOW
            self._window = torch.where(here & fine, seen[:, None], self._window)
            self._filled += fine
        self._counted += fine
        self._waiting.append((step, fine, finite, seen, examples))
        return fine

    def _is_spike(self, seen: torch.Tensor) -> torch.Tensor:
        there = torch.arange(WINDOW, device=seen.device) < self._filled
        number = there.sum().clamp(min=1)
        mean = (self._window * there).sum(1) / number
        deviation = (((self._window - mean[:, None]) ** 2 * there).sum(1) / number).sqrt()
        above: torch.Tensor = (seen > mean + self.table.spike_sigma * deviation).any() & (self._filled >= ENOUGH)
        return above

    def read(self, step: int, gather: Callable[[list[int]], list[int]], now: bool = False) -> list[Skipped]:
        """What was skipped since the last look; on an accelerator looked for every READ_EVERY steps, or `now`."""
        if not now and step % self.every:
            return []
        found = []
        while self._waiting:
            at, fine, finite, seen, examples = self._waiting.popleft()
            if bool(fine):
                self.in_a_row = 0
                continue
            self.in_a_row += 1
            numbers = gather([int(number) for batch in examples for number in batch])
            loss, norm = seen.tolist()
            found.append(Skipped(at, loss, norm, bool(finite), numbers, self.in_a_row))
        return found

    def drain(self) -> int:
        """How many steps were taken since the last call."""
        taken = int(self._counted)
        self._counted = torch.zeros_like(self._counted)
        return taken

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept: dict[str, Any] = {"in_a_row": self.in_a_row, "counted": int(self._counted)}
        if self.table.spike_sigma is not None:
            kept |= {"window": self._window.cpu(), "filled": int(self._filled)}
        return kept

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.in_a_row = kept["in_a_row"]
        self._counted = self._zero + kept["counted"]
        if self.table.spike_sigma is not None and "window" in kept:
            self._window = kept["window"].to(self._zero.device)
            self._filled = torch.tensor(kept["filled"], device=self._zero.device)


def forbid(
    optimizer: Any, parameters: Sequence[torch.nn.Parameter], fine: torch.Tensor, on_device: bool = True
) -> None:
    """Keep a step from being taken that is not `fine`: parameters, moments and step counts stay as they are.

    Fused Adam and AdamW read the verdict `on_device` (torch/optim/adam.py, `found_inf`). For others, and for weights
    that are spread over processes, it is waited for, and the gradients are taken away.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if on_device and isinstance(inner, torch.optim.Adam) and all(group.get("fused") for group in inner.param_groups):
        inner.found_inf = (~fine).float()
    elif not bool(fine):
        for parameter in parameters:
            parameter.grad = None
