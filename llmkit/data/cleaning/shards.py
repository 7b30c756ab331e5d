"""Clean documents shard by shard: read them into shards, clean each by itself, write what is kept into one file.

A shard is a range of documents, cut by their number of characters alone. The work is a folder:

  job.json             what to do, written first
  held-out/            n-grams of the evaluation documents, for `overlap`
  read/00000.jsonl     the documents of a shard as they were read, until it is cleaned
  read.json            how many shards there are, once all documents are read
  clean/00000/         a shard: its texts, an entry for each, what it is compared by, and its manifest
  exact/, near-00/ ... what comparing.py finds out about all shards together

Whatever is there under its final name is whole, so that a work that was killed goes on behind it. Each step is a plain
function of the folder and a number: which process runs it, and when, changes no byte.
"""

import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from llmkit import disk
from llmkit.data.cleaning import duplicates
from llmkit.data.cleaning.repair import Step
from llmkit.data.cleaning.steps import Tally, run_steps, single_document_steps
from llmkit.data.engines import Engine, Workers
from llmkit.data.text.documents import Documents
from llmkit.errors import say
from llmkit.recipe.cleaning import Clean

MANIFEST = "manifest.json"
# What is kept of each document: where its line ends in `text.jsonl`, and whether it overlaps with evaluation data.
ENTRY = np.dtype([("end", np.int64), ("characters", np.int64), ("overlaps", np.bool_)])
EXACT = np.dtype([("key", np.uint64), ("rest", np.uint64), ("document", np.uint32)])  # the 128 bits of a text's hash
BAND = np.dtype([("key", np.uint64), ("document", np.uint32)])  # the hash of a band of a signature


# ---- the folder ----------------------------------------------------------------------------------------------------


def begin(work: Path, table: Clean, against: Documents | None, workers: Workers) -> None:
    """Make the folder of a work, or take up one that was interrupted, without the shards that are damaged."""
    if (work / "job.json").exists():
        say(f"going on with what was cleaned before ({work})")
        there = [int(folder.name) for folder in (work / "clean").iterdir() if folder.name.isdigit()]
        if not all(list(workers.engine(partial(_is_whole, work), sorted(there)))):
            (work / "read.json").unlink(missing_ok=True)  # the documents are read again, for the shards that are gone
        return
    shutil.rmtree(work, ignore_errors=True)
    for name in ("read", "clean"):
        (work / name).mkdir(parents=True)
    if against is not None:
        with whole_folder(work / "held-out") as draft:
            duplicates.HeldOut.of(against, table.overlap_ngram).save(draft)
    write_whole(work / "job.json", json.dumps({"table": table.model_dump(), "shard_size": workers.shard_size}).encode())


def discard(work: Path) -> None:
    """Remove the folder of a work, of which half is never taken for an interrupted one."""
    with suppress(OSError):  # another's, in a cache that is shared
        (work / "job.json").unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _is_whole(work: Path, number: int) -> bool:
    """Tell whether the files of a shard are those of its manifest; a shard that is not whole is removed."""
    folder = shard_folder(work, number)
    with suppress(OSError):
        if all(disk.checksum(folder / name) == value for name, value in manifest_of(work, number)["files"].items()):
            return True
    shutil.rmtree(folder)
    return False


def _read_json(file: Path) -> Any:
    """Return what a file holds, None where it is not there."""
    return json.loads(file.read_text()) if file.exists() else None


