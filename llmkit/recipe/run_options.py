"""What is asked of one run beside its recipe: its name, its folder, its time."""

import re
from collections.abc import Sequence

from llmkit import recipe as recipes
from llmkit.errors import UserError
from llmkit.recipe.addresses import fetched
from llmkit.recipe.schema import Recipe


def load(
    path: str | None,
    overrides: Sequence[str],
    task: str | None,
    verb: str,
    name: str | None,
    output_dir: str | None,
    max_time: str | None,
) -> Recipe:
    """Load the recipe of a run; the arguments are those of `llmkit pretrain` and `llmkit finetune`.

    Data that stands at an address is fetched. Raises UserError for mistakes in the recipe, the overrides and the name.
    """
    recipe = _named(recipes.load(path, overrides, output_dir, task, verb), name, output_dir)
    return _with_time_note(fetched(recipe), max_time)


def seconds(time: str | None) -> int | None:
    """Convert a time such as `1h30m` to seconds; None for None."""
    if time is None:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time)
    total = (
        sum(int(number or 0) * unit for number, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not total:
        raise UserError(f"--max-time: `{time}` is not a duration", "write it as 90s, 30m, 1h30m or 2h")
    return total


def _named(recipe: Recipe, name: str | None, output_dir: str | None) -> Recipe:
    """Return the recipe under the name that the command line gives its run; the recipe's own where it gives none."""
    if name is None:
        return recipe
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UserError(f"--name: `{name}` is not a valid run name", "use letters, digits, `.`, `_` and `-`")
    if output_dir is not None:
        raise UserError(
            "--name and --output-dir cannot be combined", f"use only one; --name means --output-dir runs/{name}"
        )
    return recipe.model_copy(update={"name": name, "output_dir": None})


def _with_time_note(recipe: Recipe, time: str | None) -> Recipe:
    """Return the recipe with a note on the effect of `--max-time`."""
    if time is None:
        return recipe
    key = "max_steps" if recipe.trainer.get("max_steps", -1) > 0 else "num_train_epochs"
    note = (
        f"--max-time {time}: training stops this long after its first step starts; evaluation and saving in between "
        f"count, the final evaluation and saving of the model do not; "
        f"trainer.{key} is ignored"
    )
    return recipe.model_copy(update={"notes": (*recipe.notes, note)})
