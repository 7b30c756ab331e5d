"""The row of tokens becomes blocks: windows over running text, or each document in pieces of its own."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from llmkit.data.text.documents import Documents
from llmkit.data.text.token_cache import TokenRow, cache_dir, new_cache_entry, tokenize_documents
from llmkit.data.text.tokenize import encode, encoded, encoder
from llmkit.errors import UserError, say

__all__ = [
    "EVALUATION",
    "Blocks",
    "Cut",
    "Endless",
    "StreamedBlocks",
    "TokenRow",
    "Window",
    "cache_dir",
    "encode",
    "materialize",
    "new_cache_entry",
    "tokenize_documents",
]

EVALUATION = 2**32 - 1  # the epoch of evaluation: whatever is drawn for it is the same every time
GROUP = 256  # documents whose pieces are counted together: a count for each would not be constant memory
STREAMED = 2**17  # characters of a stream that are tokenized at once: it is read no further ahead than that


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens, their place in the data, and the epoch: all that a task may draw its randomness from.

    `starts` are the places in `ids` where a document begins (int64, ascending); 0 is not among them where the window
    goes on with a document that began before it.
    """

    ids: np.ndarray
    starts: np.ndarray
    index: int
    epoch: int


@dataclass(frozen=True)
class Cut:
    """How a row is cut: into windows of `length` tokens, one every `stride`, over all of it.

    `length = stride + 1` lets a block end in the token that the next one begins with, so that every token but the very
    first is predicted once. With `within_documents` no block holds text of two documents: one of n tokens is cut into
    ceil(n / length) pieces, whose lengths differ by one token at most, and `stride` says nothing.
    """

    length: int
    stride: int
    within_documents: bool = False


