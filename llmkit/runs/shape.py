"""Know what a run's record and a checkpoint's manifest look like: what does not look so is damaged, not read."""

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

Fits = Callable[[Any], bool]
LATEST = 2e12  # seconds: no later time is shown


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise OSError or ValueError where there is none."""
    return parse(path.read_text())


def parse(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; raise ValueError where it is none."""
    try:
        content = json.loads(text)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def is_record(content: Mapping[str, Any]) -> bool:
    """Tell whether every key of a run's record that is known holds what it should."""
    return _table(content, RECORD)


def is_manifest(content: Mapping[str, Any]) -> bool:
    """Tell whether a manifest has every key that it needs, and each holds what it should."""
    return MANIFEST.keys() - {"record", *OF_STRATEGY} <= content.keys() and _table(content, MANIFEST)


def as_seconds(time: str | float) -> float:
    """Return a time of a record in seconds since 1970, which is how earlier versions wrote it."""
    return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else time


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _number(value) and abs(value) < 1e300  # NaN is not, either


def _count(value: Any) -> bool:
    return _finite(value) and int(value) == value >= 0


def _time(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 0 <= as_seconds(value) < LATEST
    except (ArithmeticError, TypeError, ValueError):
        return False


def _anything(value: Any) -> bool:
    return True


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _each(fits: Fits) -> Fits:
    """Fit a table whose entries all fit."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _of(shape: Mapping[str, Fits], needed: tuple[str, ...] = ()) -> Fits:
    """Fit a table whose known keys fit, and that has those that are `needed`."""
    return lambda value: isinstance(value, dict) and {*needed} <= value.keys() and _table(value, shape)


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _table(content: Mapping[str, Any], shape: Mapping[str, Fits]) -> bool:
    return all(fits(content[key]) for key, fits in shape.items() if key in content)


def _files(value: Any) -> bool:
    """Fit the files of a folder: names that stay in it, sizes and checksums."""
    return _each(_of({"bytes": _count, "xxh3_128": _text}, ("bytes", "xxh3_128")))(value) and all(
        name and "\0" not in name and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        for name in value
    )


def _flat(value: Any) -> bool:
    """Fit what one line of a report can hold."""
    return not isinstance(value, dict | list) and not (isinstance(value, float) and not math.isfinite(value))


_TABLE = _each(_anything)
_TABLES = (
    "data",
    "trainer",
    "tokenizer",
    "evaluation",
    "generation",
    "samples",
    "optimizer",
    "guard",
    "speed",
    "report",
    "tasks",
)
_SETTINGS = _of(
    {
        "task": _text,
        "model": _of({"config": _TABLE, "name": _or_none(_text)}),
        "lora": _TABLE,
        **dict.fromkeys(_TABLES, _TABLE),
    }
)
RECORD: dict[str, Fits] = {
    **dict.fromkeys(
        ("id", "status", "task", "name", "llmkit", "python", "device", "precision", "strategy", "state"), _text
    ),
    **dict.fromkeys(("started", "finished"), _time),
    **dict.fromkeys(("steps", "processes", "parameters", "trainable_parameters", "sharded_tensors"), _count),
    **dict.fromkeys(("block_size", "max_length", "max_time"), _or_none(_count)),
    **dict.fromkeys(("order_started", "order_finished"), _count),
    **dict.fromkeys(("git_commit", "problem"), _or_none(_text)),
    "seconds": _finite,
    "paths": _each(_text),
    "packages": _each(_text),
    "revisions": _each(_text),
    "command": _texts,
    "machine": _each(_flat),
    "speed": _each(_flat),
    "settings": _SETTINGS,
    "data": _TABLE,
    "columns": _TABLE,
    "tokenizer": _TABLE,
    "files": _files,
    "schedule": _of({"steps": _count, "warmup_steps": _count}),
    "longer": _of({"status": _text, "steps": _count}, ("status",)),
    "metrics": _each(_or_none(_number)),
    "best": _of({"step": _count, "metric": _text, "value": _number}, ("step", "metric", "value")),
    "trivial": _of({"metrics": _TABLE, "better": _TABLE, "learned": _TABLE}),
    "tasks": _each(_TABLE),
    "verdicts": lambda value: isinstance(value, list) and all(map(_of({"says": _text}, ("says",)), value)),
}
OF_STRATEGY = ("strategy", "state", "device", "precision", "sharded_tensors")  # earlier manifests lack them
MANIFEST: dict[str, Fits] = {
    "run": _text,
    **{key: RECORD[key] for key in OF_STRATEGY},
    **dict.fromkeys(("step", "epoch", "samples", "samples_seen", "batch", "processes", "metrics_bytes"), _count),
    "fingerprints": _TABLE,
    "files": _files,
    "record": _of(RECORD),
}
