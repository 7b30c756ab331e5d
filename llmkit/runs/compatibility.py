"""What may be another than it was when a run goes on, and what would make it another run."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.recipe.schema import Recipe
from llmkit.runs import directory as runs

# What leaves the weights that come of a run as they are (batches of another size go on at the right example): whole
# tables, and keys of [trainer] by how they begin.
FREE_TABLES = ("output_dir", "evaluation", "generation", "speed")
FREE = (
    *(
        "per_device_",
        "gradient_accumulation_steps",
        "logging_",
        "save_",
        "eval_",
        "dataloader_",
        "report_to",
        "run_name",
    ),
    *("project", "trackio_", "ddp_", "use_cpu", "log_", "include_", "skip_memory_metrics", "debug", "torch_empty"),
    *("activation_checkpointing", "metric_for_best_model", "greater_is_better", "load_best_model_at_end"),
)


def since(directory: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Each key in which `recipe` differs from that of the run in `directory`, with both values; free ones left out."""
    saved = directory / runs.RECIPE_FILE
    if not saved.is_file():
        return []
    try:
        before = tomllib.loads(saved.read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"`{saved}` cannot be read: {problem}", "it says what the run was begun with") from problem
    now = tomllib.loads(recipe.to_toml())
    return [found for found in differences(before, now) if not is_free(found[0])]


def is_free(key: str) -> bool:
    """Whether a key may differ."""
    if re.fullmatch(r"data\.(sources\..+\.)?path", key):  # what is there is known by its content
        return True
    table, _, rest = key.partition(".")
    if table == "guard":
        return rest == "dataloader_timeout"
    if key == "speed.fast_dropout":  # draws other numbers
        return False
    return table in FREE_TABLES or (table == "trainer" and rest.startswith(FREE))


def differences(before: Any, now: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    """Each key, a path with dots, whose value differs between two tables, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield key, before, now


def refuse(found: Iterable[tuple[str, Any, Any]], allowed: Sequence[str], directory: Path) -> None:
    """Raise UserError that shows each difference which is not allowed: a key, or a table for all of its keys."""
    wrong = [
        (key, before, now)
        for key, before, now in found
        if not any(key == each or key.startswith(f"{each}.") for each in allowed)
    ]
    if wrong:
        raise UserError(
            f"`{directory}` was begun with another recipe, and goes on with the same alone",
            "to change what it is all the same: "
            + " ".join(f"--allow-change {key}" for key in dict.fromkeys(key for key, *_ in wrong))
            + "; or start a new run, from its weights if you like: model.name=.../checkpoint-N",
            tuple(f"{key}: {_shown(before)} -> {_shown(now)}" for key, before, now in wrong),
        )


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
