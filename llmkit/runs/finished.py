"""Look up a finished model by name: whether it exists, and the record, task, recipe and data of its run."""

import json
from pathlib import Path
from typing import Any

from llmkit import disk, hub
from llmkit.errors import UserError
from llmkit.recipe import load
from llmkit.recipe.paths import refuse_address
from llmkit.recipe.tasks import TASKS, task_of_adapter, task_of_architecture
from llmkit.runs import checkpoint
from llmkit.runs import directory as runs


def check_model(name: str) -> None:
    """Raise UserError unless `name` is a folder with a finished model, or a Hub id."""
    refuse_address(name)
    directory = Path(name)
    if runs.is_run(directory) and not runs.is_finished(directory):
        newest, _ = checkpoint.newest(directory, runs.read_record(directory).get("id"))
        raise UserError(
            f"the run `{name}` is not finished",
            f"use its last checkpoint: {newest.path}" if newest else "finish it with --resume",
        )
    if disk.is_file(directory):
        raise UserError(f"`{name}` is a file", "a model is a folder: config.json, weights and tokenizer")
    if not disk.exists(directory):
        if name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1 or " " in name:
            raise UserError(f"there is no model at `{name}`", "name the model first: a run, a folder or a Hub id")
        hub.check(name, "model")


def record_of(name: str) -> dict[str, Any]:
    """Read the record of the run that made a model; for a checkpoint, that of the run around it."""
    return next((record for directory in _record_directories(name) if (record := runs.read_record(directory))), {})


def task_of(name: str) -> str:
    """Return the task of a model: from its run's record, else by its head; raise UserError for an unknown head."""
    if task := record_of(name).get("task"):
        return str(task)
    with hub.loading(name, "model"):
        from transformers import AutoConfig
        from transformers.utils.peft_utils import find_adapter_config_file

        revision = hub.commit(name)
        adapter = find_adapter_config_file(name, revision=revision)
        if adapter:
            task = task_of_adapter(json.loads(Path(adapter).read_text()).get("task_type"))
            if task is not None:
                return task
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    architecture = (config.architectures or ["?"])[0]
    if task := task_of_architecture(architecture):
        return task
    raise UserError(
        f"`{name}` ({architecture}) has no head that llmkit can predict with",
        "fine-tune it first: llmkit finetune --task NAME model.name=" + name,
    )


def one_task_of(name: str) -> str:
    """Return the task of a model; raise UserError for a run of several tasks, which has a model for each."""
    task = task_of(name)
    if task == "multi-task":
        models = sorted(str(file.parent) for file in Path(name).glob(f"*/{runs.RECORD_FILE}"))
        raise UserError(f"`{name}` has several tasks", f"name the model of one task: {' or '.join(models)}")
    return task


def recipe_of(name: str) -> str | None:
    """Find the recipe of the run that made a model, or of the run around a checkpoint."""
    files = (directory / runs.RECIPE_FILE for directory in _record_directories(name) if runs.is_run(directory))
    return next((str(file) for file in files if disk.is_file(file)), None)


def _record_directories(name: str) -> list[Path]:
    """List where the record of a model may be; other folders below a run, such as a generator, are separate models."""
    directory = Path(name).absolute()
    return [directory, directory.parent] if directory.name.startswith("checkpoint-") else [directory]


def data_of(name: str, task: str) -> Any:
    """Return the [data] that a model was trained with if that was for `task`, else the task's defaults."""
    recipe = recipe_of(name)
    # Without the run's data, model and tokenizer, which may no longer exist.
    trained = None if recipe is None else load(recipe, ["data.path=-", "model.name=-", "tokenizer.name="])
    return TASKS[task].data(path="-") if trained is None or trained.task != task else trained.data
