"""Claim, lock and describe run directories, and tell which are finished."""

import glob
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError
from llmkit.recipe.paths import at_home
from llmkit.runs import shape

ROOT = Path("runs")
RECORD_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
LAUNCH_LOG = "launch.log"
SWEEP_FILE = "sweep.json"
CARD_FILE = "README.md"
REPORT_FILE, LOSS_PICTURE, PREDICTIONS_FILE = "report.html", "loss.svg", "predictions.jsonl.gz"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
LOCK_FILE, RANKS_LOCK, HOLDER_FILE = ".lock", ".lock-ranks", ".holder.json"
PATIENCE = 10.0  # seconds in which the children of a killed run must have ended


def claim(path: str, named: bool) -> Path:
    """Create a directory for a run: `path` if the user `named` it, which must be empty; else `path`, `-2`, `-3`...

    Raises UserError where it holds other files or cannot be written.
    """
    from filelock import FileLock, Timeout  # imported late: a misspelt key is reported before anything is locked

    first = directory = at_home(path)
    created = True
    try:
        if named:
            if disk.is_dir(directory) and not may_begin(directory):
                another_run = "started" in read_record(directory) or any(directory.glob("checkpoint-*"))
                raise UserError(
                    f"the output directory `{path}` already contains {'another run' if another_run else 'other files'}",
                    "name another" + (", or resume that run with --resume" if another_run else " that is new or empty"),
                )
            created = not disk.exists(directory)
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
            if not is_run(directory):  # else a run was killed here at its start, or is starting right now
                number = next_in_order(directory)
                write_json(
                    directory / RECORD_FILE, {"status": "preparing", "created": created, "order_started": number}
                )
    except Timeout:
        pass  # `held` names the other process
    except (OSError, ValueError) as problem:  # of a NUL
        if first.parent == ROOT:
            with suppress(OSError):  # there are other runs in it
                ROOT.rmdir()
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(
            f"the output directory `{path}` cannot be written: {reason}", "name another with --output-dir"
        ) from problem
    return directory


def may_begin(directory: Path) -> bool:
    """Tell whether a folder holds nothing, or no more than a run leaves that is killed before training."""
    return all(_is_startup_file(path) for path in directory.iterdir())


def _is_startup_file(path: Path) -> bool:
    """Whether a file is one that a run leaves if it is killed before training."""
    if path.name == RECORD_FILE:
        return read_record(path.parent).get("status") == "preparing"
    startup = (RECIPE_FILE, LOCK_FILE, RANKS_LOCK, HOLDER_FILE)
    return path.name in startup or _is_log(path.name) or _is_draft(path)


def _is_log(name: str) -> bool:
    """Whether a file has what the launcher and the processes of this machine or another said."""
    return name == LAUNCH_LOG or re.fullmatch(r"launch-\d+\.log", name) is not None


def _is_draft(path: Path) -> bool:
    """Whether a file is a draft that `write_text` leaves when it is killed."""
    written = (RECORD_FILE, HOLDER_FILE, RECIPE_FILE, CARD_FILE, REPORT_FILE, LOSS_PICTURE, PREDICTIONS_FILE)
    return path.name.startswith(tuple(f".{name}." for name in written))


def sweep(directory: Path) -> None:
    """Remove the drafts of a killed `write_text`; the caller holds the directory."""
    for path in directory.iterdir():
        if _is_draft(path):
            path.unlink(missing_ok=True)


def remove_views(directory: Path) -> None:
    """Remove what shows the result of a run, which is about to change."""
    for name in (REPORT_FILE, LOSS_PICTURE, PREDICTIONS_FILE):
        with suppress(OSError):
            (directory / name).unlink(missing_ok=True)


def keep_log(directory: Path) -> None:
    """Let the logs of the processes stay when the directory is released: an error names them."""
    if read_record(directory).get("status") == "preparing":
        update_record(directory, keeps_log=True)


