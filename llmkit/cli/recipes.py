"""`llmkit recipes`: the bundled ones, new ones, and their schema."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli import completion
from llmkit.cli.app import LOOK, Offline, app, do, stay_offline
from llmkit.cli.style import Command, Group

recipes_app = typer.Typer(
    cls=Group,
    help="List, show and copy the recipes that come with llmkit, and write new ones.",
    invoke_without_command=True,
)
app.add_typer(recipes_app, name="recipes", rich_help_panel=LOOK)


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list", cls=Command)
def list_recipes() -> None:
    """List the bundled recipes by purpose, one per line."""
    import textwrap
    import tomllib

    from llmkit.recipe import bundled
    from llmkit.recipe.schema import PRETRAINING
    from llmkit.terminal import LEAST, USUAL, columns

    names = bundled()
    width = max(map(len, names))
    room = max(LEAST, min(USUAL, columns(sys.stdout) or USUAL) - width - 4)
    groups: dict[str, list[str]] = {"Pretrain:": [], "Fine-tune:": [], "Try, without a network:": []}
    for name, path in names.items():
        text = path.read_text()
        comment = " ".join(re.match(r"(?:#.*\n)+", text)[0].replace("#", " ").split())  # type: ignore[index]
        first = re.split(r"(?<=\.) ", comment)[0]
        pretraining = tomllib.loads(text)["task"] in PRETRAINING
        heading = list(groups)[2 if name.startswith("tiny/") else 0 if pretraining else 1]
        groups[heading].append(
            f"  {name:{width}}  {textwrap.shorten(first, room, placeholder=' ...', break_on_hyphens=False)}"
        )
    for heading, lines in groups.items():
        print("\n".join([heading, *lines]))  # noqa: T201


@recipes_app.command("show", cls=Command)
def show_recipe(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The name of a bundled recipe.", autocompletion=completion.recipe_names),
    ],
) -> None:
    """Print a bundled recipe."""

    def act() -> int:
        from llmkit.recipe import find

        print(find(name).read_text(), end="")  # noqa: T201
        return 0

    do(act)


@recipes_app.command("copy", cls=Command)
def copy_recipe(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The name of a bundled recipe.", autocompletion=completion.recipe_names),
    ],
    to: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The file to write.", show_default=False, autocompletion=completion.files),
    ] = None,
) -> None:
    """Copy a bundled recipe to the working directory, to edit it."""

    def act() -> int:
        from llmkit.recipe import copy

        print(copy(name, to))  # noqa: T201
        return 0

    do(act)


@recipes_app.command("new", cls=Command)
def new_recipe(
    path: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A data file, a folder or a glob.", autocompletion=completion.files),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TABLE.KEY=VALUE",
            help="Settings to write into it.",
            show_default=False,
            autocompletion=completion.overrides,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="The task.  [default: what the columns suggest]",
            autocompletion=completion.tasks,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="The file to write.  [default: stdout]", autocompletion=completion.files
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Look into a data file, and write a commented recipe for it."""

    def act() -> int:
        stay_offline(offline)
        from llmkit import new_recipe

        text = new_recipe.new(path, task, overrides or [], output)
        if output is None:
            print(text, end="")  # noqa: T201
        else:
            new_recipe.write(text, output)
            print(output)  # noqa: T201
        return 0

    do(act)


@recipes_app.command("schema", cls=Command)
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors."""

    def act() -> int:
        import json

        from llmkit.recipe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))  # noqa: T201
        return 0

    do(act)
