"""What the last evaluation made of the rows, in figures: by class, confusions, calibration, the worst mistakes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.metrics import ClassScores, class_scores, most_confused
from llmkit.runs import predictions

SHOWN = 20  # classes in a table by class
WIDE = 12  # classes in a table of confusions
BINS = 10  # of probabilities
WORST = 20
OTHERS = "(others)"
Class = str | None  # None: no class
# Figures of a row that a histogram shows, and what it is called.
SPREAD = {"f1": "F1 of an answer", "chrf": "chrF of a text"}


@dataclass
class Part:
    """The rows of one part of the data that was evaluated."""

    name: str
    task: str
    classes: Sequence[str]
    unit: str
    folder: str = ""  # that of its model below the run's, of several tasks
    rows: int = 0
    wrong: int | None = None  # None: rows are not right or wrong
    decisions: Counter[tuple[Class, Class]] = field(default_factory=Counter)
    scored: list[tuple[float, bool]] = field(default_factory=list)  # a probability, and whether it came true
    numbers: list[tuple[float, float]] = field(default_factory=list)  # of a regression: truth and prediction
    spread: dict[str, list[float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)

    @property
    def scores(self) -> ClassScores:
        return class_scores(self.decisions, self.classes)

    def by_class(self) -> list[str]:
        """Return the classes to show, of many the most frequent."""
        if len(self.classes) <= SHOWN:
            return list(self.classes)
        return sorted(self.classes, key=lambda name: -self.scores.actual[name])[:SHOWN]

    def confusion(self) -> tuple[list[Class], list[list[int]]] | None:
        """Return the classes and how often each (a row) is taken for each (a column), where that means something.

        Of many those that are most often confused, and the others as one. None stands for no class.
        """
        confused = any(None not in pair and len(set(pair)) == 2 for pair in self.decisions)
        none: list[Class] = [None] if any(None in pair for pair in self.decisions) else []
        if not self.classes or (none and not confused):
            return None
        shown: list[Class] = [*self.classes, *none]
        if len(self.classes) > WIDE:
            most = most_confused(self.decisions, WIDE)
            shown = [*(name for name in self.classes if name in most), OTHERS, *none]
        cells = Counter[tuple[Class, Class]]()
        for pair, count in self.decisions.items():
            true, predicted = (name if name in shown else OTHERS for name in pair)
            cells[true, predicted] += count
        return shown, [[cells[true, predicted] for predicted in shown] for true in shown]

    def calibration(self) -> tuple[float, list[dict[str, float]]] | None:
        """Return the expected calibration error and its bins of one width; None without probabilities.

        The error is the mean distance of confidence and accuracy over bins, weighted by rows (Guo et al. 2017,
        arXiv:1706.04599).
        """
        if not self.scored:
            return None
        probabilities, right = np.array(self.scored, float).T
        number = np.minimum((probabilities * BINS).astype(int), BINS - 1)
        rows = np.bincount(number, minlength=BINS)
        sums = [np.bincount(number, values, BINS) for values in (probabilities, right)]
        bins = [
            {
                "from": i / BINS,
                "to": (i + 1) / BINS,
                "rows": int(rows[i]),
                "confidence": float(sums[0][i] / rows[i]),
                "accuracy": float(sums[1][i] / rows[i]),
            }
            for i in np.flatnonzero(rows).tolist()
        ]
        error = sum(each["rows"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / len(probabilities)
        return float(error), bins


def read(directory: Path, record: Mapping[str, Any]) -> list[Part]:
    """Read the kept rows of a run: none where none were kept."""
    about = record.get("predictions", {})
    parts = {
        name: Part(name, each["task"], each.get("classes", ()), each.get("unit", "rows"), each.get("folder", ""))
        for name, each in about.items()
    }
    for row in predictions.read(directory) if parts else ():
        _add(parts[row.get("split", next(iter(parts)))], row)
    for part in parts.values():
        part.worst.sort(key=lambda row: row["worst"])
    return [part for part in parts.values() if part.rows]


def _add(part: Part, row: dict[str, Any]) -> None:
    truth, prediction, score, right = (row.get(key) for key in ("truth", "prediction", "score", "right"))
    part.rows += 1
    if right is not None:
        part.wrong = (part.wrong or 0) + (not right)
    decisions = row.get("decisions", [(truth, prediction)] if isinstance(truth, str) else [])
    if part.classes:
        part.decisions.update((true, chosen) for true, chosen in decisions)
    if right is not None and isinstance(score, float) and part.task in ("text-classification", "multiple-choice"):
        part.scored.append((score, bool(right)))
    if isinstance(row.get("scores"), dict):
        part.scored += [(score, name in (truth or ())) for name, score in row["scores"].items()]
    if "difference" in row and isinstance(truth, float) and isinstance(prediction, float):
        part.numbers.append((truth, prediction))
    for key in SPREAD:
        if isinstance(row.get(key), int | float):
            part.spread.setdefault(key, []).append(row[key])
    if isinstance(row.get("loss"), float):
        part.losses.append(row["loss"])
    if row.get("worst", WORST + 1) <= WORST:
        part.worst.append(row)


def bars(counts: Mapping[str, int], most: int = SHOWN) -> Iterable[tuple[str, int]]:
    """Return the most frequent of many, and the others as one."""
    listed = list(counts.items())
    if len(listed) <= most:
        return listed
    listed.sort(key=lambda item: -item[1])
    rest = listed[most - 1 :]
    return [*listed[: most - 1], (f"{len(rest):,} others", sum(count for _, count in rest))]
