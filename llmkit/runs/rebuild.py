"""Rebuild the record of a run, `run.json`, from the manifest of its newest whole checkpoint."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.errors import UserError, say
from llmkit.runs import checkpoint
from llmkit.runs import directory as runs

# What a run that goes on needs of its record, and its recipe; a checkpoint's manifest has a copy.
NEEDED = ("task", "name", "started", "order_started", "schedule", "max_time", "paths", "settings")


def copied(directory: Path) -> dict[str, Any]:
    """Return the copy of a run's record that belongs into a manifest."""
    record = runs.read_record(directory)
    return {key: record[key] for key in NEEDED if key in record}


def is_needed(directory: Path) -> bool:
    """Tell whether a run has checkpoints, and no record to go on with."""
    lacking = {"id", "started"} - runs.read_record(directory).keys()
    return bool(lacking and checkpoint.folders(directory))


def rebuild(directory: Path) -> None:
    """Write the record of a run anew; raise UserError where no checkpoint is whole, or where another process is in it.

    A manifest of an earlier version has no copy; its run goes on as that version would.
    """
    from filelock import FileLock, Timeout

    lost = f"`{directory / runs.RECORD_FILE}` is missing or damaged"
    newest, damaged = checkpoint.newest(directory, None)
    if newest is None:
        raise UserError(
            f"{lost}, and no checkpoint in `{directory}` is whole",
            "move the folder away to start anew, from their weights if you like: model.name=.../checkpoint-N",
            tuple(damaged),
        )
    try:
        with FileLock(directory / runs.LOCK_FILE, timeout=0):
            write(directory, newest)
    except Timeout:
        raise UserError(f"{lost}, and another process trains there", "wait for it, or stop it") from None
    say(f"warning  {lost}: rebuilt from {newest.path.name}")


def write(directory: Path, newest: checkpoint.Checkpoint) -> None:
    """Write the record of a run from its newest checkpoint."""
    written = datetime.fromtimestamp((newest.path / checkpoint.MANIFEST).stat().st_mtime, UTC)
    record = {"started": written.isoformat(timespec="milliseconds"), **newest.manifest.get("record", {})}
    runs.write_json(directory / runs.RECORD_FILE, {**record, "id": newest.manifest["run"], "status": "stopped"})
