"""Count the rows that cannot be used, by kind, and say when they are too many."""

import math

from llmkit.errors import UserError

MAX_SKIPPED_FRACTION = 0.05  # where the recipe says nothing
ALWAYS_ALLOWED = 3  # rows that may be left out whatever their share
SHOWN = 5  # faults that one message names


class Tally:
    """Counts by kind, with the place of the first and the faults of the first few."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self.details: list[str] = []
        self.hint = ""

    def add(self, kind: str, place: str, message: str = "", hint: str = "") -> None:
        """Count a row at `place`; `message` is what is wrong with it, and `hint` what to do about rows of this kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, place)
        self.hint = self.hint or hint
        if message and len(self.details) < SHOWN:
            self.details.append(f"{place}: {message}")

    @property
    def total(self) -> int:
        """The number of rows counted."""
        return sum(self.counts.values())

    def notes(self, done: str) -> list[str]:
        """Say of each kind how many rows were `done` ("left out", "mended"), with the place of the first."""
        return [
            f"{count:,} row{'s' * (count > 1)} {done}: {kind}, such as {self.first[kind]}"
            for kind, count in self.counts.items()
        ]


def check_share(source: str, faults: Tally, total: int, allowed: float | None) -> None:
    """Raise UserError where the faults among `total` rows are more than the share `allowed`, or all of them."""
    share = MAX_SKIPPED_FRACTION if allowed is None else allowed
    count = faults.total
    if not count or (count <= max(ALWAYS_ALLOWED, share * total) and count < total):
        return
    kinds = [kind if len(faults.counts) == 1 else f"{kind} ({n:,})" for kind, n in faults.counts.items()]
    details = [*faults.details, *([f"and {count - SHOWN:,} more"] if count > SHOWN else [])]
    hint = faults.hint
    if count < total:
        needed = min(1.0, math.ceil(100 * count / total) / 100)
        hint += f"{'; ' * bool(hint)}to leave them out: data.max_skipped_fraction = {needed:g}"
    raise UserError(f"{source}: {count:,} of {total:,} rows cannot be used: {', '.join(kinds)}", hint, tuple(details))
