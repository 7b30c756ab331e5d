"""Mix blocks of several sources in exact proportions, each source in passes of its own."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit.data.text.pack import Blocks, Window


class MixedBlocks(Dataset[Window]):
    """Interleave the blocks of several sources in proportion to their weights; item i is the i-th draw.

    An epoch has as many draws as all sources together have blocks. Of N draws a source of weight w has w N, the k-th
    of them at (k + 1/2) / (w N) of the epoch, so that every stretch of it has the proportions, and not only the whole.
    From epoch to epoch a source continues where it was. Its blocks come in passes, each in an order of its own: a
    source that is small for its weight is repeated, and a large one is not read to its end. `Window.epoch` counts the
    passes, and tasks draw from it.

    Held in memory: 6 bytes a draw, and 8 a block of the passes that are being read.
    """

    def __init__(self, parts: Mapping[str, Blocks], weights: Mapping[str, float], seed: int) -> None:
        self.parts = dict(parts)
        self.seed = seed
        self.sizes = np.array([len(part) for part in self.parts.values()])
        self.before = np.concatenate(
            [[0], np.cumsum(self.sizes)]
        )  # added to the number of a block, so that it is unique
        ordered = np.array([weights[name] for name in self.parts])
        self.shares = ordered / ordered.sum()
        self.counts = _round_to_sum(self.shares * self.sizes.sum())
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts if count])
        order = np.argsort(times, kind="stable")
        source = np.repeat(np.arange(len(self.counts), dtype=np.uint16), self.counts)
        rank = np.concatenate([np.arange(count, dtype=np.uint32) for count in self.counts])
        self.source, self.rank = source[order], rank[order]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # by source: the pass that is being read, and its order
        # In shared memory: data workers that outlive an epoch must see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the windows that follow; called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Window:
        if not 0 <= position < len(self):
            raise IndexError(f"draw {position} of {len(self)}")
        number = int(self.source[position])
        drawn = int(self._epoch) * int(self.counts[number]) + int(self.rank[position])
        passed, position = divmod(drawn, int(self.sizes[number]))
        block = int(self._order(number, passed)[position])
        window = list(self.parts.values())[number][block]
        return Window(window.ids, window.starts, int(self.before[number]) + block, passed)

    def _order(self, number: int, passed: int) -> np.ndarray:
        current = self._orders.get(number)
        if current is None or current[0] != passed:
            order = np.random.default_rng([self.seed, number, passed]).permutation(int(self.sizes[number]))
            self._orders[number] = current = passed, order
        return current[1]

    def lines(self, blocks: float) -> Iterator[str]:
        """Yield a line for each source: its share of the blocks, and its epochs in `blocks` blocks of the mixture."""
        for name, epochs in self.epochs(blocks).items():
            yield f"{name}: {self.share(name):.1%} of the blocks, {epochs:.2f} epochs"

    def share(self, name: str) -> float:
        """Return the source's share of the blocks."""
        return float(self.shares[list(self.parts).index(name)])

    def epochs(self, blocks: float) -> dict[str, float]:
        """Count the epochs of each source in `blocks` blocks of the mixture."""
        return {
            name: float(share * blocks / size)
            for name, share, size in zip(self.parts, self.shares, self.sizes, strict=True)
        }


def _round_to_sum(numbers: np.ndarray) -> np.ndarray:
    """Round numbers to whole ones with the same sum, each by less than one (the largest remainders round up)."""
    rounded = np.floor(numbers).astype(np.int64)
    missing = round(float(numbers.sum())) - int(rounded.sum())
    rounded[np.argsort(rounded - numbers, kind="stable")[:missing]] += 1
    return rounded
