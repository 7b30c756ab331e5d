"""One fine-tune with several seeds: how much of a figure is chance."""

import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import FrameType

from llmkit import process
from llmkit.errors import UserError, say
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import Recipe
from llmkit.runs import directory as runs

SUMMARY = "seeds.json"


def repeat(recipe: Recipe, seeds: int, words: Sequence[str], output_dir: str | None, resume: bool) -> int:
    """Run `llmkit finetune` once for each seed, into `DIR/seed-N`; the mean and standard deviation of the metrics.

    `words` are the command line without `--seeds` and `--output-dir`. The first seed is the recipe's. The exit code is
    0, or that of the first run that did not finish. Each run is a process of its own, and cannot disturb another.
    """
    from llmkit.metrics import evaluation_metrics

    directory = choose_directory(recipe, output_dir, resume)
    first = recipe.trainer.get("seed", 42)
    figures: dict[str, list[float]] = {}
    for seed in range(first, first + seeds):
        own = directory / f"seed-{seed}"
        again = ["--resume"] if resume and own.exists() else []
        code = _run([*words, f"trainer.seed={seed}", "--output-dir", str(own), *again])
        if code:
            with suppress(OSError):  # it holds a run
                directory.rmdir()
            return code
        for key, value in evaluation_metrics(runs.read_record(own)["metrics"]).items():
            figures.setdefault(key, []).append(value)
    summary = {
        key: {"mean": fmean(values), "std": deviation(values), "values": values} for key, values in figures.items()
    }
    runs.write_json(directory / SUMMARY, {"seeds": list(range(first, first + seeds)), "metrics": summary})
    for key, found in summary.items():
        values = " ".join(f"{value:.4f}" for value in figures[key])
        say(f"{key:28} {found['mean']:.4f} +- {found['std']:.4f}  ({values})")
    say(f"{seeds} seed{'s' * (seeds > 1)} -> {directory / SUMMARY}")
    return 0


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample (n - 1 below the line), 0 of one value; NaN where there is one among them."""
    middle = fmean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / max(1, len(values) - 1))


def choose_directory(recipe: Recipe, output_dir: str | None, resume: bool) -> Path:
    """A new folder for the runs: the one that was named, else one numbered like a run; with `resume` the newest."""
    first = at_home(str(output_dir or recipe.output_dir or runs.ROOT / recipe.name))
    if output_dir is not None and not resume:
        if first.is_dir() and any(first.iterdir()):
            raise UserError(
                f"the output directory `{output_dir}` holds other files",
                "name another, or go on with the runs in it: --resume",
            )
        return first
    number, directory, newest = 1, first, None
    while directory.exists():
        newest = directory
        number += 1
        directory = first.with_name(f"{first.name}-{number}")
    if newest is None or not resume:
        return directory
    if runs.is_run(newest):
        raise UserError(f"`{newest}` is one run and not several", "name another: --output-dir")
    return newest


def _run(words: Sequence[str]) -> int:
    """One run as a child, its exit code; signals that end a run are its to answer."""
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in process.stopping()}
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "llmkit", "finetune", *words],
            start_new_session=True,  # the terminal's Ctrl-C reaches it once, through us
        )
        if received:  # while it was being started
            child.send_signal(received[0])
        code = child.wait()
        if received and code == 0:  # it had taken its last step; the next run is not wanted
            return 130 if received[0] == signal.SIGINT else 75
        return code if code >= 0 else 128 - code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
