"""Cut a stream of tokens into blocks: windows over running text, or each document into blocks of its own."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from llmkit.data.text.documents import Documents
from llmkit.data.text.token_cache import TokenStream, is_whole, new_cache_entry, tokenize_documents
from llmkit.data.text.tokenize import encode, encoded, encoder
from llmkit.errors import UserError, say

__all__ = [
    "EVALUATION",
    "BlockSpec",
    "Blocks",
    "Endless",
    "EvaluationWindows",
    "StreamedBlocks",
    "TokenStream",
    "Unread",
    "Window",
    "encode",
    "is_whole",
    "materialize",
    "new_cache_entry",
    "tokenize_documents",
]

EVALUATION = 2**32 - 1  # the epoch of every evaluation, so that what is drawn for it is the same every time
GROUP = 256  # documents whose blocks are counted together: a count for each would not be constant memory
STREAMED = 2**17  # characters of a stream that are tokenized at once: no more is read ahead


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens, their index in the data, and the epoch: a task may draw its randomness from these alone.

    `starts` are the positions in `ids` where a document begins (int64, ascending). 0 is not among them where the window
    continues a document that began before it.
    """

    ids: np.ndarray
    starts: np.ndarray
    index: int
    epoch: int


@dataclass(frozen=True)
class BlockSpec:
    """How a stream of tokens is cut: into blocks of `length` tokens, one every `stride` tokens.

    With `length = stride + 1` a block ends in the token that the next one begins with, so that every token but the very
    first is predicted once. With `within_documents` no block holds text of two documents: one of n tokens becomes
    ceil(n / length) blocks, whose lengths differ by one token at most, and `stride` is ignored.
    """

    length: int
    stride: int
    within_documents: bool = False


