"""Parse the command line, print errors, choose exit codes. Heavy imports are inside the functions."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from llmkit import __version__, disk
from llmkit.errors import RunError, UserError, say

if TYPE_CHECKING:
    from llmkit.recipe.schema import Recipe


# Click's, which some versions of typer hold inside.
_UsageError: Any = next(error for error in typer.BadParameter.__mro__ if error.__name__ == "UsageError")


@contextmanager
def _in_our_style(ctx: Any = None) -> Iterator[None]:
    """Print what click refuses as `error: ... / hint: ...`, like every other mistake; the exit code is 2.

    `ctx` is the command's, for the mistakes that do not know theirs.
    """
    try:
        yield
    except _UsageError as mistake:
        if type(mistake).__name__ == "NoArgsIsHelpError":  # which is no mistake
            raise
        context, parameter = mistake.ctx or ctx, getattr(mistake, "param", None)
        said = str(mistake.message or "").removeprefix("Value error, ").replace("Input should be", "must be")
        said = said[:1].lower() + said[1:].rstrip(".")
        if type(mistake).__name__ == "MissingParameter":
            said = "is missing"
        if parameter is not None:
            said = f"{max(parameter.opts, key=len) if parameter.opts[0].startswith('-') else parameter.metavar} {said}"
        command = context.command_path if context is not None else "llmkit"
        usage = " ".join(context.get_usage().split()).removeprefix("Usage: ") if context is not None else command
        hint = f"{usage.replace('{', '').replace('}', '')}; for more: {command} -h"
        say(*UserError(f"{command}: {said}", hint).lines())
        raise typer.Exit(2) from None


class Group(TyperGroup):
    """A group of commands, listed under headings, that tells every mistake in one style."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _in_our_style():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _in_our_style():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from llmkit.recipe.types import nearest

            close, named = nearest(args[0], self.commands), ", ".join(self.list_commands(ctx))
            hint = f"did you mean `{ctx.command_path} {close}`?" if close else f"the commands are {named}"
            say(*UserError(f"{ctx.command_path} has no command `{args[0]}`", hint).lines())
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.commands[name]
            heading = command.rich_help_panel if isinstance(command.rich_help_panel, str) else "Commands"
            groups.setdefault(heading, []).append((name, command.get_short_help_str(limit=1000)))
        width = max(map(len, self.commands))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:{width}}", said) for name, said in rows])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.epilog, formatter)


def _write_examples(examples: str | None, formatter: Any) -> None:
    """Write the lines of an epilog as they are: click would fill them into a paragraph."""
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in examples.splitlines()))


