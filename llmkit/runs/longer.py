"""Decide what may be asked of a finished run with `--resume`: the same, or that it be trained longer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.recipe.schema import Recipe
from llmkit.runs import checkpoint, compatibility
from llmkit.runs import directory as runs

LENGTH = ("trainer.max_steps", "trainer.num_train_epochs")


def is_asked(recipe: Recipe, directory: Path, allowed: Sequence[str]) -> bool:
    """Tell whether `recipe` asks for more than the finished run in `directory` has, and not for the same.

    `allowed` are keys in which it may differ beside. Raises UserError where it asks for less or for something else,
    and where there is nothing to go on from.
    """
    changes = compatibility.since(directory, recipe)
    compatibility.refuse([change for change in changes if change[0] not in LENGTH], allowed, directory)
    if not any(key in LENGTH for key, *_ in changes):
        return False
    record, folders = runs.read_record(directory), checkpoint.folders(directory)
    anew = f"to start a new run from its weights, leave out --resume and set model.name={directory}"
    if seconds := record.get("max_time"):
        raise UserError(
            f"`{directory}` was trained for {seconds} s with --max-time, and its length cannot be changed", anew
        )
    if not folders:
        raise UserError(f"`{directory}` has no checkpoint to resume from", anew)
    unit, asked = length(recipe.trainer)
    made = _made(directory, folders)[unit]
    if asked > made:
        return True
    if unit == "steps" and all(key != "trainer.max_steps" for key, *_ in changes):
        raise UserError(
            f"trainer.num_train_epochs has no effect: trainer.max_steps = {asked} is set",
            f"to train `{directory}` longer, set trainer.max_steps to more than {made:g}",
        )
    key = "max_steps" if unit == "steps" else "num_train_epochs"
    raise UserError(
        f"`{directory}` has already trained for {made:g} {unit}, and trainer.{key} = {asked:g} asks for no more",
        f"to train longer, set more than {made:g}; for a shorter run, start a new one without --resume",
    )


def length(trainer: Mapping[str, Any]) -> tuple[str, float]:
    """Return "steps" or "epochs", and how many of them [trainer] asks for."""
    steps = trainer.get("max_steps", -1)
    return ("steps", steps) if steps > 0 else ("epochs", trainer.get("num_train_epochs", 3))


def _made(directory: Path, folders: Sequence[Path]) -> dict[str, float]:
    """Return the steps and epochs that a finished run has made, which early stopping may have ended before its end."""
    steps = runs.read_record(directory).get("steps", int(folders[0].name.removeprefix(checkpoint.PREFIX)))
    last = next((folder for folder in folders if folder.name == f"{checkpoint.PREFIX}{steps}"), folders[0])
    try:
        epochs = json.loads((last / checkpoint.TRAINER_STATE).read_text())["epoch"]
    except (OSError, ValueError, KeyError):
        epochs = 0.0
    made = {"steps": steps, "epochs": epochs}
    unit, planned = length(compatibility.tables_of(directory).get("trainer", {}))
    return {**made, unit: min(planned, made[unit])}
