"""Find recipes by path or name and read them strictly; report every mistake at once, before torch is imported."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError
from llmkit.recipe import check, schema, upstream
from llmkit.recipe.draft import COMMAND_LINE, OF_THE_PATH, Draft, apply_overrides, read_value
from llmkit.recipe.paths import SUFFIXES, at_home, find_data, refuse_address, resolve_paths
from llmkit.recipe.schema import Recipe
from llmkit.recipe.shortcuts import NAMED
from llmkit.recipe.table import ReadOnly
from llmkit.recipe.toml import dotted, is_key, key_lines, leaves, parse
from llmkit.recipe.types import nearest

PART_KEYS = ("recipe", *schema.Part.model_fields)  # the keys of [tasks.NAME]
_PACKAGE = Path(__file__).parents[1]


def bundled() -> dict[str, Path]:
    """List the recipes that come with llmkit, by name (`tiny/gpt2`): those of the wheel, or of the checkout."""
    inside = _PACKAGE / "recipes"
    folder = inside if disk.is_dir(inside) else _PACKAGE.parent / "recipes"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.toml"))}


def find(path_or_name: str) -> Path:
    """Return the file of a recipe: a path that exists, else the name of a bundled one; raise UserError for neither."""
    path = at_home(path_or_name)
    if disk.is_file(path):
        return path
    recipes_by_name = bundled()
    name = path_or_name.removeprefix("recipes/").removesuffix(".toml")
    if name in recipes_by_name:
        return recipes_by_name[name]
    refuse_address(path_or_name)
    close_name = next(
        (recipe_name for recipe_name in recipes_by_name if recipe_name.endswith(f"/{name}")), ""
    ) or nearest(name, recipes_by_name)
    hint = f"did you mean `{close_name}`? " if close_name else ""
    if name.lower().endswith(SUFFIXES):
        near = nearest(path.name, _names_in(path.parent))
        hint = f"did you mean `{path.with_name(near)}`? " if near else ""
        raise UserError(
            f"there is no file `{path_or_name}`", f"{hint}give the data after the recipe, as data.path=FILE"
        )
    if disk.exists(path) and not disk.is_dir(path):
        raise UserError(
            f"`{path_or_name}` is a pipe or a device, and a recipe is read more than once", "save it to a file first"
        )
    problem = (
        "is a folder, not a recipe" if disk.is_dir(path) else "is neither a file nor a recipe that comes with llmkit"
    )
    raise UserError(f"`{path_or_name}` {problem}", f"{hint}`llmkit recipes list` names those that come with llmkit")


def _names_in(folder: Path) -> list[str]:
    try:
        return [file.name for file in folder.iterdir()]
    except OSError:
        return []


def copy(name: str, to: Path | None = None) -> Path:
    """Copy a recipe, and the data file beside it, to `to` or the working directory; never overwrite another file."""
    source = find(name)
    target = Path(source.name) if to is None else to / source.name if disk.is_dir(to) else to
    data = tomllib.loads(source.read_text(encoding="utf-8")).get("data", {}).get("path", "")
    beside = source.parent / data if data and disk.is_file(source.parent / data) else None
    pairs = [(source, target), *([(beside, target.parent / beside.name)] if beside else [])]
    for source_file, copied in pairs:
        if disk.has_content(copied) and (source_file is source or copied.read_bytes() != source_file.read_bytes()):
            raise UserError(f"`{copied}` already exists", "name another: llmkit recipes copy NAME FILE")
    try:
        for source_file, copied in pairs:
            copied.write_bytes(source_file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write `{copied}`: {error.strerror}") from None
    return target


def generation_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` arguments as fields of GenerationConfig; a UserError names every mistake."""
    fields = upstream.fields("GenerationConfig")
    options: dict[str, Any] = {}
    mistakes: list[str] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        field = fields.get(key)
        if not equals:
            mistakes.append(f"{argument}: not a setting, write `{nearest(argument, fields) or 'KEY'}=VALUE`")
        elif reason := upstream.refusal("GenerationConfig", key, text):
            mistakes.append(f"{key}: {reason}")
        elif field is None:
            close_name = nearest(key, fields)
            mistakes.append(
                f"{key}: not a field of GenerationConfig in {upstream.installed('GenerationConfig')}"
                + (f", did you mean `{close_name}`?" if close_name else "")
            )
        else:
            try:
                value = read_value(text, field.type, key)
                mistakes += [f"{key}: {message}" for _, message in field.type.mistakes(value, (key,))]
                options[key] = value
            except ValueError as mistake:
                mistakes.append(f"{key}: {mistake}")
    if mistakes:
        count = len(mistakes)
        raise UserError(
            f"{count} problem{'s' if count > 1 else ''} in the generation settings",
            "write KEY=VALUE, with the keys of transformers' GenerationConfig",
            tuple(mistakes),
        )
    return options