class Command(TyperCommand):
    """A command that answers an option that it does not have with what to type instead."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        named = {
            name: (parameter.opts[-1], bool(getattr(parameter, "is_flag", False)))
            for parameter in self.get_params(ctx)
            if parameter.param_type_name == "option"
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        words = (arg.partition("=")[0] for arg in args)
        if any(re.match("--?[A-Za-z]", word) and word not in named for word in words):
            from llmkit.instead import Known, refuse_options

            known = {name: Known(*option) for name, option in named.items()}
            try:
                refuse_options(ctx.info_name or "", args, known)
            except UserError as mistake:
                say(*mistake.lines())
                raise typer.Exit(2) from None
        with _in_our_style(ctx):
            return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options under headings, without click's names of their types."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = getattr(parameter, "rich_help_panel", None)
                heading = "Arguments" if parameter.param_type_name == "argument" else own or "Options"
                groups.setdefault(heading, []).append((re.sub(r" <[^>]*>$", "", record[0]), record[1]))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.epilog, formatter)


app = typer.Typer(
    cls=Group,
    help="Pretrain, fine-tune and use language models: one recipe, one command.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # Rich costs 0.3 s of every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TRAIN, USE, LOOK = "Train", "Use", "Look"  # the headings of `llmkit -h`
LENGTH, GOING_ON = "Machine and time", "Resuming a run"  # those of a training's options
recipes_app = typer.Typer(
    cls=Group, help="List, show and copy the recipes that come with llmkit.", invoke_without_command=True
)
app.add_typer(recipes_app, name="recipes", rich_help_panel=LOOK)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="TABLE.KEY=VALUE", help="Settings that override the recipe's.", show_default=False),
]
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
Offline = Annotated[bool, typer.Option("--offline", help="Do not contact the Hub: use its cache and local files only.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read the data, print the resolved recipe and the plan; do not train.")
]


TableFormat = Annotated[
    Literal["table", "csv", "md", "latex", "json"],
    typer.Option("--format", metavar="table|csv|md|latex|json", help="How to write the table."),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="The run's name, used for runs/NAME and by --resume.  [default: the recipe's name]",
    ),
]
MaybeRecipe = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.", show_default=False),
]
TextTask = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="Instead of a recipe, to pretrain on your own text: causal-lm or masked-lm."
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", help="Instead of a recipe: sst2, mrpc, squad_v2, text-classification, ..."),
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
        from llmkit.recipe import load

        process.join()
        _stay_offline(offline)
        path, settings = _recipe_and_overrides(recipe, overrides, task, verb)
        seconds = _seconds(max_time)
        loaded = _with_time_note(_named(load(path, settings, output_dir, task, verb), name, output_dir), max_time)
        if dry_run:
            return _explain(loaded, processes, max_time)
        if seeds is not None:
            from llmkit.seeds import repeat

            argv = [*(["--task", task] if task is not None else []), *([path] if path else []), *settings]
            argv += ["--processes", str(processes)] if processes is not None else []
            argv += ["--accelerate-config", str(accelerate_config)] if accelerate_config is not None else []
            argv += ["--max-time", max_time] if max_time is not None else []
            argv += [argument for key in allow_change or [] for argument in ("--allow-change", key)]
            return repeat(loaded, seeds, argv, output_dir, resume)
        from llmkit import launch

        return launch.start(loaded, processes, accelerate_config, resume, seconds, allow_change or [])

    _do(act)


def _recipe_and_overrides(
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


def _stay_offline(wanted: bool) -> None:
    """Go offline if `wanted`; call it before the libraries are imported, which read the environment only once."""
    if wanted:
        from llmkit import hub

        hub.go_offline("is not contacted (--offline)")


def _run_or_model(name: str) -> str:
    """Return `runs/NAME` for the name of a run, and say so; else `name`: a path or a Hub id."""
    from llmkit.runs import directory as runs

    run = runs.ROOT / name
    if disk.exists(Path(name)) or not runs.is_run(run):
        return name
    say(f"note     `{name}` is the run `{run}`")
    return str(run)


def _seconds(time: str | None) -> int | None:
    """Convert a time such as `1h30m` to seconds; None for None."""
    if time is None:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time)
    seconds = (
        sum(int(number or 0) * unit for number, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not seconds:
        raise UserError(f"--max-time: `{time}` is not a duration", "write it as 90s, 30m, 1h30m or 2h")
    return seconds


def _named(recipe: "Recipe", name: str | None, output_dir: str | None) -> "Recipe":
    """Return the recipe under the name that the command line gives its run; the recipe's own where it gives none."""
    if name is None:
        return recipe
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UserError(f"--name: `{name}` is not a valid run name", "use letters, digits, `.`, `_` and `-`")
    if output_dir is not None:
        raise UserError(
            "--name and --output-dir cannot be combined", f"use only one; --name means --output-dir runs/{name}"
        )
    return recipe.model_copy(update={"name": name, "output_dir": None})


def _with_time_note(recipe: "Recipe", time: str | None) -> "Recipe":
    """Return the recipe with a note on the effect of `--max-time`."""
    if time is None:
        return recipe
    key = "max_steps" if recipe.trainer.get("max_steps", -1) > 0 else "num_train_epochs"
    note = (
        f"--max-time {time}: training stops this long after its first step starts; evaluation and saving in between "
        f"count, the final evaluation and saving of the model do not; "
        f"trainer.{key} is ignored"
    )
    return recipe.model_copy(update={"notes": (*recipe.notes, note)})


