"""The application, how a command is run, and the options that several commands share."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from llmkit import __version__, disk
from llmkit.cli import completion
from llmkit.cli.style import Group
from llmkit.errors import UserError, say_to_people, tell

app = typer.Typer(
    cls=Group,
    help="Pretrain, fine-tune and use language models: one recipe, one command.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # Rich costs 0.3 s of every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TRAIN, USE, LOOK, SET_UP = "Train", "Use", "Look", "Set up"  # the headings of `llmkit -h`

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TABLE.KEY=VALUE",
        help="Settings that override the recipe's.",
        show_default=False,
        autocompletion=completion.overrides,
    ),
]
MaybeRecipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a bundled recipe.",
        show_default=False,
        autocompletion=completion.recipe_or_override,
    ),
]
TASKS = "Instead of a recipe: sst2, mrpc, squad_v2, text-classification, ..."


def task_option(help: str) -> Any:
    """Declare --task."""
    return typer.Option("--task", metavar="NAME", help=help, autocompletion=completion.tasks)


Task = Annotated[str | None, task_option(TASKS)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; a mistake is one too, on stderr.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not contact the Hub: use its cache and local files only.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llmkit {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # the callback has answered


def do(act: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code: 2 for a user's mistake, 130 for Ctrl-C."""
    from llmkit import process

    try:
        code = act()
    except UserError as mistake:
        tell(mistake)
        code = mistake.code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of stdout is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise typer.Exit(process.leave(code))


def recipe_and_overrides(
    recipe: str | None,
    overrides: list[str] | None,
    task: str | None,
    verb: str = "finetune",
    model: str | None = None,
) -> tuple[str | None, list[str]]:
    """Separate the recipe from the overrides: with `--task` the first argument may be an override.

    Raises UserError for two recipes, for data in the recipe's place, and for no recipe, unless a `model` has one.
    """
    settings = overrides or []
    if recipe is not None and "=" in recipe and not disk.exists(recipe):
        settings, recipe = [recipe, *settings], None
    from llmkit.instead import ask_for_recipe, refuse_data

    refuse_data(verb, recipe, settings, task, model)
    if task is not None and recipe is not None:
        raise UserError(f"`{recipe}` and --task {task} each name a recipe", "give only one of them")
    if task is None and recipe is None and model is None:
        ask_for_recipe(verb, settings)
    return recipe, settings


def stay_offline(wanted: bool) -> None:
    """Go offline if `wanted`; call it before the libraries are imported, which read the environment only once."""
    if wanted:
        from llmkit import hub

        hub.go_offline("is not contacted (--offline)")


def run_or_model(name: str) -> str:
    """Return `runs/NAME` for the name of a run, and say so; else `name`: a path or a Hub id."""
    from llmkit.recipe.paths import refuse_address
    from llmkit.runs import directory as runs

    refuse_address(name)
    run = runs.ROOT / name
    if disk.exists(Path(name)) or not runs.is_run(run):
        return name
    say_to_people(f"note     `{name}` is the run `{run}`")
    return str(run)