def write_whole(file: Path, content: bytes | memoryview, safe: bool = True) -> None:
    """Write a file that appears under its name when all of it is written, and on the disk if it is to be `safe`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with disk.drafted(file, synced=safe) as out:
        out.write(content)


def save_array(file: Path, values: np.ndarray, safe: bool = True) -> None:
    """Write an array, as `write_whole` does."""
    content = BytesIO()
    np.save(content, values)
    write_whole(file, content.getbuffer(), safe)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to write into, which appears under its name when all of it is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = disk.new_draft(folder.parent)
    try:
        yield draft
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def shard_folder(work: Path, number: int) -> Path:
    return work / "clean" / f"{number:05d}"


def _raw(work: Path, number: int) -> Path:
    return work / "read" / f"{number:05d}.jsonl"


# ---- lines ---------------------------------------------------------------------------------------------------------


def line_of(text: str) -> bytes:
    """Write a text as a line of JSON."""
    # Half a surrogate pair, which JSON can hold, has no UTF-8: it is written so that only Python reads it again.
    return json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def texts_of(file: Path) -> Iterator[str]:
    """Read the texts of a file of such lines."""
    with file.open("rb") as lines:
        for line in lines:
            yield json.loads(line)["text"]


@dataclass(frozen=True)
class Shard:
    """The cleaned texts of a shard, and the entry of each."""

    file: Path
    entries: np.ndarray

    @classmethod
    def of(cls, work: Path, number: int) -> "Shard":
        folder = shard_folder(work, number)
        return cls(folder / "text.jsonl", np.load(folder / "entries.npy", mmap_mode="r"))

    def text(self, number: int) -> str:
        """Read the text of one document."""
        return str(json.loads(self._between(number, number + 1))["text"])

    def lines(self, kept: np.ndarray) -> Iterator[bytes]:
        """Read the lines of the documents that are `kept`, bool [documents], together where they stand so."""
        edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
        for begin, end in edges.reshape(-1, 2).tolist():
            yield self._between(begin, end)

    def _between(self, begin: int, end: int) -> bytes:
        first = int(self.entries["end"][begin - 1]) if begin else 0
        with self.file.open("rb") as lines:
            lines.seek(first)
            return lines.read(int(self.entries["end"][end - 1]) - first)


# ---- the first pass: read and clean --------------------------------------------------------------------------------


def clean_all(work: Path, documents: Documents, engine: Engine) -> dict[str, Any]:
    """Clean all shards while they are read; return what is known of them together."""
    began = _read_json(work / "read.json")
    if began is None:
        numbers = _read(work, documents)
    else:
        documents.findings.restore(began["findings"])
        numbers = iter(range(began["shards"]))
    progress = _Progress(documents.source)
    for manifest in engine(partial(clean_shard, work), numbers):
        progress.add(manifest)
    done: dict[str, Any] = _read_json(work / "read.json")
    return done


def _read(work: Path, documents: Documents) -> Iterator[int]:
    """Cut documents into shards; yield the number of each when it is written, or was cleaned before."""
    size = _read_json(work / "job.json")["shard_size"]
    texts = iter(documents)
    number = num_documents = num_characters = 0
    draft = work / "read" / f".draft.{os.getpid()}"
    while True:
        missing, held = not shard_folder(work, number).exists(), 0
        with draft.open("wb") as out:  # not flushed to the disk: it can be read again
            for text in texts:
                if missing:
                    out.write(line_of(text))
                num_documents += 1
                num_characters += len(text)
                held += len(text) + 1
                if held >= size:
                    break
        if not held:
            break
        if missing:
            draft.rename(_raw(work, number))
        yield number
        number += 1
    counts = {"shards": number, "in": num_documents, "characters_in": num_characters}
    write_whole(work / "read.json", json.dumps({**counts, "findings": documents.findings.saved()}).encode())


class _Progress:
    """Say every now and then how far the cleaning is."""

    def __init__(self, source: str) -> None:
        self.source, self.started, self.due = source, time.monotonic(), 10.0  # seconds
        self.num_documents = self.num_characters = 0

    def add(self, manifest: Mapping[str, Any]) -> None:
        self.num_documents += manifest["in"]
        self.num_characters += manifest["characters_in"]
        if (seconds := time.monotonic() - self.started) > self.due:
            done = f"{self.num_documents:,} documents, {self.num_characters / 1e6:,.0f}M characters"
            say(f"cleaning {self.source}: {done}, {self.num_characters / 1e6 / seconds:.1f}M a second")
            self.due = min(2 * self.due, self.due + 600)


def clean_shard(work: Path, number: int) -> dict[str, Any]:
    """Clean one shard, unless it is there; return its manifest."""
    folder = shard_folder(work, number)
    if folder.exists():
        return manifest_of(work, number)
    steps = steps_of(work)
    tallies = {name: Tally() for name in steps}
    incoming = _Incoming(_raw(work, number))
    with whole_folder(folder) as draft:
        with (draft / "text.jsonl").open("wb") as out:
            writer = _Writer(out, table_of(work), _overlaps(work))
            for text in run_steps(incoming, steps, tallies):
                writer.add(text)
        writer.save_beside(draft)
        manifest = {
            "in": incoming.num_documents,
            "characters_in": incoming.num_characters,
            "out": writer.num_documents,
            "steps": {name: vars(tally) for name, tally in tallies.items()},
            "files": {file.name: disk.checksum(file) for file in sorted(draft.iterdir())},
        }
        write_whole(draft / MANIFEST, json.dumps(manifest).encode(), safe=False)  # checked when taken up
    _raw(work, number).unlink(missing_ok=True)
    return manifest


def manifest_of(work: Path, number: int) -> dict[str, Any]:
    """Read the manifest of a shard that is cleaned."""
    manifest: dict[str, Any] = _read_json(shard_folder(work, number) / MANIFEST)
    return manifest


@lru_cache(maxsize=1)
def table_of(work: Path) -> Clean:
    """Read how the documents of a work are cleaned."""
    return Clean.model_construct(**_read_json(work / "job.json")["table"])  # it was checked with the recipe


@lru_cache(maxsize=1)
def steps_of(work: Path) -> dict[str, Step]:
    """Build the steps of a work that look at one document: once in a process."""
    return single_document_steps(table_of(work))


@lru_cache(maxsize=1)
def _overlaps(work: Path) -> Callable[[str], bool] | None:
    """Build what tells whether a text overlaps with evaluation documents, if that is asked for."""
    table = table_of(work)
    if not (work / "held-out").exists():
        return None
    return duplicates.HeldOut.load(work / "held-out").overlaps(table.overlap_ngram, table.overlap_share)


class _Incoming:
    """The documents of a shard, counted while they are read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.num_documents = self.num_characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in texts_of(self.file):
            self.num_documents += 1
            self.num_characters += len(text)
            yield text


