"""How much data there is to train on, as far as a dry run knows."""

from typing import Any, NamedTuple

from llmkit.recipe.schema import Recipe


class Size(NamedTuple):
    """The number of examples or blocks, None where that is not known; whether it is exact; notes for the user.

    `config` is the model's, fitted to the data, `recipe` with what it leaves to the rows, and `assembly` what the rows
    have become, where these are known.
    """

    number: int | None
    exact: bool
    notes: tuple[str, ...] = ()
    config: Any = None
    recipe: Recipe | None = None
    assembly: Any = None
