"""`llmkit check`: check whether a run directory is whole, and what it can resume from."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError, answer, quantity
from llmkit.recipe import load
from llmkit.runs import checkpoint, compatibility, rebuild, shape
from llmkit.runs import directory as runs
from llmkit.terminal import laid_out, show


def check(name: str, as_json: bool = False) -> int:
    """Print the state of a run, a fact a line; return 0 if it is finished and whole or can resume, else 1."""
    directory = Path(name)
    if not runs.is_run(directory) and not checkpoint.folders(directory):
        raise UserError(f"`{name}` is not a run directory: it has no {runs.RECORD_FILE}", "name one, such as runs/NAME")
    report = examine(directory)
    if as_json:
        answer(report)
    else:
        for label, text in _lines(report):
            show(laid_out(f"{label:14} {text}", sys.stdout, left=15))
    return 0 if report["ok"] else 1


def examine(directory: Path) -> dict[str, Any]:
    """Return what a run directory holds, what of it is damaged, and its `state`.

    It is `finished`; `resumable`, from the checkpoint `resume_from`; `begun`, without a checkpoint yet; or `lost`:
    nothing is left to resume from, or `--resume` refuses, as `refusal` says.
    """
    record = runs.read_record(directory)
    readable = bool(record) and not rebuild.is_needed(directory)
    unreadable = f"{runs.RECORD_FILE} cannot be read; --resume rebuilds it from a whole checkpoint"
    damaged = [*([] if readable else [unreadable]), *_recipe(directory), *_metrics(directory)]
    usable = []
    for folder in checkpoint.folders(directory):
        result = checkpoint.examine(folder, record.get("id"))
        if isinstance(result, str):
            damaged.append(f"{folder.name}: {result}")
        else:
            usable.append(result)
    finished = record.get("status") == "finished"
    weight_problems = list(_weights(directory, record)) if finished else []
    whole = finished and not weight_problems
    refusal = _refusal(directory) if usable and not whole else None
    if whole or (usable and refusal is None):
        state = "finished" if whole else "resumable"
    else:
        state = "lost" if checkpoint.folders(directory) or finished else "begun"
    damaged += weight_problems
    longer, holder = record.get("longer") if whole else None, runs.holder(directory)
    return {
        "run": str(directory),
        "ok": not damaged if whole else state == "resumable",
        "state": state,
        "task": record.get("task"),
        "status": record.get("status"),
        "started": record.get("started") if readable else None,
        "in_use": {key: holder.get(key) for key in ("pid", "host", "since")} if holder else None,
        "checkpoints": [_described(each) for each in usable],
        "resume_from": usable[0].path.name if usable and refusal is None else None,
        "refusal": None if refusal is None else refusal.as_object(),
        "longer": None if longer is None else {"steps": longer.get("steps", 0), "status": longer["status"]},
        "files": list(record.get("files", {})) if whole else [],
        "left_over": sorted(
            path.name for prefix in (checkpoint.DRAFT, checkpoint.OLD) for path in directory.glob(f"{prefix}*")
        ),
        "damaged": damaged,
    }


def _described(found: checkpoint.Checkpoint) -> dict[str, Any]:
    files = found.manifest["files"]
    return {
        "name": found.path.name,
        "step": found.step,
        "epoch": found.manifest["epoch"],
        "samples_seen": found.manifest["samples_seen"],
        "files": len(files),
        "bytes": sum(file["bytes"] for file in files.values()),
    }


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is printed of a run: a label and a text."""
    if not report["damaged"] or not report["damaged"][0].startswith(runs.RECORD_FILE):
        started = report["started"]
        since = (
            time.strftime(", started %Y-%m-%d %H:%M:%S", time.localtime(shape.as_seconds(started))) if started else ""
        )
        yield "run", f"{report['task'] or '?'}, {report['status'] or '?'}{since}"
    if holder := report["in_use"]:
        yield "in use", f"by process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    for each in report["checkpoints"]:
        progress = f"epoch {each['epoch']}, {quantity(each['samples_seen'], 'example')} seen"
        yield each["name"], f"intact, {quantity(each['files'], 'file')}, {each['bytes'] / 1e6:,.1f} MB, {progress}"
    if report["left_over"]:
        yield (
            "left over",
            f"{', '.join(report['left_over'])}: from a save that did not finish; the next start removes it",
        )
    for problem in report["damaged"]:
        yield "damaged", problem
    if report["state"] == "finished":
        yield "finished", f"intact: {', '.join(report['files']) or 'its weights are there'}"
        if longer := report["longer"]:
            yield "longer", f"longer training, to {longer['steps']:,} steps, is {longer['status']}"
            if report["resume_from"]:
                yield "resumable", f"the same command with --resume goes on from {report['resume_from']}"
    elif report["state"] == "resumable":
        yield "resumable", f"--resume goes on from {report['resume_from']} (step {report['checkpoints'][0]['step']:,})"
    elif refusal := report["refusal"]:
        yield "lost", f"--resume refuses: {refusal['message']}; {refusal['hint'] or ''}"
    else:
        yield report["state"], "there is no checkpoint to resume from"


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
    if not disk.is_file(path):
        return []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return [f"{runs.METRICS_FILE}, line {number}: is incomplete (the next start removes it)"]
    return []


def _weights(directory: Path, record: dict[str, Any]) -> list[str]:
    """List what is wrong with the files that were written when the run finished."""
    if not runs.is_finished(directory):
        return ["the run is marked as finished, but its weights are missing"]
    expected = {name: about for name, about in record.get("files", {}).items() if name != runs.CARD_FILE}  # peft's was
    actual = checkpoint.files_of(directory, only=expected)
    return [
        f"{file} {'is missing' if file not in actual else 'has changed since it was written'}"
        for file in expected
        if actual.get(file) != expected[file]
    ]
