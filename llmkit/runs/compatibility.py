"""Decide which settings may change when a run resumes, and which would make it another run."""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import disk, hub
from llmkit.errors import UserError
from llmkit.recipe import global_batch, schema
from llmkit.recipe.schema import Recipe
from llmkit.recipe.table import ReadOnly
from llmkit.runs import checkpoint
from llmkit.runs import directory as runs

# Settings that do not change a run's weights (with another batch size it resumes at the right example): whole tables,
# and keys of [trainer] by prefix.
FREE_TABLES = ("output_dir", "output_mirror", "evaluation", "samples", "generation", "speed", "report")
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
    *(
        "project",
        "trackio_",
        "ddp_",
        "fsdp",
        "deepspeed",
        "use_cpu",
        "log_",
        "include_",
        "skip_memory_metrics",
        "debug",
        "torch_empty",
    ),
    *("activation_checkpointing", "metric_for_best_model", "greater_is_better", "load_best_model_at_end"),
)
# Keys of a model's configuration that do not change the model.
UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")


def as_begun(recipe: Recipe, directory: Path) -> Recipe:
    """Return `recipe` with what the code did that began the run in `directory`, for keys that the run's recipe lacks.

    Raises UserError where the run's recipe cannot be read.
    """
    before, lacking = _begun_with(directory)
    if recipe.fits_rows and before:
        recipe = _as_fitted(recipe, before)
    if recipe.fits_machine and before:
        recipe = _in_same_precision(recipe, before)
    recipe = _batches_as_begun(recipe, before)
    asked = any(key.startswith("samples.") and origin != "default" for key, origin in recipe.origins.items())
    if before and "samples" not in before and recipe.samples is not None and not asked:
        recipe = recipe.model_copy(update={"samples": schema.Samples(prompts=())})
    for part, key in lacking:
        then = {key: schema.before(recipe.task)[key]}
        if not part and recipe.data is not None:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=then)})
        elif part in recipe.tasks:
            task = recipe.tasks[part]
            task = task.model_copy(update={"data": task.data.model_copy(update=then)})
            recipe = recipe.model_copy(update={"tasks": {**recipe.tasks, part: task}})
    return recipe


def _as_fitted(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """Take what a recipe leaves to the rows from that of the run, whether it was chosen then or a bundled recipe's."""
    assert recipe.data is not None
    now = {"data": recipe.data.model_dump(exclude_none=True), "trainer": recipe.trainer}
    taken = {
        table: {
            key: before[table][key]
            for key in schema.OF_THE_ROWS[table]
            if key in before.get(table, {}) and key not in values
        }
        for table, values in now.items()
    }
    origins = {f"{table}.{key}" for table, values in taken.items() for key in values}
    stopping = recipe.early_stopping
    if stopping is None and "early_stopping" in before:
        stopping = schema.EarlyStopping(**before["early_stopping"])
        origins |= {f"early_stopping.{key}" for key in before["early_stopping"]}
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=taken["data"]),
            "trainer": ReadOnly({**recipe.trainer, **taken["trainer"]}),
            "early_stopping": stopping,
            "fits_rows": False,
            "origins": ReadOnly({**recipe.origins, **dict.fromkeys(origins, "as the run was started")}),
        }
    )


