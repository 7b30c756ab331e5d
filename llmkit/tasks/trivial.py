"""What a result must beat: the trivial answer, which reads no text; and whether it does, by the bootstrap.

The differences between model and trivial answer are paired by row (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapter 13): rows are drawn again with replacement, and both sides are computed from the same draw.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 1000
AT_ONCE = 20  # resamples whose counts of rows are in memory
FEWEST_ROWS = 30  # below, the bootstrap's intervals are too narrow to go by
MOST_ROWS = 10_000  # beyond, so many rows are drawn
MOST_CLASSES = 50  # beyond, `correlation_rows` are too wide
FREQUENCIES = "label frequencies"  # the name of what a loss is compared with where labels are no tokens
LOWER_IS_BETTER = ("loss", "mean_squared_error", "mean_absolute_error")

Rows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trivial:
    """The trivial answer for the rows of one part.

    `says` names it; `metrics` are its own; `predictions` are as `predictions_and_references` gives them. `rows` are,
    of the metrics that decide, what each row adds to the model's and to the trivial one: two arrays [N, D], of which
    `combined` makes the metric. `losses`, [N, 2], are each example's summed loss and count of labels; None: those of
    the labels' frequencies. `named` are the metrics for which another answer is the trivial one.
    """

    says: str
    metrics: Mapping[str, float]
    predictions: Any
    rows: Mapping[str, Rows]
    losses: np.ndarray | None = None
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A result beside the trivial one: `values` are, by metric, (the answer's name, its figure).

    `intervals` are, by the metrics that decide, (lower end, upper end) of the difference in favour of the model.
    """

    values: Mapping[str, tuple[str, float]]
    intervals: Mapping[str, tuple[float, float]]
    num_rows: int

    @property
    def better(self) -> bool | None:
        """Whether the model beats the trivial answer in a metric and loses in none; None where it cannot be told."""
        if self.num_rows < FEWEST_ROWS:
            return None
        return any(low > 0 for low, _ in self.intervals.values()) and not any(h < 0 for _, h in self.intervals.values())


def compare(values: Mapping[str, tuple[str, float]], rows: Mapping[str, Rows]) -> Comparison:
    """Put the intervals of the metrics that decide beside the figures of the trivial answer."""
    intervals = {name: interval(name, *sides) for name, sides in rows.items()}
    return Comparison(values, intervals, min((len(model) for model, _ in rows.values()), default=0))


def interval(name: str, model: np.ndarray, trivial: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of a metric's paired difference, above 0 where the model is better."""
    rows = sample(len(model), MOST_ROWS)
    rng, model, trivial = np.random.default_rng(0), model[rows], trivial[rows]
    differences = []
    for _ in range(RESAMPLES // AT_ONCE):
        weights = np.empty((AT_ONCE, len(rows)))
        for drawn in weights:
            drawn[:] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        differences.append(combined(name, weights @ model) - combined(name, weights @ trivial))
    difference = np.concatenate(differences)
    low, high = np.percentile(-difference if name in LOWER_IS_BETTER else difference, (2.5, 97.5))
    return float(low), float(high)


def sample(num_rows: int, most: int) -> np.ndarray:
    """Draw the numbers of `most` rows, always the same; all where there are no more."""
    if num_rows <= most:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(0).choice(num_rows, most, replace=False))


@np.errstate(invalid="ignore", divide="ignore")  # what is constant correlates with nothing: 0
def combined(name: str, sums: np.ndarray) -> np.ndarray:
    """Compute a metric from sums over rows, [R, D] -> [R]: a ratio of two sums, or one of two correlations."""
    if name == "matthews_correlation":
        half = (sums.shape[1] - 1) // 2
        right, predicted, actual = sums[:, 0], sums[:, 1 : 1 + half], sums[:, 1 + half :]
        number = predicted.sum(axis=1)
        covariance = right * number - (predicted * actual).sum(axis=1)
        variances = (number**2 - (predicted**2).sum(axis=1)) * (number**2 - (actual**2).sum(axis=1))
        return np.where(variances > 0, covariance / np.sqrt(variances), 0.0)
    if name == "pearson":
        number, x, y, xx, yy, xy = sums.T
        variances = (number * xx - x**2) * (number * yy - y**2)
        return np.where(variances > 1e-9 * number**4, (number * xy - x * y) / np.sqrt(variances), 0.0)
    return sums[:, 0] / np.maximum(sums[:, 1], 1e-12)


def mean_rows(values: np.ndarray) -> np.ndarray:
    """Return what rows add to a mean over rows, [N, 2]."""
    return np.stack([values, np.ones(len(values))], axis=1).astype(np.float64)


def agreement_rows(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return what rows add to Matthews' correlation of two class assignments [N]: [N, 1 + 2 C]."""
    classes, codes = np.unique(np.concatenate((predictions, references)), return_inverse=True)
    one_hot = np.eye(len(classes))[codes]
    right = (predictions == references)[:, None]
    return np.concatenate([right, *np.split(one_hot, 2)], axis=1).astype(np.float64)


def correlation_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return what rows add to the linear correlation of two series [N]: [N, 6]."""
    x, y = x - y.mean(), y - y.mean()
    scale = np.abs(y).max() or 1.0
    x, y = x / scale, y / scale
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def overlap_rows(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return what rows add to F1 over all decisions, from bool [N, C]."""
    return np.stack([2 * (predicted & actual).sum(axis=1), predicted.sum(axis=1) + actual.sum(axis=1)], axis=1)


# ---- the loss ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frequencies:
    """How often each label occurs, of `size` that there may be: of tokens, a unigram model.

    A label that did not occur has its share of the probability that Witten and Bell (1991, doi:10.1109/18.87000,
    method C) leave for what is new: T / (N + T), of N labels of T kinds.
    """

    labels: np.ndarray
    counts: np.ndarray
    size: int

    @classmethod
    def of(cls, parts: Iterable[np.ndarray], size: int) -> "Frequencies":
        """Count labels in arrays of any shape; -100 is none."""
        counts = np.zeros(size, np.int64)
        for part in parts:
            occurrences = np.bincount(part[part >= 0])
            counts = np.pad(counts, (0, max(0, len(occurrences) - len(counts))))
            counts[: len(occurrences)] += occurrences
        labels = np.flatnonzero(counts)
        return cls(labels, counts[labels], len(counts))

    def losses(self, labels: np.ndarray) -> np.ndarray:
        """Return the loss of each label in nats, 0 where it is -100."""
        kinds, number = len(self.labels), int(self.counts.sum())
        new = self.size - kinds
        of_new = kinds / max(1, new)
        # A table up to the highest label that is asked for: each is looked up once.
        table = np.full(max(self.size, int(labels.max(initial=0)) + 1), of_new)
        table[self.labels] = self.counts
        total = number + (kinds if new else 0)
        return np.where(labels >= 0, math.log(total) - np.log(table[np.maximum(labels, 0)]), 0.0)

    def stats(self, labels: np.ndarray) -> np.ndarray:
        """Return each row's summed loss and count of labels, [N, ...] -> [N, 2]."""
        flat = labels.reshape(len(labels), -1)
        return np.stack([self.losses(flat).sum(axis=1), (flat >= 0).sum(axis=1)], axis=1)
