"""`python -m llmkit` and the `llmkit` command."""

import gc
import os
import sys
from contextlib import suppress
from typing import Any

from llmkit import process, terminal
from llmkit.cli import app, completion
from llmkit.errors import UserError, tell


def main() -> None:
    # The libraries' modules make a million objects that stay: walking them again and again while they are imported,
    # and once more at the end, took 2 of 5 seconds. Each verb that loads a model switches the collector on when all are
    # there (`process.collect_from_here`).
    gc.disable()
    _open_standard_streams()
    if completion.ASKED in os.environ:
        return completion.answer(app, os.environ[completion.ASKED], sys.argv[1:])
    process.forget_empty_settings()
    terminal.guard()
    try:
        app(prog_name="llmkit")
    except UserError as mistake:
        tell(mistake)
        sys.exit(process.leave(2))
    except Exception as problem:
        from llmkit import last_resort  # late: it costs a hundredth of a second

        last_resort.answer(problem)
        sys.exit(process.leave(1))


def _open_standard_streams() -> None:
    """Open a closed stdin, stdout or stderr again: the next file would get its number, and what is written to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:  # as Python finds it
        closed: Any = process.ClosedStdout()
        sys.stdout = closed


if __name__ == "__main__":
    main()
