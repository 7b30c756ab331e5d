"""What a run says of itself: before the first step, at its end, and in its model card."""

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from llmkit import tasks, terminal
from llmkit.data.display import cut
from llmkit.data.text.mixture import MixedBlocks
from llmkit.errors import in_bytes, quantity, say
from llmkit.plan import closed_form
from llmkit.recipe.schema import Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.runs import checkpoint
from llmkit.runs import directory as runs
from llmkit.training import trivial
from llmkit.training.arguments import total_batch_size
from llmkit.training.assembly import Assembly
from llmkit.training.model_card import figures, said, write_model_card
from llmkit.training.progress import clock

SPARKLINE = 40  # columns, at most
DAY = '"What a day!"'


def planned(recipe: Recipe, assembly: Assembly, args: TrainingArguments) -> closed_form.Needs | None:
    """Calculate what the training takes, by its own longest rows; None for an architecture without a formula."""
    lengths = getattr(assembly.train, "lengths", None)
    longest = None if lengths is None or not len(lengths) else int(lengths.max())
    divided = {key: True for key in ("fsdp", "deepspeed") if os.environ.get(f"ACCELERATE_USE_{key.upper()}") == "true"}
    settings = {**recipe.trainer, **_as_it_is(args), **divided}
    return closed_form.of_config(recipe, assembly.config.to_dict(), settings, args.world_size, longest)


def introduce(
    recipe: Recipe,
    assembly: Assembly,
    facts: dict[str, Any],
    needs: closed_form.Needs | None,
    precision: str,
    args: TrainingArguments,
    directory: Path,
) -> None:
    """Say what is about to happen, with the arithmetic, before step 1."""
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    say(f"run      {directory} ({recipe.task}, {facts['device']}, {processes})")
    for line in assembly.lines:
        say(f"{'' if line.startswith(' ') else 'data':8} {line}")
    kind = type(assembly.config).__name__.removesuffix("Config")
    trained = facts["trainable_parameters"]
    part_of = "" if trained == facts["parameters"] else f", {trained:,} of them trained"
    say(f"model    {kind}, {facts['parameters']:,} parameters{part_of}, {facts['precision']} ({precision})")
    batch = quantity(args.train_batch_size, assembly.unit.removesuffix("s")) + "".join(
        f" x {number} {what}"
        for number, what in ((args.gradient_accumulation_steps, "accumulated"), (args.world_size, "processes"))
        if number > 1
    )
    say(f"speed    {', '.join(fast(facts['speed']))}")
    epochs = f"{args.num_train_epochs:g} epoch{'s' if args.num_train_epochs != 1 else ''}"
    length = quantity(args.max_steps, "step") if args.max_steps > 0 else f"{epochs} in steps"
    if "max_time" in facts:
        length = f"{clock(facts['max_time'])} by the clock in steps"
    if assembly.length is not None:
        tokens = total_batch_size(args) * assembly.length
        batch += f" x {assembly.length} = {tokens:,} tokens"
    say(f"training {length} of {batch}")
    if needs is not None:
        for name, text in closed_form.lines(needs, args.max_steps if args.max_steps > 0 else None):
            say(f"{name:8} {text}")
    elif not (recipe.model.load_in_4bit or args.fsdp or args.deepspeed):  # there it is divided otherwise
        parts = closed_form.held(facts["parameters"], trained, _as_it_is(args)["optim"], recipe.optimizer)
        listed = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items())
        say(f"memory   {in_bytes(sum(parts.values()))} and what a batch takes: {listed}")
    if isinstance(assembly.train, MixedBlocks) and "max_time" not in facts:
        blocks = args.num_train_epochs * len(assembly.train)
        if args.max_steps > 0:
            blocks = args.max_steps * total_batch_size(args)
        for name, seen in assembly.train.epochs(blocks).items():
            facts["data"][name] |= {"weight": assembly.train.share(name), "epochs": round(seen, 4)}
        for number, line in enumerate(assembly.train.lines(blocks)):
            say(f"{'' if number else 'mixture':8} {line}")
    for note in assembly.notes:
        say(f"note     {note}")
    for warning in assembly.warnings:
        say(f"warning  {warning}")