def _explain(recipe: "Recipe", processes: int | None, max_time: str | None) -> int:
    """Print the data and the arithmetic to stderr, then the resolved recipe to stdout."""
    from llmkit.dry_run import explain

    print(explain(recipe, processes, max_time).to_toml(comments=True), end="", flush=True)  # noqa: T201
    return 0


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit generate "Once upon a time" --model runs/gpt2
llmkit generate --chat --model runs/chat
llmkit generate --input prompts.txt --output texts.jsonl max_new_tokens=50""",
)
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text to continue; - reads stdin.", show_default=False),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields of GenerationConfig, assistant_model and, with --chat, system_prompt.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="A run, a folder or a Hub id.  [default: the newest finished run]"
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer the prompt; without a prompt, start a conversation.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="A file of prompts; with --chat, of conversations.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="With --input: write to a file.  [default: JSON lines on stdout]"
        ),
    ] = None,
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(
            "--quantize",
            metavar="int8|int4",
            help="Quantize the weights: int8 on a CPU (faster), int8 or int4 on a GPU (less memory).",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, metavar="N", help="Seed for sampling: the same seed gives the same samples."),
    ] = None,
    offline: Offline = False,
) -> None:
    """Continue a prompt, or answer it."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit.inference import generate as generation

        model_path = None if model is None else _run_or_model(model)
        text, arguments = generation.separate(prompt, options or [], needed=not chat and source is None)
        if source is not None and text is not None:
            raise UserError(f"the prompt `{text}` and --input cannot be combined", "put the prompt into the file")
        if source is None and output is not None:
            raise UserError("--output needs --input", "add --input FILE, or redirect stdout to a file: > FILE")
        if chat:
            from llmkit.inference import chat as chatting

            settings, system_prompt = chatting.settings(arguments)
            if source is not None:
                chatting.chat_rows(source, output, model_path, settings, system_prompt, seed, quantize)
                return 0
            question = generation.read_prompt(text) if text is not None else None
            return chatting.chat(question, model_path, settings, system_prompt, seed, quantize)
        if source is not None:
            from llmkit.inference import batch

            batch.generate_rows(source, output, model_path, generation.settings(arguments, one=True), seed, quantize)
        else:
            generation.generate(
                generation.read_prompt(text), model_path, generation.settings(arguments), seed, quantize
            )
        return 0

    _do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit predict runs/sst2 "What a day!"
llmkit predict runs/sst2 --input reviews.csv --output labels.csv""",
)
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a folder or a Hub id.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts, one example each.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="A file of examples: JSON lines, CSV, TSV, Parquet, text."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Write to a file, .jsonl or .csv.  [default: JSON lines on stdout]"
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Label, tag, choose, answer, summarize, translate or fill blanks."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit.inference import predict as prediction
        from llmkit.instead import refuse_file_as_text

        refuse_file_as_text(model, texts or [])
        prediction.predict(_run_or_model(model), texts or [], source, output)
        return 0

    _do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit evaluate runs/sst2
llmkit evaluate runs/sst2 data.path=fresh.csv
llmkit evaluate runs/gpt2 --task causal-lm data.path=book.txt""",
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a folder or a Hub id.")],
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Task = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Write every row to a .jsonl or .csv file, mistakes first."),
    ] = None,
    offline: Offline = False,
) -> None:
    """Evaluate a finished model on its own validation data, or on another recipe's."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit import launch
        from llmkit.training import evaluate as evaluation

        path, settings = _recipe_and_overrides(recipe, overrides, task, "evaluate", model)
        named = _run_or_model(model)
        loaded = evaluation.find_recipe(named, path, task, settings)
        launch.one_gpu()
        evaluation.evaluate(named, loaded, output)
        return 0

    _do(act)


@app.command(
    cls=Command,
    rich_help_panel=USE,
    epilog="""\
