"""`llmkit pretrain` and `llmkit finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from llmkit.cli.app import TRAIN, MaybeRecipe, Offline, Overrides, Task, app, do, recipe_and_overrides, stay_offline
from llmkit.cli.style import Command

if TYPE_CHECKING:
    from llmkit.recipe.schema import Recipe


LENGTH, GOING_ON = "Machine and time", "Resuming a run"  # headings of a training's options

OutputDir = Annotated[
    str | None,
    typer.Option("--output-dir", metavar="DIR", help="The run directory.  [default: runs/NAME, NAME-2, ...]"),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        metavar="N",
        help="The number of training processes.  [default: one per GPU]",
        rich_help_panel=LENGTH,
    ),
]
AccelerateConfig = Annotated[
    Path | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="An Accelerate configuration file: FSDP, DeepSpeed, several machines.",
        rich_help_panel=LENGTH,
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        "--max-time",
        metavar="TIME",
        help="Stop training after this time, such as 90s, 30m or 1h30m.",
        rich_help_panel=LENGTH,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the newest run of this name.", rich_help_panel=GOING_ON)]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="KEY",
        help="With --resume: let this key differ from the run's.",
        rich_help_panel=GOING_ON,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read the data, print the resolved recipe and the plan; do not train.")
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="The run's name, used for runs/NAME and by --resume.  [default: the recipe's name]",
    ),
]
TextTask = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="Instead of a recipe, to pretrain on your own text: causal-lm or masked-lm."
    ),
]


@app.command(
    cls=Command,
    rich_help_panel=TRAIN,
    epilog="""\
llmkit pretrain tiny/gpt2
llmkit pretrain gpt2-small data.path=books.txt trainer.max_steps=2000
llmkit pretrain gpt2-small --resume""",
)
def pretrain(
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: TextTask = None,
    name: Name = None,
    output_dir: OutputDir = None,
    processes: Processes = None,
    accelerate_config: AccelerateConfig = None,
    max_time: MaxTime = None,
    resume: Resume = False,
    allow_change: AllowChange = None,
    offline: Offline = False,
    dry_run: DryRun = False,
) -> None:
    """Pretrain a language model, causal or masked, from a recipe."""

    _train(
        "pretrain",
        recipe,
        overrides,
        task=task,
        name=name,
        output_dir=output_dir,
        processes=processes,
        accelerate_config=accelerate_config,
        max_time=max_time,
        resume=resume,
        allow_change=allow_change,
        offline=offline,
        dry_run=dry_run,
    )


@app.command(
    cls=Command,
    rich_help_panel=TRAIN,
    epilog="""\
llmkit finetune --task sst2
llmkit finetune --task text-classification data.path=reviews.csv
llmkit finetune my-recipe.toml trainer.learning_rate=5e-5 --dry-run""",
)
def finetune(
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Task = None,
    name: Name = None,
    output_dir: OutputDir = None,
    processes: Processes = None,
    accelerate_config: AccelerateConfig = None,
    max_time: MaxTime = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", metavar="N", min=2, help="Repeat with this many seeds; report mean and standard deviation."
        ),
    ] = None,
    resume: Resume = False,
    allow_change: AllowChange = None,
    offline: Offline = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model to classify, tag, choose, answer, summarize, translate or chat."""

    _train(
        "finetune",
        recipe,
        overrides,
        task=task,
        name=name,
        output_dir=output_dir,
        processes=processes,
        accelerate_config=accelerate_config,
        max_time=max_time,
        seeds=seeds,
        resume=resume,
        allow_change=allow_change,
        offline=offline,
        dry_run=dry_run,
    )


def _train(
    verb: Literal["pretrain", "finetune"],
    recipe: str | None,
    overrides: list[str] | None,
    *,
    task: str | None,
    name: str | None,
    output_dir: str | None,
    processes: int | None,
    accelerate_config: Path | None,
    max_time: str | None,
    resume: bool,
    allow_change: list[str] | None,
    offline: bool,
    dry_run: bool,
    seeds: int | None = None,
) -> NoReturn:
    """Run the command `verb`; the other arguments are its own."""

    def act() -> int:
        from llmkit import process
        from llmkit.recipe import run_options

        process.join()
        stay_offline(offline)
        path, settings = recipe_and_overrides(recipe, overrides, task, verb)
        seconds = run_options.seconds(max_time)
        loaded = run_options.load(path, settings, task, verb, name, output_dir, max_time)
        if dry_run:
            return _explain(loaded, processes, max_time)
        if seeds is not None:
            from llmkit.seeds import repeat

            argv = [verb, *(["--task", task] if task is not None else []), *([path] if path else []), *settings]
            argv += ["--processes", str(processes)] if processes is not None else []
            argv += ["--accelerate-config", str(accelerate_config)] if accelerate_config is not None else []
            argv += ["--max-time", max_time] if max_time is not None else []
            argv += [argument for key in allow_change or [] for argument in ("--allow-change", key)]
            return repeat(loaded, seeds, argv, output_dir, resume)
        from llmkit import launch

        code, _ = launch.start(loaded, processes, accelerate_config, resume, seconds, allow_change or [])
        return code

    do(act)


def _explain(recipe: "Recipe", processes: int | None, max_time: str | None) -> int:
    """Print the data and the arithmetic to stderr, then the resolved recipe to stdout."""
    from llmkit.dry_run import explain

    print(explain(recipe, processes, max_time).to_toml(comments=True), end="", flush=True)  # noqa: T201
    return 0
