"""Write and verify checkpoints: each exists whole or not at all, and is used only if it matches its manifest.

A checkpoint is written as `.draft-checkpoint-N`. Once its files are safely on the disk, a manifest follows: the run,
the step, the position in the data, and the size and checksum of every file. Only then is it renamed.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llmkit import disk, verified
from llmkit.runs import directory as runs
from llmkit.runs import shape

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"  # as upstream calls it
PREFIX = "checkpoint-"
DRAFT = ".draft-"
OLD = ".old-"
SPARE = 1.2  # free space required for a checkpoint, as a multiple of the last one's size
BLOCK = 2**24  # bytes read at once for a checksum


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified, and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


# ---- finding -------------------------------------------------------------------------------------------------------


def folders(directory: Path) -> list[Path]:
    """List every `checkpoint-N` of a run directory, the last step first, whole or not."""
    found = disk.within(directory, f"{PREFIX}*")
    paths = [path for path in found if runs.is_number(path.name.removeprefix(PREFIX))]
    return sorted(paths, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def newest(
    directory: Path, run: str | None, usable: Callable[[Path], bool] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Find the whole checkpoint of this `run` with the highest step; return it and what is wrong with newer ones.

    Only those whose folder is `usable` count.
    """
    problems: list[str] = []
    for folder in filter(usable, folders(directory)):
        result = examine(folder, run)
        if isinstance(result, Checkpoint):
            return result, problems
        problems.append(f"{folder.name}: {result}")
    return None, problems


def examine(folder: Path, run: str | None = None) -> Checkpoint | str:
    """Verify the checkpoint in `folder`, reading every file unless that was done; return it, or what is wrong."""
    manifest = read_manifest(folder)
    if isinstance(manifest, str):
        return manifest
    if run is not None and manifest["run"] != run:
        return "it belongs to another run"
    if f"{PREFIX}{manifest['step']}" != folder.name.removeprefix(DRAFT):
        return f"it is the checkpoint of step {manifest['step']} under another name"
    for name, expected in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size if disk.is_file(folder / name) else -1
            if size < 0:
                return f"{name} is missing"
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
            if verified.checksum(folder / name) != expected["xxh3_128"]:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as problem:
            return f"{name} cannot be read: {problem.strerror}"
    return Checkpoint(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any] | str:
    """Read a manifest and verify its checksum; return it, or what is wrong with it."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return parse_manifest(None)
    except OSError:
        return f"{MANIFEST} cannot be read"


def parse_manifest(content: bytes | None) -> dict[str, Any] | str:
    """Parse the content of a manifest, None where there is none; return it, or what is wrong with it."""
    if content is None:
        return f"it has no {MANIFEST}, so it was not saved completely"
    try:
        manifest = shape.parse(content)
        checksum = manifest.pop("checksum")
        if checksum != _sum(manifest):
            return f"{MANIFEST} has changed since it was written"
        return manifest if shape.is_manifest(manifest) else f"{MANIFEST} is not one that llmkit writes"
    except (ValueError, KeyError):
        return f"{MANIFEST} cannot be read"


def files_of(folder: Path, only: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Compute the size and checksum of each file below a folder except the manifest, or of `only` these, by name."""
    paths = sorted(folder.rglob("*")) if only is None else [folder / name for name in only]
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": verified.checksum(path)}
        for path in paths
        if path.is_file() and path.name != MANIFEST
    }


# ---- writing -------------------------------------------------------------------------------------------------------


def begin(directory: Path, step: int) -> Path:
    """Create an empty folder for a checkpoint; raise OSError if there is too little space for one like the last."""
    last_manifest = next((m for m in map(read_manifest, folders(directory)) if isinstance(m, dict)), None)
    if last_manifest is not None:
        needed = int(SPARE * sum(file["bytes"] for file in last_manifest["files"].values()))
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB are free, and {needed / 1e6:,.0f} MB may be needed")
    draft = directory / f"{DRAFT}{PREFIX}{step}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def seal(draft: Path, manifest: Mapping[str, Any]) -> Path:
    """Turn the files in `draft` into a checkpoint: synced to disk, listed in a manifest, renamed; return its path."""
    disk.share_files(draft)
    for path in draft.rglob("*"):
        synced(path)
    content = {**manifest, "files": files_of(draft)}
    runs.write_json(draft / MANIFEST, {**content, "checksum": _sum(json.loads(json.dumps(content)))})
    return _name(draft)


def accept(draft: Path) -> Checkpoint | str:
    """Turn a draft that was fetched with its manifest into a checkpoint; return it, or what is wrong with it."""
    for path in draft.rglob("*"):
        synced(path)
    found = examine(draft)
    return found if isinstance(found, str) else Checkpoint(_name(draft), found.manifest)


def _name(draft: Path) -> Path:
    """Give a draft that is whole its name, in the place of one that has it; return its path."""
    synced(draft)
    target = draft.with_name(draft.name.removeprefix(DRAFT))
    old = target.with_name(f"{OLD}{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():  # not whole, or of this step too
        target.replace(old)
    draft.replace(target)
    synced(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return target


def adopt(directory: Path) -> None:
    """Rename drafts that were complete when their run was killed."""
    for draft in directory.glob(f"{DRAFT}{PREFIX}*"):
        target = draft.with_name(draft.name.removeprefix(DRAFT))
        if not target.exists() and isinstance(read_manifest(draft), dict):
            draft.replace(target)


def abandon(draft: Path) -> None:
    """Remove a checkpoint that could not be finished."""
    shutil.rmtree(draft, ignore_errors=True)


def rotate(
    directory: Path, run: str, limit: int | None, keep: int | None, step: int | None = None, spared: str = ""
) -> None:
    """Remove old checkpoints of this `run`; keep the `limit` newest and the one of step `keep`.

    Those of another run are not touched. Those of a later step than `step`, which resuming passed over, do not count
    and are kept; the one that is called `spared` is left for the next time.
    """
    own = {}
    for folder in folders(directory):
        manifest = read_manifest(folder)
        if isinstance(manifest, dict) and manifest["run"] == run and (step is None or manifest["step"] <= step):
            own[int(folder.name.removeprefix(PREFIX))] = folder
    for gone in expired(list(own), limit, keep):
        if own[gone].name != spared:
            _remove(own[gone])


def expired(steps: Sequence[int], limit: int | None, keep: int | None) -> list[int]:
    """Return the steps, of those of all checkpoints from the last down, that are neither the `limit` newest nor `keep`.

    The one to `keep` counts among the newest where there is room for two.
    """
    if limit is None or limit <= 0:
        return []
    reserved = int(keep in steps and limit > 1)
    newest_steps = steps[: limit if keep in steps[:limit] else limit - reserved]
    return [step for step in steps if step not in newest_steps and step != keep]


def sweep(directory: Path) -> None:
    """Remove what a killed run left half written or half removed."""
    for prefix in (DRAFT, OLD):
        for leftover in directory.glob(f"{prefix}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)


def synced(path: Path) -> None:
    """Sync a file, or a folder's entries, to the disk."""
    with suppress(PermissionError):  # some network file systems do not open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Rename a checkpoint, then remove it: a half-removed one must not look like a checkpoint."""
    old = folder.with_name(f"{OLD}{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    folder.replace(old)
    shutil.rmtree(old, ignore_errors=True)


def _sum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
