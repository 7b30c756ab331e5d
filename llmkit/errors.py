"""Talk to the user on stderr: lines, and the exceptions that are shown without a traceback."""

import sys

from llmkit.terminal import laid_out, put


def say(*lines: str) -> None:
    """Write lines to stderr, as stdout is for data alone; do nothing if stderr is closed."""
    put(*(laid_out(line, sys.stderr) for line in lines))


def quantity(count: int, noun: str) -> str:
    """Write a count with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def in_bytes(count: float) -> str:
    """Write a number of bytes: `934 B`, `711 kB`, `6.9 MB`, `1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.{int(count < 10 * size or unit == 'GB')}f} {unit}"
    return f"{count:.0f} B"


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it and exits with code 2.

    `message` says in one line what is wrong and where (file, line, key, row), `hint` what to do about it; `details`
    has a line for each of several mistakes found at once.
    """

    def __init__(self, message: str, hint: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def lines(self) -> list[str]:
        """Return what is shown of it."""
        hint = [f"hint: {self.hint}"] if self.hint else []
        return [f"error: {self.message}", *(f"  {detail}" for detail in self.details), *hint]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class RunError(UserError):
    """A run that fails through no mistake of the user's; shown in the same way, with exit code 1."""