class Blocks(Dataset[Window]):
    """The row cut into blocks: block i is the same whoever asks for it.

    `tail` tokens at the end are in no block: fewer than a block, unless `limit` cuts more off.
    """

    def __init__(self, row: TokenRow, cut: Cut, limit: int | None, *, evaluation: bool = False) -> None:
        self.row = row
        self.cut = cut
        if cut.within_documents:
            counts = [_pieces(row.ends, first, cut)[1].sum() for first in range(0, row.num_documents, GROUP)]
            self._before = np.cumsum([0, *counts])  # blocks before each group of documents
            available = int(self._before[-1])
        else:
            available = max(0, (len(row.ids) - cut.length) // cut.stride + 1)
        self.num_blocks = min(available, limit) if limit else available
        self.tail = len(row.ids) - (self._bounds(self.num_blocks - 1)[1] if self.num_blocks else 0)
        self.evaluation = evaluation
        # In shared memory: data workers that outlive an epoch must see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        begin, end = self._bounds(index)
        ids = self.row.ids[begin:end].astype(np.int64)
        ends = self.row.ends
        starts = ends[ends.searchsorted(begin) : ends.searchsorted(end)]
        if len(starts) > 1:  # of documents without a token several end in one place
            starts = np.unique(starts)
        if begin == 0 and not (len(starts) and starts[0] == 0):
            starts = np.append(0, starts)
        return Window(ids, starts - begin, index, EVALUATION if self.evaluation else int(self._epoch))

    def _bounds(self, index: int) -> tuple[int, int]:
        """The tokens of a block: from which to before which of the row."""
        if not self.cut.within_documents:
            begin = index * self.cut.stride
            return begin, begin + self.cut.length
        group = int(np.searchsorted(self._before, index, "right")) - 1
        ends, counts = _pieces(self.row.ends, group * GROUP, self.cut)
        before = np.append(0, np.cumsum(counts))
        piece = index - int(self._before[group])
        document = int(np.searchsorted(before, piece, "right")) - 1
        return _piece(
            int(ends[document]), int(ends[document + 1]), piece - int(before[document]), int(counts[document])
        )


def _pieces(ends: np.ndarray, first: int, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    """Of a GROUP of documents from the `first` on: where each begins and the last ends, and how many pieces it has."""
    bounds = np.append(ends[first - 1] if first else 0, ends[first : first + GROUP])
    return bounds, -(-np.diff(bounds) // cut.length)


def _piece(begin: int, end: int, index: int, count: int) -> tuple[int, int]:
    """Where piece `index` of `count` of a document begins and ends, whose tokens are those from `begin` to `end`."""
    return begin + index * (end - begin) // count, begin + (index + 1) * (end - begin) // count


class StreamedBlocks(IterableDataset[Window]):
    """The same blocks, cut while the documents are read, for data that does not fit on the disk."""

    def __init__(self, documents: Documents, tokenizer: Any, separator: list[int], cut: Cut, limit: int | None) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.separator = separator
        self.cut = cut
        self.limit = limit
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Window]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UserError("a stream is read by one worker at most", "set trainer.dataloader_num_workers = 1 or 0")
        return islice(self.windows(), self.limit)

    def windows(self) -> Iterator[Window]:
        """Every block, whatever the limit."""
        pending = np.empty(0, np.int64)  # tokens that are in no block yet
        begins = np.zeros(1, np.int64)  # where documents begin among them, or where the next one will
        index = 0
        for added in encoded(self.documents, encoder(self.tokenizer), self.separator, STREAMED):
            begins = np.unique(np.append(begins, len(pending) + np.array(added.ends, np.int64)))
            pending = np.append(pending, np.frombuffer(added.ids, np.int64))
            done = 0
            for begin, end in self._bounds(begins, len(pending)):
                starts = begins[np.searchsorted(begins, begin) : np.searchsorted(begins, end)] - begin
                yield Window(pending[begin:end].copy(), starts, index, int(self._epoch))
                done = end if self.cut.within_documents else begin + self.cut.stride
                index += 1
            pending, begins = pending[done:], begins[begins >= done] - done

    def _bounds(self, begins: np.ndarray, number: int) -> Iterator[tuple[int, int]]:
        """The blocks that can be cut from `number` tokens; of documents those that are whole."""
        if not self.cut.within_documents:
            for begin in range(0, number - self.cut.length + 1, self.cut.stride):
                yield begin, begin + self.cut.length
            return
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            count = -(-(end - begin) // self.cut.length)
            yield from (_piece(begin, end, piece, count) for piece in range(count))


class Endless(IterableDataset[Window]):
    """Pass after pass over a stream: Trainer would not tell it in which one a run goes on.

    The first `skip` blocks are passed over: to be where a run was, a stream is read and tokenized again up to there.
    With `buffer_size` blocks come in random order: each time one of so many that wait is drawn, by seed and pass.
    """

    def __init__(self, stream: StreamedBlocks, buffer_size: int | None = None, seed: int = 0) -> None:
        self.stream, self.buffer_size, self.seed = stream, buffer_size, seed
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the passes are counted here."""

    def __iter__(self) -> Iterator[Window]:
        begun, blocks = time.monotonic(), self._all()
        if self.skip:
            next(islice(blocks, self.skip - 1, None), None)
            say(
                f"read {self.skip:,} blocks of the stream again, to go on behind them: {time.monotonic() - begun:.1f} s"
            )
        return blocks

    def _all(self) -> Iterator[Window]:
        for epoch in count():
            self.stream.set_epoch(epoch)
            yield from self.stream if self.buffer_size is None else self._shuffled(self.buffer_size, epoch)

    def _shuffled(self, size: int, epoch: int) -> Iterator[Window]:
        draw = np.random.default_rng([self.seed, epoch])
        waiting: list[Window] = []
        for window in self.stream:
            if len(waiting) < size:
                waiting.append(window)
                continue
            place = int(draw.integers(size))
            drawn, waiting[place] = waiting[place], window
            yield drawn
        for place in draw.permutation(len(waiting)):
            yield waiting[place]


def materialize(stream: StreamedBlocks, limit: int) -> TokenRow:
    """A row that gives the first `limit` blocks of a stream when it is cut with that limit: validation is read often.

    Of documents that are cut one by one, the last is kept whole. How many bytes the tokens stand for is not known (0).
    """
    cut = stream.cut
    limit = min(limit, stream.limit or limit)
    ids: list[np.ndarray] = []
    begins: list[int] = []
    number = 0
    for window in stream.windows():
        begun = window.index >= limit
        if begun and (not cut.within_documents or len(window.starts)):
            break
        overlap = cut.length - cut.stride if ids and not cut.within_documents else 0
        begins += [number - overlap + start for start in window.starts.tolist() if start >= overlap]
        ids.append(window.ids[overlap:])
        number += len(ids[-1])
    ends = np.array([*begins[1:], number] if begins else [], np.int64)
    return TokenRow(np.concatenate(ids) if ids else np.empty(0, np.int64), ends, 0)
