"""What a recipe comes to, by its data and its keys: the arithmetic of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.recipe.schema import Recipe


@dataclass(frozen=True)
class Outlook:
    """What is known before anything is trained.

    Attributes:
        recipe: with what it leaves to the rows, as far as they are read.
        config: the model's, `fitted` to the data where these are read.
        settings: [trainer] with what was chosen for this machine.
        processes: how many there are.
        number: examples or blocks of an epoch, None where that is not known; `exact` if it is.
        length: tokens of a block; 1 for rows, whose lengths differ.
        batch: examples or blocks of a micro-batch.
        accumulated: micro-batches of a step of one process.
        an_epoch: steps of an epoch, where that is known.
        steps: of the whole training, where that is known.
        assembly: what rows have become; None for running text.
        why: why this precision.
        notes: for the user.
        uncertain: the vocabulary may be smaller than `config` says.
    """

    recipe: Recipe
    config: Any
    fitted: bool
    settings: Mapping[str, Any]
    processes: int
    number: int | None
    exact: bool
    length: int
    batch: int
    accumulated: int
    an_epoch: int | None
    steps: int | None
    assembly: Any
    why: str
    notes: tuple[str, ...]
    uncertain: bool

    @property
    def a_step(self) -> int:
        """Examples or tokens of a step."""
        return self.batch * self.accumulated * self.processes * self.length

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row, where rows are read."""
        lengths = getattr(getattr(self.assembly, "train", None), "lengths", None)
        return None if lengths is None or not len(lengths) else int(lengths.max())
