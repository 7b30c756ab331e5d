"""Write what a call from Python is given as the overrides of a command line."""

import io
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError


def overrides_of(recipe: str | Path | None, task: str | None, data: Any, tables: Mapping[str, Any]) -> list[str]:
    """Write `data` and tables of a recipe as the command line's overrides."""
    from llmkit.recipe.toml import leaves

    own = dict(data) if isinstance(data, Mapping) else {} if data is None else {"path": data}
    if "path" in own:
        own["path"] = _path_of(own["path"])
    name = _task_of(recipe, task)
    values = leaves({**({"data": own} if own else {}), **tables})
    return [_override(key, value, name) for key, value in values.items()]


def _override(key: tuple[str, ...], value: Any, task: str | None) -> str:
    from llmkit.recipe.keys import key_type
    from llmkit.recipe.toml import dotted, toml_value

    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if value is None:
        return f"{dotted(key)}="
    if isinstance(value, str | Path):
        kind = key_type(key, task)
        return f"{dotted(key)}={value if kind is None or kind.text_only else toml_value(str(value))}"
    return f"{dotted(key)}={toml_value(value)}"


def _task_of(recipe: str | Path | None, task: str | None) -> str | None:
    """Find the task of a recipe that may have mistakes, which are reported later."""
    import tomllib

    from llmkit.recipe import find, recipe_of_task

    if recipe is None and task is None:
        return None
    name = recipe_of_task(task)[0] if task is not None else str(recipe)
    try:
        return str(tomllib.loads(find(name).read_text()).get("task"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
        return None


def _path_of(data: Any) -> str:
    """Return the path of data; rows that are in memory are written into the cache, under a hash of what they are."""
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, Sequence):
        import pandas as pd

        data = pd.DataFrame.from_records(list(data))
    if not hasattr(data, "to_parquet"):
        raise UserError(
            f"data: llmkit reads no {type(data).__name__}",
            "give a path, a DataFrame, a datasets.Dataset or a list of dicts",
        )
    written = io.BytesIO()
    data.to_parquet(written, **({"index": False} if hasattr(data, "iloc") else {}))
    file = disk.cache_dir() / "frames" / f"{sha256(written.getvalue()).hexdigest()[:32]}.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with disk.drafted(file, synced=False) as out:
            out.write(written.getvalue())
    return str(file)
