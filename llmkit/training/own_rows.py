"""Choose how long and in which batches to train on the user's own rows, and when to evaluate, by their number."""

import math
from typing import Any

from llmkit.recipe.schema import EarlyStopping, Recipe
from llmkit.recipe.table import ReadOnly
from llmkit.training.assembly import Assembly

STEPS = 200  # a new head has learned little before
LEAST_EPOCHS, MOST_EPOCHS = 3, 20
BATCHES = ((1_000, 8), (10_000, 16), (math.inf, 32))  # examples a step, by the number of rows up to which they fit
EVALUATION = 1 / 5  # the share of the time that evaluation takes at most
FORWARD = 1 / 3  # the cost of evaluating an example, of training on it; where the model writes, that of WRITING
WRITING = 3.0
PATIENCE = 1 / 3  # of the epochs


def fit_to_rows(recipe: Recipe, assembly: Assembly, world: int) -> Recipe:
    """Return `recipe` with the settings that it leaves to the rows, and tell the assembly's notes what was chosen.

    Args:
        recipe: a recipe with `fits_rows`; what it sets is kept.
        assembly: its rows, read and tokenized.
        world: how many processes share a step.
    """
    assert assembly.train is not None
    examples, trainer = len(assembly.train), dict(recipe.trainer)
    chosen: dict[str, Any] = {}

    def setting(key: str, value: Any) -> Any:
        """Return the recipe's value of a key, or choose `value`."""
        if key not in trainer:
            trainer[key] = chosen[key] = value
        return trainer[key]

    accumulated = trainer.get("gradient_accumulation_steps", 1)
    batch = next(batch for rows, batch in BATCHES if examples <= rows)
    batch = setting("per_device_train_batch_size", max(1, batch // (world * accumulated))) * world * accumulated
    an_epoch = math.ceil(examples / batch)
    steps = trainer.get("max_steps", -1)
    if steps > 0:
        epochs = math.ceil(steps / an_epoch)
    else:
        epochs = setting("num_train_epochs", min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS / an_epoch))))
    stopping = recipe.early_stopping
    if assembly.validation:
        evaluated = sum(len(part) for part in assembly.validation.values())
        cost = evaluated * (WRITING if recipe.task == "seq2seq" else FORWARD) / examples  # of an epoch's training
        every = max(1, math.ceil(cost * (1 - EVALUATION) / EVALUATION))  # epochs
        if steps > 0 and an_epoch * every > steps:
            every = 0
        if every > 1:
            setting("eval_strategy", "steps")
            setting("save_strategy", "steps")
            for key in ("eval_steps", "save_steps"):
                setting(key, every * an_epoch)
        elif every:
            setting("eval_strategy", "epoch")
            setting("save_strategy", "epoch")
        if trainer.get("eval_strategy", "no") != "no" and trainer["eval_strategy"] == trainer.get("save_strategy"):
            setting("load_best_model_at_end", True)
            evaluations = epochs // max(1, every)
            if stopping is None and evaluations > LEAST_EPOCHS and trainer["load_best_model_at_end"]:
                stopping = EarlyStopping(early_stopping_patience=max(3, math.ceil(PATIENCE * evaluations)))
    else:
        setting("save_strategy", "epoch")
    rows = assembly.rows
    origins = {f"trainer.{key}": f"from {rows:,} rows" for key in chosen}
    update: dict[str, Any] = {"trainer": ReadOnly(trainer), "early_stopping": stopping}
    if stopping is not recipe.early_stopping:
        origins["early_stopping.early_stopping_patience"] = f"from {rows:,} rows"
    if assembly.validation_fraction is not None and recipe.data is not None:
        update["data"] = recipe.data.model_copy(update={"validation_fraction": assembly.validation_fraction})
        origins["data.validation_fraction"] = f"from {rows:,} rows"
    if origins:
        assembly.notes.append(_told(rows, chosen, batch, stopping if stopping is not recipe.early_stopping else None))
    return recipe.model_copy(update={**update, "origins": ReadOnly({**recipe.origins, **origins})})


def _told(rows: int, chosen: dict[str, Any], batch: int, stopping: EarlyStopping | None) -> str:
    """Say in words what was chosen."""
    parts = []
    if "num_train_epochs" in chosen:
        parts.append(f"{chosen['num_train_epochs']} epochs")
    if "per_device_train_batch_size" in chosen:
        parts.append(f"{batch} examples a step")
    if "eval_strategy" in chosen:
        after = "epoch" if chosen["eval_strategy"] == "epoch" else f"{chosen['eval_steps']:,} steps"
        parts.append(f"evaluation after each {after}" if after == "epoch" else f"evaluation every {after}")
    if chosen.get("load_best_model_at_end"):
        parts.append("the best kept")
    if stopping is not None:
        parts.append(f"an end after {stopping.early_stopping_patience} evaluations without gain")
    return f"chosen for {rows:,} rows: {', '.join(parts)}"
