"""List every key that a recipe may have: type, default, meaning, and the tasks that have it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmkit.recipe import bundled, schema, upstream
from llmkit.recipe.table import Table, field_types, named_tables, nested_tables
from llmkit.recipe.toml import toml_value
from llmkit.recipe.types import Type, read_annotation

STRING = Type(frozenset({"str"}))


@dataclass(frozen=True)
class RecipeKey:
    """A key of a recipe, such as `data.max_length`; `tasks` are those that have it, none for a key of every task.

    `required` keys have no default. `upstream` names the class whose field it is, "" for llmkit's own.
    """

    name: str
    type: Type
    default: Any
    required: bool
    meaning: str
    tasks: tuple[str, ...] = ()
    upstream: str = ""


@cache
def tables() -> dict[str, str]:
    """Return the tables of a recipe, and what each is for."""
    names = {*schema.UPSTREAM_TABLES, "tasks", *(name for task in schema.TASKS for name in schema.own_tables(task))}
    return {name: field.description or "" for name, field in schema.Recipe.model_fields.items() if name in names}


@cache
def recipe_keys() -> tuple[RecipeKey, ...]:
    """Return all keys in their order; one that means something else for other tasks comes several times."""
    listed = [*_top_level(), *_own(), *_parts()]
    for table, class_name in schema.UPSTREAM_TABLES.items():
        listed += _upstream(table, class_name)
    return tuple(listed)


def example(name: str) -> tuple[str, str] | None:
    """Return a line of a bundled recipe that sets the key, and the name of that recipe; None where none does."""
    table, _, key = name.rpartition(".")
    for recipe, path in bundled().items():
        inside = ""
        for line in path.read_text().splitlines():
            if heading := re.match(r"\[([^\[\]]+)\]", line):
                inside = heading[1]
            elif inside == table and re.match(rf"{re.escape(key)}\s*=", line):
                return line.strip(), recipe
    return None


def _top_level() -> Iterator[RecipeKey]:
    for name in ("task", "output_dir", "output_mirror"):
        field = schema.Recipe.model_fields[name]
        type_ = Type(frozenset(), tuple(schema.TASKS)) if name == "task" else STRING
        yield RecipeKey(name, type_, None, field.is_required(), field.description or "")


def _own() -> Iterator[RecipeKey]:
    variants: dict[tuple[str, str, str], tuple[RecipeKey, list[str]]] = {}
    for task in schema.TASKS:
        for table, model in schema.own_tables(task).items():
            for key in _fields(table, model):
                _, owners = variants.setdefault((key.name, repr(key.default), key.meaning), (key, []))
                owners.append(task)
    places = {name: place for place, name in enumerate(dict.fromkeys(name for name, *_ in variants))}
    for key, owners in sorted(variants.values(), key=lambda each: places[each[0].name]):
        tasks = () if len(owners) == len(schema.TASKS) else tuple(owners)
        yield RecipeKey(key.name, key.type, key.default, key.required, key.meaning, tasks)


def _fields(table: str, model: type[Table]) -> Iterator[RecipeKey]:
    """Yield the fields of one of llmkit's tables, and behind those that are tables the fields in them."""
    for name, field in model.model_fields.items():
        path, default = f"{table}.{name}", None if isinstance(field.default, Table) else field.default
        required = field.is_required()
        type_ = field_types(model)[name]
        yield RecipeKey(path, type_, None if required else default, required, field.description or "")
        if inner := nested_tables(model).get(name):
            yield from _fields(path, inner)
        if inner := named_tables(model).get(name):
            yield from _fields(f"{path}.NAME", inner)


def _parts() -> Iterator[RecipeKey]:
    tasks = ("multi-task",)
    about = "The name of a task or a recipe whose `task`, `data` and `evaluation` are used."
    yield RecipeKey("tasks.NAME.recipe", STRING, None, False, about, tasks)
    for name, field in schema.Part.model_fields.items():
        written = str(schema.Part.__annotations__[name])
        required = field.is_required()
        default = None if required or isinstance(field.default, Table) else field.default
        type_ = read_annotation(written)
        yield RecipeKey(f"tasks.NAME.{name}", type_, default, required, field.description or "", tasks)


def _upstream(table: str, class_name: str) -> Iterator[RecipeKey]:
    said = upstream.documentation(class_name)
    own = {"trainer": schema.TRAINER_DEFAULTS, "generation": schema.GENERATION_DEFAULTS}.get(table, {})
    for name, field in upstream.fields(class_name).items():
        if not upstream.refusal(class_name, name, field.default) and not field.deprecated:
            default = own.get(name, field.default)
            yield RecipeKey(f"{table}.{name}", field.type, default, False, said.get(name, ""), (), class_name)


def shown_default(key: RecipeKey) -> str:
    """Write a key's default as a recipe would; "" where it has none."""
    if key.default is None or key.default in ("", (), {}):
        return ""
    return toml_value(key.default)
