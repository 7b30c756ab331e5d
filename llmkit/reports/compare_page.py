"""Write the page of `llmkit compare --html`: results, settings and the learning curves of runs over one another."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmkit import disk
from llmkit.errors import UserError
from llmkit.reports import curves, pictures
from llmkit.reports.compare import Comparison, cells, written
from llmkit.reports.curves import Log
from llmkit.reports.formatting import cut, described, sentence
from llmkit.reports.page import CURVES, TITLES, fill
from llmkit.reports.pictures import Line, Picture
from llmkit.runs import directory as runs

NAMED = 4  # runs that are named in the title
OVER_STEPS = ("loss", "eval_loss", "learning_rate")  # that come first, and last


def check(file: Path) -> None:
    """Raise UserError for a file that cannot be written, or that is likely something else."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html: `{file}` does not end in .html", f"write --html {file.with_suffix('.html')}")
    if disk.is_dir(file):
        raise UserError(f"--html: `{file}` is a folder", "name a file")
    if not disk.is_dir(file.parent):
        raise UserError(f"--html: there is no folder `{file.parent}`", "create it first, or write elsewhere")


def write(file: Path, comparison: Comparison) -> None:
    """Write the page of a comparison."""
    logs = [[curves.read(path) for path in side.runs] for side in comparison.sides]
    names = [cut(side.name, 80) for side in comparison.sides]
    shown = {
        "title": f"{', '.join(names[:-1])} and {names[-1]}" if len(names) <= NAMED else f"{len(names)} runs",
        "sides": [
            {"name": name, "runs": len(side.runs), "color": number % len(pictures.RUNS), "dashes": _dashes(number)}
            for number, (name, side) in enumerate(zip(names, comparison.sides, strict=True))
        ],
        "said": comparison.said(),
        "metrics": [
            {"name": name, "cells": [cell.removesuffix(" *") for cell in cells(each)], "best": each.best}
            for name, each in comparison.metrics.items()
        ],
        "repeated": any(len(side.runs) > 1 for side in comparison.sides),
        "settings": [(key, [cut(written(value), 200) for value in row]) for key, row in comparison.settings.items()],
        "pictures": list(_pictures(names, logs)),
        "silent": [
            str(path)
            for side, read in zip(comparison.sides, logs, strict=True)
            for path, log in zip(side.runs, read, strict=True)
            if not log.curves
        ],
    }
    runs.write_text(file, fill("compare.html", shown))


def _dashes(number: int) -> str:
    return " ".join(f"{1.5 * length:g}" for length in pictures.dashes(number))  # of a line of 1.5 points


def _pictures(names: Sequence[str], logs: Sequence[Sequence[Log]]) -> Iterator[Picture]:
    """Yield a picture of each figure that was logged, with a line for each run; runs of one side look alike."""
    logged = dict.fromkeys(key for side in logs for log in side for key in log.curves)
    metrics = [key for key in logged if key.startswith("eval_") and key not in OVER_STEPS][:CURVES]
    for key in (*OVER_STEPS[:2], *metrics, *OVER_STEPS[2:]):
        lines = [
            Line(name, log.curves[key], key.startswith("eval_"), number)
            for number, (name, side) in enumerate(zip(names, logs, strict=True))
            for log in side
            if key in log.curves
        ]
        if lines:
            title = {"loss": "Training loss", "eval_loss": "Evaluation loss", **TITLES}.get(key, key)
            told = sentence([described(f"{line.name}: {title.lower()}", line.curve) for line in lines])
            yield pictures.lines(f"over-{key}", title, told, lines, scaled=key.endswith("loss"))
