"""Checkpoints on the disk: each is there whole or not at all, says what it holds, and is believed only when it is so.

One is written beside its place as `.draft-checkpoint-N`. When its files are safely on the disk a manifest follows: the
run, the step, the place in the data, and the size and checksum of every file. Only then is it renamed.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llmkit.runs import directory as runs

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
DRAFT = ".draft-"
OLD = ".old-"
SPARE = 1.2  # times the last checkpoint's size must be free before the next one is begun
BLOCK = 2**24  # bytes that are read at once for a checksum


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole, and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


# ---- finding -------------------------------------------------------------------------------------------------------


def folders(directory: Path) -> list[Path]:
    """Every `checkpoint-N` of a run directory, the last step first; whole or not."""
    found = [path for path in directory.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def newest(directory: Path, run: str | None) -> tuple[Checkpoint | None, list[str]]:
    """The whole checkpoint of this `run` with the highest step, and in words what is wrong with each that is newer."""
    wrong: list[str] = []
    for folder in folders(directory):
        found = examine(folder, run)
        if isinstance(found, Checkpoint):
            return found, wrong
        wrong.append(f"{folder.name}: {found}")
    return None, wrong


def examine(folder: Path, run: str | None = None) -> Checkpoint | str:
    """The checkpoint in `folder`, or in words what is wrong with it: every file is read and compared."""
    manifest = read_manifest(folder)
    if isinstance(manifest, str):
        return manifest
    if run is not None and manifest["run"] != run:
        return "it is another run's"
    if f"{PREFIX}{manifest['step']}" != folder.name:
        return f"it is step {manifest['step']}'s under another name"
    for name, expected in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes and not {expected['bytes']:,}"
            if _checksum(folder / name) != expected["xxh3_128"]:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as problem:
            return f"{name} cannot be read: {problem.strerror}"
    return Checkpoint(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any] | str:
    """What the manifest says, or in words why it is not to be believed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        checksum = manifest.pop("checksum")
        if checksum != _sum(manifest):
            return f"{MANIFEST} is not what was written"
        return dict(manifest)
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end"
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} cannot be read"


def files_of(folder: Path, only: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Size and checksum of each file below a folder but the manifest, or of `only` these, by its relative name."""
    paths = sorted(folder.rglob("*")) if only is None else [folder / name for name in only]
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": _checksum(path)}
        for path in paths
        if path.is_file() and path.name != MANIFEST
    }


# ---- writing -------------------------------------------------------------------------------------------------------


def begin(directory: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into; OSError where there is too little room for one like the last."""
    before = next((m for m in map(read_manifest, folders(directory)) if isinstance(m, dict)), None)
    if before is not None:
        needed = int(SPARE * sum(file["bytes"] for file in before["files"].values()))
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB are free, and {needed / 1e6:,.0f} MB may be needed")
    draft = directory / f"{DRAFT}{PREFIX}{step}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def seal(draft: Path, manifest: Mapping[str, Any]) -> Path:
    """Make a checkpoint of the files in `draft`: on the disk, listed, and under its name; where it then is."""
    for path in draft.rglob("*"):
        synced(path)
    content = {**manifest, "files": files_of(draft)}
    runs.write_json(draft / MANIFEST, {**content, "checksum": _sum(json.loads(json.dumps(content)))})
    synced(draft)
    place = draft.with_name(draft.name.removeprefix(DRAFT))
    away = place.with_name(f"{OLD}{place.name}")
    shutil.rmtree(away, ignore_errors=True)
    if place.exists():  # what stood there was not whole, or is of this step too
        place.replace(away)
    draft.replace(place)
    synced(place.parent)
    shutil.rmtree(away, ignore_errors=True)
    return place


def adopt(directory: Path) -> None:
    """Put into its place what was whole when its run was killed, and had no name yet."""
    for draft in directory.glob(f"{DRAFT}{PREFIX}*"):
        place = draft.with_name(draft.name.removeprefix(DRAFT))
        if not place.exists() and isinstance(read_manifest(draft), dict):
            draft.replace(place)


def abandon(draft: Path) -> None:
    """Take back what was written of a checkpoint that could not be finished."""
    shutil.rmtree(draft, ignore_errors=True)


def rotate(directory: Path, run: str, limit: int | None, keep: int | None, step: int | None = None) -> None:
    """Leave the `limit` newest checkpoints of this run and the one of step `keep`; nobody else's is touched.

    One of a later step than this `step` was passed over: it does not count, and it is left.
    """
    if limit is None or limit <= 0:
        return
    mine = []
    for folder in folders(directory):
        manifest = read_manifest(folder)
        if isinstance(manifest, dict) and manifest["run"] == run and (step is None or manifest["step"] <= step):
            mine.append(folder)
    kept = f"{PREFIX}{keep}"
    spared = int(any(folder.name == kept for folder in mine) and limit > 1)  # the best one counts among them
    last = mine[: limit if kept in {folder.name for folder in mine[:limit]} else limit - spared]
    for folder in mine:
        if folder not in last and folder.name != kept:
            _remove(folder)


def sweep(directory: Path) -> None:
    """Remove what a run that was killed left half written or half removed."""
    for prefix in (DRAFT, OLD):
        for left in directory.glob(f"{prefix}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)


def synced(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    with suppress(PermissionError):  # some network file systems do not open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Out of sight first: what is half removed must not look like a checkpoint."""
    away = folder.with_name(f"{OLD}{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    folder.replace(away)
    shutil.rmtree(away, ignore_errors=True)


def _checksum(path: Path) -> str:
    checksum = xxhash.xxh3_128()
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            checksum.update(block)
    return checksum.hexdigest()


def _sum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
