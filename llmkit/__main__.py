"""`python -m llmkit` and the `llmkit` command."""

import gc

from llmkit.cli import app


def main() -> None:
    # The libraries' modules make a million objects that stay: walking them again and again while they are imported,
    # and once more at the end, took 2 of 5 seconds. `train` and `generate` switch the collector on when all are there.
    gc.disable()
    app(prog_name="llmkit")


if __name__ == "__main__":
    main()
