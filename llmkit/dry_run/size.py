"""How much data there is to train on, as far as a dry run knows."""

from typing import NamedTuple


class Size(NamedTuple):
    """The number of examples or blocks, None where that is not known; whether it is exact; notes for the user."""

    number: int | None
    exact: bool
    notes: tuple[str, ...] = ()
