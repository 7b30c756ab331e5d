"""Repeat a training with several seeds, to measure how much its metrics vary by chance."""

import math
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from llmkit import children, disk
from llmkit.errors import UserError, say
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import Recipe
from llmkit.runs import compatibility
from llmkit.runs import directory as runs

SUMMARY = "seeds.json"


def repeat(recipe: Recipe, seeds: int, argv: Sequence[str], output_dir: str | None, resume: bool) -> int:
    """Train once for each seed into `DIR/seed-N`; report the metrics' means and standard deviations.

    Each run is a process of its own, so that none affects another.

    Args:
        recipe: The recipe; its seed is the first one.
        seeds: The number of runs.
        argv: The command line, from `pretrain` or `finetune` on, without `--seeds` and `--output-dir`.
        output_dir: The command line's.
        resume: Continue the runs of the newest directory.

    Returns:
        The exit code: 0, or that of the first run that did not finish.
    """
    from llmkit.metrics import gather

    directory = choose_directory(recipe, output_dir, resume)
    first = recipe.trainer.get("seed", 42)
    found = []
    for seed in range(first, first + seeds):
        run_directory = directory / f"seed-{seed}"
        resume_flag = ["--resume"] if resume and disk.exists(run_directory) else []
        split = [] if resume_flag and _splits_by_own_seed(run_directory) else same_split(recipe)
        precision = [] if resume_flag else same_precision(recipe, directory / f"seed-{first}")
        settings = [f"trainer.seed={seed}", *split, *precision, *quiet(recipe)]
        code = children.run([*argv, *settings, "--output-dir", str(run_directory), *resume_flag])
        if code:
            with suppress(OSError):  # it holds a run
                directory.rmdir()
            return code
        found.append(runs.read_record(run_directory)["metrics"])
    metrics = gather(found)
    summary = {
        key: {"mean": fmean(values), "std": deviation(values), "values": values} for key, values in metrics.items()
    }
    runs.write_json(directory / SUMMARY, {"seeds": list(range(first, first + seeds)), "metrics": summary})
    for key, statistics in summary.items():
        values = " ".join(f"{value:.4f}" for value in metrics[key])
        say(f"{key:28} {statistics['mean']:.4f} +- {statistics['std']:.4f}  ({values})")
    say(f"{seeds} seed{'s' * (seeds > 1)} -> {directory / SUMMARY}")
    return 0


def same_split(recipe: Recipe) -> list[str]:
    """Return the settings by which runs hold out the same rows, so that their metrics vary by the seed alone."""
    first = recipe.trainer.get("seed", 42)
    tables = {"data": recipe.data, **{f"tasks.{name}.data": part.data for name, part in recipe.tasks.items()}}
    return [f"{key}.seed={first}" for key, data in tables.items() if data is not None and data.seed is None]


def same_precision(recipe: Recipe, first: Path) -> list[str]:
    """Return the setting by which a run trains in the precision of the `first`, whatever is measured meanwhile.

    None where the recipe says its precision, where there is no first run yet, and on a GPU.
    """
    tables = compatibility.tables_of(first) if recipe.fits_machine else {}
    if not tables or runs.read_record(first).get("device") != "cpu":
        return []
    return [f"trainer.bf16={str(tables['trainer'].get('bf16', False)).lower()}"]


def quiet(recipe: Recipe) -> list[str]:
    """Return the setting by which one run of several writes no report, unless the recipe says otherwise."""
    return ["report.write=false"] if recipe.report.write is None else []


def _splits_by_own_seed(directory: Path) -> bool:
    """Tell whether the run in `directory` was begun when each seed still held out rows of its own."""
    recipe = directory / runs.RECIPE_FILE
    tables = tomllib.loads(recipe.read_text()) if disk.is_file(recipe) else {}
    data = [part["data"] for part in (tables, *tables.get("tasks", {}).values()) if "data" in part]
    return not all("seed" in table for table in data)


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation (divided by n - 1); 0 for one value, NaN if a value is NaN."""
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


def choose_directory(recipe: Recipe, output_dir: str | None, resume: bool) -> Path:
    """Choose a folder for the runs: `output_dir`, else a new one numbered like a run, with `resume` the newest.

    Raises UserError for a folder with other files, and for the folder of a single run.
    """
    first = at_home(str(output_dir or recipe.output_dir or runs.ROOT / recipe.name))
    if output_dir is not None and not resume:
        if disk.is_dir(first) and any(first.iterdir()):
            raise UserError(
                f"the output directory `{output_dir}` already contains other files",
                "name another, or resume the runs in it with --resume",
            )
        return first
    number, directory, newest = 1, first, None
    while disk.exists(directory):
        newest = directory
        number += 1
        directory = first.with_name(f"{first.name}-{number}")
    if newest is None or not resume:
        return directory
    if runs.is_run(newest):
        raise UserError(f"`{newest}` is a single run, not a group of runs", "name another: --output-dir")
    return newest