class Blocks(Dataset[Window]):
    """Cut `tokens` into blocks, `limit` of them at most: block i is the same whoever asks for it.

    `tail` tokens at the end are in no block: fewer than a block, unless `limit` cuts off more. In `evaluation` the
    epoch of every block is EVALUATION.
    """

    def __init__(self, tokens: TokenStream, spec: BlockSpec, limit: int | None, *, evaluation: bool = False) -> None:
        self.tokens = tokens
        self.spec = spec
        if spec.within_documents:
            groups = range(0, tokens.num_documents, GROUP)
            counts = [_count_blocks(tokens.ends, first, spec)[1].sum() for first in groups]
            self._before = np.cumsum([0, *counts])  # blocks before each group of documents
            available = int(self._before[-1])
        else:
            available = max(0, (len(tokens.ids) - spec.length) // spec.stride + 1)
        self.num_blocks = min(available, limit) if limit else available
        self.tail = len(tokens.ids) - (self._bounds(self.num_blocks - 1)[1] if self.num_blocks else 0)
        self.evaluation = evaluation
        # In shared memory: data workers that outlive an epoch must see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the windows that follow; called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        begin, end = self._bounds(index)
        ids = self.tokens.ids[begin:end].astype(np.int64)
        ends = self.tokens.ends
        starts = ends[ends.searchsorted(begin) : ends.searchsorted(end)]
        if len(starts) > 1:  # documents without a token end where the one before them ends
            starts = np.unique(starts)
        if begin == 0 and not (len(starts) and starts[0] == 0):
            starts = np.append(0, starts)
        return Window(ids, starts - begin, index, EVALUATION if self.evaluation else int(self._epoch))

    def begin(self, index: int) -> int:
        """Return the place of a block's first token in the stream."""
        return self._bounds(index)[0]

    @property
    def stream(self) -> TokenStream:
        """All tokens, as `begin` counts them."""
        return self.tokens

    def _bounds(self, index: int) -> tuple[int, int]:
        """Find the tokens of a block: the index of its first, and the index behind its last."""
        if not self.spec.within_documents:
            begin = index * self.spec.stride
            return begin, begin + self.spec.length
        group = int(np.searchsorted(self._before, index, "right")) - 1
        bounds, counts = _count_blocks(self.tokens.ends, group * GROUP, self.spec)
        before = np.append(0, np.cumsum(counts))
        in_group = index - int(self._before[group])
        document = int(np.searchsorted(before, in_group, "right")) - 1
        in_document = in_group - int(before[document])
        return _split_evenly(int(bounds[document]), int(bounds[document + 1]), in_document, int(counts[document]))


def _count_blocks(ends: np.ndarray, first: int, spec: BlockSpec) -> tuple[np.ndarray, np.ndarray]:
    """Count the blocks of each of a GROUP of documents from the `first` on.

    Returns where each document begins and the last ends, [documents + 1], and the counts, [documents].
    """
    bounds = np.append(ends[first - 1] if first else 0, ends[first : first + GROUP])
    return bounds, -(-np.diff(bounds) // spec.length)


def _split_evenly(begin: int, end: int, index: int, count: int) -> tuple[int, int]:
    """Find where block `index` of `count` begins and ends in a document of the tokens from `begin` to before `end`."""
    return begin + index * (end - begin) // count, begin + (index + 1) * (end - begin) // count


class EvaluationWindows(Dataset[Window]):
    """Cut `tokens` into the windows in which a finished model is measured, `limit` of them at most.

    The last window is as long as what is left, so that no token is lost. `self.tokens` is what is predicted of the
    data: of running text, cut with one token more than is read, all but the first token of the `stream`.
    """

    def __init__(self, tokens: TokenStream, spec: BlockSpec, limit: int | None) -> None:
        first = int(spec.length > spec.stride)
        self.tokens = replace(tokens, ids=tokens.ids[first:])
        self.stream = tokens
        self._spec = spec
        behind = max(0, len(tokens.ids) - spec.length)  # the first window
        available = 1 + -(-behind // spec.stride) if len(tokens.ids) > first else 0
        self.num_blocks = min(available, limit) if limit else available
        reach = spec.length + (self.num_blocks - 1) * spec.stride
        self.num_tokens = min(len(tokens.ids), reach) if self.num_blocks else 0
        self.tail = len(tokens.ids) - self.num_tokens

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: an evaluation is the same every time."""

    def __len__(self) -> int:
        return self.num_blocks

    def begin(self, index: int) -> int:
        """Return the place of a window's first token in the stream."""
        return index * self._spec.stride

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"window {index} of {self.num_blocks}")
        begin = self.begin(index)
        ids = self.stream.ids[begin : begin + self._spec.length].astype(np.int64)
        ends = self.stream.ends
        first, last = np.searchsorted(ends, [begin, begin + len(ids)])
        starts = ends[first:last].astype(np.int64) - begin  # where one document ends, the next begins
        return Window(ids, starts if begin else np.append(0, starts), index, EVALUATION)


class StreamedBlocks(IterableDataset[Window]):
    """Cut the same blocks while the documents are read, for data that does not fit on the disk.

    `document_separator` are the ids behind each document. `limit` ends each pass after so many blocks.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        document_separator: list[int],
        spec: BlockSpec,
        limit: int | None,
    ) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.document_separator = document_separator
        self.spec = spec
        self.limit = limit
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the windows that follow; called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Window]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UserError("a stream can be read by at most one worker", "set trainer.dataloader_num_workers = 1 or 0")
        return islice(self.windows(), self.limit)

    def windows(self) -> Iterator[Window]:
        """Yield every block, whatever the limit."""
        pending = np.empty(0, np.int64)  # tokens that are in no block yet
        begins = np.zeros(1, np.int64)  # where documents begin in `pending`, and where the next one will
        index = 0
        for added in encoded(self.documents, encoder(self.tokenizer), self.document_separator, STREAMED):
            begins = np.unique(np.append(begins, len(pending) + np.array(added.ends, np.int64)))
            pending = np.append(pending, np.frombuffer(added.ids, np.int64))
            done = 0
            for begin, end in self._bounds(begins, len(pending)):
                starts = begins[np.searchsorted(begins, begin) : np.searchsorted(begins, end)] - begin
                yield Window(pending[begin:end].copy(), starts, index, int(self._epoch))
                done = end if self.spec.within_documents else begin + self.spec.stride
                index += 1
            pending, begins = pending[done:], begins[begins >= done] - done

    def _bounds(self, begins: np.ndarray, number: int) -> Iterator[tuple[int, int]]:
        """Yield the bounds of the blocks that can be cut from `number` tokens; within documents, from whole ones."""
        if not self.spec.within_documents:
            for begin in range(0, number - self.spec.length + 1, self.spec.stride):
                yield begin, begin + self.spec.length
            return
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            count = -(-(end - begin) // self.spec.length)
            yield from (_split_evenly(begin, end, index, count) for index in range(count))


class Endless(IterableDataset[Window]):
    """Repeat a stream, pass after pass: Trainer would not tell it in which pass a run resumes.

    The first `skip` blocks are left out: to resume, the stream is read and tokenized again up to where the run was.
    With `buffer_size` the blocks are shuffled: each one is drawn, by seed and pass, from a buffer of that many.
    """

    def __init__(self, stream: StreamedBlocks, buffer_size: int | None = None, seed: int = 0) -> None:
        self.stream, self.buffer_size, self.seed = stream, buffer_size, seed
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the passes are counted here."""

    def __iter__(self) -> Iterator[Window]:
        begun, blocks = time.monotonic(), self._all()
        if self.skip:
            next(islice(blocks, self.skip - 1, None), None)
            say(
                f"skipped {self.skip:,} blocks of the stream that this run has already used: "
                f"{time.monotonic() - begun:.1f} s"
            )
        return blocks

    def _all(self) -> Iterator[Window]:
        for epoch in count():
            self.stream.set_epoch(epoch)
            yield from self.stream if self.buffer_size is None else self._shuffled(self.buffer_size, epoch)

    def _shuffled(self, size: int, epoch: int) -> Iterator[Window]:
        rng = np.random.default_rng([self.seed, epoch])
        buffer: list[Window] = []
        for window in self.stream:
            if len(buffer) < size:
                buffer.append(window)
                continue
            slot = int(rng.integers(size))
            drawn, buffer[slot] = buffer[slot], window
            yield drawn
        for slot in rng.permutation(len(buffer)):
            yield buffer[slot]


class Unread(IterableDataset[Window]):
    """A stream in a process that is given its blocks by another, which reads it: nothing is read here."""

    def __iter__(self) -> Iterator[Window]:
        return iter(())


def materialize(stream: StreamedBlocks, limit: int) -> TokenStream:
    """Hold in memory the tokens of the first `limit` blocks of a stream, for validation, which is read often.

    Cut with that limit, they give the same blocks. Of documents that are cut one by one, the last is kept whole. How
    many bytes the tokens stand for is not known (0).
    """
    spec = stream.spec
    limit = min(limit, stream.limit or limit)
    ids: list[np.ndarray] = []
    begins: list[int] = []
    number = 0
    for window in stream.windows():
        enough = window.index >= limit
        if enough and (not spec.within_documents or len(window.starts)):
            break
        overlap = spec.length - spec.stride if ids and not spec.within_documents else 0
        begins += [number - overlap + start for start in window.starts.tolist() if start >= overlap]
        ids.append(window.ids[overlap:])
        number += len(ids[-1])
    ends = np.array([*begins[1:], number] if begins else [], np.int64)
    return TokenStream(np.concatenate(ids) if ids else np.empty(0, np.int64), ends, 0)
