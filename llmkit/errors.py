"""What the user is told on stderr: the one exception that is shown without a traceback, and plain lines."""

import sys
from contextlib import suppress


def say(line: str) -> None:
    """One line for the user; stdout is for data alone. That nobody listens any more is no reason to fail."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201


class UserError(Exception):
    """A mistake that the user can mend; the command line prints it and exits with code 2.

    `message` says what was wrong and where (file, line, key, row) in one line, `hint` what to do about it,
    `details` holds further lines, one for each of several mistakes found at once.
    """

    def __init__(self, message: str, hint: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        lines = [f"error: {self.message}", *(f"  {detail}" for detail in self.details)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class RunError(UserError):
    """A run that cannot go on through no mistake of the user's; shown in the same way, with exit code 1."""
