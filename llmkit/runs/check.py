"""`llmkit check`: check whether a run directory is whole, and what it can resume from."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError, quantity
from llmkit.recipe import load
from llmkit.runs import checkpoint, compatibility, rebuild
from llmkit.runs import directory as runs
from llmkit.terminal import laid_out, show


def check(name: str) -> int:
    """Print the state of a run, a fact a line; return 0 if it is finished and whole or can resume, else 1."""
    directory = Path(name)
    if not runs.is_run(directory) and not checkpoint.folders(directory):
        raise UserError(f"`{name}` is not a run directory: it has no {runs.RECORD_FILE}", "name one, such as runs/NAME")
    record = runs.read_record(directory)
    damaged = [*_record(directory, record), *_recipe(directory), *_metrics(directory)]
    holder = runs.holder(directory)
    if holder:
        _print("in use", f"by process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}")
    usable = []
    for folder in checkpoint.folders(directory):
        result = checkpoint.examine(folder, record.get("id"))
        if isinstance(result, str):
            damaged.append(f"{folder.name}: {result}")
        else:
            usable.append(result)
            num_bytes = sum(file["bytes"] for file in result.manifest["files"].values())
            progress = f"epoch {result.manifest['epoch']}, {quantity(result.manifest['samples_seen'], 'example')} seen"
            _print(
                folder.name,
                f"intact, {quantity(len(result.manifest['files']), 'file')}, {num_bytes / 1e6:,.1f} MB, {progress}",
            )
    leftovers = [path.name for prefix in (checkpoint.DRAFT, checkpoint.OLD) for path in directory.glob(f"{prefix}*")]
    if leftovers:
        _print(
            "left over", f"{', '.join(sorted(leftovers))}: from a save that did not finish; the next start removes it"
        )
    finished = record.get("status") == "finished"
    weight_problems = list(_weights(directory, record)) if finished else []
    damaged += weight_problems
    for problem in damaged:
        _print("damaged", problem)
    if finished and not weight_problems:
        _print("finished", f"intact: {', '.join(record.get('files', {})) or 'its weights are there'}")
        if longer := record.get("longer"):
            _print("longer", f"longer training, to {longer.get('steps', 0):,} steps, is {longer['status']}")
            if usable:
                _print("resumable", f"the same command with --resume goes on from {usable[0].path.name}")
        return 1 if damaged else 0
    if usable and (refusal := _refusal(directory)):
        _print("lost", f"--resume refuses: {refusal.message}; {refusal.hint}")
        return 1
    if usable:
        _print("resumable", f"--resume goes on from {usable[0].path.name} (step {usable[0].step:,})")
        return 0
    _print("lost" if checkpoint.folders(directory) or finished else "begun", "there is no checkpoint to resume from")
    return 1


def _record(directory: Path, record: dict[str, Any]) -> list[str]:
    if not record or rebuild.is_needed(directory):
        return [f"{runs.RECORD_FILE} cannot be read; --resume rebuilds it from a whole checkpoint"]
    when = record.get("started")
    since = time.strftime(", started %Y-%m-%d %H:%M:%S", time.localtime(runs.as_seconds(when))) if when else ""
    _print("run", f"{record.get('task', '?')}, {record.get('status', '?')}{since}")
    return []


def _refusal(directory: Path) -> UserError | None:
    """Return what `--resume` says to the recipe of the run, whatever it is asked for."""
    try:
        compatibility.tables_of(directory)
    except UserError as problem:
        return problem
    return None


def _recipe(directory: Path) -> list[str]:
    if cut := compatibility.damage(directory):
        return [f"{runs.RECIPE_FILE}: {cut}"]
    try:
        load(str(directory / runs.RECIPE_FILE))
    except UserError as problem:
        return [f"{runs.RECIPE_FILE}: {problem.message}"]
    return []


def _metrics(directory: Path) -> list[str]:
    path = directory / runs.METRICS_FILE
    if not disk.exists(path):
        return []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            return [f"{runs.METRICS_FILE}, line {number}: is incomplete (the next start removes it)"]
    return []


def _weights(directory: Path, record: dict[str, Any]) -> list[str]:
    """List what is wrong with the files that were written when the run finished."""
    if not runs.is_finished(directory):
        return ["the run is marked as finished, but its weights are missing"]
    expected = record.get("files", {})
    actual = checkpoint.files_of(directory, only=expected)
    return [
        f"{file} {'is missing' if file not in actual else 'has changed since it was written'}"
        for file in expected
        if actual.get(file) != expected[file]
    ]


def _print(label: str, text: str) -> None:
    show(laid_out(f"{label:14} {text}", sys.stdout, left=15))
