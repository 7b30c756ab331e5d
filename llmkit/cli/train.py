"""`llmkit pretrain` and `llmkit finetune`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from llmkit.cli import completion
from llmkit.cli.app import (
    TASKS,
    TRAIN,
    MaybeRecipe,
    Offline,
    Overrides,
    app,
    do,
    recipe_and_overrides,
    stay_offline,
    task_option,
)
from llmkit.cli.style import Command

if TYPE_CHECKING:
    from llmkit.recipe.schema import Recipe
    from llmkit.sweeps.plan import Plan


Verb = Literal["pretrain", "finetune"]
LENGTH, GOING_ON, EXPERIMENTS = (
    "Machine and time",
    "Resuming a run",
    "Seeds and sweeps",
)  # headings of a training's options

OutputDir = Annotated[
    str | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="The run directory.  [default: runs/NAME, NAME-2, ...]",
        autocompletion=completion.files,
    ),
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
        autocompletion=completion.files,
        rich_help_panel=LENGTH,
    ),
]
Launched = Annotated[
    bool,
    typer.Option(
        "--launched",
        help="srun or mpirun has started this as one of several processes: take part.",
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
        autocompletion=completion.key_names,
        rich_help_panel=GOING_ON,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read the data, print the resolved recipe and the plan; do not train.")
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        min=2,
        help="Repeat with this many seeds; report mean and standard deviation.",
        rich_help_panel=EXPERIMENTS,
    ),
]
SweepOver = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=VALUES",
        help="Train once for each value: KEY=A,B,C, or LOW..HIGH with --trials; several times for combinations.",
        rich_help_panel=EXPERIMENTS,
        autocompletion=completion.overrides,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        "--trials",
        metavar="N",
        min=1,
        help="With --sweep: draw this many trials at random.",
        rich_help_panel=EXPERIMENTS,
    ),
]
Sampler = Annotated[
    Literal["grid", "random", "optuna-tpe"] | None,
    typer.Option(
        "--sampler",
        metavar="grid|random|optuna-tpe",
        help="With --sweep: how to choose trials.  [default: grid; with --trials, random]",
        rich_help_panel=EXPERIMENTS,
    ),
]
Halving = Annotated[
    int | None,
    typer.Option(
        "--halving",
        metavar="N",
        min=2,
        help="With --sweep: of every N trials the best goes on, after 1/N^2 and 1/N of the steps.",
        rich_help_panel=EXPERIMENTS,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="The run's name, used for runs/NAME and by --resume.  [default: the recipe's name]",
    ),
]
TEXT_TASKS = "Instead of a recipe, to pretrain on your own text: causal-lm or masked-lm."


def add_training(verb: Verb, about: str, tasks: str, examples: str) -> None:
    """Add the command `verb`, which trains; `tasks` is the help of its --task."""

    @app.command(verb, cls=Command, rich_help_panel=TRAIN, help=about, epilog=examples)
    def train(
        recipe: MaybeRecipe = None,
        overrides: Overrides = None,
        task: Annotated[str | None, task_option(tasks)] = None,
        name: Name = None,
        output_dir: OutputDir = None,
        processes: Processes = None,
        accelerate_config: AccelerateConfig = None,
        launched: Launched = False,
        max_time: MaxTime = None,
        sweep: SweepOver = None,
        trials: Trials = None,
        sampler: Sampler = None,
        halving: Halving = None,
        seeds: Seeds = None,
        resume: Resume = False,
        allow_change: AllowChange = None,
        offline: Offline = False,
        dry_run: DryRun = False,
    ) -> None:
        _train(
            verb,
            recipe,
            overrides,
            task=task,
            name=name,
            output_dir=output_dir,
            processes=processes,
            accelerate_config=accelerate_config,
            launched=launched,
            max_time=max_time,
            sweep=sweep or [],
            options={"trials": trials, "sampler": sampler, "halving": halving, "seeds": seeds},
            resume=resume,
            allow_change=allow_change,
            offline=offline,
            dry_run=dry_run,
        )


add_training(
    "pretrain",
    "Pretrain a language model, causal or masked, from a recipe.",
    TEXT_TASKS,
    """\
llmkit pretrain tiny/gpt2
llmkit pretrain gpt2-small data.path=books.txt trainer.max_steps=2000
llmkit pretrain gpt2-small --resume""",
)


@app.command(
    cls=Command,
    rich_help_panel=TRAIN,
    epilog="""\
