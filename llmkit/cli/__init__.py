"""Parse the command line, print errors, choose exit codes. Heavy imports are inside the functions."""

from llmkit.cli import train, use, look, recipes, setup  # noqa: I001 (each adds its commands, listed by `llmkit -h` in this order)
from llmkit.cli.app import app

__all__ = ["app", "look", "recipes", "setup", "train", "use"]
