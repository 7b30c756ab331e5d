"""Tokenize documents into one long stream of tokens, cached in memory-mapped files under a hash of what made it.

A stream is a folder of the cache: `tokens.bin` (two bytes a token where the vocabulary fits), `ends.bin` (where each
document ends) and `parts.jsonl`, a journal with a line for each part that is safely on the disk. After an interruption
the work resumes behind the last whole part. The line of the last part says that the stream is finished. `findings.json`
has what reading the documents showed.
"""

import json
import os
import pickle
import shutil
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import FileLock, Timeout

from llmkit import disk, verified
from llmkit.data.engines import Engine, in_turn
from llmkit.data.text.documents import Documents
from llmkit.data.text.tokenize import Tokens, encoded_ahead, encoded_by, encoder
from llmkit.disk import cache_dir
from llmkit.errors import UserError, say

SEAL = ".checksums.json"
TOKENIZER = "tokenizer.pickle"  # for the workers, while they are at work
PART = 2**24  # bytes of text after which the work is made safe: the most that an interruption may cost


@dataclass(frozen=True)
class TokenStream:
    """Every token of the documents in their order; `num_bytes` counts the UTF-8 text that they stand for.

    `ends` holds, for each document, how many tokens there are up to its end, its separator included (int64).
    """

    ids: np.ndarray
    ends: np.ndarray
    num_bytes: int

    @property
    def num_documents(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class Part:
    """How far the stream has come where one of its parts ends, counted from its beginning.

    Beside `documents` whole documents it holds `characters` of the next one. `checksum` is XXH3 of what the part itself
    adds to the two files. The journal begins with an empty part, which has the name of the cache's `entry`: one that
    stands under another name is not what is wanted. In the journals of earlier versions it has none.
    """

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    num_bytes: int = 0
    checksum: str = xxhash.xxh3_64_hexdigest(b"")
    finished: bool = False
    entry: str = ""


# ---- the cache -----------------------------------------------------------------------------------------------------


def tokenize_documents(
    documents: Documents,
    tokenizer: Any,
    document_separator: list[int],
    *,
    engine: Engine = in_turn,
) -> TokenStream:
    """Tokenize documents, with `document_separator` after each, or read their tokens from the cache.

    Of two processes that want the same stream one waits for the other. A stream is checked against its checksums
    when it is read, unless that is known (`llmkit.verified`), and made again where it is damaged. The batches of text
    are tokenized by the workers of `engine`. Raises UserError where the cache cannot be written or read back.
    """
    to_ids = encoder(tokenizer)
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    key = xxhash.xxh3_128_hexdigest(repr((3, documents.cache_key, rules, document_separator)).encode())
    dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32)
    folder = cache_dir() / key
    tokens = _finished(folder, dtype)
    if tokens is None:
        with locked(folder / "lock", f"tokenizes {documents.source}"):
            tokens = _finished(folder, dtype)  # by the process that this one waited for
            if tokens is None:
                encode = partial(encoded_ahead, to_ids=to_ids)
                if engine is not in_turn:
                    saved = folder / TOKENIZER
                    saved.write_bytes(pickle.dumps(tokenizer))
                    encode = partial(encoded_by, engine, tokenizer=saved, to_ids=to_ids)
                _write(documents, encode, document_separator, folder, dtype)
                (folder / TOKENIZER).unlink(missing_ok=True)
                tokens = _finished(folder, dtype, written=True)
    if tokens is None:
        raise UserError(
            f"the cache {folder} cannot be read back", "is the disk full? to put the cache elsewhere, set HF_HOME"
        )
    with suppress(OSError, ValueError, KeyError):  # they are remarks, and no tokens depend on them
        documents.findings.restore(json.loads((folder / "findings.json").read_text()))
    return tokens


