"""Write the pages of docs/reference from the code; with --check, fail where they differ from it.

python docs/reference.py [--check]
"""

import sys
from pathlib import Path
from typing import Any

import typer

from llmkit.cli import app
from llmkit.recipe import bundled, catalogue, schema

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/reference.py: change the code, and run it. -->\n"
HEAD = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]


def commands() -> str:
    """Return each command with its arguments and options, as `--help` has them."""
    lines = ["# Commands", "", "`llmkit COMMAND -h` prints the same, with examples.", ""]
    for name, command in walk(typer.main.get_command(app)):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        lines += [f"## {name}", "", command.help, "", "```text"]
        lines += [" ".join(["llmkit", name, *map(usage_of, arguments)]), "```", ""]
        if rows := [f"| `{p.metavar}` | {cell(p.help)} |" for p in arguments if p.help]:
            lines += ["| argument | |", "| --- | --- |", *rows, ""]
        if rows := [
            f"| `{' '.join([p.opts[0], *([p.metavar] if p.metavar else [])])}` | {cell(p.help)} |" for p in options
        ]:
            lines += ["| option | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines).strip() + "\n"


def usage_of(argument: Any) -> str:
    named = argument.metavar if argument.required else f"[{argument.metavar}]"
    return named + ("..." if argument.nargs == -1 else "")


def walk(group: Any, prefix: str = "") -> Any:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def shared_keys() -> str:
    """Return the keys that recipes of every task have."""
    lines = ["# Keys of every recipe", "", "`llmkit explain KEY` prints one of them in full.", ""]
    lines += table([key for key in catalogue.recipe_keys() if "." not in key.name])
    for name, about in catalogue.tables().items():
        if name in schema.UPSTREAM_TABLES:
            lines += ["", f"## {name}", "", f"{about} `llmkit explain {name}` lists the fields."]
        elif name not in ("data", "tasks"):
            keys = [key for key in catalogue.recipe_keys() if key.name.startswith(f"{name}.")]
            lines += ["", f"## {name}", "", about, "", *table(keys)]
    return "\n".join(lines) + "\n"


def task_keys(task: str) -> str:
    """Return the keys of [data] that a task has; those of [data.clean] have a page of their own."""
    prefix = "tasks." if task == "multi-task" else "data."
    keys = [
        key
        for key in catalogue.recipe_keys()
        if key.name.startswith(prefix) and (not key.tasks or task in key.tasks) and ".clean." not in key.name
    ]
    lines = [f"# Keys of {task}", "", *table(keys)]
    if any(key.name == "data.clean" for key in keys):
        lines += ["", "[Keys of data.clean](cleaning.md) are on a page of their own."]
    return "\n".join(lines) + "\n"


def cleaning() -> str:
    """Return the keys of [data.clean]."""
    keys = [key for key in catalogue.recipe_keys() if key.name.startswith("data.clean.")]
    return "\n".join(["# Keys of data.clean", "", "Every step is off unless asked for.", "", *table(keys)]) + "\n"


def table(keys: list[catalogue.RecipeKey]) -> list[str]:
    rows = []
    for key in keys:
        default = "required" if key.required else catalogue.shown_default(key)
        default = f"`{default}`" if default and not key.required else default
        rows.append(f"| `{key.name}` | {cell(str(key.type))} | {cell(default)} | {cell(key.meaning)} |")
    return [*HEAD, *rows]


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def recipes() -> str:
    """Return the bundled recipes, by their first lines."""
    rows = [
        f"| `{name}` | {cell(path.read_text().partition(chr(10))[0].removeprefix('# '))} |"
        for name, path in bundled().items()
    ]
    head = ["# Bundled recipes", "", "`llmkit recipes show NAME` prints one, `llmkit recipes copy NAME` copies it.", ""]
    return "\n".join([*head, "| recipe | what it trains |", "| --- | --- |", *rows]) + "\n"


def pages() -> dict[str, str]:
    """Return each page of the reference by its name."""
    made = {"commands": commands(), "recipes": recipes(), "keys": shared_keys(), "cleaning": cleaning()}
    made |= {f"task-{task}": task_keys(task) for task in schema.TASKS}
    return {name: f"{NOTE}\n{text}" for name, text in made.items()}


def main() -> None:
    differ = []
    for name, text in pages().items():
        page = FOLDER / f"{name}.md"
        if not page.exists() or page.read_text() != text:
            differ.append(page.name)
            if "--check" not in sys.argv[1:]:
                page.write_text(text)
    if "--check" in sys.argv[1:] and differ:
        sys.exit(f"docs/reference differs from the code ({', '.join(differ)}): run `python docs/reference.py`")


if __name__ == "__main__":
    main()
