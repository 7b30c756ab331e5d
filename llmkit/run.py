"""The run directory: where a run lives, what it records of itself, and what counts as finished."""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmkit.errors import UserError

ROOT = Path("runs")
RECORD_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
LAUNCH_LOG = "launch.log"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# What a checkpoint needs for training to go on exactly; Trainer writes trainer_state.json last.
CHECKPOINT_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "numpy")


def claim(name: str, output_dir: str | None) -> Path:
    """A new directory for a run: the one that was named, which must be empty, or `runs/<name>`, `-2`, `-3` and on."""
    try:
        if output_dir is not None:
            directory = Path(output_dir)
            if directory.is_dir() and any(directory.iterdir()):
                what = "another run" if (directory / RECORD_FILE).exists() else "other files"
                raise UserError(
                    f"the output directory `{directory}` holds {what}",
                    "name another, or go on with that run: --resume"
                    if what == "another run"
                    else "name an empty or a new directory",
                )
            directory.mkdir(parents=True, exist_ok=True)
        else:
            directory = ROOT / name
            number = 1
            while True:
                with suppress(FileExistsError):
                    directory.mkdir(parents=True)
                    break
                number += 1
                directory = ROOT / f"{name}-{number}"
        write_json(directory / RECORD_FILE, {"status": "preparing"})
    except OSError as problem:
        raise UserError(
            f"the output directory `{output_dir or ROOT / name}` cannot be written: {problem.strerror}",
            "name another with --output-dir",
        ) from problem
    return directory


def release(directory: Path) -> None:
    """Take back a claimed directory in which nothing was trained."""
    if read_record(directory).get("status") == "preparing":
        for name in (RECORD_FILE, RECIPE_FILE, LAUNCH_LOG):
            (directory / name).unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty, or was there before
            directory.rmdir()
            ROOT.rmdir()


def newest(name: str) -> Path | None:
    """The run of this name that was started last."""
    if not ROOT.is_dir():
        return None
    mine = [d for d in ROOT.iterdir() if d.name == name or d.name.removeprefix(f"{name}-").isdigit()]
    return max((d for d in mine if "started" in read_record(d)), key=lambda d: read_record(d)["started"], default=None)


def newest_finished(task: str) -> Path | None:
    """The run under `runs/` of this task that was finished last."""
    if not ROOT.is_dir():
        return None
    done = [(read_record(d), d) for d in ROOT.iterdir() if is_finished(d)]
    fitting = [(record["finished"], d) for record, d in done if record.get("task") == task]
    return max(fitting, default=(0, None))[1]


def is_finished(directory: Path) -> bool:
    """The weights at the root are whole: the record says so only after they were written."""
    if read_record(directory).get("status") != "finished":
        return False
    return any((directory / name).is_file() for name in WEIGHTS)


def is_run(directory: Path) -> bool:
    """A run directory, finished or not."""
    return (directory / RECORD_FILE).is_file()


def last_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the highest step that has all its files."""
    steps = [d for d in directory.glob("checkpoint-*") if d.name.removeprefix("checkpoint-").isdigit()]
    whole = [d for d in steps if all((d / name).is_file() for name in CHECKPOINT_FILES)]
    return max(whole, key=lambda d: int(d.name.removeprefix("checkpoint-")), default=None)


def read_record(directory: Path) -> dict[str, Any]:
    """What `run.json` says; empty where there is none or it cannot be read."""
    try:
        record = json.loads((directory / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def update_record(directory: Path, **facts: Any) -> None:
    """Write `facts` into `run.json`, whole or not at all."""
    write_json(directory / RECORD_FILE, {**read_record(directory), **facts})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename, so that no reader ever sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=2, allow_nan=True, default=str) + "\n")
    draft.replace(path)


def surroundings() -> dict[str, Any]:
    """Versions, machine and code that a run was made with."""
    return {
        "llmkit": version("llmkit"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "command": ["llmkit", *sys.argv[1:]],
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "started": round(time.time(), 3),
    }


def _git_commit() -> str | None:
    """The commit of the working directory, with a `+` where files differ from it; None outside a repository."""
    try:
        asked = [
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return asked[0] + ("+" if asked[1] else "")


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
