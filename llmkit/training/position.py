"""Where a run stands in its training data: counted in examples, so that it can resume with batches of another size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Position:
    """Counts the examples that were learned from, within the epoch and in all.

    `size` is the number of examples in an epoch, None for a stream, whose length is unknown. A step learns from
    `batch` examples, the last step of an epoch from what is left of it.
    """

    epoch: int = 0
    samples: int = 0  # of this epoch
    epoch_ended: bool = False  # what follows an epoch's last step, its evaluation and saving, has been done
    samples_seen: int = 0  # in all
    size: int | None = None
    offset: int = 0  # examples of this epoch that upstream cannot skip, since they are no whole number of steps

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint's manifest holds of this."""
        return {
            "epoch": self.epoch,
            "samples": self.samples,
            "epoch_ended": self.epoch_ended,
            "samples_seen": self.samples_seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken: after an epoch that is over, at the start of the next one.

        Needs the `size` of an epoch as it is now. Other keys of `state` are ignored.
        """
        self.epoch, self.samples = state["epoch"], state["samples"]
        self.epoch_ended, self.samples_seen = state["epoch_ended"], state["samples_seen"]
        if self.at_end and self.epoch_ended:
            self.start_epoch(self.epoch + 1)

    @property
    def at_end(self) -> bool:
        """Tell whether no example of the epoch is left."""
        return self.size is not None and self.samples >= self.size

    @property
    def epochs(self) -> float:
        """Epochs that were learned from; the last one counts by the share of its examples. Not of a stream."""
        assert self.size is not None
        return self.epoch + self.samples / self.size

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.samples, self.offset = epoch, 0, 0

    def advance(self, batch: int) -> None:
        """Count the examples of one step."""
        learned = batch if self.size is None else min(batch, self.size - self.samples)
        self.samples += learned
        self.samples_seen += learned

    def skip(self, batch: int) -> int:
        """Return how many steps of this epoch upstream is to skip.

        Where the examples are no whole number of steps, the epoch is over, or the data is a stream, that is none, and
        `offset` says how many examples are to be left out.
        """
        if self.size is None or self.at_end or self.samples % batch:
            self.offset = self.samples
            return 0
        return self.samples // batch

    def steps_made(self, batch: int, steps_per_epoch: int) -> int:
        """Return how many steps lead here with batches of this size."""
        return self.epoch * steps_per_epoch + math.ceil(self.samples / batch)

    def steps_left(self, batch: int) -> int:
        """Return how many steps the rest of this epoch takes."""
        assert self.size is not None
        return math.ceil((self.size - min(self.samples, self.size)) / batch)

    def last_step(self, step: int, epochs: float, batch: int, steps_per_epoch: int) -> int:
        """Return the step that ends `epochs` epochs (a fraction of one counts), where `step` led here."""
        return step + self.steps_left(batch) + math.ceil(epochs * steps_per_epoch) - (self.epoch + 1) * steps_per_epoch

    def num_epochs(self, steps: int, batch: int, steps_per_epoch: int) -> int:
        """Return how many epochs have begun when `steps` more steps are made; this one counts."""
        return self.epoch + 1 + math.ceil(max(0, steps - self.steps_left(batch)) / steps_per_epoch)
