"""What may be another than it was when a run goes on, and what would make it another run."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import hub
from llmkit.errors import UserError
from llmkit.recipe.schema import Recipe
from llmkit.runs import checkpoint
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
# Of a model's configuration: what leaves the model as it is.
UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")


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


def fingerprints(
    recipe: Recipe,
    record: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: str,
    batch_size: int,
    by_length: bool,
) -> dict[str, Any]:
    """Return what a checkpoint keeps to know the data, the tokenizer and the model of its run again.

    `record` is what was found of the data, `config` the model's configuration, `tokenizer` its fingerprint, and
    `batch_size` what the order of the examples follows from where they are grouped `by_length` or of several tasks.
    """

    def data(about: Mapping[str, Any]) -> Mapping[str, Any]:
        if "fingerprint" not in about:  # of each source, or each task
            return {name: data(part) for name, part in about.items() if isinstance(part, dict)}
        counted = ("documents", "tokens", "blocks", "rows", "examples")
        train = {key: value for key, value in about.get("train", {}).items() if key in counted}
        return {"fingerprint": about["fingerprint"], **({"train": train} if train else {})}

    several = {name: part["data"] for name, part in record.get("tasks", {}).items()}
    prints: dict[str, Any] = {
        "data": data(several or record["data"]),
        "tokenizer": tokenizer,
        "trainer": {key: value for key, value in recipe.trainer.items() if not is_free(f"trainer.{key}")},
        "model": {key: value for key, value in config.items() if key not in UNIMPORTANT and not key.startswith("_")},
    }
    if recipe.lora is not None and recipe.model.name:  # whose weights are in no checkpoint
        base = Path(recipe.model.name)
        weights = [path.name for path in sorted(base.glob("*.safetensors"))] if base.is_dir() else []
        prints["base"] = checkpoint.files_of(base, only=weights) or hub.commit(recipe.model.name, recipe.model.revision)
    if recipe.tasks or by_length:
        prints["batch"] = batch_size
    return json.loads(json.dumps(prints, default=str))
