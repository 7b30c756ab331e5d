"""Choose how long and in which batches to train on the user's own rows, and when to evaluate, by their number."""

import math
from typing import Any

from llmkit.errors import UserError
from llmkit.recipe.schema import EarlyStopping, Recipe
from llmkit.recipe.table import ReadOnly
from llmkit.training.assembly import Assembly

STEPS = 400  # a new head has learned little before the half of them; several classes want them all
LEAST_EPOCHS, MOST_EPOCHS = 3, 20
BATCHES = ((1_000, 8), (10_000, 16), (math.inf, 32))  # examples a step, by the number of rows up to which they fit
EVALUATION = 1 / 5  # the share of the time that evaluation takes at most
FORWARD, WRITING = 1 / 3, 3.0  # the cost of evaluating an example, of training on it; where the model writes
# Held-out rows that tell the checkpoints apart by a metric that counts them: at 80 % right, a standard error of 1.3
# points. With fewer (3 points for 200) chance finds the best one, often before the learning rate has fallen.
TELLING = 1_000
PATIENCE, LEAST_PATIENCE = 1 / 2, 5  # of the evaluations; with few of them none is worth the risk
STRATEGIES = ("steps", "epoch")


def fit_to_rows(recipe: Recipe, assembly: Assembly, world: int, timed: bool = False) -> Recipe:
    """Return `recipe` with the settings that it leaves to the rows, and tell the assembly's notes what was chosen.

    Args:
        recipe: what it sets is kept; without `fits_rows` it is returned as it is.
        assembly: its rows, read and tokenized.
        world: how many processes share a step.
        timed: training ends by the clock.
    """
    if not recipe.fits_rows or assembly.train is None:
        return recipe
    examples, trainer = len(assembly.train), dict(recipe.trainer)
    chosen: dict[str, Any] = {}

    def setting(key: str, value: Any) -> Any:
        """Return the recipe's value of a key of [trainer], or choose `value`."""
        if key not in trainer:
            trainer[key] = chosen[f"trainer.{key}"] = value
        return trainer[key]

    micro_batches = world * trainer.get("gradient_accumulation_steps", 1)
    global_batch = next(batch for rows, batch in BATCHES if examples <= rows)
    batch = getattr(recipe.data, "global_batch_size", None)
    if batch is None:
        batch = setting("per_device_train_batch_size", max(1, global_batch // micro_batches)) * micro_batches
    an_epoch = math.ceil(examples / batch)
    if (steps := trainer.get("max_steps", -1)) <= 0:
        epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS / an_epoch)))
        steps = math.ceil((epochs if timed else setting("num_train_epochs", epochs)) * an_epoch)
    held_out = sum(len(part) for part in assembly.validation.values())
    affordable = _affordable(recipe, assembly, steps / an_epoch)
    every = 0 if affordable < 1 else an_epoch * math.ceil(steps / an_epoch / affordable)
    fitting = "no" if not 0 < every <= steps else "epoch" if every == an_epoch else "steps"
    given = [trainer[key] for key in ("eval_strategy", "save_strategy") if trainer.get(key) in STRATEGIES]
    given += ["steps"] if trainer.keys() & {"eval_steps", "save_steps"} else []
    strategy = next(iter(given), fitting)
    for kind in ("eval", "save") if assembly.validation else ("save",):
        setting(f"{kind}_strategy", "epoch" if (kind, strategy) == ("save", "no") else strategy)
        if trainer[f"{kind}_strategy"] == "steps":
            setting(f"{kind}_steps", trainer.get("eval_steps", trainer.get("save_steps", every or an_epoch)))
    strategy, stopping = trainer.get("eval_strategy", "no"), recipe.early_stopping
    if stopping is not None and strategy == "no":
        raise UserError("early_stopping needs evaluations, and there are none", "see data.validation_fraction")
    if strategy in STRATEGIES:
        interval = trainer["eval_steps"] if strategy == "steps" else an_epoch
        evaluations = steps // (interval if interval >= 1 else math.ceil(interval * steps))
        asked = stopping is not None or "metric_for_best_model" in trainer or trainer.get("load_best_model_at_end")
        tells = bool(asked) or assembly.judged_by == "loss" or held_out >= TELLING
        if tells and "metric_for_best_model" not in trainer:
            setting("metric_for_best_model", assembly.judged_by)
            setting("greater_is_better", assembly.judged_by != "loss")
        keeps_best = strategy == trainer["save_strategy"] and setting("load_best_model_at_end", tells)
        if keeps_best and stopping is None and evaluations > LEAST_PATIENCE and not timed:
            patience = max(LEAST_PATIENCE, math.ceil(PATIENCE * evaluations))
            stopping = EarlyStopping(early_stopping_patience=patience)
            chosen["early_stopping.early_stopping_patience"] = patience
    data = recipe.data
    if assembly.validation_fraction is not None and data is not None:
        chosen["data.validation_fraction"] = assembly.validation_fraction
        data = data.model_copy(update={"validation_fraction": assembly.validation_fraction})
    if chosen:
        assembly.notes.append(f"chosen for {assembly.rows:,} rows: {', '.join(_in_words(chosen, batch, held_out))}")
    origins = {**recipe.origins, **dict.fromkeys(chosen, f"from {assembly.rows:,} rows")}
    update = {"data": data, "trainer": ReadOnly(trainer), "early_stopping": stopping, "fits_rows": False}
    return recipe.model_copy(update={**update, "origins": ReadOnly(origins)})


def _affordable(recipe: Recipe, assembly: Assembly, epochs: float) -> int:
    """Count the evaluations that take EVALUATION of the time at most, together with the one at the end."""
    assert assembly.train is not None
    rows = sum(len(part) for part in assembly.validation.values())
    if not rows:
        return 0
    an_epoch = rows * (WRITING if recipe.task == "seq2seq" else FORWARD) / len(assembly.train)  # of the time of one
    return int(epochs * EVALUATION / (1 - EVALUATION) / an_epoch) - 1


def _in_words(chosen: dict[str, Any], batch: int, held_out: int) -> list[str]:
    """Name what was chosen."""
    epochs, every = chosen.get("trainer.num_train_epochs"), chosen.get("trainer.eval_steps", 0)
    metric, patience = chosen.get("trainer.metric_for_best_model"), chosen.get("early_stopping.early_stopping_patience")
    best = chosen.get("trainer.load_best_model_at_end")
    often = {
        "epoch": "evaluation after each epoch",
        "steps": f"evaluation every {every:,} steps",
        "no": "evaluation only at the end",
    }
    words = {
        f"{epochs} epochs": epochs,
        f"{batch} examples per step": "trainer.per_device_train_batch_size" in chosen,
        often.get(chosen.get("trainer.eval_strategy", ""), ""): "trainer.eval_strategy" in chosen,
        f"the best checkpoint by {metric} kept": metric and best,
        f"the last checkpoint kept (too few held-out rows, {held_out}, to tell which is best)": best is False,
        f"stopping after {patience} evaluations without a better one": patience,
    }
    return [said for said, is_chosen in words.items() if is_chosen]
