"""`llmkit compare`: what differs between runs, in settings and in results, and whether it is more than chance."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from llmkit import disk
from llmkit.errors import UserError, answer, quantity, say
from llmkit.metrics import gather
from llmkit.recipe.toml import toml_value
from llmkit.reports.runs import smaller_is_better, status_of
from llmkit.reports.tables import Format, render
from llmkit.runs import directory as runs
from llmkit.runs import predictions
from llmkit.terminal import columns as terminal_columns

RESAMPLES, CHUNK = 10_000, 2**22  # of the bootstrap; random numbers drawn at a time
SEEDS = ("trainer.seed", "data.seed")
OUTPUT = ("output_dir", "output_mirror")  # keys that every run has of its own
EXACT = 5_000  # discordant rows up to which McNemar's test counts with whole numbers


@dataclass(frozen=True)
class Side:
    """A column of the comparison: one run, or several that were repeated with other seeds.

    `settings` are those that its runs share, by dotted key; `metrics` has a value a run.
    """

    name: str
    runs: tuple[Path, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Verdict:
    """How two runs differ on the same rows: `second` better than `first` where `difference` is above 0.

    `interval` is the 95 % interval of the difference by a paired bootstrap. Where rows are right or wrong,
    `first_only` and `second_only` count those that one run alone has right, and `p` is McNemar's exact test.
    """

    measure: str
    rows: int
    difference: float
    interval: tuple[float, float]
    first_only: int | None = None
    second_only: int | None = None
    p: float | None = None


@dataclass(frozen=True)
class Result:
    """A metric: its values on each side, one a run, and the sides whose mean is best; none where all are equal."""

    values: Sequence[Sequence[float]]
    best: Sequence[int] = ()

    @property
    def means(self) -> list[float | None]:
        return [fmean(each) if each else None for each in self.values]

    @property
    def deviations(self) -> list[float | None]:
        return [stdev(each) if len(each) > 1 else None for each in self.values]


@dataclass(frozen=True)
class Comparison:
    """What differs between sides: settings by key and metrics by name, and what their rows say of two single runs."""

    sides: Sequence[Side]
    settings: Mapping[str, Sequence[Any]]
    metrics: Mapping[str, Result]
    verdict: Verdict | str | None
    by_row: bool = False  # whether each side has a row of its own, and not a column: trials of a sweep
    names_are_settings: bool = False  # what a trial of the one sweep is called

    def said(self) -> list[str]:
        """Say what the rows say."""
        return said(self.sides[-1].name, self.verdict)

    def as_object(self) -> dict[str, Any]:
        """Return a comparison for a program; each list has an entry a side."""
        return {
            "sides": [{"name": side.name, "runs": list(map(str, side.runs))} for side in self.sides],
            "settings": self.settings,
            "metrics": {
                name: {"mean": each.means, "std": each.deviations, "values": each.values, "best": each.best}
                for name, each in self.metrics.items()
            },
            "test": asdict(self.verdict) if isinstance(self.verdict, Verdict) else None,
            "note": self.verdict if isinstance(self.verdict, str) else None,
        }


def read(names: Sequence[str]) -> Comparison:
    """Compare runs; each of `names` is a run, a folder with the runs of several seeds, or a sweep: its trials.

    Raises UserError for fewer than two, and for what is no run.
    """
    swept = [name for name in names if runs.trials_of(_path(name))]
    sides = [side for name in names for side in (_trials(name, names) if name in swept else [_side(name)])]
    if len(sides) < 2:
        raise UserError("a comparison needs two runs at least", "name them: llmkit compare runs/a runs/b")
    return Comparison(sides, differences(sides), results(sides), _verdict(sides), bool(swept), len(names) == 1)


def show(comparison: Comparison, format: Format = "table") -> None:
    """Print the settings that differ, metrics side by side, and a test where there are two runs."""
    if format == "json":
        answer(comparison.as_object())
        return
    columns = ["", *(side.name for side in comparison.sides)]
    settings = table(comparison.sides, comparison.settings)
    metrics = table(comparison.sides, {name: cells(result) for name, result in comparison.metrics.items()})
    tables = [settings, metrics]
    if comparison.by_row:
        tables = [[{"": name, **{row[""]: row[name] for row in (*settings, *metrics)}} for name in columns[1:]]]
        columns = ["", *(row[""] for row in (*settings, *metrics))]
        if comparison.names_are_settings and format in ("latex", "md"):
            columns = columns[1:]
    width = terminal_columns(sys.stdout)
    print("\n".join(render(rows, columns, format, width) for rows in tables if rows), end="")  # noqa: T201
    if not comparison.settings:
        say("note: no setting differs")
    if any(result.best for result in comparison.metrics.values()) and format == "table":
        say("* the best")
    for line in comparison.said():
        say(line)


def table(sides: Sequence[Side], named: Mapping[str, Sequence[Any]]) -> list[dict[str, str]]:
    """Return a row for each name, with the cell of each side."""
    return [
        {"": name, **{side.name: written(cell) for side, cell in zip(sides, row, strict=True)}}
        for name, row in named.items()
    ]


def differences(sides: Sequence[Side]) -> dict[str, list[Any]]:
    """Return each setting that is not the same on all sides, with its value on each; None where it is not set."""
    differing = {}
    for key in dict.fromkeys(key for side in sides for key in side.settings):
        values = [side.settings.get(key) for side in sides]
        if key not in OUTPUT and any(value != values[0] for value in values):
            differing[key] = values
    return differing


def results(sides: Sequence[Side]) -> dict[str, Result]:
    """Return each metric with its values on each side, and the sides whose mean is best."""
    compared = {}
    for name in dict.fromkeys(name for side in sides for name in side.metrics):
        values = [side.metrics.get(name, ()) for side in sides]
        means = Result(values).means
        present = [mean for mean in means if mean is not None and math.isfinite(mean)]
        best = (min if smaller_is_better(name) else max)(present, default=None)
        alike = best is None or means.count(best) == len(sides)
        compared[name] = Result(values, () if alike else [i for i, mean in enumerate(means) if mean == best])
    return compared


def cells(result: Result) -> list[str]:
    """Write a metric for people: mean and standard deviation of each side, the best marked."""
    shown = []
    for i, (mean, deviation) in enumerate(zip(result.means, result.deviations, strict=True)):
        spread = "" if deviation is None else f" ± {deviation:.4f}"
        shown.append("" if mean is None else f"{mean:.4f}{spread}{' *' if i in result.best else ''}")
    return shown


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the p-value of McNemar's exact test: a two-sided sign test of the rows that one run alone has right."""
    n, k = first_only + second_only, min(first_only, second_only)
    if n == 0 or first_only == second_only:
        return 1.0
    if n <= EXACT:
        term = total = 1
        for i in range(k):
            term = term * (n - i) // (i + 1)
            total += term
        return min(1.0, 2 * total / 2**n)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def paired_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences (n,): percentiles of a bootstrap over the pairs."""
    n, rng = len(differences), np.random.default_rng(seed)
    at_once = max(1, CHUNK // n)
    means = [
        differences[rng.integers(0, n, (min(at_once, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def judge(first: Path, second: Path) -> Verdict | str:
    """Compare two runs row by row; return why not where their last evaluations were not of the same rows."""
    rows = [{(row.get("split"), row["row"]): row for row in predictions.read(path)} for path in (first, second)]
    for path, found in zip((first, second), rows, strict=True):
        if not found:
            return f"`{path}` has no {runs.PREDICTIONS_FILE}"
    if rows[0].keys() != rows[1].keys() or any(_identity(rows[0][i]) != _identity(rows[1][i]) for i in rows[0]):
        return "the runs were evaluated on different rows, so the figures above do not compare; give both one dev file"
    pairs = [(rows[0][i], rows[1][i]) for i in rows[0]]
    judged = [(one, other) for one, other in pairs if None not in (one.get("right"), other.get("right"))]
    if judged:
        right = np.array([[bool(one["right"]), bool(other["right"])] for one, other in judged], float)
        first_only, second_only = (int(((right[:, 0] - right[:, 1]) == sign).sum()) for sign in (1, -1))
        difference = right[:, 1] - right[:, 0]
        test = (first_only, second_only, mcnemar(first_only, second_only))
        return Verdict("right", len(judged), float(difference.mean()), paired_interval(difference), *test)
    losses = np.array(
        [[one["loss"], other["loss"]] for one, other in pairs if None not in (one["loss"], other["loss"])]
    )
    if not len(losses):
        return "no row has a loss"
    difference = losses[:, 0] - losses[:, 1]  # less loss is better
    return Verdict("loss", len(losses), float(difference.mean()), paired_interval(difference))


def _identity(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("key"), row.get("truth")


def _verdict(sides: Sequence[Side]) -> Verdict | str | None:
    """Judge two single runs row by row; None of others."""
    if len(sides) != 2 or any(len(side.runs) > 1 for side in sides):
        return None
    return judge(sides[0].runs[0], sides[1].runs[0])


def said(name: str, verdict: Verdict | str | None) -> list[str]:
    """Say what the rows say of two runs, of which the second has this name."""
    if not isinstance(verdict, Verdict):
        return [] if verdict is None else [f"note: not compared row by row: {verdict}"]
    low, high = verdict.interval
    if verdict.measure == "right":
        gained, least, most = (100 * value for value in (verdict.difference, low, high))
        lines = [
            f"{verdict.rows:,} rows: `{name}` has {gained:+.2f} points more right "
            f"(95 % interval {least:+.2f} to {most:+.2f})",
            f"right in one alone: {verdict.first_only:,} and {verdict.second_only:,}; "
            f"McNemar's test: p = {verdict.p:.3g}",
        ]
    else:
        lines = [
            f"{verdict.rows:,} rows: the loss of `{name}` is {verdict.difference:.4f} lower "
            f"(95 % interval {low:+.4f} to {high:+.4f})"
        ]
    return [*lines, *(["the difference may be chance"] if low <= 0 <= high else [])]


def _path(name: str) -> Path:
    return Path(name) if disk.exists(Path(name)) else runs.ROOT / name


def _trials(name: str, names: Sequence[str]) -> list[Side]:
    """Read the trials of a sweep, but for those that have no results, such as those that it stopped on the way."""
    folders = runs.trials_of(_path(name))
    whole = [path for path in folders if any("metrics" in runs.read_record(run) for run in disk.within(path, "*/"))]
    if len(whole) < len(folders):
        say(f"note: {quantity(len(folders) - len(whole), 'trial')} of `{name}` without final results left out")
    sides = [_side(str(path)) for path in whole]
    return (
        [replace(side, name=path.name) for side, path in zip(sides, whole, strict=True)] if len(names) == 1 else sides
    )


def _side(name: str) -> Side:
    """Read a run, or a folder of runs."""
    path = _path(name)
    paths = (path,) if runs.is_run(path) else tuple(inner for inner in disk.within(path, "*/") if runs.is_run(inner))
    if not paths:
        raise UserError(f"`{name}` is not a run, nor a folder of runs", "list the runs: llmkit runs")
    records = [runs.read_record(each) for each in paths]
    finished = [record for record in records if "metrics" in record]
    if not finished:
        status = status_of(paths[0], records[0])
        raise UserError(f"`{name}` has no results: it is {status}", f"see `llmkit check {paths[0]}`")
    settings = [dict(_flat(record.get("settings", {}))) for record in finished]
    keys = dict.fromkeys(key for each in settings for key in each)
    shared = {
        key: settings[0].get(key) for key in keys if all(each.get(key) == settings[0].get(key) for each in settings)
    }
    shared |= {key: "varies" for key in keys if key not in shared and key not in (*SEEDS, *OUTPUT)}
    return Side(name.rstrip("/"), paths, shared, gather(record["metrics"] for record in finished))


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def written(value: Any) -> str:
    """Write a value of a setting as a recipe has it, without quotes."""
    return "" if value is None else value if isinstance(value, str) else toml_value(value)
