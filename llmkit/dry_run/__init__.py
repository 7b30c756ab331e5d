"""Read a recipe's data and calculate its size before training: rows, parameters, tokens a step, steps, warm-up."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit import tasks
from llmkit.data.display import Report
from llmkit.dry_run.rows import read_rows
from llmkit.dry_run.texts import read_texts
from llmkit.errors import quantity
from llmkit.launch import default_processes
from llmkit.models.config import choose_block_size, load_config
from llmkit.models.weights import num_parameters
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.global_batch import divide
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.terminal import put
from llmkit.training.arguments import check_trackers, choose_precision, training_arguments
from llmkit.training.schedule import Schedule

LEFT = 16  # columns of what stands before a line


def explain(recipe: Recipe, processes: int | None, max_time: str | None = None) -> Recipe:
    """Print the data and the arithmetic of `recipe` to stderr, without allocating the model.

    `processes` and `max_time` are the command line's. Return the recipe with what it leaves to the rows, as far as
    they are read. Raises UserError as the run would.
    """
    check_trackers(recipe.trainer)
    report = Report(LEFT, put, sys.stderr)
    rows = recipe.task not in PRETRAINING
    world = processes if processes is not None else default_processes()
    seed = recipe.trainer.get("seed", 42)
    config, notes = load_config(recipe.model, finetuning=rows)
    trains_tokenizer = recipe.tokenizer.type is not None
    if trains_tokenizer and "vocab_size" not in recipe.model.config:
        config.vocab_size = recipe.tokenizer.vocab_size
    length = choose_block_size(recipe.data.block_size, config) if isinstance(recipe.data, TextData) else 1
    if rows:
        size = read_rows(report, recipe, seed, world, timed=max_time is not None)
    else:
        size = read_texts(report, recipe, seed, config, length)
    recipe = size.recipe or recipe
    batches, batch_notes = divide(recipe, world)
    settings: Mapping[str, Any] = {**recipe.trainer, **batches}
    batch = settings.get("per_device_train_batch_size", 8)
    accumulated = settings.get("gradient_accumulation_steps", 1)
    chosen, why = choose_precision(dict(settings))
    if recipe.fits_rows:  # it needs what is chosen by the rows
        chosen = {key: value for key, value in chosen.items() if key != "load_best_model_at_end"}
    training_arguments(chosen, Path(recipe.name))
    for note in dict.fromkeys([*recipe.notes, *size.notes, *notes, *batch_notes]):
        report.add("note", note)
    count = num_parameters(recipe.model, size.config or config, tasks.model_class(recipe.task))
    at_most = f" (at most: the vocabulary may be smaller than {config.vocab_size:,})"
    at_most = at_most if trains_tokenizer and size.config is None else ""
    uncounted = TASKS[recipe.task].uncounted if recipe.task in TASKS else ", without the heads"
    if recipe.task in ("text-classification", "token-classification") and size.config is None:
        uncounted = ", with a head of two outputs"
    report.add("parameters", f"{count:,}{at_most}{uncounted}")
    report.add("precision", f"{next((name for name in ('bf16', 'fp16') if chosen.get(name)), 'fp32')} ({why})")
    unit, examples_or_tokens = ("examples", "examples") if rows else ("blocks", "tokens")
    total = batch * accumulated * world * length
    each = "" if rows else f" x {length}"
    report.add(
        f"{examples_or_tokens} a step",
        f"{quantity(batch, unit.removesuffix('s'))} x {accumulated} accumulated x {world} "
        f"process{'es' * (world != 1)}{each} = {total:,}",
    )
    an_epoch = epoch_steps(settings, size.number, world)
    steps, epochs = settings.get("max_steps", -1), settings.get("num_train_epochs", 3)
    about = "" if size.exact else "about "
    of_epochs = f"{epochs:g} epoch{'s' * (epochs != 1)}"
    if max_time is not None:
        report.add("steps", f"as many as fit in {max_time}")
    elif steps > 0:
        seen = "" if an_epoch is None else f", {about}{_short(steps / an_epoch)} epochs of the data"
        report.add("steps", f"{steps:,}, {steps * total:,} {examples_or_tokens} in all{seen}")
    elif an_epoch is not None:
        report.add("steps", f"{about}{math.ceil(epochs * an_epoch):,}: {of_epochs} of {an_epoch:,}")
    else:
        report.add("steps", f"enough for {of_epochs} of the data")
    warmup, kind = settings.get("warmup_steps", 0), settings.get("lr_scheduler_type", "linear")
    peak = settings.get("learning_rate", 5e-5)
    share = f"{warmup:.1%} of the steps" if 0 < warmup < 1 else quantity(warmup, "step")
    length = steps if steps > 0 else math.ceil(epochs * (an_epoch or 0))
    words = ""
    if length and max_time is None:
        schedule = Schedule(kind, peak, warmup, settings.get("lr_scheduler_kwargs", {}))
        count, _, words = schedule.parts(length)
        share = f"{'' if steps > 0 else about}{quantity(count, 'step')}" + (
            f" ({warmup:.1%})" if 0 < warmup < 1 else ""
        )
    report.add("learning rate", f"up to {peak:g} over {share}, then {kind}")
    if words:
        report.add("note", words)
    return recipe


def epoch_steps(settings: Mapping[str, Any], number: int | None, world: int) -> int | None:
    """Return the steps of an epoch of `number` examples on `world` processes by [trainer]; None where not known."""
    if number is None:
        return None
    batch, accumulated = settings.get("per_device_train_batch_size", 8), settings.get("gradient_accumulation_steps", 1)
    whole = math.floor if settings.get("dataloader_drop_last") else math.ceil
    return max(1, math.ceil(whole(number / (batch * world)) / accumulated))


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