def recipe_of_task(name: str) -> tuple[str, dict[str, Any]]:
    """Return the recipe that `--task NAME` stands for, and the settings that turn it into that task."""
    if name in NAMED:
        return NAMED[name]
    recipes_by_name = bundled()
    for recipe_name in (name, f"tiny/{name}"):
        if recipe_name in recipes_by_name:
            return recipe_name, {}
    close_name = nearest(name, [*NAMED, *recipes_by_name])
    if not close_name and (disk.exists(Path(name)) or name.endswith(".toml")):
        raise UserError(
            f"--task takes the name of a task, and `{name}` is a file",
            f"to use it as a recipe, leave out --task: llmkit finetune {name}",
        )
    names = ", ".join(NAMED)
    raise UserError(
        f"there is no task `{name}`", f"did you mean `{close_name}`?" if close_name else f"choose from {names}"
    )


def load(
    path_or_name: str | None,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    task: str | None = None,
    verb: str | None = None,
) -> Recipe:
    """Read a recipe and apply the command line's overrides.

    Args:
        path_or_name: The recipe; None where `task` names one.
        overrides: `table.key=VALUE`, applied in this order.
        output_dir: The command line's --output-dir.
        task: The command line's --task.
        verb: "pretrain" or "finetune", to refuse a recipe of the other one.

    Raises:
        UserError: It names every mistake.
    """
    settings: dict[str, Any] = {}
    if task is not None:
        path_or_name, settings = recipe_of_task(task)
    assert path_or_name is not None
    path = find(path_or_name)
    draft = _draft(path, settings, overrides, output_dir)
    named = _named(path_or_name, path, task)
    command = "pretrain" if draft.task in schema.PRETRAINING else "finetune"
    if verb not in (None, command) and draft.task in schema.TASKS:
        words = ["--task", task] if task in NAMED else [path_or_name]
        raise UserError(f"{named} is for {draft.task}", shlex.join(["llmkit", command, *words, *overrides]))
    tables = _check(draft)
    if draft.problems:
        restart = partial(_draft, path, settings)
        raise _refusal(draft, restart, named, path in bundled().values())
    if verb is not None:  # of a training
        draft.notes += check.without_effect(draft)
    return _build(draft, tables, task)


def _draft(path: Path, settings: dict[str, Any], overrides: Sequence[str] = (), output_dir: str | None = None) -> Draft:
    """Read a recipe's file, and apply what `--task` sets and then the command line."""
    draft = _read_file(path)
    if path.name == "recipe.toml" and disk.is_file(path.parent / "run.json"):
        record = _record(path.parent / "run.json")
        _as_begun(draft, record)
        draft.fits_machine = False
        find_data(draft, _paths_of_run(record))
    for key, value in settings.items():
        draft.adopt(tuple(key.split(".")), value)
    apply_overrides(draft, overrides)
    finetunes = draft.task in schema.ROW_TASKS and draft.get("model", "name") is not None
    if ("data", "path") in draft.given and finetunes and path in bundled().values():
        draft.fits_rows = True
        for table, keys in schema.OF_THE_ROWS.items():
            for key in keys:
                if (table, key) not in draft.given:
                    draft.unset((table, key))
    if path in bundled().values():
        _fit_stride(draft)
        _give_way(draft)
    if output_dir is not None:
        draft.set(("output_dir",), output_dir, len(overrides))
    return draft


