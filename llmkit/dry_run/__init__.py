"""Read a recipe's data and calculate its size before training: rows, parameters, tokens a step, steps, warm-up."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit import tasks
from llmkit.data.display import Report
from llmkit.devices import default_processes
from llmkit.dry_run.rows import read_rows
from llmkit.dry_run.texts import read_texts
from llmkit.errors import quantity
from llmkit.models.config import choose_block_size, load_config
from llmkit.models.weights import num_parameters
from llmkit.plan import closed_form
from llmkit.plan.outlook import Outlook
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.global_batch import divide
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.terminal import put
from llmkit.training.arguments import check_trackers, choose_precision, training_arguments
from llmkit.training.own_machine import fit_to_machine
from llmkit.training.schedule import Schedule, repetition

LEFT = 16  # columns of what stands before a line


def explain(recipe: Recipe, processes: int | None, max_time: str | None = None) -> Recipe:
    """Print the data and the arithmetic of `recipe` to stderr, without allocating the model.

    `processes` and `max_time` are the command line's. Return the recipe with what it leaves to the rows, as far as
    they are read. Raises UserError as the run would.
    """
    report = Report(LEFT, put, sys.stderr)
    outlook = look_ahead(report, recipe, processes, timed=max_time is not None)
    recipe, settings, fitted = outlook.recipe, outlook.settings, outlook.fitted
    rows = recipe.task not in PRETRAINING
    for note in outlook.notes:
        report.add("note", note)
    needs = closed_form.of_config(recipe, outlook.config.to_dict(), settings, outlook.processes, outlook.longest)
    if needs is not None:
        for name, text in closed_form.lines(needs, None if max_time is not None else outlook.steps):
            report.add(name, text)
    count = num_parameters(recipe.model, outlook.config, tasks.model_class(recipe.task))
    at_most = f" (at most: the vocabulary may be smaller than {outlook.config.vocab_size:,})"
    at_most = at_most if outlook.uncertain else ""
    uncounted = TASKS[recipe.task].uncounted if recipe.task in TASKS else ", without the heads"
    if recipe.task in ("text-classification", "token-classification") and not fitted:
        uncounted = ", with a head of two outputs"
    report.add("parameters", f"{count:,}{at_most}{uncounted}")
    report.add("precision", f"{precision(settings)} ({outlook.why})")
    unit, examples_or_tokens = ("examples", "examples") if rows else ("blocks", "tokens")
    world, total = outlook.processes, outlook.a_step
    each = "" if rows else f" x {outlook.length}"
    report.add(
        f"{examples_or_tokens} a step",
        f"{quantity(outlook.batch, unit.removesuffix('s'))} x {outlook.accumulated} accumulated x {world} "
        f"process{'es' * (world != 1)}{each} = {total:,}",
    )
    report.add("steps", f"as many as fit in {max_time}" if max_time is not None else steps_in_words(outlook))
    if max_time is None and (note := repetition(recipe, outlook.steps, outlook.an_epoch)):
        report.add("note", note)
    warmup, kind = settings.get("warmup_steps", 0), settings.get("lr_scheduler_type", "linear")
    peak = settings.get("learning_rate", 5e-5)
    share = f"{warmup:.1%} of the steps" if 0 < warmup < 1 else quantity(warmup, "step")
    words = ""
    if outlook.steps and max_time is None:
        schedule = Schedule(kind, peak, warmup, settings.get("lr_scheduler_kwargs", {}))
        count, _, words = schedule.parts(outlook.steps)
        about = "" if outlook.exact or settings.get("max_steps", -1) > 0 else "about "
        share = f"{about}{quantity(count, 'step')}" + (f" ({warmup:.1%})" if 0 < warmup < 1 else "")
    report.add("learning rate", f"up to {peak:g} over {share}, then {kind}")
    if words:
        report.add("note", words)
    return recipe


def outlook_of(recipe: Recipe, processes: int | None) -> Outlook:
    """Read the data of `recipe` without showing them, and calculate its steps; raise UserError as the run would."""
    return look_ahead(Report(LEFT, lambda line: None, sys.stderr), recipe, processes)


def look_ahead(report: Report, recipe: Recipe, processes: int | None, timed: bool = False) -> Outlook:
    """Read the data of `recipe` into `report` and calculate its steps; raise UserError as the run would.

    `processes` is the command line's; a run may be `timed`, so that it ends by the clock.
    """
    check_trackers(recipe.trainer)
    rows = recipe.task not in PRETRAINING
    world = processes if processes is not None else default_processes()
    seed = recipe.trainer.get("seed", 42)
    config, notes = load_config(recipe.model, finetuning=rows)
    trains_tokenizer = recipe.tokenizer.type is not None
    if trains_tokenizer and "vocab_size" not in recipe.model.config:
        config.vocab_size = recipe.tokenizer.vocab_size
    length = choose_block_size(recipe.data.block_size, config) if isinstance(recipe.data, TextData) else 1
    if rows:
        size = read_rows(report, recipe, seed, world, timed=timed)
    else:
        size = read_texts(report, recipe, seed, config, length)
    recipe = size.recipe or recipe
    batches, batch_notes = divide(recipe, world)
    chosen, why = choose_precision({**recipe.trainer, **batches})
    train = None if size.assembly is None else size.assembly.train
    recipe, why = fit_to_machine(
        recipe, size.config or config, train, None if rows else length, {**recipe.trainer, **batches}, why
    )
    settings: Mapping[str, Any] = {**recipe.trainer, **batches}
    batch = settings.get("per_device_train_batch_size", 8)
    accumulated = settings.get("gradient_accumulation_steps", 1)
    chosen, _ = choose_precision(dict(settings))
    if recipe.fits_rows:  # it needs what is chosen by the rows
        chosen = {key: value for key, value in chosen.items() if key != "load_best_model_at_end"}
    training_arguments(chosen, Path(recipe.name))
    an_epoch = epoch_steps(settings, size.number, world)
    steps, epochs = settings.get("max_steps", -1), settings.get("num_train_epochs", 3)
    if steps <= 0:
        steps = None if an_epoch is None else math.ceil(epochs * an_epoch)
    return Outlook(
        recipe=recipe,
        config=size.config or config,
        fitted=size.config is not None,
        settings=chosen,
        processes=world,
        number=size.number,
        exact=size.exact,
        length=length,
        batch=batch,
        accumulated=accumulated,
        an_epoch=an_epoch,
        steps=steps,
        assembly=size.assembly,
        why=why,
        notes=tuple(dict.fromkeys([*recipe.notes, *size.notes, *notes, *batch_notes])),
        uncertain=trains_tokenizer and size.config is None,
    )


def precision(settings: Mapping[str, Any]) -> str:
    """Name the precision that [trainer] asks for."""
    return next((name for name in ("bf16", "fp16") if settings.get(name)), "fp32")


def steps_in_words(outlook: Outlook) -> str:
    """Say how many steps there are, and how much of the data they see."""
    settings, an_epoch, total = outlook.settings, outlook.an_epoch, outlook.a_step
    unit = "tokens" if outlook.recipe.task in PRETRAINING else "examples"
    steps, epochs = settings.get("max_steps", -1), settings.get("num_train_epochs", 3)
    about = "" if outlook.exact else "about "
    of_epochs = f"{epochs:g} epoch{'s' * (epochs != 1)}"
    if steps > 0:
        seen = "" if an_epoch is None else f", {about}{_short(steps / an_epoch)} epochs of the data"
        return f"{steps:,}, {steps * total:,} {unit} in all{seen}"
    if an_epoch is not None:
        return f"{about}{outlook.steps:,}: {of_epochs} of {an_epoch:,}"
    return f"enough for {of_epochs} of the data"


def epoch_steps(settings: Mapping[str, Any], number: int | None, world: int) -> int | None:
    """Return the steps of an epoch of `number` examples on `world` processes by [trainer]; None where not known."""
    if number is None:
        return None
    batch, accumulated = settings.get("per_device_train_batch_size", 8), settings.get("gradient_accumulation_steps", 1)
    whole = math.floor if settings.get("dataloader_drop_last") else math.ceil
    return max(1, math.ceil(whole(number / (batch * world)) / accumulated))


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
