"""What came of a sweep: the trials in order, the table, the recipe of the best and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from llmkit.recipe import load
from llmkit.recipe.schema import Recipe
from llmkit.recipe.toml import toml_value
from llmkit.reports.runs import headline, smaller_is_better
from llmkit.runs import directory as runs
from llmkit.sweeps.plan import Plan
from llmkit.sweeps.space import Trial, short_keys

BEST, PICTURE = "best.toml", "sweep.svg"
TEST = "test"


@dataclass(frozen=True)
class Score:
    """What a trial has reached: a value of the metric that counts and a number of steps a run."""

    trial: Trial
    values: tuple[float, ...]
    steps: tuple[int, ...]
    status: str

    @property
    def mean(self) -> float:
        """Return the mean over the seeds; NaN where one of them failed."""
        return fmean(self.values) if self.values and self.status != "failed" else math.nan

    @property
    def deviation(self) -> float | None:
        """Return the sample standard deviation; None for one value."""
        return stdev(self.values) if len(self.values) > 1 else None


def record_at(directory: Path, share: Fraction) -> Mapping[str, Any]:
    """Return the metrics and `step` of a run after this share of its steps; empty where it has not come so far."""
    record = runs.read_record(directory)
    rung: Mapping[str, Any] = record.get("rungs", {}).get(str(share), {})
    if not rung and runs.is_finished(directory):  # at its end, or by early stopping before
        return {"step": record.get("steps"), **record["metrics"]}
    return rung


def metric_of(plan: Plan, directory: Path) -> tuple[str, bool] | None:
    """Return the metric that counts, by the first run that has one, and whether less of it is better."""
    for path in run_directories(directory):
        record = runs.read_record(path)
        name, _ = headline(record)
        if name is not None:
            more = plan.recipe.trainer.get("greater_is_better")
            return name, smaller_is_better(name) if more is None else not more
    return None


def run_directories(directory: Path) -> list[Path]:
    """List the runs of a sweep."""
    return [path for trial in runs.trials_of(directory) for path in sorted(trial.iterdir()) if runs.is_run(path)]


def score(plan: Plan, directory: Path, trial: Trial, share: Fraction, metric: str) -> Score:
    """Return what a trial has reached after this share of its steps."""
    paths = [directory / trial.name / f"seed-{seed}" for seed in plan.seeds]
    records = [record_at(path, share) for path in paths]
    whole = all(metric in each for each in records)
    status = "failed" if not whole else "finished" if all(map(runs.is_finished, paths)) else f"stopped at {share}"
    present = [each for each in records if metric in each]
    return Score(trial, tuple(each[metric] for each in present), tuple(each["step"] for each in present), status)


def ranked(scores: Sequence[Score], less: bool) -> list[Score]:
    """Return the best first; of equals, the one that comes first; behind them those that have no value."""
    return sorted(scores, key=lambda each: (math.isnan(each.mean), each.mean if less else -each.mean))


def rows(scores: Sequence[Score], metric: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the table of trials, the best first, and its columns."""
    keys = short_keys(list(dict.fromkeys(key for each in scores for key in each.trial.settings)))
    table = []
    for number, each in enumerate(scores, 1):
        settings = {keys[key]: _shown(value) for key, value in each.trial.settings.items()}
        table.append(
            {
                "": number,
                **settings,
                metric: None if math.isnan(each.mean) else each.mean,
                "std": each.deviation,
                "runs": len(each.values),
                "steps": max(each.steps, default=None),
                "status": each.status,
            }
        )
    several = any(row["std"] is not None for row in table)
    return table, ["", *keys.values(), metric, *(["std"] if several else []), "runs", "steps", "status"]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else toml_value(value)


def said(score: Score, metric: str) -> str:
    """Write a value with its spread: `eval_accuracy 0.9300 ± 0.0100 (2 seeds)`."""
    spread = "" if score.deviation is None else f" ± {score.deviation:.4f} ({len(score.values)} seeds)"
    return f"{metric} {score.mean:.4f}{spread}"


def write_best(plan: Plan, directory: Path, best: Score, metric: str, trials: int) -> Path:
    """Write the recipe of the best trial, with its first seed."""
    run = directory / best.trial.name / f"seed-{plan.seeds[0]}"
    recipe: Recipe = load(str(run / runs.RECIPE_FILE))
    if plan.recipe.report.write is None:  # it wrote none, as one of several
        recipe = recipe.model_copy(update={"report": recipe.report.model_copy(update={"write": None})})
    head = (
        f"# The best of {trials} trials: {best.trial.name}\n"
        f"# {said(best, metric)}, on the validation rows by which it was chosen: expect less of others.\n"
    )
    runs.write_text(directory / BEST, head + recipe.to_toml())
    return directory / BEST


def write_picture(plan: Plan, directory: Path, scores: Sequence[Score], metric: str) -> Path:
    """Draw the metric over each key that was swept."""
    from llmkit.reports import pictures

    present = [each for each in scores if not math.isnan(each.mean)]
    panels = []
    for axis in plan.axes:
        dots = [
            pictures.Dot(each.trial.settings[axis.key], each.mean, each.values, number == 0, each.status != "finished")
            for number, each in enumerate(present)
        ]
        panels.append(pictures.Panel(short_keys([a.key for a in plan.axes])[axis.key], dots, axis.log))
    picture = pictures.over_keys(
        directory.name,
        f"{metric} of {len(present)} trials",
        f"{metric} over {' and '.join(axis.key for axis in plan.axes)}; the best is {present[0].trial.name}",
        panels,
        metric,
    )
    runs.write_text(directory / PICTURE, picture.alone())
    return directory / PICTURE


def test_split(recipe: Recipe) -> str | None:
    """Return the split of the data that is called `test`; None where there is none, or where it is used already."""
    from llmkit.data import files
    from llmkit.data.rows import table
    from llmkit.data.text import documents
    from llmkit.recipe.data_tables import RowData, TextData

    data = recipe.data
    if isinstance(data, TextData):
        if data.sources or data.streaming:
            return None
        data = documents.splits_of_folder(data)[0] if files.is_local(data) else data
    elif isinstance(data, RowData):
        data = table.splits_of_folder(data)[0] if files.is_local(data) else data
    else:  # each of several tasks has its own
        return None
    used = data.validation_split or table.default_validation(data) or ""
    taken = {data.split, *((used,) if isinstance(used, str) else used)}
    return TEST if TEST in table.split_names(data) and TEST not in taken else None


def summary(score: Score) -> dict[str, Any]:
    """Return what sweep.json keeps of a trial."""
    return {
        "name": score.trial.name,
        "settings": dict(score.trial.settings),
        "status": score.status,
        "mean": None if math.isnan(score.mean) else score.mean,
        "std": score.deviation,
        "values": list(score.values),
        "steps": list(score.steps),
    }
