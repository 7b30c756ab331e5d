"""What a model gets wrong: a table of its classes, which is taken for which, and a file of every row or document."""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llmkit import tasks
from llmkit.data.display import cut
from llmkit.data.output import ERROR, Output, own_name, row_writer
from llmkit.data.rows.batches import Examples
from llmkit.errors import quantity, say
from llmkit.metrics import class_scores, most_confused
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.tasks.task import Result, Results, RowTask
from llmkit.terminal import USUAL, columns, columns_of, printable
from llmkit.training.assembly import Assembly

SHOWN = 20  # classes in a table
NAME, LEAST_NAME = 24, 10  # columns of a class's name
SHOWN_TOKENS = 64  # of a document's beginning
CONFUSION = "true, and taken for"
NONE, OTHERS = "(none)", "(others)"
Class = str | None  # None: no class
Line = tuple[tuple[float, ...], dict[str, Any], dict[str, Any]]  # the rank, columns of the data, what is said of them


class Measured:
    """Keeps what an evaluation measures of each part of the data, and shows what is wrong."""

    def __init__(self, recipe: Recipe, assembly: Assembly) -> None:
        self._recipe, self._assembly = recipe, assembly
        self._parts: dict[str, tuple[np.ndarray, Any]] = {}
        self.losses = TokenLosses()

    def metrics(self, stats: np.ndarray, part: Any) -> dict[str, float]:
        """Compute the metrics of a part as the assembly does, and keep what they are computed from."""
        self._parts[next(name for name, each in self._assembly.validation.items() if each is part)] = stats, part
        return self._assembly.metrics(stats, part)

    def show(self, output: Output | None) -> None:
        """Say what is wrong of the classes, if there are any, and write every row or document into `output`."""
        lines: dict[str, list[Line]] = {}
        for name, (stats, part) in self._parts.items():
            if self._recipe.task in PRETRAINING:
                if output is not None:
                    task = tasks.text_task(self._recipe.task)
                    lines[name] = self.losses.by_document(part, task.LABEL_OFFSET, self._assembly.tokenizer)
                continue
            results = self._results(stats, part)
            if results is not None and output is not None:
                results = Results(list(results.rows), results.classes, results.unit)
            if results is not None and results.classes:
                for number, line in enumerate(tables(results, columns(sys.stderr) or USUAL)):
                    say(f"mistakes {f'{name}: ' * (len(self._parts) > 1)}{line}" if not number else line)
            if output is not None:
                lines[name] = of_rows(tasks.row_task(self._recipe.task), results, stats, part)
        if output is not None:
            count = write(output, lines)
            if self._recipe.task in PRETRAINING:
                say(f"{quantity(count, 'document')} -> {output}")
            else:
                say(f"{quantity(count, 'row')} -> {output}, the surest mistakes first")

    def _results(self, stats: np.ndarray, part: Examples) -> Results | None:
        task = tasks.row_task(self._recipe.task)
        if task.results is None or self._assembly.preprocess_logits_for_metrics is None:
            return None
        return task.results(stats[:, 2:], part, self._assembly.record["columns"])


# ---- every row -----------------------------------------------------------------------------------------------------


def of_rows(task: RowTask, results: Results | None, stats: np.ndarray, part: Examples) -> list[Line]:
    """Return each row of `part` with its result and its loss, the mean over its labels.

    `stats` are of each example, in the order of `part`: its summed loss, its count of labels, and what was kept,
    [N, 2 + K]. Where labels are tokens a row says how many it has. A row without a label has an error.
    """
    columns = [row for _, row in part.source.read()]
    sums, counts = (values.tolist() for values in row_losses(stats, part))
    results_by_row = {result.row: result for result in results.rows} if results is not None else {}
    lines: list[Line] = []
    for number, (row, total, count) in enumerate(zip(columns, sums, counts, strict=True)):
        if not count and number not in results_by_row:
            lines.append(((-math.inf,), row, {ERROR: "none of its labels is within the tokens that the model reads"}))
            continue
        result, loss = results_by_row.get(number, Result(number, {}, ())), total / count if count else math.nan
        figures = {**result.said, "loss": loss, **({"tokens": int(count)} if task.losses is None else {})}
        lines.append(((*result.rank, loss if math.isfinite(loss) else -math.inf), row, figures))
    return lines