def _as_it_is(args: TrainingArguments) -> dict[str, Any]:
    """Return what of [trainer] decides what memory is taken, as it has become."""
    keys = ("gradient_accumulation_steps", "bf16", "fp16", "activation_checkpointing", "fsdp", "deepspeed")
    optimizer = str(getattr(args.optim, "value", args.optim))
    return {
        **{key: getattr(args, key) for key in keys},
        "per_device_train_batch_size": args.train_batch_size,
        "optim": optimizer,
    }


def fast(switches: dict[str, Any]) -> list[str]:
    """Say in words what makes a run fast, as far as the user chooses it; `run.json` has the rest."""
    words = {
        "tf32": "TF32",
        "use_liger_kernel": "Liger kernels",
        "torch_compile": "torch.compile",
        "activation_checkpointing": "activation checkpointing",
    }
    attention = f"{switches['attn_implementation'] or 'own'} attention"
    threads = switches.get("threads")
    on_cpu = [] if threads is None else [f"{threads} thread{'s' * (threads > 1)}"]
    return [attention, *(said for name, said in words.items() if switches.get(name)), *on_cpu]


def last_loss(log: list[dict[str, float]]) -> tuple[float, int]:
    """Return the mean loss of the last tenth of the steps, at least, and how many they are; 0 where none was logged."""
    logged = [entry for entry in log if "loss" in entry and math.isfinite(entry["loss"])]
    steps = [int(entry["step"]) for entry in logged]
    total, covered = 0.0, 0
    for entry, before in zip(reversed(logged), [*reversed(steps[:-1]), 0], strict=False):
        if covered and covered >= steps[-1] / 10:
            break
        total += entry["loss"] * (entry["step"] - before)
        covered += int(entry["step"]) - before
    return (total / covered if covered else 0.0), covered


def best(state: TrainerState, args: TrainingArguments) -> dict[str, Any]:
    """Return which step was best, by which metric, and whether its weights are those of the finished model."""
    name = args.metric_for_best_model or "loss"
    metric = name if name.startswith("eval_") else f"eval_{name}"
    found = {"step": state.best_global_step, "metric": metric, "value": state.best_metric}
    return {**found, "kept": args.load_best_model_at_end}


