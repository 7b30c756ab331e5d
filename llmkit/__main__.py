"""`python -m llmkit` and the `llmkit` command."""

from llmkit.cli import app


def main() -> None:
    app(prog_name="llmkit")


if __name__ == "__main__":
    main()
