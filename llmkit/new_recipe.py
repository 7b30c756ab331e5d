"""`llmkit recipes new`: look into a data file, and write a recipe for it, with what each key means."""

import os
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.data.describe import local_path
from llmkit.data.rows.cells import JOINED
from llmkit.data.rows.reader import reader_of
from llmkit.data.rows.table import open_files, splits_of_folder
from llmkit.data.suggest import PRETRAINING, Suggestion, suggest
from llmkit.errors import UserError, scrub
from llmkit.recipe import catalogue, load
from llmkit.recipe.addresses import fetched
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import PRETRAINING as TEXT_TASKS
from llmkit.recipe.schema import Recipe
from llmkit.recipe.shortcuts import LARGER, SMALL
from llmkit.recipe.toml import dotted, leaves, toml_value
from llmkit.remote import scheme_of

WIDTH = 100  # columns of a comment
# Keys that are often changed, shown with their defaults.
OFTEN = (
    *("data.validation_fraction", "data.max_length", "data.class_weights", "data.label_smoothing", "lora.r"),
    *("lora.lora_alpha", "trainer.num_train_epochs", "trainer.weight_decay", "trainer.seed", "trainer.report_to"),
)


def new(path: str, task: str | None, overrides: Sequence[str], output: Path | None) -> str:
    """Return the text of a recipe that trains on a file or an address as the task says, or as its columns suggest.

    It says what a command line with `--task` and the file would choose by the rows; those are read, and shown on
    stderr, as by a dry run. `overrides` are set in it. It is for the folder of `output`, or for the working directory.
    Raises UserError for data that a run would refuse, and for an `output` that is there.
    """
    if output is not None:
        _check_output(output)
    local = local_path(path)
    suggestion = Suggestion(task) if task is not None else suggest(local)
    given = {setting.partition("=")[0] for setting in overrides}
    settings = [f"data.path={path}", *overrides]
    settings += [setting for setting in suggestion.settings if setting.partition("=")[0] not in given]
    recipe = fetched(
        load(SMALL, settings) if suggestion.task == PRETRAINING else load(None, settings, task=suggestion.task)
    )
    path = scrub(path)
    from llmkit.dry_run import explain

    recipe = explain(recipe, 1)
    columns, others = _columns(recipe)
    lines = [*_head(path, suggestion, recipe, output), f"task = {toml_value(recipe.task)}"]
    for table, keys in _tables(recipe, columns, _from(path, output)).items():
        lines += _table(recipe, table, keys, others if table == "data" else ())
    return "\n".join(lines) + "\n"


def _check_output(output: Path) -> None:
    if output.suffix != ".toml":
        raise UserError(f"--output: `{output}` does not end in .toml", f"write --output {output.with_suffix('.toml')}")
    if disk.exists(output):
        raise UserError(f"--output: `{output}` already exists", "name another file")
    if not disk.is_dir(output.parent):
        raise UserError(f"--output: there is no folder `{output.parent}`", "create it first, or write elsewhere")


def write(text: str, output: Path) -> None:
    """Write a recipe into a file that must not be there."""
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _check_output(output)
    except OSError as problem:
        raise UserError(f"--output: `{output}` cannot be written: {problem.strerror}", "name another file") from problem


def _head(path: str, suggestion: Suggestion, recipe: Recipe, output: Path | None) -> list[str]:
    """Return the comment at the top."""
    verb = "pretrain" if recipe.task in TEXT_TASKS else "finetune"
    command = shlex.join(["llmkit", verb, str(output or "FILE")])
    of = f" {recipe.model.name}" if recipe.model.name and recipe.model.init == "pretrained" else " a model"
    why = f", because it has {suggestion.because}" if suggestion.because else ""
    lines = [
        *_comment(f"{'Pretrain' if verb == 'pretrain' else 'Fine-tune'}{of} on {path}: {recipe.task}{why}."),
        f"#   {command} --dry-run   (shows the data and the plan)",
        f"#   {command}",
        *_comment("A line that is commented out shows a default; `llmkit explain KEY` says more of a key."),
    ]
    if suggestion.task == PRETRAINING:
        lines += _comment(f"A larger model: `llmkit recipes new {shlex.quote(path)} --task causal-lm` ({LARGER}).")
    return lines


def _columns(recipe: Recipe) -> tuple[dict[str, str], list[str]]:
    """Return the key and the name of each column that is read, and the columns that are not."""
    if not isinstance(recipe.data, RowData):
        return {}, []
    data, _ = splits_of_folder(recipe.data)
    rows = open_files(data, data.split, False)
    columns = reader_of(recipe.task).resolve_columns(data, rows)
    read = {name for names in columns.values() for name in names.split(JOINED)}
    keys = {f"{role}_column": name for role, name in columns.items()}
    plain = {key: name for key, name in keys.items() if key in type(data).model_fields and name in rows.columns}
    return plain, [name for name in rows.columns if name not in read]


def _from(path: str, output: Path | None) -> str:
    """Write a path as it is seen from the folder of `output`."""
    if at_home(path).is_absolute() or output is None or scheme_of(path):
        return path
    return os.path.relpath(path, output.parent)


def _tables(recipe: Recipe, columns: Mapping[str, str], path: str) -> dict[str, dict[str, Any]]:
    """Return what the recipe sets, by table: keys with their values."""
    origins = {**recipe.origins, **{f"data.{key}": "found" for key in columns}}
    tables: dict[str, dict[str, Any]] = {}
    for table, content in recipe.model_dump().items():
        if table in catalogue.tables():
            keys = {dotted(key): value for key, value in leaves(content or {}).items() if value is not None}
            keys = {**keys, **(columns if table == "data" else {})}
            tables[table] = {key: v for key, v in keys.items() if origins.get(f"{table}.{key}", "default") != "default"}
    batch = recipe.trainer.get("per_device_train_batch_size", 8) * recipe.trainer.get("gradient_accumulation_steps", 1)
    if "path" in tables["data"]:
        tables["data"] = {"path": path, **columns, **tables["data"], "global_batch_size": batch}
        tables["data"]["path"] = path
    return tables


def _table(recipe: Recipe, table: str, keys: Mapping[str, Any], others: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table: each key below what it means; of those that are often changed the default."""
    meanings = {key.name: key for key in catalogue.recipe_keys() if not key.tasks or recipe.task in key.tasks}
    often = [name for name in OFTEN if name.startswith(f"{table}.") and name in meanings]
    unset = [name for name in often if name.partition(".")[2] not in keys]
    shown = [(name, default) for name in unset if (default := catalogue.shown_default(meanings[name]))]
    if not keys and not shown:
        return
    yield ""
    yield f"[{table}]" if keys else f"# [{table}]"
    if others:
        yield from _comment(f"Columns that are not read: {', '.join(others)}.")
    said = ""
    for key, value in keys.items():
        name = f"{table}.{key}"
        known = next((above for above in _above(name) if above in meanings), "")
        if known and known != said:
            origin = recipe.origins.get(name, "")
            chosen = f" Chosen for {origin.removeprefix('from ')}." if origin.startswith("from ") else ""
            yield from _comment(_first_sentence(meanings[known].meaning) + chosen)
        said = known
        yield f"{key} = {toml_value(value)}"
    for name, default in shown:
        yield from _comment(_first_sentence(meanings[name].meaning))
        yield f"# {name.partition('.')[2]} = {default}"


def _above(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:length]) for length in range(len(parts), 1, -1))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) ", " ".join(text.split()))[0]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
