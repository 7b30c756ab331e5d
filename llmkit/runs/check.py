"""`llmkit check`: is a run directory whole, and what can it go on from."""

import json
import time
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.recipe import load
from llmkit.runs import checkpoint
from llmkit.runs import directory as runs


def check(name: str) -> int:
    """Print what is there, a line each; 0 where the run is finished and whole or can go on, 1 where neither is so."""
    directory = Path(name)
    if not runs.is_run(directory):
        raise UserError(f"`{name}` is no run directory: it has no {runs.RECORD_FILE}", "name one, such as runs/NAME")
    record = runs.read_record(directory)
    damaged = [*_record(record), *_recipe(directory), *_metrics(directory)]
    holder = runs.holder(directory)
    if holder:
        _print("in use", f"by process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}")
    good = []
    for folder in checkpoint.folders(directory):
        found = checkpoint.examine(folder, record.get("id"))
        if isinstance(found, str):
            damaged.append(f"{folder.name}: {found}")
        else:
            good.append(found)
            size = sum(file["bytes"] for file in found.manifest["files"].values())
            place = f"epoch {found.manifest['epoch']}, {found.manifest['samples_seen']:,} examples seen"
            _print(folder.name, f"whole, {len(found.manifest['files'])} files, {size / 1e6:,.1f} MB, {place}")
    left = [path.name for prefix in (checkpoint.DRAFT, checkpoint.OLD) for path in directory.glob(f"{prefix}*")]
    if left:
        _print("left over", f"{', '.join(sorted(left))}: of a save that did not end; the next start removes it")
    finished = record.get("status") == "finished"
    wrong = list(_weights(directory, record)) if finished else []
    damaged += wrong
    for problem in damaged:
        _print("damaged", problem)
    if finished and not wrong:
        _print("finished", f"whole: {', '.join(record.get('files', {})) or 'its weights are there'}")
        return 1 if damaged else 0
    if good:
        _print("resumable", f"--resume goes on from {good[0].path.name} (step {good[0].step:,})")
        return 0
    _print("lost" if checkpoint.folders(directory) or finished else "begun", "there is no checkpoint to go on from")
    return 1


def _record(record: dict[str, Any]) -> list[str]:
    if not record:
        return [f"{runs.RECORD_FILE} cannot be read"]
    when = record.get("started")
    since = time.strftime(", started %Y-%m-%d %H:%M:%S", time.localtime(when)) if when else ""
    _print("run", f"{record.get('task', '?')}, {record.get('status', '?')}{since}")
    return []


def _recipe(directory: Path) -> list[str]:
    try:
        load(str(directory / runs.RECIPE_FILE))
    except UserError as problem:
        return [f"{runs.RECIPE_FILE}: {problem.message}"]
    return []


def _metrics(directory: Path) -> list[str]:
    path = directory / runs.METRICS_FILE
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            return [f"{runs.METRICS_FILE}, line {number}: is not whole (the next start cuts it off)"]
    return []


def _weights(directory: Path, record: dict[str, Any]) -> list[str]:
    """What is wrong with the files that were written when the run was finished."""
    if not runs.is_finished(directory):
        return ["the run is called finished, and its weights are not there"]
    expected = record.get("files", {})
    found = checkpoint.files_of(directory, only=expected)
    return [
        f"{file} is {'missing' if file not in found else 'not what was written'}"
        for file in expected
        if found.get(file) != expected[file]
    ]


def _print(what: str, said: str) -> None:
    print(f"{what:14} {said}")  # noqa: T201
