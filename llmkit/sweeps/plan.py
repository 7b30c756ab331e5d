"""Plan a sweep: which trials there are and how far each is trained; find every mistake before any starts."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llmkit import disk
from llmkit.errors import UserError
from llmkit.recipe import schema
from llmkit.recipe.draft import COMMAND_LINE
from llmkit.recipe.schema import Recipe
from llmkit.recipe.table import ReadOnly
from llmkit.recipe.toml import dotted, leaves
from llmkit.sweeps import space
from llmkit.sweeps.space import Axis, Trial

TPE = "optuna-tpe"
RUNGS = 3  # of successive halving: 1/N^2, 1/N and all of the steps
PATHS = ("model.name", "tokenizer.name", "data.path")
NOTHING = "there is nothing to sweep: give --sweep KEY=VALUES, or [sweep.over] in the recipe"


@dataclass(frozen=True)
class Plan:
    """A sweep: `recipe` has its table [sweep], `words` are the command of a trial without its settings.

    `trials` are those that are known in advance; with the sampler TPE the first only shows what there will be.
    """

    recipe: Recipe
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    recipes: tuple[Recipe, ...]  # of these
    words: tuple[str, ...]

    @property
    def table(self) -> schema.Sweep:
        """Return [sweep]."""
        assert self.recipe.sweep is not None
        return self.recipe.sweep

    @property
    def number(self) -> int:
        """Return how many trials there will be."""
        return self.table.trials or 1 if self.table.sampler == TPE else len(self.trials)

    @property
    def seeds(self) -> range:
        """Return the seeds that each trial is trained with."""
        first = self.recipe.trainer.get("seed", 42)
        return range(first, first + (self.table.seeds or 1))

    @property
    def rungs(self) -> list[tuple[Fraction, int]]:
        """Return the shares of the steps after which trials are compared, each with the number that are trained so far.

        Of n trials floor(n / N) go on, as in successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943).
        """
        counts = [self.number]
        factor = self.table.halving
        while factor and counts[-1] >= factor and len(counts) < RUNGS:
            counts.append(counts[-1] // factor)
        return [
            (Fraction(1, (factor or 1) ** left), n) for left, n in zip(range(len(counts))[::-1], counts, strict=True)
        ]


def make(
    recipe: Recipe,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    words: Sequence[str],
    load: Callable[[list[str]], Recipe],
    max_time: bool = False,
) -> Plan:
    """Read what is swept and draw the trials; raise UserError with every mistake in any of them.

    Args:
        recipe: The recipe, which may have a table [sweep].
        arguments: Those of --sweep.
        options: Keys of [sweep] from the command line, None where they are not given.
        words: The command of a trial, from `pretrain` or `finetune` on, without its own settings.
        load: Loads the recipe of a trial by its settings.
        max_time: Whether trials end by the clock.
    """
    task, mistakes = recipe.task, list[str]()
    table = recipe.sweep or schema.Sweep()
    over = _resolved(table.over, recipe)
    for argument in arguments:
        try:
            key, values = space.values_of(argument, task)
            over[key] = values
        except ValueError as mistake:
            mistakes.append(str(mistake))
    given = {name: value for name, value in options.items() if value is not None}
    table = table.model_copy(update={**given, "over": ReadOnly(over)})
    if table.sampler is None:
        table = table.model_copy(update={"sampler": "random" if table.trials else "grid"})
    axes, of_axes = space.axes(over, task)
    mistakes += of_axes or ([] if over or mistakes else [NOTHING])
    mistakes += _unfit(table, axes, max_time)
    mistakes += [f"{axis.key}: is both set and swept" for axis in axes if recipe.origins.get(axis.key) == COMMAND_LINE]
    drawn: list[Mapping[str, Any]] = []
    if not mistakes and table.sampler == "grid":
        drawn = list(space.grid(axes))
    elif not mistakes and table.sampler == "random":
        drawn = list(space.at_random(axes, table.trials or 1, recipe.trainer.get("seed", 42)))
    first = {axis.key: axis.probes()[0] for axis in axes}
    probes = [{**first, axis.key: value} for axis in axes for value in axis.probes()]
    trials = space.named(drawn or probes[:1])
    wrong: dict[str, dict[str, None]] = {}  # the trials with each mistake
    recipes = []
    for trial in [*trials, *space.named(probes)]:
        try:
            recipes.append(load(trial.overrides(task)))
        except UserError as mistake:
            for detail in mistake.details or (mistake.message,):
                wrong.setdefault(detail, {})[trial.name] = None
    mistakes += [f"{detail}  ({_where(list(names))})" for detail, names in wrong.items()]
    if not mistakes and table.halving and len(trials) < table.halving:
        mistakes.append(f"--halving {table.halving} needs as many trials, and there are {len(trials)}")
    if mistakes:
        raise UserError(
            f"{len(mistakes)} problem{'s' * (len(mistakes) > 1)} in the sweep",
            "for example: --sweep trainer.learning_rate=1e-5,3e-5,1e-4; all about a key: llmkit explain KEY",
            tuple(mistakes),
        )
    given_here = {f"sweep.{key}": COMMAND_LINE for key in given}
    given_here |= {dotted(("sweep", "over", key)): COMMAND_LINE for key in over if f"{key}=" in "".join(arguments)}
    origins = ReadOnly({**recipe.origins, **given_here})
    whole = recipe.model_copy(update={"sweep": table, "origins": origins})
    return Plan(whole, tuple(axes), tuple(trials), tuple(recipes[: len(trials)]), tuple(words))


def _resolved(over: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return [sweep.over] by dotted keys, with paths beside the recipe as they are found from everywhere."""
    flat = {".".join(path): value for path, value in leaves(over).items()}
    for key in PATHS:
        if recipe.source and isinstance(values := flat.get(key), list | tuple):
            beside = [recipe.source.parent / str(each) for each in values]
            flat[key] = [str(path) if disk.exists(path) else each for path, each in zip(beside, values, strict=True)]
    return flat


def _where(names: Sequence[str]) -> str:
    others = len(set(names)) - 1
    return f"trial {names[0]}" + (f" and {others} more" if others else "")


def _unfit(table: schema.Sweep, axes: Sequence[Axis], max_time: bool) -> list[str]:
    """List what of a sweep's options does not go together."""
    ranges = ", ".join(axis.key for axis in axes if not axis.values)
    mistakes = []
    if table.sampler == "grid" and table.trials:
        mistakes.append("--trials does not go with --sampler grid, which makes every combination")
    if table.sampler == "grid" and ranges and not table.trials:
        mistakes.append(f"{ranges}: a range has no end of values: give --trials N, or list the values")
    if table.sampler in ("random", TPE) and not table.trials:
        mistakes.append(f"--sampler {table.sampler} needs --trials N")
    if table.sampler == TPE and importlib.util.find_spec("optuna") is None:
        mistakes.append(f"--sampler {TPE} needs Optuna: pip install 'llmkit[optuna]'")
    if table.sampler == TPE and table.halving:
        mistakes.append(f"--halving does not go with --sampler {TPE}, which learns from trials that are trained whole")
    if table.halving and max_time:
        mistakes.append("--halving does not go with --max-time: it stops trials at a share of their steps")
    return mistakes
