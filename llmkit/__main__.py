"""`python -m llmkit` and the `llmkit` command."""

import gc
import os
import sys

from llmkit import process, stdout, terminal, worlds
from llmkit.cli import app, completion
from llmkit.errors import UserError, tell


def main() -> None:
    # The libraries' modules make a million objects that stay: walking them again and again while they are imported,
    # and once more at the end, took 2 of 5 seconds. Each verb that loads a model switches the collector on when all are
    # there (`process.collect_from_here`).
    gc.disable()
    stdout.open_standard_streams()
    if completion.ASKED in os.environ:
        return completion.answer(app, os.environ[completion.ASKED], sys.argv[1:])
    process.forget_empty_settings()
    terminal.guard()
    process.ignore_launchers(told=worlds.LAUNCHED in sys.argv)
    try:
        try:
            refuse_bytes(sys.argv[1:])
            app(prog_name="llmkit")
        finally:
            sys.stdout.flush()  # what it does not take is found out here and not when Python ends
    except UserError as mistake:
        tell(mistake)
        sys.exit(process.leave(2))
    except BrokenPipeError:
        sys.exit(process.leave(1))
    except Exception as problem:
        from llmkit import last_resort  # late: it costs a hundredth of a second

        last_resort.answer(problem)
        sys.exit(process.leave(1))


def refuse_bytes(words: list[str]) -> None:
    """Raise UserError for a word of the command line that is not UTF-8: no recipe, record or prompt could hold it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            hint = "is it a file? Give it another name (mv); is it a text? Let the terminal be UTF-8"
            raise UserError(f"`{word}` on the command line is not UTF-8", hint) from None


if __name__ == "__main__":
    main()
