"""Prompts, and what a refusal to answer them says."""

from typer.testing import Result

POSITIONS = 64


def refused(result: Result) -> str:
    """What a refusal says: an error, a hint, exit code 2, and nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and "\nhint: " in result.stderr
    return result.stderr
