"""Documents become one long row of tokens, and that row becomes blocks of equal length.

The row is written once into a memory-mapped file (two bytes a token where the vocabulary fits) and found again by what
went into it: the content of the documents, the tokenizer, and what stands between two documents.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from huggingface_hub import constants
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from llmkit.data.read import Documents
from llmkit.errors import UserError

EVALUATION = 2**32 - 1  # the epoch of evaluation: whatever is drawn for it is the same every time


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens, their place in the data, and the epoch: all that a task may draw its randomness from."""

    ids: np.ndarray
    index: int
    epoch: int


@dataclass(frozen=True)
class TokenRow:
    """Every token of the documents in their order; `num_bytes` counts the UTF-8 text that they stand for."""

    ids: np.ndarray
    num_documents: int
    num_bytes: int


def tokenize(documents: Documents, tokenizer: Any, separator: list[int]) -> TokenRow:
    """Tokenize once, with `separator` after each document; the same documents and tokenizer are read from the cache."""
    rules = _backend(tokenizer).to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    key = xxhash.xxh3_128_hexdigest(repr((1, documents.fingerprint, rules, separator)).encode())
    folder = cache_dir() / key
    row = _cached(folder)
    if row is None:
        shutil.rmtree(folder, ignore_errors=True)  # if it is there, it is damaged
        with new_cache_entry(folder) as draft:
            _write(documents, tokenizer, separator, draft)
        row = _cached(folder)
    if row is None:
        raise UserError(f"the cache {folder} cannot be read back", "is the disk full? HF_HOME says where the cache is")
    return row


def _cached(folder: Path) -> TokenRow | None:
    """What was written before, or None where it is not there or not whole."""
    try:
        about = json.loads((folder / "tokens.json").read_text())
        dtype, num_tokens = np.dtype(about["dtype"]), about["num_tokens"]
        if (folder / "tokens.bin").stat().st_size != num_tokens * dtype.itemsize:
            return None
        ids = np.memmap(folder / "tokens.bin", dtype, mode="r") if num_tokens else np.empty(0, dtype)
        return TokenRow(ids, about["num_documents"], about["num_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def cache_dir() -> Path:
    """Where prepared tokens and tokenizers are kept: beside the Hub's own caches."""
    return Path(constants.HF_HOME) / "llmkit"


class new_cache_entry:
    """A folder to write into, which appears under its name only when it is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.folder.parent))
        except OSError as problem:
            raise UserError(
                f"the cache {self.folder.parent} cannot be written: {problem.strerror}", "set HF_HOME"
            ) from problem
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with suppress(OSError):  # another process was first: what it wrote is the same
                self.draft.rename(self.folder)
        shutil.rmtree(self.draft, ignore_errors=True)


def _write(documents: Documents, tokenizer: Any, separator: list[int], folder: Path) -> None:
    dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32)
    num_tokens = num_documents = num_bytes = 0
    with (folder / "tokens.bin").open("wb") as out:
        for texts in _batches(documents):
            for ids in encode(tokenizer, texts):
                out.write(np.asarray([*ids, *separator], dtype).tobytes())
                num_tokens += len(ids) + len(separator)
            num_documents += len(texts)
            num_bytes += sum(len(text.encode()) for text in texts)
        out.flush()
        os.fsync(out.fileno())
    about = {"dtype": dtype.name, "num_tokens": num_tokens, "num_documents": num_documents, "num_bytes": num_bytes}
    (folder / "tokens.json").write_text(json.dumps(about))


def encode(tokenizer: Any, texts: list[str]) -> Iterable[list[int]]:
    """The token ids of each text, without special tokens; fast tokenizers use every core."""
    if tokenizer.is_fast:
        encodings = _backend(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
        return (encoding.ids for encoding in encodings)
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _backend(tokenizer: Any) -> Any:
    """Many a `tokenizer.json` says that texts are to be cut off and padded: not where every token counts."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _batches(documents: Iterable[str], num_texts: int = 1000) -> Iterator[list[str]]:
    texts = iter(documents)
    while batch := list(islice(texts, num_texts)):
        yield batch


class Blocks(Dataset[Window]):
    """The row cut into windows of `length` tokens, one every `stride`: block i is the same whoever asks for it.

    `length = stride + 1` lets a block end in the token that the next one begins with, so that every token but the very
    first is predicted once. `tail` tokens at the end are in no block: fewer than a block, unless `limit` cuts more off.
    """

    def __init__(self, row: TokenRow, length: int, stride: int, limit: int | None, *, evaluation: bool = False) -> None:
        self.row = row
        self.length = length
        self.stride = stride
        available = max(0, (len(row.ids) - length) // stride + 1)
        self.num_blocks = min(available, limit) if limit else available
        self.tail = len(row.ids) - (self.num_blocks * stride + length - stride if self.num_blocks else 0)
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
        start = index * self.stride
        ids = self.row.ids[start : start + self.length].astype(np.int64)
        return Window(ids, index, EVALUATION if self.evaluation else int(self._epoch))


class StreamedBlocks(IterableDataset[Window]):
    """The same blocks, cut while the documents are read, for data that does not fit on the disk."""

    def __init__(
        self, documents: Documents, tokenizer: Any, separator: list[int], length: int, stride: int, limit: int | None
    ) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.separator = separator
        self.length = length
        self.stride = stride
        self.limit = limit
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Window]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UserError("a stream is read by one worker at most", "set trainer.dataloader_num_workers = 1 or 0")
        return islice(self._windows(), self.limit)

    def _windows(self) -> Iterator[Window]:
        pending: list[int] = []
        index = 0
        for texts in _batches(self.documents, 100):
            for ids in encode(self.tokenizer, texts):
                pending += ids
                pending += self.separator
            start = 0
            while len(pending) - start >= self.length:
                yield Window(np.asarray(pending[start : start + self.length], np.int64), index, int(self._epoch))
                start += self.stride
                index += 1
            del pending[:start]


def materialize(stream: StreamedBlocks, limit: int) -> TokenRow:
    """The first `limit` blocks of a stream as a row that can be cut again: validation is read many times."""
    ids: list[np.ndarray] = []
    for window in islice(stream, limit):
        ids.append(window.ids if not ids else window.ids[stream.length - stream.stride :])
    return TokenRow(np.concatenate(ids) if ids else np.empty(0, np.int64), 0, 0)
