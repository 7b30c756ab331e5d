"""`llmkit data`, `plan`, `check`, `runs`, `compare`, `explain` and `report`: what there is to see."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit import terminal
from llmkit.cli import completion
from llmkit.cli.app import (
    LOOK,
    Json,
    MaybeRecipe,
    Offline,
    Overrides,
    Task,
    app,
    do,
    recipe_and_overrides,
    run_or_model,
    stay_offline,
)
from llmkit.cli.style import Command
from llmkit.errors import UserError, say, say_to_people

TableFormat = Annotated[
    Literal["table", "csv", "md", "latex", "json"],
    typer.Option("--format", metavar="table|csv|md|latex|json", help="How to write the table."),
]


@app.command(
    "data",
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit data reviews.csv
llmkit data reviews.csv data.text_column=review""",
)
def describe_data(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A file, a folder or a glob on this machine.", autocompletion=completion.files
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data.KEY=VALUE",
            help="Settings of [data], as in a recipe.",
            show_default=False,
            autocompletion=completion.overrides,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="The task to read the data for.  [default: what its columns suggest]",
            autocompletion=completion.tasks,
        ),
    ] = None,
) -> None:
    """Show what local data holds, what each column is taken for, and the command to train on it."""

    def act() -> int:
        from llmkit.data.describe import describe

        terminal.show(*describe(path, task, overrides or []))
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit plan gpt2-small --memory 24GB
llmkit plan tiny/gpt2 --measure --price 0.40
llmkit plan my-recipe.toml trainer.bf16=true --json""",
)
def plan(
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Task = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, metavar="N", help="Plan for this many processes.  [default: one per GPU]"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Find the largest micro-batch that fits, such as into 24GB."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Train ten steps and say how long they take.")] = False,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0, metavar="X", help="With --measure: what the machine costs an hour."),
    ] = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Plan a training: memory, disk, steps and operations, without computing anything."""

    def act() -> int:
        from llmkit import process

        process.join()
        stay_offline(offline)
        if price is not None and not measure:
            raise UserError("--price has no effect without --measure", "add --measure: it says how long training takes")
        from llmkit.plan.show import in_memory

        size = None if memory is None else in_memory(memory)
        from llmkit.recipe import load
        from llmkit.recipe.addresses import fetched

        path, settings = recipe_and_overrides(recipe, overrides, task)
        loaded = fetched(load(path, settings, None, task))
        if not as_json:  # at once: what follows imports torch
            from llmkit.plan import closed_form

            for name, text in closed_form.head(loaded, processes):
                say(f"{name:15} {text}")
        from llmkit import devices
        from llmkit.dry_run import outlook_of
        from llmkit.plan.show import plan, show

        count = devices.default_processes() if processes is None else processes
        devices.one_gpu()
        show(plan(outlook_of(loaded, count), size, measure, price), as_json)
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit check runs/gpt2""",
)
def check(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)],
    as_json: Json = False,
) -> None:
    """Check that a run directory is complete, and show what it can resume from."""

    def act() -> int:
        from llmkit.runs import check as checking

        return checking.check(run_or_model(run), as_json)

    do(act)


@app.command(
    "runs",
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit runs --sort=-value
llmkit runs --filter task=text-classification
llmkit runs runs/reviews-sweep --format latex""",
)
def list_runs(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="The folder of the runs.  [default: runs]",
            show_default=False,
            autocompletion=completion.files,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help="Sort by a column; -COLUMN: largest first.  [default: newest first]",
            autocompletion=completion.columns,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="List only these: a column, or a key of the recipe.",
            autocompletion=completion.conditions,
        ),
    ] = None,
    format: TableFormat = "table",
    as_json: Json = False,
) -> None:
    """List runs: task, model, status, time, and the metric that counts."""

    def act() -> int:
        from llmkit.reports.runs import list_runs

        return list_runs(folder, sort, filters or [], "json" if as_json else format)

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit compare runs/reviews runs/reviews-2
llmkit compare runs/reviews-sweep --format latex
llmkit compare runs/small runs/large --html curves.html""",
)
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Two runs or more; folders with the runs of several seeds; a sweep.",
            autocompletion=completion.runs,
        ),
    ],
    format: TableFormat = "table",
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the learning curves, over one another, to a page as well.",
            autocompletion=completion.files,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs: what differs, metrics side by side, and whether it may be chance."""

    def act() -> int:
        from llmkit.reports import compare as comparing

        if html is not None:
            from llmkit.reports import compare_page

            compare_page.check(html)
        found = comparing.read(names)
        comparing.show(found, "json" if as_json else format)
        if html is not None:
            compare_page.write(html, found)
            say_to_people(f"curves: {html}")
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit explain trainer.lr_scheduler_type
llmkit explain data""",
)
def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="A key or a table of a recipe.  [default: all tables]",
            show_default=False,
            autocompletion=completion.key_names,
        ),
    ] = None,
) -> None:
    """Explain a key of a recipe: type, default, meaning and an example."""

    def act() -> int:
        from llmkit.explain import explain

        terminal.show(*explain(key))
        return 0

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit report runs/sst2""",
)
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)],
) -> None:
    """Write RUN/report.html: curves, results, mistakes, data and recipe of a run, to open in a browser."""

    def act() -> int:
        from llmkit.reports import report as reporting

        print(reporting.write(Path(run_or_model(run)), explained=True))  # noqa: T201
        return 0

    do(act)
