"""Blocks of several sources in exact proportions, each source in passes of its own."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit.data.text.pack import Blocks, Window


class MixedBlocks(Dataset[Window]):
    """Position i is the i-th draw: read in order, the sources follow one another in proportion to their weights.

    An epoch has as many draws as all sources together have blocks. Of N draws a source of weight w has w N, the k-th
    of them at (k + 1/2) / (w N) of the epoch: so every stretch of it, and not only the whole, has the proportions.
    From epoch to epoch a source goes on where it was. Its blocks come in passes, each in an order of its own: one that
    is small for its weight comes again and again, one that is large waits. `Window.epoch` counts the passes, from
    which tasks draw.

    Held in memory: 6 bytes a draw, and 8 a block of the passes that are being read.
    """

    def __init__(self, parts: Mapping[str, Blocks], weights: Mapping[str, float], seed: int) -> None:
        self.parts = dict(parts)
        self.seed = seed
        self.sizes = np.array([len(part) for part in self.parts.values()])
        self.before = np.concatenate([[0], np.cumsum(self.sizes)])  # what is added to a block's number, to be unique
        given = np.array([weights[name] for name in self.parts])
        self.shares = given / given.sum()
        self.counts = _whole_numbers(self.shares * self.sizes.sum())
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts if count])
        order = np.argsort(places, kind="stable")
        source = np.repeat(np.arange(len(self.counts), dtype=np.uint16), self.counts)
        rank = np.concatenate([np.arange(count, dtype=np.uint32) for count in self.counts])
        self.source, self.rank = source[order], rank[order]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of each source the pass that is being read
        # In shared memory: data workers that outlive an epoch must see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Window:
        if not 0 <= position < len(self):
            raise IndexError(f"draw {position} of {len(self)}")
        number = int(self.source[position])
        drawn = int(self._epoch) * int(self.counts[number]) + int(self.rank[position])
        passed, place = divmod(drawn, int(self.sizes[number]))
        block = int(self._order(number, passed)[place])
        window = list(self.parts.values())[number][block]
        return Window(window.ids, window.starts, int(self.before[number]) + block, passed)

    def _order(self, number: int, passed: int) -> np.ndarray:
        known = self._orders.get(number)
        if known is None or known[0] != passed:
            drawn = np.random.default_rng([self.seed, number, passed]).permutation(int(self.sizes[number]))
            self._orders[number] = known = passed, drawn
        return known[1]

    def lines(self, blocks: float) -> Iterator[str]:
        """Each source's share of the blocks, and how often so many blocks in all go through it."""
        for name, epochs in self.epochs(blocks).items():
            yield f"{name}: {self.share(name):.1%} of the blocks, {epochs:.2f} epochs"

    def share(self, name: str) -> float:
        """The source's part of the blocks."""
        return float(self.shares[list(self.parts).index(name)])

    def epochs(self, blocks: float) -> dict[str, float]:
        """How often each source is gone through in so many blocks of the mixture."""
        return {
            name: float(share * blocks / size)
            for name, share, size in zip(self.parts, self.shares, self.sizes, strict=True)
        }


def _whole_numbers(wanted: np.ndarray) -> np.ndarray:
    """Whole numbers with the same sum, each less than one from what is wanted (the largest remainders round up)."""
    found = np.floor(wanted).astype(np.int64)
    missing = round(float(wanted.sum())) - int(found.sum())
    found[np.argsort(found - wanted, kind="stable")[:missing]] += 1
    return found