llmkit prepare my-recipe.toml
llmkit prepare my-recipe.toml --workers 16
llmkit prepare my-recipe.toml --engine ray""",
)
def prepare(
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Annotated[str | None, task_option(TEXT_TASKS)] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="The number of processes.  [default: one per core]"),
    ] = None,
    engine: Annotated[
        Literal["processes", "ray"],
        typer.Option(
            "--engine",
            metavar="processes|ray",
            help="What runs them: this machine, or the Ray cluster of RAY_ADDRESS.",
        ),
    ] = "processes",
    shard_size: Annotated[
        float | None,
        typer.Option(
            "--shard-size", metavar="MB", help="Millions of characters that are cleaned at once.  [default: 16.8]"
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Clean and tokenize a recipe's text by all cores or on a cluster, so that pretrain starts at once."""

    def act() -> int:
        from llmkit import process
        from llmkit import recipe as recipes

        process.join()
        stay_offline(offline)
        path, settings = recipe_and_overrides(recipe, overrides, task, "pretrain")
        loaded = recipes.load(path, settings, None, task)
        from llmkit.prepare import prepare

        handlers = process.leave_early()
        try:
            return prepare(loaded, engine, workers, shard_size)
        finally:
            process.handle(handlers)

    do(act)


add_training(
    "finetune",
    "Fine-tune a model to classify, tag, choose, answer, summarize, translate or chat.",
    TASKS,
    """\
llmkit finetune --task sst2
llmkit finetune --task text-classification data.path=reviews.csv
llmkit finetune --task mrpc --sweep trainer.learning_rate=1e-5,3e-5 --seeds 3
llmkit finetune my-recipe.toml trainer.learning_rate=5e-5 --dry-run""",
)


def _train(
    verb: Verb,
    recipe: str | None,
    overrides: list[str] | None,
    *,
    task: str | None,
    name: str | None,
    output_dir: str | None,
    processes: int | None,
    accelerate_config: Path | None,
    launched: bool,
    max_time: str | None,
    sweep: list[str],
    options: Mapping[str, Any],
    resume: bool,
    allow_change: list[str] | None,
    offline: bool,
    dry_run: bool,
) -> NoReturn:
    """Run the command `verb`; the other arguments are its own, `options` those that [sweep] has keys for."""

    def act() -> int:
        from llmkit import process
        from llmkit.recipe import run_options

        process.join()
        world = process.world(launched)
        stay_offline(offline)
        path, settings = recipe_and_overrides(recipe, overrides, task, verb)
        seconds = run_options.seconds(max_time)
        loaded = run_options.load(path, settings, task, verb, name, output_dir, max_time)
        argv = [verb, *(["--task", task] if task is not None else []), *([path] if path else []), *settings]
        argv += ["--processes", str(processes)] if processes is not None else []
        argv += ["--accelerate-config", str(accelerate_config)] if accelerate_config is not None else []
        argv += ["--max-time", max_time] if max_time is not None else []
        argv += [argument for key in allow_change or [] for argument in ("--allow-change", key)]
        alone = {key: value for key, value in options.items() if key != "seeds" and value is not None}
        several = sweep or alone or loaded.sweep is not None or options["seeds"] is not None
        from llmkit.errors import UserError

        if world is not None and (several or accelerate_config is not None):
            what = "several runs" if several else "--accelerate-config"
            raise UserError(
                f"{what} cannot be had where {world.launcher} has started the processes of one run",
                "start llmkit itself, once on each machine"
                + "; or let Accelerate start it: accelerate launch --config_file FILE -m llmkit ..." * (not several),
            )
        if several and loaded.output_mirror is not None:
            raise UserError(
                "output_mirror is the copy of one run, and several are asked for", "output_mirror= unsets it"
            )
        if sweep or alone or loaded.sweep is not None:
            from llmkit import recipe as recipes
            from llmkit.sweeps import plan

            once = ["sweep="] if loaded.sweep is not None else []
            planned = plan.make(
                loaded,
                sweep,
                options,
                [*argv, *once],
                lambda of_trial: recipes.load(path, [*settings, *once, *of_trial], None, task, verb),
                max_time is not None,
            )
            if dry_run:
                return _explain(planned.recipe, processes, max_time, planned)
            from llmkit.sweeps import sweep as sweeping

            return sweeping.run(planned, output_dir)
        if dry_run:
            return _explain(loaded, processes, max_time)
        if options["seeds"] is not None:
            from llmkit.seeds import repeat

            return repeat(loaded, options["seeds"], argv, output_dir, resume)
        if world is not None:
            from llmkit import launched as taking_part

            return taking_part.train(loaded, world, processes, resume, seconds, allow_change or [])
        from llmkit import launch

        code, _ = launch.start(loaded, processes, accelerate_config, resume, seconds, allow_change or [])
        return code

    do(act)


def _explain(recipe: "Recipe", processes: int | None, max_time: str | None, plan: "Plan | None" = None) -> int:
    """Print the data and the arithmetic to stderr, of a sweep also its trials, then the resolved recipe to stdout."""
    from llmkit.dry_run import explain

    resolved = explain(recipe, processes, max_time)
    if plan is not None:
        from llmkit.dry_run.trials import list_trials

        list_trials(plan, processes, max_time is not None)
    print(resolved.to_toml(comments=True), end="", flush=True)  # noqa: T201
    return 0