class _Writer:
    """Write the cleaned texts of a shard, and what they are compared by."""

    def __init__(self, out: IO[bytes], table: Clean, overlaps: Callable[[str], bool] | None) -> None:
        self.out, self.table, self.overlaps = out, table, overlaps
        self.end = self.num_documents = 0
        self.entries: list[tuple[int, int, bool]] = []
        self.digests = bytearray()
        self.signatures = array("I")
        self.with_words = array("I")  # documents that have a signature

    def add(self, text: str) -> None:
        self.end += self.out.write(line_of(text))
        overlapping = self.overlaps is not None and self.overlaps(text)
        self.entries.append((self.end, len(text), overlapping))
        if self.table.exact_duplicates:
            self.digests += xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
        if self.table.near_duplicates:
            signature = duplicates.signature(duplicates.shingles(text, self.table.near_ngram))
            if signature is not None:
                self.with_words.append(self.num_documents)
                self.signatures.frombytes(signature.tobytes())
            else:
                self.signatures.frombytes(bytes(4 * duplicates.NUM_PERM))
        self.num_documents += 1

    def save_beside(self, folder: Path) -> None:
        """Save what the texts are compared by, each file sorted by its key."""
        save_array(folder / "entries.npy", np.array(self.entries, ENTRY), safe=False)
        if self.table.exact_duplicates:
            rows = np.zeros(self.num_documents, EXACT)
            rows["key"], rows["rest"] = np.frombuffer(self.digests, ">u8").reshape(-1, 2).T
            rows["document"] = np.arange(self.num_documents)
            save_array(folder / "exact.npy", rows[np.argsort(rows["key"], kind="stable")], safe=False)
        if self.table.near_duplicates:
            signatures = np.frombuffer(self.signatures, np.uint32).reshape(-1, duplicates.NUM_PERM)
            with_words = np.frombuffer(self.with_words, np.uint32)
            keys = duplicates.band_keys(signatures[with_words], duplicates.num_bands(self.table.near_threshold))
            rows = np.zeros(keys.size, BAND)
            rows["key"] = keys.ravel()
            rows["document"] = np.repeat(with_words, keys.shape[1])
            save_array(folder / "bands.npy", rows[np.argsort(rows["key"], kind="stable")], safe=False)
            save_array(folder / "signatures.npy", signatures, safe=False)


def forget() -> None:
    """Let go of what was held for a work, and of the disk space of its files."""
    for held in (table_of, steps_of, _overlaps):
        held.cache_clear()