def row_losses(stats: np.ndarray, part: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed loss of each row and its count of labels, from those of each example in the order of `part`."""
    examples, rows = part.row[part.order], len(part.keys)
    sums, counts = (np.bincount(examples, stats[:, i].astype(np.float64), rows) for i in (0, 1))
    return sums, counts


@dataclass
class TokenLosses:
    """The losses of the tokens of each window, in the order in which they were measured; 0 where there is no label."""

    windows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, losses: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep the losses of a batch, and where there is a label, both [B, T]."""
        there = labels.ne(-100).cpu().numpy()
        self.windows += zip(losses.float().cpu().numpy(), there, strict=True)

    def by_document(self, part: Any, offset: int | None, tokenizer: Any) -> list[Line]:
        """Return every measured document of `part` with its loss a token, and take the windows of it away.

        `offset` is the task's LABEL_OFFSET. A separator is of the document that it ends.
        """
        ids, ends = part.stream.ids, part.stream.ends
        sums, counts = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
        windows, self.windows = self.windows[: len(part)], self.windows[len(part) :]
        for index, (losses, there) in enumerate(windows):
            at = np.flatnonzero((losses != 0) | there)
            places = part.begin(index) + (np.zeros_like(at) if offset is None else at + offset)
            documents = np.searchsorted(ends, places, "right")
            np.add.at(sums, documents, losses[at].astype(np.float64))
            np.add.at(counts, documents, there[at])
        lines: list[Line] = []
        for number in np.flatnonzero(counts).tolist():
            begin, end = int(ends[number - 1]) if number else 0, int(ends[number])
            text = tokenizer.decode(ids[begin : min(end, begin + SHOWN_TOKENS)].tolist(), skip_special_tokens=True)
            loss, tokens = float(sums[number] / counts[number]), int(counts[number])
            lines.append(((loss,), {"document": number + 1, "text": text}, {"loss": loss, "tokens": tokens}))
        return lines


def write(output: Output, parts: Mapping[str, Sequence[Line]]) -> int:
    """Write the rows or documents of each part into one file, mistakes first; return how many there are.

    Of several parts each row says of which it is, as its `split`. All columns of the data come first; what is said is
    under `evaluated_KEY` where one of them is called like KEY.
    """
    lines = [
        (rank, row, {**figures, **({"split": name} if len(parts) > 1 else {})})
        for name, part in parts.items()
        for rank, row, figures in part
    ]
    lines.sort(key=lambda line: line[0], reverse=True)
    columns = dict.fromkeys(column for _, row, _ in lines for column in row)
    keys = {key: own_name(key, columns, "evaluated_") for _, _, figures in lines for key in figures}
    with row_writer(output, own_name(ERROR, columns, "evaluated_")) as write_row:
        for _, row, figures in lines:
            beside = {column: row.get(column) for column in columns}
            write_row(beside | {keys[key]: written(value) for key, value in figures.items()})
    return len(lines)


def written(value: Any) -> Any:
    """Round a figure; one that is not finite is no figure."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


# ---- by class ------------------------------------------------------------------------------------------------------


def tables(results: Results, width: int) -> list[str]:
    """Say how many rows are wrong; below it a table of the classes, and one of which is taken for which, where one is.

    Lines have `width` columns, or what three classes take. Precision, recall and F1 are 0 where there is nothing to
    count, as in the metrics.
    """
    counts, wrong, number = Counter[tuple[Class, Class]](), 0, 0
    for result in results.rows:
        counts.update(result.decisions)
        wrong, number = wrong + (not result.said["right"]), number + 1
    lines = [f"{wrong:,} of {number:,} rows are wrong", *_by_class(counts, results, width)]
    taken = any(true != predicted for true, predicted in counts if true is not None and predicted is not None)
    if taken or not any(None in decision for decision in counts):
        lines += ["", *_confusion(counts, results.classes, width)]
    return lines


def _by_class(counts: Mapping[tuple[Class, Class], int], results: Results, width: int) -> list[str]:
    classes = list(results.classes)
    scores = class_scores(counts, classes)
    shown = classes if len(classes) <= SHOWN else sorted(classes, key=lambda name: -scores.actual[name])[:SHOWN]
    total = sum(scores.actual[name] for name in classes)
    head = f"the {SHOWN} most frequent of {len(classes)}" if len(shown) < len(classes) else "class"
    rows = [
        *((name, scores.of[name], scores.actual[name]) for name in shown),
        (f"mean of {len(classes)}", scores.mean, total),
        ("all together", scores.together, total),
    ]
    cells = [["precision", "recall", "f1", results.unit]]
    cells += [[*(f"{figure:.4f}" for figure in scores), f"{count:,}"] for _, scores, count in rows]
    gap = 3 if width >= USUAL else 1
    widths = [gap + max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    room = max(LEAST_NAME, min(34, width - sum(widths)))
    above, head = ([], head) if len(head) <= room else ([f"{head}:"], "class")
    return above + [
        _padded(name, room) + "".join(_right(cell, size) for cell, size in zip(row, widths, strict=True))
        for name, row in zip([head, *(name for name, _, _ in rows)], cells, strict=True)
    ]


def _confusion(counts: Mapping[tuple[Class, Class], int], classes: Sequence[str], total: int) -> list[str]:
    """Return how often each class is taken for each; where not all fit in, for those that are most often confused."""
    none: list[Class] = [None] if any(None in decision for decision in counts) else []
    name_room = NAME if total >= USUAL else len(CONFUSION)
    width = max(8 if total >= USUAL else 5, *(len(f"{count:,}") + 2 for count in counts.values()))
    room = max(3, (total - name_room) // width)
    shown: list[Class] = [*classes, *none]
    named = max(width, *(columns_of(printable(name or NONE)) + 2 for name in shown))
    if len(shown) > room:
        most = most_confused(counts, room - 1 - len(none))
        shown = [*(name for name in classes if name in most), OTHERS, *none]
    known = set(classes)

    def of(name: Class) -> Class:
        return name if name in shown or name not in known else OTHERS

    cells = Counter[tuple[Class, Class]]()
    for (true, predicted), count in counts.items():
        cells[of(true), of(predicted)] += count
    names = [NONE if name is None else name for name in shown]
    heads = names
    if named * len(shown) <= total - name_room:
        width = named
    else:  # a number for each stands above its column
        heads = [name if name in (NONE, OTHERS) else str(number) for number, name in enumerate(names, 1)]
        heads = [head.strip("()") for head in heads]
        names = [name if name in (NONE, OTHERS) else f"{head} {name}" for name, head in zip(names, heads, strict=True)]
    lines = [f"the {len(shown) - 1 - len(none)} that are most often confused, of {len(classes)}:"] * (OTHERS in shown)
    lines.append(_padded(CONFUSION, name_room) + "".join(_right(head, width) for head in heads))
    for name, true in zip(names, shown, strict=True):
        row = [f"{cells[true, predicted]:,}" if cells[true, predicted] else "." for predicted in shown]
        lines.append(_padded(name, name_room) + "".join(_right(cell, width) for cell in row))
    return lines


def _right(text: str, width: int) -> str:
    shown = printable(text)
    return " " * (width - columns_of(shown)) + shown


def _padded(name: str, width: int) -> str:
    shown = cut(name, width)
    return shown + " " * (width - columns_of(shown))
