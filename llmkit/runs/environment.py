"""Record the environment of a run: versions, machine, commit and command."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmkit.errors import scrub
from llmkit.runs import directory as runs

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "numpy")


def surroundings() -> dict[str, Any]:
    """Return the versions, machine, code and command of a run, for its record."""
    return {
        "llmkit": version("llmkit"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "command": ["llmkit", *map(scrub, sys.argv[1:])],
        "machine": {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
        "started": runs.now(),
    }


def _git_commit() -> str | None:
    """Return the commit of the working directory, with a `+` if files differ from it; None outside a repository."""
    try:
        answers = [
            subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[0] + ("+" if answers[1] else "")


def processor() -> str:
    """Return the model of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