def release(directory: Path) -> None:
    """Remove a claimed directory in which nothing was trained, but for logs that are to be read."""
    record = read_record(directory)
    if record.get("status") == "preparing":
        logs = () if record.get("keeps_log") else filter(_is_log, [path.name for path in directory.iterdir()])
        for name in (RECORD_FILE, RECIPE_FILE, LOCK_FILE, RANKS_LOCK, HOLDER_FILE, *logs):
            (directory / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty after all
            if record.get("created"):
                directory.rmdir()
            if directory.parent == ROOT:
                ROOT.rmdir()


def newest(first: Path) -> Path | None:
    """Return the run directory that was started last, of `first`, `-2`, `-3` and so on."""
    records = [(read_record(directory), directory) for directory in numbered(first)]
    return max(((order(r, "started"), d) for r, d in records if "started" in r), default=(0, None))[1]


def order(record: Mapping[str, Any], what: str) -> tuple[int, float]:
    """Return a key that sorts runs of a folder by when they `started` or `finished`.

    It counts what was started and finished there, as a clock may stand still or be set back. Records of earlier
    versions have the time alone, and come first.
    """
    return int(record.get(f"order_{what}", 0)), shape.as_seconds(record.get(what, 0))


def next_in_order(directory: Path) -> int:
    """Count on from the runs beside `directory`, and from itself."""
    try:
        records = [read_record(run) for run in directory.absolute().parent.iterdir() if is_run(run)]
    except OSError:  # a folder that may not be listed
        records = [read_record(directory)]
    return 1 + max((int(r.get(f"order_{what}", 0)) for r in records for what in ("started", "finished")), default=0)


def numbered(first: Path) -> list[Path]:
    """List the run directories of one name: `first`, and those of `-2`, `-3` and so on that are there."""
    others = disk.within(first.parent, f"{glob.escape(first.name)}-*")
    return [first, *(d for d in others if is_number(d.name.removeprefix(f"{first.name}-")))]


def is_number(text: str) -> bool:
    """Tell whether a part of a name is a number, in the digits that llmkit writes."""
    return text.isascii() and text.isdecimal()


def newest_finished(*tasks: str) -> Path | None:
    """Return the run of one of these tasks under `runs/` that finished last."""
    if not disk.is_dir(ROOT):
        return None
    runs = [(read_record(d), d) for d in ROOT.iterdir() if is_finished(d)]
    of_task = [(order(record, "finished"), d) for record, d in runs if record.get("task") in tasks]
    return max(of_task, default=(0, None))[1]


def now() -> str:
    """Return the time as ISO 8601 writes it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def is_finished(directory: Path) -> bool:
    """Tell whether the weights at the root are whole: the record says so only once they are written."""
    if read_record(directory).get("status") != "finished":
        return False
    return any(disk.is_file(directory / name) for name in WEIGHTS)


def is_run(directory: Path) -> bool:
    """Tell whether a directory is a run's, finished or not."""
    return disk.is_file(directory / RECORD_FILE)


def holder(directory: Path) -> dict[str, Any]:
    """Return the record of the process that trains in `directory`; empty where none does."""
    from filelock import FileLock, Timeout

    content = _read_json(directory / HOLDER_FILE)
    if not content:
        return {}
    try:
        with FileLock(directory / LOCK_FILE, timeout=0):
            return {}
    except Timeout:
        return content


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock `directory` against training by other processes; raise UserError that names the one that holds it.

    The lock is released when its process ends, however it ends. Its data workers and ranks may outlive it by a few
    seconds until they notice; ranks have a lock of their own.
    """
    from filelock import FileLock, Timeout

    lock, ranks = FileLock(directory / LOCK_FILE), FileLock(directory / RANKS_LOCK)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            if disk.exists(directory / RANKS_LOCK):
                with ranks.acquire(timeout=0):
                    pass
            break
        except Timeout:
            lock.release(force=True)
            holder = _read_json(directory / HOLDER_FILE)
            gone = holder.get("host") == platform.node() and not disk.exists(Path(f"/proc/{holder.get('pid')}"))
            if not (gone and disk.is_dir(Path("/proc"))) or time.monotonic() > until:
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


def trials_of(directory: Path) -> list[Path]:
    """List the folders of the trials of a sweep, each with a run for each seed; none where it is no sweep."""
    trials = read_sweep(directory).get("trials", [])
    return [directory / trial["name"] for trial in trials if disk.is_dir(directory / trial["name"])]


def read_sweep(directory: Path) -> dict[str, Any]:
    """Read `sweep.json`; empty where there is none or it cannot be read."""
    return _read_json(directory / SWEEP_FILE)


def read_record(directory: Path) -> dict[str, Any]:
    """Read `run.json`; empty where there is none, or it cannot be read, or holds something else."""
    content = _read_json(directory / RECORD_FILE)
    return content if shape.is_record(content) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return shape.read(path) if disk.is_file(path) else {}
    except (OSError, ValueError):
        return {}


def update_record(directory: Path, *gone: str, **facts: Any) -> None:
    """Update `run.json` with `facts`, and remove the keys `gone`, atomically."""
    record = {**read_record(directory), **facts}
    write_json(directory / RECORD_FILE, {key: value for key, value in record.items() if key not in gone})


def set_status(directory: Path, status: str, **facts: Any) -> None:
    """Record how training goes; of a finished run that trains on under `longer`, as its weights stay finished."""
    if is_finished(directory):
        update_record(directory, longer={**read_record(directory).get("longer", {}), "status": status, **facts})
    else:
        update_record(directory, status=status, **facts)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=True, default=str) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a file atomically: into a draft, synced to disk, then renamed; not even a power cut leaves half of it."""
    with disk.drafted(path) as out:
        out.write(content.encode(errors="backslashreplace"))  # of a folder whose name is not UTF-8
