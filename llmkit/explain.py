"""`llmkit explain`: what a key of a recipe means, of which type it is, and its default."""

import sys

from llmkit.errors import UserError
from llmkit.recipe import catalogue, schema, upstream
from llmkit.recipe.toml import toml_value
from llmkit.recipe.types import nearest
from llmkit.terminal import laid_out


def explain(name: str | None) -> list[str]:
    """Describe a key or a table, or list the tables; return the lines. Raises UserError for an unknown name."""
    if name is None:
        return _tables()
    name = name.strip("[]")
    keys = {key.name: key for key in reversed(catalogue.recipe_keys())}
    if name in keys:
        return [line for key in catalogue.recipe_keys() if key.name == name for line in _key(key)][:-1]
    if below := [key for key in catalogue.recipe_keys() if key.name.startswith(f"{name}.")]:
        return _table(name, below)
    for table, class_name in schema.UPSTREAM_TABLES.items():
        field = name.removeprefix(f"{table}.")
        if name.startswith(f"{table}.") and (reason := upstream.refusal(class_name, field, "...")):
            raise UserError(f"`{name}` cannot be set: {reason}", f"list the keys: llmkit explain {table}")
    last = name.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    close = same[0] if same else nearest(name, keys)
    raise UserError(
        f"there is no key `{name}`", f"did you mean `{close}`?" if close else "list the tables: llmkit explain"
    )


def _tables() -> list[str]:
    counts = dict.fromkeys(catalogue.tables(), 0)
    for name in {key.name for key in catalogue.recipe_keys()}:
        if (table := name.partition(".")[0]) in counts:
            counts[table] += 1
    lines = [_entry(f"[{table}]", f"{catalogue.tables()[table]} {count} keys.") for table, count in counts.items()]
    return [*(line for entry in lines for line in entry), "", "the keys of a table: llmkit explain data"]


def _table(name: str, keys: list[catalogue.RecipeKey]) -> list[str]:
    about = catalogue.tables().get(name, "")
    lines = [laid_out(f"[{name}]  {about}", sys.stdout), ""]
    last = ""
    for key in keys:
        if key.name != last:  # one that differs from task to task is listed once
            first = key.meaning.partition(". ")[0].rstrip(".")
            default = catalogue.shown_default(key)
            lines += _entry(key.name.removeprefix(f"{name}."), first + (f"  [{default}]" if default else ""))
        last = key.name
    return [*lines, "", f"defaults are in brackets; all about a key: llmkit explain {keys[0].name}"]


def _entry(name: str, text: str, left: int = 30) -> list[str]:
    if len(name) > left - 2:
        return [name, laid_out(" " * left + text, sys.stdout, left)]
    return [laid_out(name.ljust(left) + text, sys.stdout, left)]


def _key(key: catalogue.RecipeKey) -> list[str]:
    facts = {"type": str(key.type)}
    if key.required:
        facts["default"] = "none: it is required"
    elif default := catalogue.shown_default(key):
        facts["default"] = default
    if key.tasks:
        facts["tasks"] = ", ".join(key.tasks)
    if key.upstream:
        facts["from"] = f"{key.upstream} of {upstream.installed(key.upstream)}"
    facts["meaning"] = key.meaning or "the library has no description of it"
    if found := catalogue.example(key.name):
        line, recipe = found
        facts["example"] = f"{line}   ({recipe})"
    elif key.default is not None and key.default not in ((), {}):
        facts["example"] = f"{key.name}={toml_value(key.default)}"
    lines = [key.name]
    for label, text in facts.items():
        lines.append(laid_out(f"  {label:<9}{text}", sys.stdout, left=11))
    return [*lines, ""]
