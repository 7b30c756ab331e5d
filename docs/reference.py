"""Write the README's reference from the code, between its markers; with --check, fail where the two differ.

python docs/reference.py [--check]
"""

import sys
from pathlib import Path
from typing import Any

import typer
from pydantic import Field

from llmkit.cli import app
from llmkit.recipe import bundled, data_tables, schema
from llmkit.recipe.cleaning import Clean
from llmkit.recipe.table import Table
from llmkit.recipe.toml import toml_value

README = Path(__file__).parents[1] / "README.md"
TABLES = {
    "model": schema.Model,
    "tokenizer": schema.Tokenizer,
    "data": data_tables.Data,
    "evaluation": schema.Evaluation,
    "early_stopping": schema.EarlyStopping,
    "report": schema.Report,
}
PRETRAINING = {task: schema.DATA_OF_TASK[task] for task in schema.PRETRAINING}
# The keys of [data] that only some tasks have, under the words that the table shows.
OWN_DATA = {
    "pretraining": data_tables.TextData,
    **PRETRAINING,
    "fine-tuning": data_tables.RowData,
    **{task: data for task, data in schema.DATA_OF_TASK.items() if task not in PRETRAINING},
}
HEAD = ["| key | default | meaning |", "| --- | --- | --- |"]


def commands() -> str:
    """Each command with its arguments and options, as `--help` has them."""
    lines = []
    for name, command in walk(typer.main.get_command(app)):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(["llmkit", name, *map(usage_of, arguments)])
        lines += [f"**`{usage}`**: {command.help}", ""]
        lines += [f"- `{p.opts[0]}`: {' '.join(p.help.split())}" for p in options]
        lines += [""] if options else []
    return "\n".join(lines).strip()


def usage_of(argument: Any) -> str:
    named = argument.metavar if argument.required else f"[{argument.metavar}]"
    return named + ("..." if argument.nargs == -1 else "")


def walk(group: Any, prefix: str = "") -> Any:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def recipe() -> str:
    """Every key of llmkit's own tables, those of [data.clean] apart."""
    lines = [*HEAD]
    for key in ("task", "output_dir"):
        field = schema.Recipe.model_fields[key]
        lines.append(f"| `{key}` | {shown(field)} | {cell(field.description)} |")
    for table, model in TABLES.items():
        lines += [f"| `{table}.{key}` | {shown(f)} | {cell(f.description)} |" for key, f in with_nested(model).items()]
        if table == "data":
            for owner, own in OWN_DATA.items():
                above = [each for each in (model, *OWN_DATA.values()) if issubclass(own, each) and each is not own]
                shared = {key for each in above for key in with_nested(each)}
                lines += [
                    f"| `data.{key}` | {shown(f)} | {owner}: {cell(f.description)} |"
                    for key, f in with_nested(own).items()
                    if key not in shared
                ]
    lines += [f"| `tasks.NAME.{key}` | {shown(f)} | multi-task: {cell(f.description)} |" for key, f in part().items()]
    return "\n".join(lines)


def clean() -> str:
    """Every key of [data.clean]."""
    rows = [f"| `data.clean.{key}` | {shown(f)} | {cell(f.description)} |" for key, f in Clean.model_fields.items()]
    return "\n".join([*HEAD, *rows])


def with_nested(table: type[Table]) -> dict[str, Any]:
    """The fields of a table, and behind those that are tables the fields in them; of cleaning, which has many, none."""
    found: dict[str, Any] = {}
    for key, field in table.model_fields.items():
        found[key] = field
        inside = {key: schema.nested(table).get(key), f"{key}.NAME": schema.named(table).get(key)}
        for path, below in inside.items():
            if below not in (None, Clean):
                found |= {f"{path}.{each}": f for each, f in below.model_fields.items()}
    return found


def part() -> dict[str, Any]:
    """The keys of one of several tasks."""
    recipe = Field(
        default=None, description="The name of a task or a recipe whose `task`, `data` and `evaluation` count."
    )
    return {"recipe": recipe, **schema.Part.model_fields}


def shown(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value in (None, "", (), {}) or isinstance(value, Table):
        return ""
    return f"`{value if isinstance(value, str) else toml_value(value)}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def recipes() -> str:
    """The bundled recipes, by their first lines."""
    rows = [
        f"| `{name}` | {path.read_text().partition(chr(10))[0].removeprefix('# ')} |"
        for name, path in bundled().items()
    ]
    return "\n".join(["| recipe | what it trains |", "| --- | --- |", *rows])


def main() -> None:
    text = README.read_text()
    made = text
    for name, write in (("commands", commands), ("recipe", recipe), ("clean", clean), ("recipes", recipes)):
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
        before, rest = made.split(begin)
        _, after = rest.split(end)
        made = f"{before}{begin}\n{write()}\n\n{end}{after}"
    if "--check" in sys.argv[1:]:
        if made != text:
            sys.exit("README.md differs from the code: run `python docs/reference.py`")
    else:
        README.write_text(made)


if __name__ == "__main__":
    main()