def _in_same_precision(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """Leave a run the precision that it was begun with, whatever was measured of the machine since then."""
    then = {key: value for key, value in before.get("trainer", {}).items() if key == "bf16"}
    origins = {**recipe.origins, **{f"trainer.{key}": "as the run was started" for key in then}}
    update = {"trainer": ReadOnly({**recipe.trainer, **then}), "origins": ReadOnly(origins), "fits_machine": False}
    return recipe.model_copy(update=update)


def _batches_as_begun(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """Leave a run the batches that it was begun with where only its recipe's file has a global batch since then."""
    data = recipe.data
    if data is None or data.global_batch_size is None or "data" not in before:
        return recipe
    if "global_batch_size" in before["data"] or recipe.origins.get(global_batch.KEY) == "command line":
        return recipe
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    begun = {key: value for key, value in before.get("trainer", {}).items() if key in keys}
    note = f"the run was started without {global_batch.KEY}, and keeps its batches"
    update = {"data": data.model_copy(update={"global_batch_size": None}), "notes": (*recipe.notes, note)}
    return recipe.model_copy(update={**update, "trainer": ReadOnly({**recipe.trainer, **begun})})


def since(directory: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """List the keys in which `recipe` differs from that of the run in `directory`, with both values, without free ones.

    Raises UserError where the run's recipe cannot be read.
    """
    before, _ = _begun_with(directory)
    if not before:
        return []
    now = tomllib.loads(as_begun(recipe, directory).to_toml())
    return [difference for difference in changes(before, now) if not is_free(difference[0])]


def tables_of(directory: Path) -> dict[str, Any]:
    """Return the recipe of the run in `directory` as tables; none without a recipe."""
    return _begun_with(directory)[0]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the differences between two recipes' tables, but those that come to as many steps of the run `before`.

    A warm-up and a decay are given as a number of steps, or as a share of them.
    """
    steps = before.get("trainer", {}).get("max_steps", -1)

    def is_same(key: str, *values: Any) -> bool:
        counted = key == "trainer.warmup_steps" or key.startswith("trainer.lr_scheduler_kwargs.num_")
        if not counted or steps <= 0 or not all(isinstance(value, int | float) for value in values):
            return False
        return len({in_steps(value, steps) for value in values}) == 1

    return [difference for difference in differences(before, now) if not is_same(*difference)]


def in_steps(value: float, steps: int) -> int:
    """Return a number of steps that is given as such, or below 1 as a share of `steps`, rounded up as upstream does."""
    return int(value) if value >= 1 else math.ceil(steps * value)


def _begun_with(directory: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Read the recipe of a run, and fill in the keys of [data] that it lacks, by `schema.before`.

    Returns the tables, none without a recipe, and (name of the task of several, key) of each key that was filled in.
    """
    saved = directory / runs.RECIPE_FILE
    if not disk.is_file(saved):
        return {}, []
    tables, problem = _read(saved)
    if problem:
        tables = _settings(directory)
    if not tables:
        raise UserError(
            f"`{saved}` cannot be read: {problem}",
            "it records what the run was started with; put a whole copy there, or move it away: the settings that the "
            "checkpoints record are compared all the same",
        )
    tables.setdefault("optimizer", dict(schema.ADAMW))
    parts = {"": tables} if tables.get("task") not in schema.PRETRAINING else {}
    lacking = []
    for name, part in {**parts, **tables.get("tasks", {})}.items():
        for key, then in schema.before(tables.get("task")).items() if "data" in part else ():
            if key not in part["data"]:
                part["data"][key] = then
                lacking.append((name, key))
    return tables, lacking


def damage(directory: Path) -> str:
    """Say what is wrong with the recipe of a run; "" if it is whole, or there is none."""
    saved = directory / runs.RECIPE_FILE
    return _read(saved)[1] if disk.is_file(saved) else ""


def _read(saved: Path) -> tuple[dict[str, Any], str]:
    """Read the recipe of a run; return its tables, and what is wrong: no TOML, or cut off before its last table."""
    try:
        tables = tomllib.loads(saved.read_text())
    except (OSError, ValueError) as problem:
        return {}, str(problem)
    missing = [name for name in _settings(saved.parent) if name not in tables and name != "output_dir"]
    return tables, f"it lacks [{missing[0]}]" if missing else ""


def _settings(directory: Path) -> dict[str, Any]:
    """Return the recipe as the run's record has it; nothing where it has none."""
    settings = runs.read_record(directory).get("settings")
    return settings if isinstance(settings, dict) else {}


def is_free(key: str) -> bool:
    """Tell whether a key may differ when a run resumes."""
    if re.fullmatch(r"data\.(sources\..+\.)?path", key):  # the data is compared by its content
        return True
    if key.endswith((global_batch.KEY, ".max_document_bytes")):  # as other sizes of batches; it only refuses
        return True
    table, _, rest = key.partition(".")
    if table == "guard":
        return rest == "dataloader_timeout"
    if key == "speed.fast_dropout":  # draws other numbers
        return False
    return table in FREE_TABLES or (table == "trainer" and rest.startswith(FREE))


def differences(before: Any, now: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    """Yield each dotted key, below `key`, whose value differs between two tables, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield key, before, now


def refuse(changes: Iterable[tuple[str, Any, Any]], allowed: Sequence[str], directory: Path) -> None:
    """Raise UserError for the changes that are not allowed, naming each.

    `allowed` holds keys, or tables for all of their keys; `directory` is the run's, for the message.
    """
    refused = [
        (key, before, now)
        for key, before, now in changes
        if not any(key == prefix or key.startswith(f"{prefix}.") for prefix in allowed)
    ]
    if refused:
        raise UserError(
            f"`{directory}` was started with another recipe, and can only be resumed with the same one",
            "to change it anyway: "
            + " ".join(f"--allow-change {key}" for key in dict.fromkeys(key for key, *_ in refused))
            + "; or start a new run, from its weights if you like: model.name=.../checkpoint-N",
            tuple(f"{key}: {_shown(before)} -> {_shown(now)}" for key, before, now in refused),
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
    """Fingerprint a run's data, tokenizer, model and settings, for its checkpoints to be compared with.

    Args:
        recipe: The run's recipe.
        record: What the run records of its data.
        config: The model's configuration.
        tokenizer: The tokenizer's fingerprint.
        batch_size: Examples a step; counts where the order of examples depends on it.
        by_length: Whether examples are grouped by length, as then the order does; with several tasks it does too.
    """

    def data(record_of_data: Mapping[str, Any]) -> Mapping[str, Any]:
        if "fingerprint" not in record_of_data:  # of each source, or each task
            return {name: data(part) for name, part in record_of_data.items() if isinstance(part, dict)}
        counts = ("documents", "tokens", "blocks", "rows", "examples")
        train = {key: value for key, value in record_of_data.get("train", {}).items() if key in counts}
        return {"fingerprint": record_of_data["fingerprint"], **({"train": train} if train else {})}

    task_data = {name: part["data"] for name, part in record.get("tasks", {}).items()}
    result: dict[str, Any] = {
        "data": data(task_data or record["data"]),
        "tokenizer": tokenizer,
        "trainer": {key: value for key, value in recipe.trainer.items() if not is_free(f"trainer.{key}")},
        "model": {key: value for key, value in config.items() if key not in UNIMPORTANT and not key.startswith("_")},
        "optimizer": recipe.optimizer.model_dump(exclude_none=True),
    }
    if recipe.lora is not None and recipe.model.name:  # checkpoints do not hold the base's weights
        base = Path(recipe.model.name)
        weights = [path.name for path in sorted(base.glob("*.safetensors"))] if disk.is_dir(base) else []
        result["base"] = checkpoint.files_of(base, only=weights) or hub.commit(recipe.model.name, recipe.model.revision)
    if recipe.tasks or by_length:
        result["batch"] = batch_size
    return json.loads(json.dumps(result, default=str))
