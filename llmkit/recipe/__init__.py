"""Recipes: found by path or name, read strictly, frozen. Every mistake is reported, before torch is imported."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.recipe import check, schema, upstream
from llmkit.recipe.draft import OF_THE_PATH, Draft, apply_overrides, read_value
from llmkit.recipe.paths import at_home, resolve_paths
from llmkit.recipe.schema import Recipe
from llmkit.recipe.shortcuts import NAMED
from llmkit.recipe.table import ReadOnly
from llmkit.recipe.toml import dotted, key_lines, leaves
from llmkit.recipe.types import nearest

PART = ("recipe", *schema.Part.model_fields)  # the keys of [tasks.NAME]
_PACKAGE = Path(__file__).parents[1]


def bundled() -> dict[str, Path]:
    """The recipes that come with llmkit, by name (`tiny/gpt2`): in the wheel's package, or the checkout's folder."""
    inside = _PACKAGE / "recipes"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "recipes"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.toml"))}


def find(path_or_name: str) -> Path:
    """The file of a recipe: a path that exists, else the name of one that comes with llmkit."""
    path = at_home(path_or_name)
    if path.is_file():
        return path
    known = bundled()
    name = path_or_name.removeprefix("recipes/").removesuffix(".toml")
    if name in known:
        return known[name]
    near = next((each for each in known if each.endswith(f"/{name}")), "") or nearest(name, known)
    hint = f"did you mean `{near}`? " if near else ""
    what = "is a folder, not a recipe" if path.is_dir() else "is neither a file nor a recipe that comes with llmkit"
    raise UserError(f"`{path_or_name}` {what}", f"{hint}`llmkit recipes list` names those that come with llmkit")


def copy(name: str, to: Path | None = None) -> Path:
    """Copy a recipe, and the file beside it that it learns from, to `to` or here; never over another file."""
    source = find(name)
    target = Path(source.name) if to is None else to / source.name if to.is_dir() else to
    data = tomllib.loads(source.read_text(encoding="utf-8")).get("data", {}).get("path", "")
    beside = source.parent / data if data and (source.parent / data).is_file() else None
    pairs = [(source, target), *([(beside, target.parent / beside.name)] if beside else [])]
    for original, made in pairs:
        if made.exists() and (original is source or made.read_bytes() != original.read_bytes()):
            raise UserError(f"`{made}` exists already", "name another: llmkit recipes copy NAME FILE")
    try:
        for original, made in pairs:
            made.write_bytes(original.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write `{made}`: {error.strerror}") from None
    return target


def generation_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as fields of GenerationConfig; a UserError holds every mistake."""
    known = upstream.fields("GenerationConfig")
    options: dict[str, Any] = {}
    mistakes: list[str] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        field = known.get(key)
        if not equals:
            mistakes.append(f"{pair}: not a setting, write `{nearest(pair, known) or 'KEY'}=VALUE`")
        elif why := upstream.refusal("GenerationConfig", key, text):
            mistakes.append(f"{key}: {why}")
        elif field is None:
            near = nearest(key, known)
            mistakes.append(
                f"{key}: not a field of GenerationConfig in {upstream.installed('GenerationConfig')}"
                + (f", did you mean `{near}`?" if near else "")
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
            "they are KEY=VALUE, with the keys of transformers' GenerationConfig",
            tuple(mistakes),
        )
    return options


def of_task(name: str) -> tuple[str, dict[str, Any]]:
    """The recipe that `--task NAME` stands for, and the settings that make it that task."""
    if name in NAMED:
        return NAMED[name]
    known = bundled()
    for each in (name, f"tiny/{name}"):
        if each in known:
            return each, {}
    near = nearest(name, [*NAMED, *known])
    if not near and (Path(name).exists() or name.endswith(".toml")):
        raise UserError(
            f"--task takes a name, and `{name}` is a file", f"a recipe goes without: llmkit finetune {name}"
        )
    names = ", ".join(NAMED)
    raise UserError(f"there is no task `{name}`", f"did you mean `{near}`?" if near else f"there are {names}")


def load(
    path_or_name: str | None,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    task: str | None = None,
    verb: str | None = None,
) -> Recipe:
    """Read a recipe, or the one of a `--task`, and lay the command line over it; a UserError holds every mistake.

    `verb` is the command that is to use it, pretrain or finetune, where only one of them can.
    """
    settings: dict[str, Any] = {}
    if task is not None:
        path_or_name, settings = of_task(task)
    assert path_or_name is not None
    path = find(path_or_name)
    draft = _read(path)
    for key, value in settings.items():
        draft.adopt(tuple(key.split(".")), value)
    apply_overrides(draft, overrides)
    if output_dir is not None:
        draft.set(("output_dir",), output_dir, len(overrides))
    other = "pretrain" if draft.task in schema.PRETRAINING else "finetune"
    if verb not in (None, other) and draft.task in schema.TASKS:
        raise UserError(f"`{_shown(path)}` is for {draft.task}", f"llmkit {other} {path_or_name}")
    check.check_keys(draft)
    resolve_paths(draft)
    if draft.get("model", "config", "model_type") and not check.given(draft, "model", "name"):
        draft.values["model"].setdefault("init", "scratch")
    tables = check.build_tables(draft)
    check.check_together(draft)
    if draft.task == "multi-task":
        tables["tasks"] = _parts(draft)
    if draft.problems:
        count = len(draft.problems)
        shown = _shown(path)
        raise UserError(f"{count} problem{'s' if count > 1 else ''} in `{shown}`", details=draft.report())
    return _build(draft, tables, task)


