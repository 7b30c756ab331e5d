"""List the trials of a sweep, with the steps of each and of all."""

import math
import sys
from collections.abc import Callable
from fractions import Fraction

from llmkit.data.display import Report
from llmkit.devices import default_processes
from llmkit.dry_run import LEFT, epoch_steps
from llmkit.dry_run.rows import read_rows
from llmkit.dry_run.size import Size
from llmkit.dry_run.texts import read_texts
from llmkit.errors import quantity
from llmkit.models.config import choose_block_size, load_config
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.global_batch import divide
from llmkit.recipe.schema import OF_THE_ROWS, PRETRAINING, Recipe
from llmkit.sweeps.plan import TPE, Plan
from llmkit.terminal import put


def list_trials(plan: Plan, processes: int | None, timed: bool) -> None:
    """Print the trials of a sweep to stderr; `timed` ones end by the clock."""
    report = Report(LEFT, put, sys.stderr)
    world = processes if processes is not None else default_processes()
    runs = plan.number * len(plan.seeds)
    many = f" x {len(plan.seeds)} seeds = {runs:,} runs" if len(plan.seeds) > 1 else ""
    report.add("sweep", f"{quantity(plan.number, 'trial')}{many} ({plan.table.sampler})")
    steps_of = _steps_of(world, timed)
    counts = [None if timed else steps_of(recipe) for recipe in plan.recipes]
    if plan.table.sampler == TPE:
        report.add("", "  Optuna chooses them, each by the results of those before it")
    else:
        for trial, count in zip(plan.trials, counts, strict=True):
            report.add("", f"  {trial.name}" + ("" if count is None else f"  {quantity(count, 'step')}"))
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or not known:
        return
    rungs, done, most = plan.rungs, Fraction(0), 0
    for share, number in rungs:
        most += number * (math.ceil(max(known) * share) - math.ceil(max(known) * done))
        done = share
    if len(rungs) > 1:
        kept = ", ".join(f"{number} to {share}" for share, number in rungs[:-1])
        report.add("halving", f"{kept}, {rungs[-1][1]} to the end")
    exact = len(set(known)) == 1 and plan.table.sampler != TPE
    total = sum(known) if len(rungs) == 1 and plan.table.sampler != TPE else most
    about = "" if exact or total == sum(known) else "at most "
    report.add("steps in all", f"{about}{total * len(plan.seeds):,}")


def _steps_of(world: int, timed: bool) -> Callable[[Recipe], int | None]:
    """Return a function that counts the steps of a trial, and reads the data of those that read alike once."""
    sizes: dict[str, Size] = {}

    def steps(recipe: Recipe) -> int | None:
        of_rows = {key: recipe.trainer[key] for key in OF_THE_ROWS["trainer"] if key in recipe.trainer}
        read = recipe.model_dump(include={"task", "model", "tokenizer", "data", "tasks"})
        key = repr((read, of_rows))
        if key not in sizes:
            sizes[key] = _size(recipe, world, timed)
        size = sizes[key]
        trainer = (size.recipe or recipe).trainer
        batches, _ = divide(size.recipe or recipe, world)
        if (asked := trainer.get("max_steps", -1)) > 0:
            return int(asked)
        an_epoch = epoch_steps({**trainer, **batches}, size.number, world)
        return None if an_epoch is None else math.ceil(trainer.get("num_train_epochs", 3) * an_epoch)

    return steps


def _size(recipe: Recipe, world: int, timed: bool) -> Size:
    """Return how much data there is to train on, in silence: what there is to say is said of the recipe itself."""
    if recipe.trainer.get("max_steps", -1) > 0:
        return Size(None, False)
    silent, seed = Report(LEFT, lambda line: None, sys.stderr), recipe.trainer.get("seed", 42)
    if recipe.task not in PRETRAINING:
        return read_rows(silent, recipe, seed, world, timed)
    config, _ = load_config(recipe.model)
    assert isinstance(recipe.data, TextData)
    return read_texts(silent, recipe, seed, config, choose_block_size(recipe.data.block_size, config))
