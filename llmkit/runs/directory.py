"""The run directory: where a run lives, what it records of itself, and what counts as finished."""

import glob
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.recipe.paths import at_home

ROOT = Path("runs")
RECORD_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
LAUNCH_LOG = "launch.log"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
LOCK_FILE, RANKS_LOCK, HOLDER_FILE = ".lock", ".lock-ranks", ".holder.json"
PATIENCE = 10.0  # seconds in which the children of a run that was killed are expected to notice it


def claim(path: str, named: bool) -> Path:
    """A new directory for a run: `path` if the user `named` it, which must be empty then; else `path`, `-2`, `-3`..."""
    from filelock import FileLock, Timeout  # here, for a misspelt key is answered before anything is locked

    first = directory = at_home(path)
    created = True
    try:
        if named:
            if directory.is_dir() and not all(_is_of_a_beginning(path) for path in directory.iterdir()):
                another_run = is_run(directory)
                raise UserError(
                    f"the output directory `{path}` holds {'another run' if another_run else 'other files'}",
                    "name another" + (", or go on with that run: --resume" if another_run else ", empty or new"),
                )
            created = not directory.exists()
            directory.mkdir(parents=True, exist_ok=True)
        else:
            first.parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                with suppress(FileExistsError):
                    directory.mkdir()
                    break
                number += 1
                directory = first.with_name(f"{first.name}-{number}")
        with FileLock(directory / LOCK_FILE, timeout=0):
            if not is_run(directory):  # of one that was killed while it began, or that begins at this moment
                write_json(directory / RECORD_FILE, {"status": "preparing", "created": created})
    except Timeout:
        pass  # `held` says who is there
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise UserError(
            f"the output directory `{path}` cannot be written: {why}", "name another with --output-dir"
        ) from problem
    return directory


def _is_of_a_beginning(path: Path) -> bool:
    """A file that a run leaves which was killed before its training began."""
    if path.name == RECORD_FILE:
        return read_record(path.parent).get("status") == "preparing"
    return path.name in (RECIPE_FILE, LAUNCH_LOG, LOCK_FILE, RANKS_LOCK, HOLDER_FILE) or _is_draft(path)


def _is_draft(path: Path) -> bool:
    """What `write_text` leaves when it is killed."""
    return path.name.startswith((f".{RECORD_FILE}.", f".{HOLDER_FILE}.", f".{RECIPE_FILE}."))


def sweep(directory: Path) -> None:
    """Remove what `write_text` left when it was killed; the directory is held."""
    for path in directory.iterdir():
        if _is_draft(path):
            path.unlink(missing_ok=True)


def release(directory: Path) -> None:
    """Take back a claimed directory in which nothing was trained."""
    record = read_record(directory)
    if record.get("status") == "preparing":
        for name in (RECORD_FILE, RECIPE_FILE, LAUNCH_LOG, LOCK_FILE, RANKS_LOCK, HOLDER_FILE):
            (directory / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty after all
            if record.get("created"):
                directory.rmdir()
            if directory.parent == ROOT:
                ROOT.rmdir()


def newest(first: Path) -> Path | None:
    """Of the run directories `first`, `-2`, `-3` and on, the one that was started last."""
    numbered = first.parent.glob(f"{glob.escape(first.name)}-*")
    mine = [first, *(d for d in numbered if d.name.removeprefix(f"{first.name}-").isdigit())]
    return max((d for d in mine if "started" in read_record(d)), key=lambda d: read_record(d)["started"], default=None)


def newest_finished(task: str) -> Path | None:
    """The run under `runs/` of this task that was finished last."""
    if not ROOT.is_dir():
        return None
    done = [(read_record(d), d) for d in ROOT.iterdir() if is_finished(d)]
    fitting = [(record["finished"], d) for record, d in done if record.get("task") == task]
    return max(fitting, default=(0, None))[1]


def is_finished(directory: Path) -> bool:
    """The weights at the root are whole: the record says so only after they were written."""
    if read_record(directory).get("status") != "finished":
        return False
    return any((directory / name).is_file() for name in WEIGHTS)


def is_run(directory: Path) -> bool:
    """A run directory, finished or not."""
    return (directory / RECORD_FILE).is_file()


def holder(directory: Path) -> dict[str, Any]:
    """Which process trains in `directory`; empty where none does."""
    from filelock import FileLock, Timeout

    found = _read_json(directory / HOLDER_FILE)
    if not found:
        return {}
    try:
        with FileLock(directory / LOCK_FILE, timeout=0):
            return {}
    except Timeout:
        return found


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other processes from training in `directory`; raises UserError that names the one which does already.

    The lock goes with the process that took it, however it ends. Its data workers and ranks, which notice that it is
    gone, may outlive it by a few seconds; ranks have a lock of their own.
    """
    from filelock import FileLock, Timeout

    lock, ranks = FileLock(directory / LOCK_FILE), FileLock(directory / RANKS_LOCK)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            if (directory / RANKS_LOCK).exists():
                with ranks.acquire(timeout=0):
                    pass
            break
        except Timeout:
            lock.release(force=True)
            holder = _read_json(directory / HOLDER_FILE)
            gone = holder.get("host") == platform.node() and not Path(f"/proc/{holder.get('pid')}").exists()
            if not (gone and Path("/proc").is_dir()) or time.monotonic() > until:
                raise UserError(
                    f"`{directory}` is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}, "
                    f"since {holder.get('since', '?')}",
                    "wait for it, stop it, or name another directory with --output-dir",
                ) from None
            time.sleep(0.2)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(directory / HOLDER_FILE, {"pid": os.getpid(), "host": platform.node(), "since": since})
        if "id" not in read_record(directory):
            update_record(directory, id=uuid.uuid4().hex)
        yield
    finally:
        (directory / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def read_record(directory: Path) -> dict[str, Any]:
    """What `run.json` says; empty where there is none or it cannot be read."""
    return _read_json(directory / RECORD_FILE)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def update_record(directory: Path, **facts: Any) -> None:
    """Write `facts` into `run.json`, whole or not at all."""
    write_json(directory / RECORD_FILE, {**read_record(directory), **facts})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file, whole or as it was."""
    write_text(path, json.dumps(content, indent=2, allow_nan=True, default=str) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write beside, wait until it is on the disk, and rename: no reader and no power cut ever leaves half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