llmkit merge runs/chat --output chat-merged""",
)
def merge(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that trained an adapter ([lora]).")],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="A new folder for the merged model.")],
    offline: Offline = False,
) -> None:
    """Merge an adapter into its base model, and compare their outputs."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit.models import merge

        merge.merge(_run_or_model(run), output)
        return 0

    _do(act)


@app.command(
    "data",
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit data reviews.csv
llmkit data reviews.csv data.text_column=review""",
)
def describe_data(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder or a glob on this machine.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.KEY=VALUE", help="Settings of [data], as in a recipe.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="NAME", help="The task to read the data for.  [default: what its columns suggest]"
        ),
    ] = None,
) -> None:
    """Show what local data holds, what each column is taken for, and the command to train on it."""

    def act() -> int:
        from llmkit.data.describe import describe

        print("\n".join(describe(path, task, overrides or [])))  # noqa: T201
        return 0

    _do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit check runs/gpt2""",
)
def check(run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Check that a run directory is complete, and show what it can resume from."""

    def act() -> int:
        from llmkit.runs import check as checking

        return checking.check(_run_or_model(run))

    _do(act)


@app.command(
    "runs",
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit runs --sort=-value
llmkit runs --filter task=text-classification
llmkit runs sweeps/lr --format latex""",
)
def list_runs(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER", help="The folder of the runs.  [default: runs]", show_default=False),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort", metavar="COLUMN", help="Sort by a column; -COLUMN: largest first.  [default: newest first]"
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="List only these: a column, or a key of the recipe."),
    ] = None,
    format: TableFormat = "table",
) -> None:
    """List runs: task, model, status, time, and the metric that counts."""

    def act() -> int:
        from llmkit.reports.runs import list_runs

        return list_runs(folder, sort, filters or [], format)

    _do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit compare runs/reviews runs/reviews-2
llmkit compare runs/small runs/large runs/huge --format latex""",
)
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Two runs or more; or folders, each with the runs of its seeds."),
    ],
    format: TableFormat = "table",
) -> None:
    """Compare runs: what differs, metrics side by side, and whether it may be chance."""

    def act() -> int:
        from llmkit.reports.compare import compare

        return compare(names, format)

    _do(act)


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
        typer.Argument(metavar="KEY", help="A key or a table of a recipe.  [default: all tables]", show_default=False),
    ] = None,
) -> None:
    """Explain a key of a recipe: type, default, meaning and an example."""

    def act() -> int:
        from llmkit.explain import explain

        print("\n".join(explain(key)))  # noqa: T201
        return 0

    _do(act)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="""\
llmkit report runs/sst2""",
)
def report(run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Write RUN/report.html: curves, results, mistakes, data and recipe of a run, to open in a browser."""

    def act() -> int:
        from llmkit.reports import report as reporting

        print(reporting.write(Path(_run_or_model(run)), explained=True))  # noqa: T201
        return 0

    _do(act)


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list")
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
        groups[heading].append(f"  {name:{width}}  {textwrap.shorten(first, room, placeholder=' ...')}")
    for heading, lines in groups.items():
        print("\n".join([heading, *lines]))  # noqa: T201


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a bundled recipe.")]) -> None:
    """Print a bundled recipe."""

    def act() -> int:
        from llmkit.recipe import find

        print(find(name).read_text(), end="")  # noqa: T201
        return 0

    _do(act)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a bundled recipe.")],
    to: Annotated[Path | None, typer.Argument(metavar="FILE", help="The file to write.", show_default=False)] = None,
) -> None:
    """Copy a bundled recipe to the working directory, to edit it."""

    def act() -> int:
        from llmkit.recipe import copy

        print(copy(name, to))  # noqa: T201
        return 0

    _do(act)


@recipes_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors."""

    def act() -> int:
        import json

        from llmkit.recipe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))  # noqa: T201
        return 0

    _do(act)


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


def _do(act: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code: 2 for a user's mistake, 130 for Ctrl-C."""
    from llmkit import process

    try:
        code = act()
    except UserError as mistake:
        say(*mistake.lines())
        code = 1 if isinstance(mistake, RunError) else 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of stdout is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise typer.Exit(process.leave(code))