def _record(file: Path) -> dict[str, Any]:
    """Read the record of a run; nothing where it cannot be read."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _paths_of_run(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the typed paths of a run's recipe resolve to, by key; nothing where the record has none."""
    paths = record.get("paths")
    found = paths.items() if isinstance(paths, dict) else ()
    return {key: path for key, path in found if isinstance(path, str) and is_key(key)}


def _fit_stride(draft: Draft) -> None:
    """Let the stride of a bundled recipe follow the `data.max_length` of the command line, in proportion."""
    length, stride, key = draft.get("data", "max_length"), draft.get("data", "stride"), ("data", "stride")
    if ("data", "max_length") not in draft.given or key not in draft.lines:
        return
    if isinstance(length, int) and isinstance(stride, int) and stride > length // 3 > 0:
        draft.values["data"]["stride"] = length // 3
        draft.notes.append(
            f"data.stride is now {length // 3}: the recipe's {stride} is too large for data.max_length = {length}"
        )


def _give_way(draft: Draft) -> None:
    """Let the command line's batch decide the size of a step, and not that of a bundled recipe."""
    key, batch = ("data", "global_batch_size"), ("per_device_train_batch_size", "gradient_accumulation_steps")
    given = [f"trainer.{name}" for name in batch if ("trainer", name) in draft.given]
    if given and key in draft.lines:
        kept = f"{dotted(key)}={draft.get(*key)}"
        draft.unset(key)
        draft.notes.append(
            f"examples per step depend on {' and '.join(given)} and the number of processes; {kept} keeps the recipe's"
        )


def _check(draft: Draft) -> dict[str, Any]:
    """Collect every mistake of a draft; return its tables, which are whole if there is none."""
    check.check_keys(draft)
    resolve_paths(draft)
    if draft.get("model", "config", "model_type") and not check.given(draft, "model", "name"):
        draft.values["model"].setdefault("init", "scratch")
    tables = check.build_tables(draft)
    draft.apart = len(draft.problems)
    check.check_together(draft)
    if draft.task == "multi-task":
        tables["tasks"] = _read_parts(draft)
    return tables


def _named(path_or_name: str, path: Path, task: str | None) -> str:
    """Name a recipe as the user did: `--task NAME`, a bundled recipe's name, or the file."""
    if task is not None:
        return f"`--task {task}`"
    return f"`{path_or_name}`" if path in bundled().values() else f"`{_displayed(path)}`"


def _refusal(draft: Draft, restart: Callable[[Sequence[str]], Draft], named: str, comes_with_llmkit: bool) -> UserError:
    """Report every mistake where the user made it.

    Args:
        draft: The recipe with the command line's overrides.
        restart: Reads the recipe again with other overrides: what is right without them is the command line's doing.
        named: How the user named the recipe.
        comes_with_llmkit: Whether it is a bundled recipe, which the user did not write.
    """
    alone = draft
    if draft.overrides or draft.given:
        alone = restart(())
        _check(alone)
    without = {(order, message) for order, _, message in alone.problems}

    def contradicts(number: int) -> bool:
        """Tell whether a mistake on the command line is that its override does not go with the recipe."""
        (_, override), _, message = draft.problems[number]
        key = message.partition(":")[0]
        given = key in map(dotted, draft.given) and not key.startswith("tasks.")  # a task's table is read by itself
        if not given or number < draft.apart or override >= len(draft.overrides):
            return False
        one = restart([draft.overrides[override]])
        _check(one)
        return message in {message for _, _, message in one.problems}

    places = set()
    for number, (order, where, message) in enumerate(draft.problems):
        if (order, message) in without and not comes_with_llmkit:
            places.add("file")
        elif (order, message) in without or (order[0] == 1 and not contradicts(number)):
            draft.problems[number] = ((1, order[1]), COMMAND_LINE, message)  # a bundled recipe leaves gaps to the user
            places.add("command line")
        else:
            with_what = named if comes_with_llmkit or not where.startswith("line") else where
            draft.problems[number] = (order, f"{COMMAND_LINE} with {with_what}", message)
            places.add("both")
    count = len(draft.problems)
    problems = f"{count} problem{'s' if count > 1 else ''}"
    mistakes = draft.mistakes(_displayed(draft.source))
    if places == {"command line"}:
        return UserError(f"{problems} on the command line", "", draft.report(places=False), mistakes)
    where = f"in {named}" if "file" in places else ""
    where += (" and " if where else "") + "on the command line" if places != {"file"} else ""
    return UserError(f"{problems} {where}", "", draft.report(), mistakes)


