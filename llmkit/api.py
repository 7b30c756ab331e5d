"""llmkit from Python: what the commands do, as functions that return what was made.

Each works in this process and leaves it as it was: environment, signal handlers, threads, random state, warnings. What
the commands say goes to stderr. A mistake is a `UserError` with the words that the command would print.
"""

import gc
import io
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit import disk, process
from llmkit.errors import RunError, UserError
from llmkit.recipe.schema import Recipe
from llmkit.runs import directory as runs

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.inference.generate import GenerationSession
    from llmkit.inference.precision import Precision
    from llmkit.models.quantization import Precision as Quantized

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

    def load(self) -> "Model":
        """Load the finished model."""
        return load(self.directory)

    def report(self) -> Path:
        """Write the report of the run, to open in a browser; return its file."""
        from llmkit.reports import report

        with _guest():
            return report.write(self.directory, explained=True)

    def push(
        self, repo_id: str, *, license: str, public: bool = False, include: Sequence[str] = (), dry_run: bool = False
    ) -> str | None:
        """Publish the run on the Hub as OWNER/NAME, as `llmkit push` does.

        Returns the address; None for a `dry_run`, which says what would be uploaded.
        """
        from llmkit.export import push

        with _guest():
            return push.push(str(self.directory), repo_id, license, public, include, dry_run)


# ---- training ------------------------------------------------------------------------------------------------------


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
    return _train("pretrain", recipe, task, _overrides(recipe, task, data, overrides), *options)


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
    return _train("finetune", recipe, task, _overrides(recipe, task, data, overrides), *options)


def read_recipe(
    recipe: str | Path | None = None, *, task: str | None = None, data: Any = None, **overrides: Any
) -> Recipe:
    """Read a recipe strictly, with overrides as in `finetune`, and return it; UserError names every mistake."""
    from llmkit.cli.app import recipe_and_overrides
    from llmkit.recipe import load

    settings = _overrides(recipe, task, data, overrides)
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
    with _guest(argv, offline):
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


def _overrides(recipe: str | Path | None, task: str | None, data: Any, tables: Mapping[str, Any]) -> list[str]:
    """Write `data` and tables of a recipe as the command line's overrides."""
    from llmkit.recipe.toml import leaves

    own = dict(data) if isinstance(data, Mapping) else {} if data is None else {"path": data}
    if "path" in own:
        own["path"] = _path_of(own["path"])
    name = _task_of(recipe, task)
    values = leaves({**({"data": own} if own else {}), **tables})
    return [_override(key, value, name) for key, value in values.items()]


def _override(key: tuple[str, ...], value: Any, task: str | None) -> str:
    from llmkit.recipe.keys import key_type
    from llmkit.recipe.toml import dotted, toml_value

    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if value is None:
        return f"{dotted(key)}="
    if isinstance(value, str | Path):
        kind = key_type(key, task)
        return f"{dotted(key)}={value if kind is None or kind.text_only else toml_value(str(value))}"
    return f"{dotted(key)}={toml_value(value)}"


