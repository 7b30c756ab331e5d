"""Keep what the last evaluation made of each row, for a run's report and for comparisons of runs."""

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmkit import tasks
from llmkit.data.rows.batches import Examples
from llmkit.errors import say
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.runs import directory as runs
from llmkit.runs import predictions
from llmkit.tasks.task import Result, Results, RowTask
from llmkit.training.assembly import Assembly
from llmkit.training.mistakes import row_losses, written
from llmkit.training.trainer import Trainer

WORST = 20  # mistakes of a part whose texts are kept
LONGEST = 10_000  # characters of a text that are kept
_TEXT = object()  # stands where a text is left out


def keep(recipe: Recipe, assembly: Assembly, trainer: Trainer, directory: Path) -> None:
    """Write `predictions.jsonl.gz` from what the last evaluation computed; a failure costs this file alone."""
    if recipe.task in PRETRAINING or not recipe.report.predictions:
        return
    try:
        parts, lines = dict[str, Any](), list[bytes]()
        kept = {name: prefix for name, prefix in trainer.prefixes().items() if prefix in trainer.stats}
        for name, prefix in kept.items():
            split = {"split": name} if len(kept) > 1 else {}
            about, of_part = _part(recipe, assembly, name, trainer.stats[prefix], split)
            parts[name] = {"prefix": prefix, **about}
            lines += of_part
        if parts:
            predictions.write(directory, lines)
            runs.update_record(directory, predictions=parts)
    except Exception as problem:  # the weights are written, whatever becomes of this
        why = " ".join(f"{type(problem).__name__}: {problem}".split())
        say(f"warning  `{runs.PREDICTIONS_FILE}` could not be written, and the run is finished all the same: {why}")


def _part(
    recipe: Recipe, assembly: Assembly, name: str, stats: np.ndarray, split: Mapping[str, str]
) -> tuple[dict[str, Any], list[bytes]]:
    """Return what `run.json` says of a part's predictions, and a line for each of its rows, each beginning as `split`.

    `stats` are of each example, in the order of the part: its summed loss, its count of labels, and what was kept.
    """
    part, record, metrics, named = assembly.validation[name], assembly.record, recipe.evaluation.metrics, recipe.task
    folder = {}
    if recipe.tasks:  # one of several
        folder = {"folder": part.name}
        of_task = recipe.tasks[part.name]
        part, record = part.examples, record["tasks"][part.name]
        metrics, named = of_task.evaluation.metrics, of_task.task
    task, columns = tasks.row_task(named), record["columns"]
    results = None
    if task.results is not None and task.preprocess_logits_for_metrics is not None and metrics != ():
        results = task.results(stats[:, 2:], part, columns)
    about = {"task": named, "rows": len(part.keys), **folder}
    about |= {} if results is None else {"classes": list(results.classes), "unit": results.unit}
    return about, _lines(task, results, stats, part, columns, split, texts=recipe.report.rows)


def _lines(
    task: RowTask,
    results: Results | None,
    stats: np.ndarray,
    part: Examples,
    columns: Mapping[str, str],
    split: Mapping[str, str],
    texts: bool,
) -> list[bytes]:
    sums, counts = row_losses(stats, part)
    classes = set() if results is None else set(results.classes)
    kept = _losses_alone(counts) if results is None else results.rows
    lines: list[bytes | None] = [None] * len(part.keys)
    worst: list[tuple[tuple[float, ...], int, dict[str, Any]]] = []
    for result in kept:
        row = result.row
        loss = sums[row] / counts[row] if counts[row] else math.nan
        figures = {key: written(value) for key, value in result.said.items()}
        if not texts:
            figures = {
                key: value for key, old in figures.items() if (value := _without_text(old, classes)) is not _TEXT
            }
        line = {**split, "row": row, **({"key": f"{int(part.keys[row]):016x}"} if texts else {}), **figures}
        line["loss"] = written(loss)
        told = (result.said.get("truth"), result.said.get("prediction"))
        if result.decisions and list(result.decisions) != [told]:
            line["decisions"] = [list(decision) for decision in result.decisions]
        lines[row] = predictions.as_line(line)
        if not result.said.get("right"):
            rank = (*result.rank, loss if math.isfinite(loss) else -math.inf)
            push = heapq.heappushpop if len(worst) == WORST else heapq.heappush
            push(worst, (rank, -row, line))
    inputs = [name for role, name in columns.items() if results is None or role not in task.reader.LABEL_ROLES]
    shown = _texts(part, {-row for _, row, _ in worst}, inputs, columns.get("tags")) if texts else {}
    for number, (_, negative, line) in enumerate(sorted(worst, key=lambda each: each[:2], reverse=True), 1):
        row = -negative
        lines[row] = predictions.as_line({**line, "worst": number, **shown.get(row, {})})
    return [line for line in lines if line is not None]


def _losses_alone(counts: np.ndarray) -> list[Result]:
    """Return a result that says nothing but the loss for each row with a label."""
    return [Result(int(row), {}, ()) for row in np.flatnonzero(counts)]


def _texts(
    part: Examples, wanted: Collection[int], names: Sequence[str], tags: str | None
) -> dict[int, dict[str, Any]]:
    """Read the `columns` with these names of the wanted rows, and as `labels` their column of tags, if there is one."""
    meant = part.source.class_names.get(tags or "", ())
    texts: dict[int, dict[str, Any]] = {}
    for number, (_, row) in enumerate(islice(part.source.read(), max(wanted, default=-1) + 1)):
        if number in wanted:
            texts[number] = {"columns": {name: _short(row.get(name)) for name in names}}
            if tags is not None and isinstance(row.get(tags), list):
                texts[number]["labels"] = {
                    tags: [meant[tag] if type(tag) is int and meant else tag for tag in row[tags]]
                }
    return texts


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST:
        return value[:LONGEST] + " [...]"
    return value


def _without_text(value: Any, classes: Collection[str]) -> Any:
    """Return a value without texts of rows: figures and names of classes stay, entities are their types; else _TEXT."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return value if value in classes else _TEXT
    if isinstance(value, Mapping):
        label = value.get("label")
        if label is not None:
            return label if label in classes else _TEXT
        return value if all(name in classes for name in value) else _TEXT
    inner = [_without_text(each, classes) for each in value]
    return _TEXT if any(each is _TEXT for each in inner) else inner
