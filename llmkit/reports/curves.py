"""Read what a run logged, and thin it out to what a picture can show."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmkit import disk
from llmkit.metrics import evaluation_metrics
from llmkit.runs.directory import METRICS_FILE

CURVES = ("loss", "learning_rate", "grad_norm")  # and speeds
POINTS = 200  # of a curve; where there are more, each stands for several


@dataclass(frozen=True)
class Curve:
    """Values over steps. Of a curve that was thinned out each value is the mean of `each` entries or more.

    `low` and `high` are the range of these; `first`, `last`, `least` and `most` are (step, value) of single entries.
    """

    steps: np.ndarray
    values: np.ndarray
    entries: int
    first: tuple[int, float]
    last: tuple[int, float]
    least: tuple[int, float]
    most: tuple[int, float]
    each: int = 1
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @classmethod
    def of(cls, points: Sequence[tuple[int, float]]) -> "Curve":
        """Make a curve of finite values, one at least, thinned out to POINTS."""
        steps, values = np.array([step for step, _ in points]), np.array([value for _, value in points], float)

        def at(index: Any) -> tuple[int, float]:
            return int(steps[index]), float(values[index])

        ends = at(0), at(-1), at(values.argmin()), at(values.argmax())
        if len(points) <= 2 * POINTS:
            return cls(steps, values, len(points), *ends)
        begins = np.linspace(0, len(points), POINTS + 1).astype(int)[:-1]
        sizes = np.diff(begins, append=len(points))
        middle, mean = (np.add.reduceat(each, begins) / sizes for each in (steps.astype(float), values))
        low, high = np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)
        return cls(middle, mean, len(points), *ends, int(sizes.min()), low, high)


@dataclass
class Log:
    """What `metrics.jsonl` holds: the curves by key, each evaluation, the skipped steps and the samples."""

    curves: dict[str, Curve] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)  # `step` and the metrics
    skipped: list[int] = field(default_factory=list)
    samples: list[tuple[int, list[Mapping[str, str]]]] = field(default_factory=list)
    not_finite: int = 0  # values of curves that are no number
    unreadable: int = 0  # lines


def read(directory: Path) -> Log:
    """Read the log of a run; a line that is not whole is counted and passed over."""
    log, points = Log(), dict[str, list[tuple[int, float]]]()
    evaluations: dict[int, dict[str, float]] = {}
    path = directory / METRICS_FILE
    if not disk.is_file(path):
        return log
    with path.open("rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
                step = int(entry["step"])
            except (ValueError, KeyError, TypeError):
                log.unreadable += bool(line.strip())
                continue
            if "skipped_step" in entry:
                log.skipped.append(int(entry["skipped_step"]))
                continue
            if isinstance(entry.get("samples"), list):
                log.samples.append((step, entry["samples"]))
            if "loss" in entry:
                wanted = {key: entry[key] for key in entry if key in CURVES or key.endswith("_per_second")}
            else:
                wanted = evaluation_metrics(entry)
            if "loss" not in entry:  # the first at a step counts: what follows the last one may be of the best weights
                seen = evaluations.setdefault(step, {"step": step}) if wanted else {}
                wanted = {key: value for key, value in wanted.items() if key not in seen}
                seen.update(wanted)
            for key, value in wanted.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    points.setdefault(key, []).append((step, float(value)))
                else:
                    log.not_finite += 1
    log.curves = {key: Curve.of(values) for key, values in points.items()}
    log.evaluations = list(evaluations.values())
    return log
