"""Train from Python, and return runs and what they hold."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit import process
from llmkit.api import models
from llmkit.api.guest import guest
from llmkit.api.models import Model
from llmkit.api.overrides import overrides_of
from llmkit.errors import RunError, UserError
from llmkit.recipe.schema import Recipe
from llmkit.runs import directory as runs

if TYPE_CHECKING:
    import pandas as pd

Verb = Literal["pretrain", "finetune"]
INTERRUPTED = (process.STOPPED, 128 + signal.SIGINT)


class Stopped(Exception):
    """A run that was stopped and has a checkpoint; call again with `resume=True` to go on.

    `run` is the run, so far.
    """

    def __init__(self, run: "Run") -> None:
        super().__init__(f"`{run.directory}` was stopped; the same call with resume=True goes on from there")
        self.run = run


@dataclass(frozen=True)
class Run:
    """A run directory. `directory` holds the finished model, the recipe, the record and the checkpoints."""

    directory: Path

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says at this moment."""
        return runs.read_record(self.directory)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of a finished run: `eval_accuracy`, `eval_loss`, ...; empty before its end."""
        return dict(self.record.get("metrics", {}))

    @property
    def history(self) -> "pd.DataFrame":
        """What was logged while it trained: a row each time, with `step`, `loss`, `learning_rate`, `eval_loss`, ..."""
        import pandas as pd

        file = self.directory / runs.METRICS_FILE
        return pd.read_json(file, lines=True) if file.exists() else pd.DataFrame()

    def load(self) -> Model:
        """Load the finished model."""
        return models.load(self.directory)

    def report(self) -> Path:
        """Write the report of the run, to open in a browser; return its file."""
        from llmkit.reports import report

        with guest():
            return report.write(self.directory, explained=True)

    def push(
        self, repo_id: str, *, license: str, public: bool = False, include: Sequence[str] = (), dry_run: bool = False
    ) -> str | None:
        """Publish the run on the Hub as OWNER/NAME, as `llmkit push` does.

        Returns the address; None for a `dry_run`, which says what would be uploaded.
        """
        from llmkit.export import push

        with guest():
            return push.push(str(self.directory), repo_id, license, public, include, dry_run)


def pretrain(
    recipe: str | Path | None = None,
    *,
    task: str | None = None,
    data: Any = None,
    name: str | None = None,
    output_dir: str | Path | None = None,
    processes: int | None = None,
    accelerate_config: str | Path | None = None,
    max_time: str | None = None,
    resume: bool = False,
    allow_change: Sequence[str] = (),
    offline: bool = False,
    **overrides: Any,
) -> Run:
    """Pretrain a language model, as `llmkit pretrain` does; the arguments are those of `finetune`."""
    options = (name, output_dir, processes, accelerate_config, max_time, resume, allow_change, offline)
    return _train("pretrain", recipe, task, overrides_of(recipe, task, data, overrides), *options)


def finetune(
    recipe: str | Path | None = None,
    *,
    task: str | None = None,
    data: Any = None,
    name: str | None = None,
    output_dir: str | Path | None = None,
    processes: int | None = None,
    accelerate_config: str | Path | None = None,
    max_time: str | None = None,
    resume: bool = False,
    allow_change: Sequence[str] = (),
    offline: bool = False,
    **overrides: Any,
) -> Run:
    """Fine-tune a model, as `llmkit finetune` does, and return its run.

    Args:
        recipe: A recipe file, or the name of a bundled recipe.
        task: Instead of a recipe: "sst2", "text-classification", ...
        data: The rows: a path or a Hub id, a DataFrame, a `datasets.Dataset`, a list of dicts; or a dict of the keys of
            [data]. What is no file is written to one in the cache, so that the run can be resumed and evaluated.
        name: The run's name, for `runs/NAME` and `resume`.
        output_dir: The run directory.
        processes: The number of training processes; more than one are children. None is one a GPU.
        accelerate_config: An Accelerate configuration file.
        max_time: Stop training after this time, such as "30m".
        resume: Resume the newest run of this name.
        allow_change: With `resume`, keys that may differ from the run's.
        offline: Do not contact the Hub.
        **overrides: Tables of the recipe: `trainer={"learning_rate": 5e-5}`, `lora={"r": 8}`. None removes a key.

    Raises:
        UserError: A mistake in what was asked.
        RunError: The run failed.
        Stopped: Ctrl-C or another signal stopped it; it has a checkpoint.
    """
    options = (name, output_dir, processes, accelerate_config, max_time, resume, allow_change, offline)
    return _train("finetune", recipe, task, overrides_of(recipe, task, data, overrides), *options)


def read_recipe(
    recipe: str | Path | None = None, *, task: str | None = None, data: Any = None, **overrides: Any
) -> Recipe:
    """Read a recipe strictly, with overrides as in `finetune`, and return it; UserError names every mistake."""
    from llmkit.cli.app import recipe_and_overrides
    from llmkit.recipe import load

    settings = overrides_of(recipe, task, data, overrides)
    path, settings = recipe_and_overrides(None if recipe is None else str(recipe), settings, task)
    return load(path, settings, task=task)


def _train(
    verb: Verb,
    recipe: str | Path | None,
    task: str | None,
    overrides: list[str],
    name: str | None,
    output_dir: str | Path | None,
    processes: int | None,
    accelerate_config: str | Path | None,
    max_time: str | None,
    resume: bool,
    allow_change: Sequence[str],
    offline: bool,
) -> Run:
    """Run the command line that says the same, in this process."""
    from llmkit.cli.app import recipe_and_overrides

    path, overrides = recipe_and_overrides(None if recipe is None else str(recipe), overrides, task, verb)
    argv = [verb, *([path] if path is not None else ["--task", str(task)]), *overrides]
    valued = {
        "--name": name,
        "--output-dir": output_dir,
        "--processes": processes,
        "--accelerate-config": accelerate_config,
        "--max-time": max_time,
    }
    argv += [word for option, value in valued.items() if value is not None for word in (option, str(value))]
    argv += [word for key in allow_change for word in ("--allow-change", key)]
    argv += [option for option, wanted in (("--resume", resume), ("--offline", offline)) if wanted]
    with guest(argv, offline):
        from llmkit import launch
        from llmkit.recipe import run_options

        folder = None if output_dir is None else str(output_dir)
        seconds = run_options.seconds(max_time)
        loaded = run_options.load(path, overrides, task, verb, name, folder, max_time)
        if loaded.sweep is not None:
            raise UserError(
                "the recipe has a [sweep], which is many runs", f"llmkit {verb}; or, for one run, sweep=None"
            )
        config = None if accelerate_config is None else Path(accelerate_config)
        code, directory = launch.start(loaded, processes, config, resume, seconds, allow_change)
        if directory is None:  # to resume, and finished
            directory = runs.newest(Path(loaded.output_dir) if loaded.output_dir else runs.ROOT / loaded.name)
            assert directory is not None
    run = Run(directory)
    if code in INTERRUPTED:
        raise Stopped(run)
    if code:
        raise RunError(f"the run `{directory}` failed", f"its processes wrote into {directory / runs.LAUNCH_LOG}")
    return run


def list_runs(folder: str | Path = "runs") -> "pd.DataFrame":
    """List the runs of a folder as `llmkit runs` does: a row a run, the newest first, times in seconds."""
    import pandas as pd

    from llmkit import disk
    from llmkit.reports.runs import COLUMNS, describe, directories

    root = Path(folder)
    rows = [describe(path, runs.read_record(path)) for path in directories(root)] if disk.is_dir(root) else []
    rows.sort(key=lambda row: row["order"], reverse=True)
    numbers = [{**row, "age": row["seconds_ago"], "time": row["seconds"]} for row in rows]
    return pd.DataFrame(numbers, columns=list(COLUMNS))