def is_whole(folder: Path, what: str) -> bool:
    """Tell whether an entry of small files is in the cache, as `new_cache_entry(sealed=True)` wrote it.

    One that is damaged, or another's, is put out of the way, and `what` it was of is said.
    """
    if not folder.exists():
        return False
    with suppress(OSError, ValueError):
        if json.loads((folder / SEAL).read_text()) == _seal(folder, folder.name):
            return True
    say(f"the cache of {what} was damaged ({folder}): making it again")
    with suppress(OSError):  # another process was first
        shutil.rmtree(folder.rename(disk.new_draft(folder.parent) / "damaged").parent)
    return False


def _seal(folder: Path, entry: str) -> dict[str, Any]:
    """Return the name of an entry and the checksum of each of its files; hidden ones are nobody's."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {
        "entry": entry,
        "files": {str(file.relative_to(folder)): verified.checksum(file) for file in files},
    }


class new_cache_entry:
    """Make a folder to write into, which appears under its name only when it is complete.

    One that is `sealed` gets the checksums of its files, for `is_whole`.
    """

    def __init__(self, folder: Path, sealed: bool = False) -> None:
        self.folder, self.sealed = folder, sealed

    def __enter__(self) -> Path:
        with _writing(self.folder.parent):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.draft = disk.new_draft(self.folder.parent)
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.sealed:
            with _writing(self.folder.parent):
                (self.draft / SEAL).write_text(json.dumps(_seal(self.draft, self.folder.name)))
        if kind is None:
            with suppress(OSError):  # another process was first: what it wrote is the same
                self.draft.rename(self.folder)
        shutil.rmtree(self.draft, ignore_errors=True)


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise UserError(
            f"the cache {cache} cannot be written: {problem.strerror}", "set HF_HOME to a folder that can be written"
        ) from problem


@contextmanager
def locked(file: Path, work: str) -> Iterator[None]:
    """Hold the lock of a cache entry; while another process has it, wait, and say what `work` that process does."""
    with _writing(cache_dir()):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that {work}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _finished(folder: Path, dtype: np.dtype, written: bool = False) -> TokenStream | None:
    """Read the stream that was written before; None where it is not there, not finished or not whole.

    One that this process has `written` just now is not read for that.
    """
    parts = _journal(folder)
    if not parts or not parts[-1].finished or not _is_unchanged(folder, parts, dtype, written):
        return None
    done = parts[-1]
    sizes = {"tokens.bin": done.tokens * dtype.itemsize, "ends.bin": done.documents * 8}
    try:
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
        ids, ends = _mapped(folder / "tokens.bin", dtype), _mapped(folder / "ends.bin", np.dtype(np.int64))
    except OSError:
        return None
    return TokenStream(ids, ends, done.num_bytes)


def _is_unchanged(folder: Path, parts: list[Part], dtype: np.dtype, written: bool) -> bool:
    """Tell whether tokens and ends are as they were written: by reading them, unless they were `written` just now."""
    files = [folder / name for name in ("parts.jsonl", "tokens.bin", "ends.bin")]
    what = f"tokens {folder.name} {dtype.char}"
    return bool(verified.once(what, files, lambda: written or _whole_parts(folder, parts, dtype) == parts))


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """Map the numbers of a file into memory; the result is no np.memmap, of which a slice takes ten times as long."""
    return np.asarray(np.memmap(path, dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)


def _journal(folder: Path) -> list[Part]:
    """Read the parts that were written, up to the first line that is not whole."""
    parts: list[Part] = []
    with suppress(OSError, ValueError, TypeError):
        for line in (folder / "parts.jsonl").read_text().splitlines():
            checksum, entry = line.split(" ", 1)
            if checksum != _sum(entry):
                break
            parts.append(Part(**json.loads(entry)))
    return parts if parts and parts[0].entry in ("", folder.name) else []


def _sum(entry: str) -> str:
    return xxhash.xxh3_64_hexdigest(entry.encode())


def _line(part: Part) -> str:
    entry = json.dumps(asdict(part))
    return f"{_sum(entry)} {entry}\n"


def _whole_parts(folder: Path, parts: list[Part], dtype: np.dtype) -> list[Part]:
    """Return the parts before the first whose tokens or ends are no longer those that were written."""
    whole = parts[:1]
    with suppress(OSError), (folder / "tokens.bin").open("rb") as tokens, (folder / "ends.bin").open("rb") as ends:
        for before, part in pairwise(parts):
            checksum = xxhash.xxh3_64(tokens.read((part.tokens - before.tokens) * dtype.itemsize))
            checksum.update(ends.read((part.documents - before.documents) * 8))
            if checksum.hexdigest() != part.checksum:
                break
            whole.append(part)
    return whole


def _write(
    documents: Documents,
    encode: Callable[..., Iterator[Tokens]],
    document_separator: list[int],
    folder: Path,
    dtype: np.dtype,
) -> None:
    """Write the stream, or what is missing of it, as `encode` makes it of documents.

    What is there is never truncated first, only written over, and where it was whole with the same bytes: another
    process may have these files mapped into its memory.
    """
    parts = _journal(folder)
    whole = _whole_parts(folder, parts, dtype) or [Part(entry=folder.name)]
    begin = done = now = whole[-1]
    if (parts and parts[-1].finished) or (len(parts) <= 1 and (folder / "tokens.bin").exists()):
        say(f"the cache of {documents.source} was damaged ({folder}): tokenizing again")
    if begin.num_bytes:
        there = f"{begin.documents:,} documents ({begin.num_bytes / 1e6:,.0f} MB) are already done"
        say(f"continuing to tokenize {documents.source}: {there}")
    with _writing(folder.parent):
        draft = folder / "parts.jsonl.draft"
        draft.write_text("".join(_line(replace(part, finished=False)) for part in whole))
        draft.replace(folder / "parts.jsonl")
    ids, ends = array(dtype.char), array("q")
    started, due = time.monotonic(), 10.0  # seconds
    rest = islice(documents, begin.documents, None)
    work = {"document_separator": document_separator, "dtype": dtype, "begin": begin.characters}
    for added in encode(documents=rest, **work):
        ends.extend(now.tokens + end for end in added.ends)
        ids += added.ids
        now = Part(
            documents=now.documents + len(added.ends),
            characters=added.characters,
            tokens=now.tokens + len(added.ids),
            num_bytes=now.num_bytes + added.num_bytes,
        )
        if now.num_bytes - done.num_bytes >= PART:
            documents.verify()
            _append(folder, done, now, ids, ends)
            done, ids, ends = now, array(dtype.char), array("q")
        seconds = time.monotonic() - started
        if seconds > due:
            rate = (now.num_bytes - begin.num_bytes) / 1e6 / seconds
            say(f"tokenizing {documents.source}: {now.num_bytes / 1e6:,.0f} MB, {rate:.1f} MB/s")
            due = min(2 * due, due + 600)
    with _writing(folder.parent):
        (folder / "findings.json").write_text(json.dumps(documents.findings.saved()))
    _append(folder, done, replace(now, finished=True), ids, ends)


def _append(folder: Path, done: Part, now: Part, ids: "array[int]", ends: "array[int]") -> None:
    """Add a part behind those that are `done`; write its line last, once the rest is on the disk."""
    checksum = xxhash.xxh3_64(ids)
    checksum.update(ends)
    with _writing(folder.parent):
        for name, before, added in (("tokens.bin", done.tokens, ids), ("ends.bin", done.documents, ends)):
            (folder / name).touch()
            with (folder / name).open("r+b") as out:
                out.seek(before * added.itemsize)
                out.write(added)
                if now.finished:
                    out.truncate()
                out.flush()
                os.fsync(out.fileno())
        with (folder / "parts.jsonl").open("a") as journal:
            journal.write(_line(replace(now, checksum=checksum.hexdigest())))
            journal.flush()
            os.fsync(journal.fileno())