def _as_begun(draft: Draft, record: Mapping[str, Any]) -> None:
    """Fill in what the code did that wrote a run's recipe, for keys that the recipe lacks."""
    seed = ("data", "seed")
    if draft.task in schema.PRETRAINING and "started" in record and "order_started" not in record and draft.get(*seed):
        draft.unset(seed)
        draft.notes.append("data.seed is left out: llmkit ignored it for texts when this run was begun")
    if draft.task in schema.GENERATING:
        draft.values.setdefault("samples", {"prompts": []})
    parts = draft.get("tasks")
    tables = [draft.get("data"), *(part.get("data") for part in (parts.values() if isinstance(parts, dict) else ()))]
    for table in tables if draft.task not in schema.PRETRAINING else ():
        if isinstance(table, dict):
            for key, then in schema.before(draft.task).items():
                table.setdefault(key, then)


def _read_parts(draft: Draft) -> dict[str, schema.Part]:
    """Read each [tasks.NAME] like a recipe of its own, over the tables of the recipe that it names."""
    parts = {}
    entries = draft.get("tasks")
    if not isinstance(entries, dict) or len(entries) < 2:
        draft.problem(("tasks",), "needs at least two tasks, each in a table [tasks.NAME]")
        return {}
    for name, entry in entries.items():
        key = ("tasks", name)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name.startswith("checkpoint"):
            draft.problem(key, "its model is saved under this name: use letters, digits, - and _ only")
        if not isinstance(entry, dict):
            draft.problem(key, f'must be a table, such as {{ recipe = "{entry}" }}')
            continue
        for unknown in [field for field in entry if field not in PART_KEYS]:
            draft.problem((*key, unknown), f"unknown key; a task has {', '.join(PART_KEYS)}")
        part = Draft(draft.source, {}, {})
        if isinstance(entry.get("recipe"), str):
            try:
                base, settings = _find_part(entry["recipe"], draft.source.parent)
                part = _read_file(base)
            except UserError as mistake:
                draft.problem((*key, "recipe"), "; ".join(filter(None, (mistake.message, mistake.hint))))
                continue
            for setting, value in settings.items():
                part.adopt(tuple(setting.split(".")), value)
            resolve_paths(part)
            part = Draft(draft.source, part.values, {})
        if isinstance(entry.get("data"), dict) and "path" in entry["data"]:
            part.values["data"] = {k: v for k, v in part.values.get("data", {}).items() if k not in OF_THE_PATH}
        for table in ("data", "evaluation"):
            if isinstance(entry.get(table, {}), dict):
                part.values[table] = {**part.values.get(table, {}), **entry.get(table, {})}
            else:
                draft.problem((*key, table), "must be a table")
        part.values = {table: part.values[table] for table in ("task", "data", "evaluation") if table in part.values}
        part.values |= {"task": entry.get("task", part.task), "model": {"name": "-"}}
        for theirs, ours in ((draft.lines, part.lines), (draft.given, part.given)):
            ours.update({path[2:]: position for path, position in theirs.items() if path[:2] == key and len(path) > 2})
        part.lines[("model", "name")] = 0
        if part.task not in schema.HEADED:
            draft.problem((*key, "task"), f"must be one of {', '.join(schema.HEADED)}: the tasks share an encoder")
            continue
        check.check_keys(part)
        resolve_paths(part)
        tables = check.build_tables(part)
        check.check_together(part)
        draft.problems += [(order, where, f"{dotted(key)}.{message}") for order, where, message in part.problems]
        weight = entry.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0):
            draft.problem((*key, "weight"), f"must be a number above 0, not {weight!r}")
        elif not part.problems:
            weight = None if weight is None else float(weight)
            parts[name] = schema.Part(
                task=part.task, weight=weight, data=tables["data"], evaluation=tables["evaluation"]
            )
    unweighted = [name for name, part in parts.items() if part.weight is None]
    if 0 < len(unweighted) < len(parts):
        draft.problem(("tasks", unweighted[0], "weight"), "required: another task has a weight")
    return parts


