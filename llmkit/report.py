"""What a run says of itself: before the first step, at its end, and in its model card."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from llmkit import tasks
from llmkit.assemble import Assembly
from llmkit.data.text.mixture import MixedBlocks
from llmkit.errors import say
from llmkit.models.loading import ADAPTED_CONFIG
from llmkit.progress import clock
from llmkit.recipe.schema import Recipe
from llmkit.runs import directory as runs
from llmkit.trainer import batch_size

NOT_A_METRIC = ("runtime", "per_second", "preparation_time")


def introduce(
    recipe: Recipe, assembly: Assembly, facts: dict[str, Any], precision: str, args: TrainingArguments, directory: Path
) -> None:
    """What is about to happen, with the arithmetic, before step 1."""
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    say(f"run      {directory} ({recipe.task}, {facts['device']}, {processes})")
    for line in assembly.lines:
        say(f"{'' if line.startswith(' ') else 'data':8} {line}")
    kind = type(assembly.config).__name__.removesuffix("Config")
    trained = facts["trainable_parameters"]
    part_of = "" if trained == facts["parameters"] else f", {trained:,} of them trained"
    say(f"model    {kind}, {facts['parameters']:,} parameters{part_of}, {facts['precision']} ({precision})")
    batch = f"{args.train_batch_size} {assembly.unit}" + "".join(
        f" x {number} {what}"
        for number, what in ((args.gradient_accumulation_steps, "accumulated"), (args.world_size, "processes"))
        if number > 1
    )
    say(f"speed    {', '.join(fast(facts['speed']))}")
    epochs = f"{args.num_train_epochs:g} epoch{'s' if args.num_train_epochs != 1 else ''}"
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{epochs} in steps"
    if "max_time" in facts:
        length = f"{clock(facts['max_time'])} by the clock in steps"
    if assembly.length is not None:
        tokens = batch_size(args) * assembly.length
        batch += f" x {assembly.length} = {tokens:,} tokens"
    say(f"training {length} of {batch}")
    if isinstance(assembly.train, MixedBlocks) and "max_time" not in facts:
        blocks = (
            args.max_steps * batch_size(args) if args.max_steps > 0 else args.num_train_epochs * len(assembly.train)
        )
        for name, seen in assembly.train.epochs(blocks).items():
            facts["data"][name] |= {"weight": assembly.train.share(name), "epochs": round(seen, 4)}
        for number, line in enumerate(assembly.train.lines(blocks)):
            say(f"{'' if number else 'mixture':8} {line}")
    for note in assembly.notes:
        say(f"note     {note}")
    for warning in assembly.warnings:
        say(f"warning  {warning}")


def fast(switches: dict[str, Any]) -> list[str]:
    """In words what is switched on to make a run fast."""
    words = {
        "split_batches": "batches in pieces of like length",
        "skip_ignored": "logits of labels alone",
        "fused_loss": "fused loss",
        "fast_dropout": "fast dropout",
        "tf32": "TF32",
        "use_liger_kernel": "Liger kernels",
        "torch_compile": "torch.compile",
        "activation_checkpointing": "activation checkpointing",
    }
    attention = f"{switches['attn_implementation'] or 'own'} attention"
    threads = switches.get("threads")
    on_cpu = [] if threads is None else [f"{threads} thread{'s' * (threads > 1)}"]
    on_cpu += ["memory used again"] if switches.get("reuse_memory") else []
    return [attention, *(said for name, said in words.items() if switches.get(name)), *on_cpu]


def finish(recipe: Recipe, directory: Path, metrics: dict[str, float], facts: dict[str, Any], seconds: float) -> None:
    """Model card and record; only now is the run called finished."""
    if not recipe.tasks:
        write_model_card(recipe, directory, metrics, facts)
    runs.update_record(
        directory, status="finished", finished=round(time.time(), 3), seconds=round(seconds, 1), metrics=metrics
    )
    shown = [f"{key} {metrics[key]:.4f}" for key in figures(metrics) if key != "eval_bits_per_byte"]
    say(f"finished in {clock(seconds)}: {', '.join(shown)}")
    if recipe.tasks:
        say(
            f"try it: llmkit predict {directory / next(iter(recipe.tasks))} --input FILE; each task has its model there"
        )
    elif recipe.task == "causal-lm":
        say(f'try it: llmkit generate "Once upon a time" --model {directory}')
    elif recipe.task == "denoising":
        say(f'try it: llmkit predict {directory} "Then it rained. At first the sun shone."')
    elif recipe.task == "replaced-token-detection":
        say(f"go on:  llmkit finetune RECIPE model.name={directory}")
    elif recipe.task == "masked-lm":
        say(f'try it: llmkit predict {directory} "Once upon a {facts["mask_token"]} ."')
    elif recipe.task == "chat":
        say(f"try it: llmkit generate --chat --model {directory}")
    elif facts["columns"].keys() - set(tasks.module(recipe.task).TARGETS) in ({"text"}, {"source"}, {"tokens"}):
        say(f'try it: llmkit predict {directory} "What a day!"')
    else:
        say(
            f"try it: llmkit predict {directory} --input FILE, with the columns {', '.join(inputs(recipe.task, facts))}"
        )


def finish_each(recipe: Recipe, model: Any, directory: Path, metrics: dict[str, float], facts: dict[str, Any]) -> None:
    """Of several tasks: make the folder of each a finished run of its own."""
    shared = {key: value for key, value in facts.items() if key != "tasks"}
    for name, part in recipe.tasks.items():
        folder, alone, head = directory / name, part.recipe(recipe), model.heads[name]
        prefix = f"eval_{name}_"
        found = {f"eval_{key.removeprefix(prefix)}": value for key, value in metrics.items() if key.startswith(prefix)}
        own = {
            **shared,
            **facts["tasks"][name],
            "task": part.task,
            "parameters": model.encoder.num_parameters() + head.num_parameters(),
            "trainable_parameters": model.encoder.num_parameters(only_trainable=True)
            + head.num_parameters(only_trainable=True),
        }
        (folder / runs.RECIPE_FILE).write_text(alone.to_toml())
        write_model_card(alone, folder, found, own)
        done = {"status": "finished", "finished": round(time.time(), 3), "metrics": found}
        runs.write_json(folder / runs.RECORD_FILE, {**own, **done})


def inputs(task: str, facts: dict[str, Any]) -> list[str]:
    """The columns that the model reads, under the names that its data had."""
    return [name for role, name in facts["columns"].items() if role not in tasks.module(task).TARGETS]


def figures(metrics: dict[str, float]) -> list[str]:
    """The metrics worth showing: the losses and what the task measures."""
    trained = ["train_loss"] if "train_loss" in metrics else []
    return [*trained, *(k for k in metrics if k.startswith("eval_") and not k.endswith(NOT_A_METRIC))]


def write_model_card(recipe: Recipe, directory: Path, metrics: dict[str, float], facts: dict[str, Any]) -> None:
    """`README.md` in the Hub's format: what the model is, what it learned from, how well, and how to load it."""
    task = tasks.module(recipe.task)
    assert recipe.data is not None  # each of several tasks has a card of its own
    head = ["---", f"library_name: {'transformers' if recipe.lora is None else 'peft'}", "tags: [llmkit]"]
    several = getattr(recipe.data, "sources", {})
    read = {name: (source.path, facts["data"][name]) for name, source in several.items()} or {
        "": (recipe.data.path, facts["data"])
    }
    from_hub = [path for path, about in read.values() if about["revision"] is not None]
    hub_model = recipe.model.init == "pretrained" and recipe.model.name and not Path(recipe.model.name).exists()
    if hub_model:
        head.append(f"base_model: {recipe.model.name}")
    if from_hub:
        head.append(f"datasets: [{', '.join(dict.fromkeys(from_hub))}]")
    if hasattr(task, "PIPELINE"):
        head.append(f"pipeline_tag: {task.PIPELINE}")
    sources = ", ".join(
        f"`{path if about['revision'] is not None else Path(path).name}`" for path, about in read.values()
    )
    rows = [f"| {key} | {metrics[key]:.4f} |" for key in figures(metrics)]
    text = f"""# {directory.name}

A {recipe.task} model of {facts["parameters"]:,} parameters, {facts["trainable_parameters"]:,} of them trained on
{sources} with llmkit {facts["llmkit"]} in {facts["precision"]} on {facts["processes"]} process\
{"es" if facts["processes"] > 1 else ""}. `recipe.toml` is the recipe and `run.json` the record: versions, machine,
data, metrics.

| metric | value |
| --- | --- |
{chr(10).join(rows)}

```python
{_loading(recipe, directory.name, task.MODEL_CLASS.__name__)}
tokenizer = AutoTokenizer.from_pretrained("{directory.name}")
```
"""
    (directory / "README.md").write_text("\n".join([*head, "---", "", text]))


def _loading(recipe: Recipe, name: str, auto_class: str) -> str:
    if recipe.lora is None:
        return f"""from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{name}")"""
    base = recipe.model.name
    shown = Path(base).name if base and Path(base).exists() else base
    return f"""from peft import PeftModel
from transformers import AutoConfig, {auto_class}, AutoTokenizer

config = AutoConfig.from_pretrained("{name}/{ADAPTED_CONFIG}")
base = {auto_class}.from_pretrained("{shown}", config=config)
model = PeftModel.from_pretrained(base, "{name}")"""
