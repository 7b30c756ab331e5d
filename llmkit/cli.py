"""Parse the command line, print errors, choose exit codes. Heavy imports are inside the functions."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from typer.core import TyperCommand

from llmkit import __version__
from llmkit.errors import RunError, UserError, say

if TYPE_CHECKING:
    from llmkit.recipe.schema import Recipe


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
                say(str(mistake))
                raise typer.Exit(2) from None
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Pretrain, fine-tune and use language models: one recipe, one command.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # Rich costs 0.3 s of every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List, show and copy the recipes that come with llmkit.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="TABLE.KEY=VALUE", help="Settings that override the recipe's.", show_default=False),
]
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", help="The run directory.  [default: runs/NAME, NAME-2, ...]")
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="The number of training processes.  [default: one a GPU]")
]
AccelerateConfig = Annotated[
    Path | None,
    typer.Option("--accelerate-config", help="An Accelerate configuration file: FSDP, DeepSpeed, several machines."),
]
MaxTime = Annotated[
    str | None, typer.Option("--max-time", metavar="TIME", help="Train for this long, such as 90s, 30m or 1h30m.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the newest run of this name.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="With --resume: a key that may differ from the run's."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Do not contact the Hub: use its cache and local files only.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read the data, print the resolved recipe and the arithmetic; train nothing.")
]


MaybeRecipe = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.", show_default=False),
]
Task = Annotated[
    str | None, typer.Option("--task", help="Instead of a recipe: sst2, mrpc, squad_v2, text-classification, ...")
]


@app.command(cls=Command)
def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.")],
    overrides: Overrides = None,
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
        output_dir=output_dir,
        processes=processes,
        accelerate_config=accelerate_config,
        max_time=max_time,
        resume=resume,
        allow_change=allow_change,
        offline=offline,
        dry_run=dry_run,
    )


@app.command(cls=Command)
def finetune(
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Task = None,
    output_dir: OutputDir = None,
    processes: Processes = None,
    accelerate_config: AccelerateConfig = None,
    max_time: MaxTime = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, help="Repeat with this many seeds; report mean and standard deviation."),
    ] = None,
    resume: Resume = False,
    allow_change: AllowChange = None,
    offline: Offline = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model: to classify, tag, choose, answer, summarize, translate or chat."""

    _train(
        "finetune",
        recipe,
        overrides,
        task=task,
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
    output_dir: str | None,
    processes: int | None,
    accelerate_config: Path | None,
    max_time: str | None,
    resume: bool,
    allow_change: list[str] | None,
    offline: bool,
    dry_run: bool,
    task: str | None = None,
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
        loaded = _with_time_note(load(path, settings, output_dir, task, verb), max_time)
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
    if recipe is not None and "=" in recipe and not os.path.exists(recipe):  # noqa: PTH110 - long names
        settings, recipe = [recipe, *settings], None
    from llmkit.instead import ask_for_recipe, refuse_data

    refuse_data(verb, recipe, settings, task, model)
    if task is not None and recipe is not None:
        raise UserError(f"`{recipe}` and --task {task} are two recipes", "name one")
    if task is None and recipe is None and model is None:
        ask_for_recipe(verb, settings)
    return recipe, settings


def _stay_offline(wanted: bool) -> None:
    """Go offline if `wanted`; call it before the libraries are imported, which read the environment only once."""
    if wanted:
        from llmkit import hub

        hub.go_offline("is not asked (--offline)")


def _seconds(time: str | None) -> int | None:
    """Convert a time such as `1h30m` to seconds; None for None."""
    if time is None:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time)
    seconds = (
        sum(int(number or 0) * unit for number, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not seconds:
        raise UserError(f"--max-time: `{time}` is no length of time", "write it as 90s, 30m, 1h30m or 2h")
    return seconds


def _with_time_note(recipe: "Recipe", time: str | None) -> "Recipe":
    """Return the recipe with a note on the effect of `--max-time`."""
    if time is None:
        return recipe
    key = "max_steps" if recipe.trainer.get("max_steps", -1) > 0 else "num_train_epochs"
    note = (
        f"--max-time {time}: training ends so long after its first step began, evaluation and saving in between "
        f"included, the last evaluation and the saving of the model not; "
        f"trainer.{key} does not count"
    )
    return recipe.model_copy(update={"notes": (*recipe.notes, note)})


def _explain(recipe: "Recipe", processes: int | None, max_time: str | None) -> int:
    """Print the data and the arithmetic to stderr, then the resolved recipe to stdout."""
    from llmkit.dry_run import explain

    print(explain(recipe, processes, max_time).to_toml(comments=True), end="", flush=True)  # noqa: T201
    return 0


@app.command(cls=Command)
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text to continue; - reads stdin.", show_default=False),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields of GenerationConfig; assistant_model; with --chat, system_prompt.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A run, a folder or a Hub id.  [default: the newest finished run]")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt; without one, hold a conversation.")] = False,
    source: Annotated[
        Path | None, typer.Option("--input", help="A file of prompts; with --chat, of conversations.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="With --input: write to a file.  [default: JSON lines on stdout]")
    ] = None,
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option("--quantize", help="Use int8 weights, faster on a CPU; on a GPU int8 or int4, in less memory."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Draw the same samples again.")] = None,
    offline: Offline = False,
) -> None:
    """Continue a prompt, or answer it."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit.inference import generate as generation

        text, arguments = generation.separate(prompt, options or [], needed=not chat and source is None)
        if source is not None and text is not None:
            raise UserError(f"the prompt `{text}` and --input exclude one another", "put the prompt into the file")
        if source is None and output is not None:
            raise UserError("--output comes with --input", "or write stdout into a file: > FILE")
        if chat:
            from llmkit.inference import chat as chatting

            settings, system_prompt = chatting.settings(arguments)
            if source is not None:
                chatting.chat_rows(source, output, model, settings, system_prompt, seed, quantize)
                return 0
            question = generation.read_prompt(text) if text is not None else None
            return chatting.chat(question, model, settings, system_prompt, seed, quantize)
        if source is not None:
            from llmkit.inference import batch

            batch.generate_rows(source, output, model, generation.settings(arguments, one=True), seed, quantize)
        else:
            generation.generate(generation.read_prompt(text), model, generation.settings(arguments), seed, quantize)
        return 0

    _do(act)


@app.command(cls=Command)
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a folder or a Hub id.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts, one example each.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", help="A file of examples: JSON lines, CSV, TSV, Parquet, text.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write to a file, .jsonl or .csv.  [default: JSON lines on stdout]")
    ] = None,
    offline: Offline = False,
) -> None:
    """Label, tag, choose, answer, summarize, translate or fill blanks."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit.inference import predict as prediction
        from llmkit.instead import refuse_file_as_text

        refuse_file_as_text(model, texts or [])
        prediction.predict(model, texts or [], source, output)
        return 0

    _do(act)


@app.command(cls=Command)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a folder or a Hub id.")],
    recipe: MaybeRecipe = None,
    overrides: Overrides = None,
    task: Task = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Write every row to a file, .jsonl or .csv, mistakes first."),
    ] = None,
    offline: Offline = False,
) -> None:
    """Evaluate a finished model on its own validation data, or on another recipe's."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit import launch
        from llmkit.training import evaluate as evaluation

        path, settings = _recipe_and_overrides(recipe, overrides, task, "evaluate", model)
        loaded = evaluation.find_recipe(model, path, task, settings)
        launch.one_gpu()
        evaluation.evaluate(model, loaded, output)
        return 0

    _do(act)


@app.command(cls=Command)
def merge(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that trained an adapter ([lora]).")],
    output: Annotated[str, typer.Option("--output", help="A new folder for the whole model.")],
    offline: Offline = False,
) -> None:
    """Merge an adapter into its base model, and compare their outputs."""

    def act() -> int:
        _stay_offline(offline)
        from llmkit.models import merge

        merge.merge(run, output)
        return 0

    _do(act)


@app.command("data", cls=Command)
def describe_data(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder or a glob on this machine.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.KEY=VALUE", help="Settings of [data], as a run takes them.", show_default=False),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="The task to read it for.  [default: what its columns suggest]")
    ] = None,
) -> None:
    """Show what local data holds, what each column is taken for, and the command to train on it.

    Example: llmkit data reviews.csv data.text_column=review
    """

    def act() -> int:
        from llmkit.data.describe import describe

        print("\n".join(describe(path, task, overrides or [])))  # noqa: T201
        return 0

    _do(act)


@app.command(cls=Command)
def check(run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Check whether a run directory is whole, and what it can resume from."""

    def act() -> int:
        from llmkit.runs import check as checking

        return checking.check(run)

    _do(act)


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list")
def list_recipes() -> None:
    """List the bundled recipes, one a line."""
    from llmkit.recipe import bundled

    names = bundled()
    width = max(map(len, names))
    for name, path in names.items():
        first = path.read_text().partition("\n")[0].removeprefix("#").strip()
        print(f"{name:{width}}  {first}")  # noqa: T201


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
    """Copy a bundled recipe to the working directory, to change it."""

    def act() -> int:
        from llmkit.recipe import copy

        print(copy(name, to))  # noqa: T201
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
        say(str(mistake))
        code = 1 if isinstance(mistake, RunError) else 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of stdout is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise typer.Exit(process.leave(code))