def _find_part(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the recipe that a part names: a path relative to `folder`, or a name as `--task` takes it."""
    if disk.is_file(folder / name):
        return folder / name, {}
    path, settings = recipe_of_task(name)
    return find(path), settings


def _displayed(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _read_file(path: Path) -> Draft:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read `{_displayed(path)}`: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise UserError(
            f"`{_displayed(path)}` line {line}: not UTF-8 ({error.reason})", "save the file as UTF-8"
        ) from None
    try:
        values = parse(text)
    except tomllib.TOMLDecodeError as error:
        message, _, location = str(error).partition(" (at ")
        position = location.removesuffix(")").replace("end of document", f"line {text.count(chr(10)) + 1}, the end")
        hint = "" if path.suffix == ".toml" else "is it data? Give it after the recipe, as data.path=FILE"
        where = f"`{_displayed(path)}` {position}".rstrip()
        raise UserError(f"{where}: not TOML: {message}", hint) from None
    return Draft(path.resolve(), values, key_lines(text))


def _build(draft: Draft, tables: dict[str, Any], task: str | None) -> Recipe:
    stem = task if task is not None else _stem(draft)
    recipe = Recipe(
        task=draft.task,
        output_dir=draft.get("output_dir"),
        output_mirror=draft.get("output_mirror"),
        trainer=ReadOnly(schema.TRAINER_DEFAULTS | draft.values.get("trainer", {})),
        lora=ReadOnly(draft.values["lora"]) if "lora" in draft.values else None,
        generation=ReadOnly(_generation_defaults(draft)),
        source=draft.source,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run",
        notes=tuple(draft.notes),
        fits_rows=draft.fits_rows,
        fits_machine=draft.fits_machine and not draft.values.get("trainer", {}).keys() & set(schema.PRECISION),
        typed=ReadOnly(draft.typed),
        **tables,
    )
    origins = {dotted(key): draft.origin(key) for key in leaves(recipe.model_dump())}
    return recipe.model_copy(update={"origins": ReadOnly(origins)})


def _stem(draft: Draft) -> str:
    return draft.source.parent.name if draft.source.stem == "recipe" else draft.source.stem  # runs/NAME/recipe.toml


def _generation_defaults(draft: Draft) -> dict[str, Any]:
    """Fill in llmkit's sampling defaults, unless the recipe asks for beam search or no sampling.

    An encoder-decoder keeps its model's own settings.
    """
    generation: dict[str, Any] = draft.values.get("generation", {})
    if draft.task not in schema.GENERATING or draft.task in ("denoising", "seq2seq"):
        return generation
    merged = schema.GENERATION_DEFAULTS | generation
    if not merged["do_sample"] or "num_beams" in generation:
        unused = {"do_sample", "temperature", "top_p"} - generation.keys()
        merged = {key: value for key, value in merged.items() if key not in unused}
    if "max_length" in generation and "max_new_tokens" not in generation:
        del merged["max_new_tokens"]
    return merged
