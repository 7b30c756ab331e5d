"""The order in which a training goes through its examples, in bounded memory: 4 or 8 bytes an example."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

PART = 2**16  # numbers that are Python's own at a time, 32 bytes each


class Order(Sampler[int]):
    """Goes through examples by their `numbers`."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        for part in self.numbers.split(PART):
            yield from part.tolist()


class Shuffled(Sampler[int]):
    """Draws the order of `size` examples by `seed` and epoch.

    It is that of `accelerate.data_loader.SeedableRandomSampler`, by which earlier runs began. That makes a list of all
    numbers, and one more at its end: 8 GB in each process for 217 million blocks.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from Order(self.numbers())
        self.epoch += 1

    def numbers(self) -> torch.Tensor:
        """Draw this epoch's order, int32 where that does."""
        kind = torch.int32 if self.size < 2**31 else torch.int64
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch), dtype=kind)