def _parts(draft: Draft) -> dict[str, schema.Part]:
    """Each [tasks.NAME], read as a recipe of its own is, over the tables of the recipe that it names."""
    parts = {}
    entries = draft.get("tasks")
    if not isinstance(entries, dict) or len(entries) < 2:
        draft.problem(("tasks",), "several tasks are expected: [tasks.NAME], two at least")
        return {}
    for name, entry in entries.items():
        key = ("tasks", name)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name.startswith("checkpoint"):
            draft.problem(key, "its model is saved under this name: letters, digits, - and _ only")
        if not isinstance(entry, dict):
            draft.problem(key, f'must be a table, such as {{ recipe = "{entry}" }}')
            continue
        for unknown in [each for each in entry if each not in PART]:
            draft.problem((*key, unknown), f"unknown key; a task has {', '.join(PART)}")
        part = Draft(draft.source, {}, {})
        if isinstance(entry.get("recipe"), str):
            try:
                base, settings = _named(entry["recipe"], draft.source.parent)
                part = _read(base)
            except UserError as mistake:
                draft.problem((*key, "recipe"), "; ".join(filter(None, (mistake.message, mistake.hint))))
                continue
            for each, value in settings.items():
                part.adopt(tuple(each.split(".")), value)
            resolve_paths(part)
            part = Draft(draft.source, part.values, {})
        if isinstance(entry.get("data"), dict) and "path" in entry["data"]:
            part.values["data"] = {k: v for k, v in part.values.get("data", {}).items() if k not in OF_THE_PATH}
        for table in ("data", "evaluation"):
            if isinstance(entry.get(table, {}), dict):
                part.values[table] = {**part.values.get(table, {}), **entry.get(table, {})}
            else:
                draft.problem((*key, table), "must be a table")
        part.values = {each: part.values[each] for each in ("task", "data", "evaluation") if each in part.values}
        part.values |= {"task": entry.get("task", part.task), "model": {"name": "-"}}
        for theirs, ours in ((draft.lines, part.lines), (draft.given, part.given)):
            ours.update({each[2:]: place for each, place in theirs.items() if each[:2] == key and len(each) > 2})
        part.lines[("model", "name")] = 0
        if part.task not in schema.HEADED:
            draft.problem((*key, "task"), f"one of {', '.join(schema.HEADED)} is needed: they share an encoder")
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
    without = [name for name, part in parts.items() if part.weight is None]
    if 0 < len(without) < len(parts):
        draft.problem(("tasks", without[0], "weight"), "required: another task has a weight")
    return parts


def _named(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The recipe that a part names: a path relative to the recipe, or what `--task` takes."""
    if (folder / name).is_file():
        return folder / name, {}
    path, settings = of_task(name)
    return find(path), settings


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _read(path: Path) -> Draft:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read `{_shown(path)}`: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise UserError(f"`{_shown(path)}` line {line}: not UTF-8 ({error.reason})", "save the file as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said, _, place = str(error).rpartition(" (at ")
        where = place.removesuffix(")").replace("end of document", f"line {text.count(chr(10)) + 1}, the end")
        raise UserError(f"`{_shown(path)}` {where}: not TOML: {said}") from None
    return Draft(path.resolve(), values, key_lines(text))


def _build(draft: Draft, tables: dict[str, Any], task: str | None) -> Recipe:
    stem = task if task is not None else _stem(draft)
    recipe = Recipe(
        task=draft.task,
        output_dir=draft.get("output_dir"),
        trainer=ReadOnly(schema.TRAINER_DEFAULTS | draft.values.get("trainer", {})),
        lora=ReadOnly(draft.values["lora"]) if "lora" in draft.values else None,
        generation=ReadOnly(_generation(draft)),
        source=draft.source,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run",
        notes=tuple(draft.notes),
        **tables,
    )
    origins = {dotted(key): draft.origin(key) for key in leaves(recipe.model_dump())}
    return recipe.model_copy(update={"origins": ReadOnly(origins)})


def _stem(draft: Draft) -> str:
    return draft.source.parent.name if draft.source.stem == "recipe" else draft.source.stem  # runs/NAME/recipe.toml


def _generation(draft: Draft) -> dict[str, Any]:
    """What is not set is sampled as llmkit does it, unless the recipe asks for something else than sampling.

    An encoder-decoder writes as its model says, else what is most likely.
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
