"""`python -m llmkit` and the `llmkit` command."""

import gc

from llmkit.cli import app


def main() -> None:
    # The libraries' modules make a million objects that stay: walking them again and again while they are imported,
    # and once more at the end, took 2 of 5 seconds. Each verb that loads a model switches the collector on when all are
    # there (`process.collect_from_here`).
    gc.disable()
    app(prog_name="llmkit")


if __name__ == "__main__":
    main()
