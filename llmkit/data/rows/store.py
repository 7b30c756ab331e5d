"""Keep what was made of many rows in the cache, under a hash of all that it follows from.

An entry is a folder `rows/HASH` of NumPy arrays, which processes map and do not hold, and a few facts. It appears when
it is whole, and is checked against its checksums whenever it is read. Few rows are read again faster than they are
kept, and are not.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from llmkit import disk
from llmkit.data.files import digest
from llmkit.data.text.token_cache import is_whole, new_cache_entry
from llmkit.disk import cache_dir
from llmkit.errors import UserError, in_bytes, in_words, say

LEAST = 20_000  # rows that are kept; fewer are read and tokenized again in about a second
LOUD = 10_000_000  # bytes from which on the user is told that an entry takes room
STALE = 86_400  # seconds after which a draft is one of a process that was killed
FACTS = "facts.json"
PACKAGE = Path(__file__).parents[2]
CODE = ("data", "models", "recipe", "tasks")  # the folders of llmkit that rows are read and tokenized by
LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy", "pyarrow", "regex")


@dataclass(frozen=True)
class Entry:
    """What was kept: arrays, mapped into memory, and facts as JSON holds them."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def folder_of(*parts: object) -> Path:
    """Return the folder of an entry that follows from `parts`, of this code."""
    return cache_dir() / "rows" / digest(_code(), *parts)


@cache
def _code() -> str:
    """Hash what reads and tokenizes rows: llmkit's own modules, and the versions of Python and of the libraries."""
    modules = sorted(file for name in CODE for file in (PACKAGE / name).rglob("*.py"))
    versions = []
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions.append(version(name))
    return digest(sys.version_info[:3], versions, [disk.checksum(file) for file in modules])


def load(folder: Path, what: str) -> Entry | None:
    """Read an entry of `what`; None where there is none, or none that is whole."""
    if not is_whole(folder, what):
        return None
    arrays = {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in folder.glob("*.npy")}
    return Entry(arrays, json.loads((folder / FACTS).read_text()))


def save(folder: Path, what: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write an entry of `what`, and say so where it is large; where it cannot be written, say why, and go on."""
    _sweep(folder.parent)
    try:
        with new_cache_entry(folder, sealed=True) as draft:
            for name, values in arrays.items():
                np.save(draft / f"{name}.npy", values, allow_pickle=False)
            (draft / FACTS).write_text(json.dumps(facts))
    except (OSError, UserError) as problem:
        say(f"warning  {what} cannot be kept in the cache, and are made again at each start: {in_words(problem)}")
        return
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size >= LOUD:
        say(f"cache    {what} are kept for the next start: {in_bytes(size)} in {folder.parent}")


def _sweep(entries: Path) -> None:
    """Remove the drafts of processes that were killed."""
    for draft in entries.glob(".draft-*"):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE:
                shutil.rmtree(draft)