def _task_of(recipe: str | Path | None, task: str | None) -> str | None:
    """Find the task of a recipe that may have mistakes, which are reported later."""
    import tomllib

    from llmkit.recipe import find, recipe_of_task

    if recipe is None and task is None:
        return None
    name = recipe_of_task(task)[0] if task is not None else str(recipe)
    try:
        return str(tomllib.loads(find(name).read_text()).get("task"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
        return None


def _path_of(data: Any) -> str:
    """Return the path of data; rows that are in memory are written into the cache, under a hash of what they are."""
    if isinstance(data, str | Path):
        return str(data)
    from llmkit.data.text.token_cache import cache_dir

    if isinstance(data, Sequence):
        import pandas as pd

        data = pd.DataFrame.from_records(list(data))
    if not hasattr(data, "to_parquet"):
        raise UserError(
            f"data: llmkit reads no {type(data).__name__}",
            "give a path, a DataFrame, a datasets.Dataset or a list of dicts",
        )
    written = io.BytesIO()
    data.to_parquet(written, **({"index": False} if hasattr(data, "iloc") else {}))
    file = cache_dir() / "frames" / f"{sha256(written.getvalue()).hexdigest()[:32]}.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with disk.drafted(file, synced=False) as out:
            out.write(written.getvalue())
    return str(file)


# ---- finished models -----------------------------------------------------------------------------------------------


def load(
    model: str | Path,
    *,
    quantize: "Quantized | None" = None,
    precision: "Precision | None" = None,
    offline: bool = False,
) -> "Model":
    """Return a finished model: a run, a checkpoint, a folder or a Hub id. Its weights are read when they are needed.

    `quantize` is that of `llmkit generate`, `predict` and `evaluate`, `precision` ("bf16" or "fp32") that of the latter
    two. Raises UserError where there is no such model.
    """
    from llmkit.cli.app import run_or_model
    from llmkit.runs.finished import check_model, one_task_of

    with _guest(offline=offline):
        name = run_or_model(str(model))
        check_model(name)
        return Model(name, one_task_of(name), quantize, precision, offline)


@dataclass(frozen=True)
class Model:
    """A finished model, which `load` returns; `task` is what it was made for."""

    name: str
    task: str
    quantize: "Quantized | None" = None
    precision: "Precision | None" = None
    offline: bool = False

    def predict(self, rows: Any) -> Any:
        """Predict, as `llmkit predict` does.

        Args:
            rows: A text, or a dict with the columns of a row; a list of either; or a DataFrame.

        Returns:
            A dict a row, with the keys that `llmkit predict` writes: one for one row, a list for a list. For a
            DataFrame another one, with the predictions behind its columns.

        Raises:
            UserError: The model does not predict, or a row cannot be read.
        """
        from llmkit.data.output import own_name

        if hasattr(rows, "iloc"):
            import pandas as pd

            answers = self._predict(rows.to_dict("records"))
            named = [{own_name(key, rows.columns): value for key, value in answer.items()} for answer in answers]
            return pd.concat([rows, pd.DataFrame(named, index=rows.index)], axis="columns")
        if isinstance(rows, str | Mapping):
            return self._predict([rows])[0]
        return self._predict(list(rows))

    def _predict(self, rows: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        from llmkit.inference.rows_io import predictions

        with _guest(offline=self.offline):
            resolve_columns, predict_rows = self._predictor
            read = (
                (f"row {number}", {"text": row} if isinstance(row, str) else dict(row))
                for number, row in enumerate(rows, 1)
            )
            return [answer for _, answer in predictions(read, None, resolve_columns, predict_rows)]

    @cached_property
    def _predictor(self) -> Any:
        from llmkit.inference.predict import predictor

        return predictor(self.name, self.task, self.quantize, self.precision)

    def generate(self, prompt: str, *, seed: int | None = None, **settings: Any) -> Any:
        """Continue a prompt, as `llmkit generate` does, and return the prompt with its continuation.

        Args:
            prompt: The text to continue.
            seed: What samples are drawn from: the same seed gives the same text.
            **settings: Fields of transformers' GenerationConfig, such as `max_new_tokens`.

        Returns:
            A text; a list of them where `num_return_sequences` asks for several.

        Raises:
            UserError: The model does not generate, or a setting is wrong.
        """
        from llmkit.inference import generate

        with _guest(offline=self.offline):
            session = self._seeded(seed, generate.settings(_pairs(settings)))
            tokens = generate.encode(prompt, session.tokenizer)
            config = generate.generation_config(session.model, session.tokenizer, session.options, len(tokens))
            texts = generate.write(session, [tokens], config)
            found = session.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return found if config.num_return_sequences > 1 else found[0]

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system_prompt: str | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> str:
        """Answer a question, or a conversation whose last message is the user's, and return the answer.

        Args:
            messages: A question, or messages with `role` and `content`.
            system_prompt: None takes that of the model's own recipe, "" is none; for a question alone.
            seed: What samples are drawn from.
            **settings: Fields of transformers' GenerationConfig.
        """
        from llmkit.inference import chat, generate

        with _guest(offline=self.offline):
            session = self._seeded(seed, generate.settings(_pairs(settings), one=True))
            chat.check_template(session)
            if isinstance(messages, str):
                prompt = chat.system_prompt_of(session, system_prompt)
                messages = [*([{"role": "system", "content": prompt}] if prompt else []), _user(messages)]
            tokens = chat.render([dict(message) for message in messages], session)
            config = generate.generation_config(session.model, session.tokenizer, session.options, len(tokens))
            written = generate.write(session, [tokens], config)[0][len(tokens) :]
            return str(session.tokenizer.decode(written, skip_special_tokens=True))

    def _seeded(self, seed: int | None, options: dict[str, Any]) -> "GenerationSession":
        import torch

        if seed is not None:
            torch.manual_seed(seed)
        self._session.options = options
        return self._session

    @cached_property
    def _session(self) -> "GenerationSession":
        from llmkit.inference import generate

        if self.precision is not None:
            raise UserError("precision is for predict and evaluate", "load the model without it to generate")
        return generate.load(self.name, "causal-lm", {}, None, self.quantize)

    def evaluate(
        self,
        data: Any = None,
        *,
        recipe: str | Path | None = None,
        task: str | None = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        **overrides: Any,
    ) -> dict[str, Any]:
        """Evaluate on the model's own validation data, or on other `data`, as `llmkit evaluate` does.

        `data` and `overrides` are those of `finetune`; `output` is a file for every row, mistakes first; one that is
        there is overwritten only with `overwrite`. Returns the metrics.
        """
        from llmkit import devices
        from llmkit.runs.finished import recipe_of

        with _guest(offline=self.offline):
            from llmkit.data.output import Output
            from llmkit.training import evaluate

            target = Output.named(None if output is None else Path(output), overwrite)
            own = recipe_of(self.name) if recipe is None and task is None else recipe
            settings = _overrides(own, task, data, overrides)
            found = evaluate.find_recipe(self.name, None if recipe is None else str(recipe), task, settings)
            devices.one_gpu()
            in_int8 = None
            if self.quantize is not None:
                from llmkit.inference import precision

                in_int8 = precision.in_int8(self.name, found.task, self.quantize, self.precision)
            return evaluate.evaluate(self.name, found, target, self.precision, in_int8)


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


def _user(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


def _pairs(settings: Mapping[str, Any]) -> list[str]:
    """Write fields of GenerationConfig as the command line's `KEY=VALUE`."""
    from llmkit.recipe.toml import toml_value

    return [f"{key}={value if isinstance(value, str) else toml_value(value)}" for key, value in settings.items()]


# ---- the caller's process ------------------------------------------------------------------------------------------


@contextmanager
def _guest(argv: Sequence[str] | None = None, offline: bool = False) -> Iterator[None]:
    """Run llmkit in a process that is not its own, and give back what it changes, also when it fails.

    `argv` is the command line that says the same: it stands in the run's record, and child processes are given it.
    """
    import datasets
    import numpy as np
    import torch
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from llmkit import hub

    states = (AcceleratorState, PartialState, GradientState)
    shared = [dict(state._shared_state) for state in states]
    environment, argv_before = dict(os.environ), sys.argv
    collecting, frozen = gc.isenabled(), gc.get_freeze_count()
    threads, rng = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    child_handler = signal.getsignal(signal.SIGCHLD)
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    dataset_bars = datasets.are_progress_bars_disabled()
    was_guest, process.is_guest = process.is_guest, True
    try:
        for state in states:
            state._shared_state.clear()
        if argv is not None:
            sys.argv = ["llmkit", *argv]
        with warnings.catch_warnings(), hub.unchanged():
            if offline:
                hub.go_offline("is not contacted (offline=True)")
            yield
    finally:
        process.is_guest = was_guest
        sys.argv = argv_before
        for state, before in zip(states, shared, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        (gc.enable if collecting else gc.disable)()
        if not frozen:
            gc.unfreeze()
        torch.set_num_threads(threads)
        random.setstate(rng[0])
        np.random.set_state(rng[1])
        torch.set_rng_state(rng[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if child_handler is not None:  # else it is not Python's
            process.handle({signal.SIGCHLD: child_handler})
        transformers.logging.set_verbosity(verbosity)
        (transformers.logging.enable_progress_bar if bars else transformers.logging.disable_progress_bar)()
        (datasets.disable_progress_bars if dataset_bars else datasets.enable_progress_bars)()