def finish(
    recipe: Recipe,
    directory: Path,
    metrics: dict[str, float],
    facts: dict[str, Any],
    seconds: float,
    verdicts: Sequence[tuple[bool, str]],
    hint: str,
    losses: Sequence[float],
    example: str = "",
) -> None:
    """Model card and record; only now is the run called finished.

    `verdicts` are (whether it is a warning, what to say) of the result; `hint`, where there is one, is what to try;
    `losses` are those that were logged in training; `example` is a text to try the model with.
    """
    if not recipe.tasks:
        write_model_card(recipe, directory, metrics, facts)
    judged = {"best": facts["best"]} if "best" in facts else {}
    runs.update_record(
        directory,
        "longer",
        status="finished",
        finished=runs.now(),
        order_finished=runs.next_in_order(directory),
        seconds=round(seconds, 1),
        metrics=metrics,
        trivial=facts["trivial"],
        **judged,
    )
    shown = [
        said(key, metrics, facts) + trivial.beside(key, metrics[key], facts["trivial"]).removeprefix(key)
        for key in figures(metrics)
        if key != "eval_bits_per_byte"
    ]
    whole, width = f"finished in {clock(seconds)}: {', '.join(shown)}", terminal.columns(sys.stderr) or terminal.USUAL
    if len(whole) <= width:
        say(whole)
    else:
        say(f"finished in {clock(seconds)}: {shown[0]}", *(f"         {figure}" for figure in shown[1:]))
    if len(losses) > 1 and terminal.draws(sys.stderr):
        drawn = terminal.sparkline(losses, max(8, min(SPARKLINE, width - 36)))
        say(f"loss     {drawn}  from {losses[0]:.4f} to {losses[-1]:.4f}")
    for warns, line in verdicts:
        say(f"{'warning' if warns else 'note':8} {line}")
    if any(warns for warns, _ in verdicts):
        say(f"hint     {hint}")
    say(f"{directory}: {on_disk(directory)}")
    if found := facts.get("best"):
        kept = "its weights are kept" if found["kept"] else "the last weights are kept"
        say(f"best     step {found['step']:,}, by {found['metric']} {found['value']:.4f}; {kept}")
    if recipe.tasks:
        say(
            f"try it: llmkit predict {directory / next(iter(recipe.tasks))} --input FILE; each task has its model there"
        )
        return
    try_it = TASKS[recipe.task].try_it
    columns = inputs(recipe.task, facts) if "columns" in facts else {}
    if try_it is not None:
        say(try_it.format(directory=directory, mask_token=facts.get("mask_token")))
    elif columns.keys() in ({"text"}, {"source"}, {"tokens"}):
        command = f"llmkit predict {directory} "
        room = max(20, min(50, width - terminal.HANG - len(command) - 2))  # so that it fits into a line
        say(f"try it: {command}{shlex.quote(cut(example, room)) if example else DAY}")
    else:
        say(f"try it: llmkit predict {directory} --input FILE, with the columns {', '.join(columns.values())}")


def on_disk(directory: Path) -> str:
    """Say how large a run is, and how much of it is in checkpoints."""
    whole = _size_of([directory])
    folders = checkpoint.folders(directory)
    if not folders:
        return whole
    return f"{whole}, {_size_of(folders)} of it in {len(folders)} checkpoint{'s' * (len(folders) > 1)}"


def _size_of(folders: list[Path]) -> str:
    return in_bytes(sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()))


def finish_each(
    recipe: Recipe,
    model: Any,
    directory: Path,
    metrics: dict[str, float],
    facts: dict[str, Any],
    learned: Mapping[str, Any],
) -> None:
    """Of several tasks: make the folder of each a finished run of its own."""
    shared = {key: value for key, value in facts.items() if key != "tasks"}
    for name, part in recipe.tasks.items():
        folder, alone, head = directory / name, part.recipe(recipe), model.heads[name]
        prefix = f"eval_{name}_"
        own_metrics = {
            f"eval_{key.removeprefix(prefix)}": value for key, value in metrics.items() if key.startswith(prefix)
        }
        own = {
            **shared,
            **facts["tasks"][name],
            "task": part.task,
            "trivial": {**_of_one(facts["trivial"], name), "learned": learned[name]},
            "parameters": model.encoder.num_parameters() + head.num_parameters(),
            "trainable_parameters": model.encoder.num_parameters(only_trainable=True)
            + head.num_parameters(only_trainable=True),
        }
        (folder / runs.RECIPE_FILE).write_text(alone.to_toml())
        write_model_card(alone, folder, own_metrics, own)
        done = {"status": "finished", "finished": runs.now(), "metrics": own_metrics}
        runs.write_json(folder / runs.RECORD_FILE, {**own, **done})


def _of_one(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What is said of one of several tasks, as if it were alone."""
    prefix = f"eval_{name}"
    return {
        key: {
            "eval" + each.removeprefix(prefix): value
            for each, value in table.items()
            if each == prefix or each.startswith(f"{prefix}_")
        }
        for key, table in about.items()
    }


def inputs(task: str, facts: dict[str, Any]) -> dict[str, str]:
    """Return the columns that the model reads, by role, under the names that its data had."""
    return {
        role: name for role, name in facts["columns"].items() if role not in tasks.row_task(task).reader.LABEL_ROLES
    }
