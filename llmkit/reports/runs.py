"""`llmkit runs`: list the runs of a folder by what their records say."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError, answer
from llmkit.reports.tables import Format, render
from llmkit.runs import directory as runs
from llmkit.runs import shape
from llmkit.terminal import columns

COLUMNS = ("run", "task", "model", "status", "steps", "age", "time", "metric", "value")
# The metric that counts where the task's first is not it, and the recipe names none.
OF_TASK = {"token-classification": "f1", "question-answering": "f1", "seq2seq": "rougeL"}
SMALLER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "mse", "mae")


def list_runs(
    folder: str | None = None, sort: str | None = None, filters: Sequence[str] = (), format: Format = "table"
) -> int:
    """Print a table of the runs in `folder` (`runs/` by default), the newest first; return the exit code.

    JSON is an object, whose `runs` has an object for each.

    `sort` is a column, or with `-` before it the other way round. Each of `filters` is KEY=VALUE: a column, or a key of
    the run's recipe such as `trainer.learning_rate`. Raises UserError where there is nothing to list.
    """
    directory = Path(folder) if folder is not None else runs.ROOT
    if not disk.is_dir(directory):
        hint = "name the folder that holds the runs" if folder else "train one: llmkit finetune --task sst2"
        raise UserError(f"there is no folder `{directory}`", hint)
    records = {path: runs.read_record(path) for path in directories(directory)}
    if not records:
        raise UserError(f"`{directory}` holds no runs", "name the folder that holds them")
    wanted = [_condition(each, records.values()) for each in filters]
    described = [(describe(path, record), record) for path, record in records.items()]
    rows = [row for row, record in described if all(_meets(row, record, *each) for each in wanted)]
    rows.sort(key=lambda row: row["order"], reverse=True)
    if sort is not None:
        name = sort.removeprefix("-")
        if name not in COLUMNS:
            raise UserError(f"--sort: there is no column `{name}`", f"choose from {', '.join(COLUMNS)}")
        key = {"age": "seconds_ago", "time": "seconds"}.get(name, name)
        present = [row for row in rows if row[key] is not None]
        present.sort(key=lambda row: row[key], reverse=sort.startswith("-"))
        rows = [*present, *(row for row in rows if row[key] is None)]
    if format in ("csv", "json"):  # for programs: numbers in seconds, not words
        rows = [{**row, "age": row["seconds_ago"], "time": row["seconds"]} for row in rows]
    if format == "json":
        answer({"runs": [{name: row[name] for name in COLUMNS} for row in rows]})
    else:
        print(render(rows, COLUMNS, format, columns(sys.stdout)), end="")  # noqa: T201
    return 0


def describe(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of a run's row; further keys (`order`, `seconds`, `seconds_ago`) are numbers to sort by."""
    started = shape.as_seconds(record["started"]) if "started" in record else 0.0
    ago = max(0.0, time.time() - started) if started else None
    metric, value = headline(record)
    return {
        "run": str(path),
        "task": record.get("task"),
        "model": model_of(record),
        "status": status_of(path, record),
        "steps": record.get("steps", results_of(record).get("step")),
        "age": None if ago is None else duration(ago),
        "time": duration(record["seconds"]) if "seconds" in record else None,
        "metric": metric,
        "value": value,
        "order": runs.order(record, "started"),
        "seconds_ago": None if ago is None else round(ago),
        "seconds": record.get("seconds"),
    }


def model_of(record: Mapping[str, Any]) -> str | None:
    """Return the name of the model that a run started from, or the architecture that it trains from scratch."""
    model = record.get("settings", {}).get("model", {})
    return model.get("name") or model.get("config", {}).get("model_type")


def status_of(path: Path, record: Mapping[str, Any]) -> str:
    """Return the status of a run: a `running` one that no process holds was `interrupted`."""
    status = str(record.get("status", "unreadable"))
    return "interrupted" if status in ("running", "preparing") and not runs.holder(path) else status


def headline(record: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Return the metric that counts and its value: what chose the best step, else the task's first, else the loss."""
    metrics = results_of(record)
    evaluated = [key for key in metrics if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))]
    trainer = record.get("settings", {}).get("trainer", {})
    chosen = (
        record.get("best", {}).get("metric")
        or trainer.get("metric_for_best_model")
        or OF_TASK.get(record.get("task", ""), "")
    )
    names = [f"eval_{chosen.removeprefix('eval_')}", *(key for key in evaluated if key != "eval_loss"), *evaluated]
    name = next((name for name in names if name in metrics), None)
    return name, None if name is None else metrics[name]


def results_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the last metrics of a run: of one that a sweep stopped, and that did not go on, those it had then."""
    rungs = list(record.get("rungs", {}).values())
    metrics: Mapping[str, Any] = record.get("metrics") or (rungs[-1] if rungs else {})
    return metrics


def smaller_is_better(metric: str) -> bool:
    """Tell whether less of a metric is better, by its name."""
    return metric.endswith(SMALLER_IS_BETTER)


def duration(seconds: float) -> str:
    """Write a time with its largest unit: `3 d`, `5 h`, `12 min`, `40 s`."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (seconds >= length and unit != "d"):
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def directories(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder, those of seeds in a folder below, and those of a sweep's trials."""
    for path in runs.trials_of(folder) or sorted(folder.iterdir()):
        if not disk.is_dir(path):
            continue
        if runs.is_run(path):
            yield path
            continue
        for below in runs.trials_of(path) or [path]:
            yield from (inner for inner in sorted(below.iterdir()) if inner.is_dir() and runs.is_run(inner))


def _condition(text: str, records: Any) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--filter: `{text}` has no `=`", "write KEY=VALUE, such as task=text-classification")
    if key not in COLUMNS and all(setting_of(record, key) is None for record in records):
        raise UserError(
            f"--filter: no run has `{key}`",
            f"use a column ({', '.join(COLUMNS)}) or a key of the recipe such as trainer.learning_rate",
        )
    return key, value


def _meets(row: Mapping[str, Any], record: Mapping[str, Any], key: str, wanted: str) -> bool:
    value = row[key] if key in COLUMNS else setting_of(record, key)
    if isinstance(value, bool):
        return wanted.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return str(value) == wanted


def setting_of(record: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key of the recipe that a run recorded; None where it has none."""
    value: Any = record.get("settings", {})
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
