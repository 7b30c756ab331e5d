"""The story of one run, from a recipe to a finished run directory."""

import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from llmkit import model as models
from llmkit import run as runs
from llmkit import tasks, tokenizer
from llmkit.data import pack, read
from llmkit.errors import UserError, say
from llmkit.progress import Epochs, MetricsFile, Progress, StopOnSignal, clock
from llmkit.recipe.schema import Recipe
from llmkit.trainer import Trainer, token_metrics

FINISHED, STOPPED = 0, 75
# Upstream lets DDP look for unused parameters at every step; our models use all of theirs. The other processes wait
# while the first prepares the data: a day, not half an hour.
FITTING_DEFAULTS = {"ddp_find_unused_parameters": False, "ddp_timeout": 86_400}
STREAMED_VALIDATION = 512  # blocks held in memory for validation where data is streamed and no limit is set


@dataclass(frozen=True)
class Assembly:
    """What a recipe becomes before there is a model: all that every process must agree on."""

    task: ModuleType
    config: Any
    tokenizer: Any
    block_size: int
    train: Dataset[pack.Window]
    validation: pack.Blocks | None
    notes: list[str]
    record: dict[str, Any]


def run(recipe: Recipe, directory: Path, resume: bool) -> int:
    """Train what `recipe` describes into `directory`; 0 when finished, 75 or 130 when stopped with a checkpoint.

    Raises UserError before the first step for whatever would have failed later.
    """
    started = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    settings, precision = choose_precision(dict(recipe.trainer))
    args = training_arguments(settings, directory)
    main = args.process_index == 0
    with args.main_process_first(local=True):  # the others read what the first has prepared
        assembly = assemble(recipe, args.seed)
    model = models.create(
        recipe.model,
        assembly.config,
        assembly.task.MODEL_CLASS,
        args.seed,
        recipe.lora,
        recipe.generation if recipe.task == "causal-lm" else None,
    )
    trainer, stop = build_trainer(recipe, assembly, model, args, directory)
    facts = {
        "task": recipe.task,
        "name": recipe.name,
        **runs.surroundings(),
        "processes": args.world_size,
        "device": str(args.device),
        "precision": args.mixed_precision if args.mixed_precision != "no" else "fp32",
        "parameters": model.num_parameters(),
        "trainable_parameters": model.num_parameters(only_trainable=True),
        **assembly.record,
    }
    if main:
        introduce(recipe, assembly, facts, precision, args, directory)
    checkpoint = runs.last_checkpoint(directory) if resume else None
    if resume and checkpoint is None and any(directory.glob("checkpoint-*")):  # starting anew would rotate them away
        raise UserError(
            f"no checkpoint in `{directory}` is whole: each needs {', '.join(runs.CHECKPOINT_FILES)}",
            "start a new run, from their weights if you like: model.name=.../checkpoint-N",
        )
    preflight(trainer)
    runs.collect_from_here()
    if main:
        again = recipe.model_copy(update={"output_dir": None})  # so that it can be run again
        (directory / runs.RECIPE_FILE).write_text(again.to_toml(comments=True))
        earlier = runs.read_record(directory)
        facts["started"] = earlier.get("started", facts["started"])
        runs.update_record(directory, **facts, status="running")
        if resume:
            say(f"going on from {checkpoint}" if checkpoint else "no checkpoint to go on from: starting anew")
    set_seed(args.seed)
    try:
        with stop.watching():
            result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Exception:
        if main:
            runs.update_record(directory, status="failed")
        raise
    if stop.stopped:
        if main:
            runs.update_record(directory, status="stopped", seconds=round(time.monotonic() - started, 1))
            say(f"stopped at step {trainer.state.global_step}; the same command with --resume goes on from there")
        return 130 if stop.signal == signal.SIGINT else STOPPED
    metrics = {**result.metrics, **final_evaluation(trainer)}
    trainer.save_model(str(directory))
    if main:
        if recipe.lora is not None and recipe.task == "causal-lm":
            model.generation_config.save_pretrained(directory)  # peft saves the adapter alone
        if not any((directory / name).is_file() for name in runs.WEIGHTS):
            raise RuntimeError(f"no weights were written to {directory}: FSDP needs a full state dict to end with")
        metrics["train_tokens_per_second"] = round(
            tokens_per_step(args, assembly.block_size) * result.metrics["train_steps_per_second"], 1
        )
        metrics["peak_memory_bytes"] = peak_memory()
        finish(recipe, directory, metrics, facts, time.monotonic() - started)
    return FINISHED


def choose_precision(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """bf16 where the hardware is fast at it and nobody says otherwise, else fp32; and why, in words.

    The recipe comes first, then the user's Accelerate file, which the launcher hands on in the environment.
    """
    gpu = torch.cuda.is_available() and not settings.get("use_cpu")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched in ("bf16", "fp16") and not {"bf16", "fp16"} & settings.keys():
        settings = {**settings, launched: True}
    if "bf16" in settings or "fp16" in settings:
        if gpu or not (settings.get("bf16") or settings.get("fp16")):
            return settings, "as asked"
        if settings.get("bf16") and has_fast_bf16():
            return {**settings, "use_cpu": True}, "bf16 on this CPU, as asked"
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        return {
            **settings,
            "bf16": False,
            "fp16": False,
        }, "half precision was asked for; this hardware is not fast at it"
    if gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return {**settings, "bf16": True}, "this GPU is fast at bf16"
    if gpu:
        return settings, "this GPU has no bf16"
    fast = "this CPU is fast at bf16 too: trainer.bf16 = true" if has_fast_bf16() else "this CPU has no fast bf16"
    return settings, fast


def has_fast_bf16() -> bool:
    """The CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); without, it is hundreds of times slower than fp32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def training_arguments(settings: dict[str, Any], directory: Path) -> TrainingArguments:
    """`[trainer]` as upstream's class, which also joins the other processes; refuses what would go wrong silently."""
    strategy = settings.get("train_sampling_strategy", "random")
    if strategy not in ("random", "sequential"):
        raise UserError(
            f"trainer.train_sampling_strategy: blocks are all of one length, `{strategy}` has nothing to group"
        )
    try:
        args = TrainingArguments(
            **{**FITTING_DEFAULTS, "dataloader_pin_memory": torch.accelerator.is_available(), **settings},
            output_dir=str(directory),
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            label_names=["labels"],
        )
        _ = args.device  # joins the other processes
    except (TypeError, ValueError, ImportError) as problem:
        raise UserError(f"[trainer]: {' '.join(str(problem).split())}") from problem
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != expected:
        raise RuntimeError(
            f"the launcher started {expected} processes and this one sees {args.world_size}: they would overwrite one "
            "another (on a CPU, ACCELERATE_USE_CPU=true must be set; llmkit's own --processes does)"
        )
    if args.n_gpu > 1:
        raise RuntimeError(
            f"{args.n_gpu} GPUs in one process would run as nn.DataParallel: use --processes {args.n_gpu}"
        )
    return args


def assemble(recipe: Recipe, seed: int) -> Assembly:
    """Architecture, tokenizer and blocks of tokens; raises UserError where their sizes do not agree."""
    task = tasks.module(recipe.task)
    data = recipe.data
    config, notes = models.load_config(recipe.model)
    block_size = models.choose_block_size(data.block_size, config)
    corpus = read.corpus(data, seed)
    words = tokenizer.load(recipe.tokenizer, recipe.model, recipe.task, corpus.train, models.positions(config))
    own = recipe.tokenizer.type is not None or recipe.tokenizer.name is not None or recipe.model.name is None
    models.fit_to_tokenizer(config, recipe.model, words, own)
    separator = task.separator(words)
    length, stride = task.window(block_size)
    if stride < 1:
        raise UserError(f"data.block_size = {block_size} leaves no room for text")
    record: dict[str, Any] = {"block_size": block_size, "data": {"fingerprint": corpus.train.fingerprint}}
    train: Dataset[pack.Window]
    if data.streaming:
        train = pack.StreamedBlocks(corpus.train, words, separator, length, stride, data.max_train_samples)
        if next(iter(train), None) is None:
            raise UserError(f"{corpus.train.source}: too little text for one block of {block_size} tokens")
    else:
        train = blocks(corpus.train, words, separator, length, stride, data.max_train_samples, record, "train")
    validation = None
    if corpus.validation is not None:
        if data.streaming:
            held_out = data.max_eval_samples or STREAMED_VALIDATION
            stream = pack.StreamedBlocks(corpus.validation, words, separator, length, stride, held_out)
            row = pack.materialize(stream, held_out)
            validation = pack.Blocks(row, length, stride, held_out, evaluation=True)
            if not len(validation):
                raise UserError(f"{corpus.validation.source}: too little validation text for one block")
        else:
            validation = blocks(
                corpus.validation, words, separator, length, stride, data.max_eval_samples, record, "validation"
            )
    record["data"]["revision"] = corpus.revision
    return Assembly(task, config, words, block_size, train, validation, [*recipe.notes, *corpus.notes, *notes], record)


def blocks(
    documents: read.Documents,
    words: Any,
    separator: list[int],
    length: int,
    stride: int,
    limit: int | None,
    record: dict[str, Any],
    part: str,
) -> pack.Blocks:
    """Tokenize one part of the data and cut it; raises UserError where that gives no block."""
    row = pack.tokenize(documents, words, separator)
    cut = pack.Blocks(row, length, stride, limit, evaluation=part == "validation")
    if not row.num_documents:
        raise UserError(f"{documents.source}: no text in the {part} data", "an empty file, or a fraction too small?")
    if not len(cut):
        raise UserError(
            f"{documents.source}: the {part} data has {len(row.ids):,} tokens, less than one block of {length}",
            "more text or a smaller data.block_size"
            + (' (a single document: data.validation_from = "end")' if part == "validation" else ""),
        )
    record["data"][part] = {
        "documents": row.num_documents,
        "bytes": row.num_bytes,
        "tokens": len(row.ids),
        "blocks": len(cut),
        "tail": cut.tail,
    }
    return cut


def build_trainer(
    recipe: Recipe, assembly: Assembly, model: Any, args: TrainingArguments, directory: Path
) -> tuple[Trainer, StopOnSignal]:
    """The Trainer with our few callbacks in place of upstream's printing ones."""
    if assembly.validation is None and args.eval_strategy != "no":
        raise UserError(
            "trainer.eval_strategy asks for evaluation, and there is no validation data", "see data.validation_fraction"
        )
    stop = StopOnSignal()
    callbacks: list[Any] = [Epochs(), stop]
    if recipe.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(**recipe.early_stopping.model_dump()))
    if args.process_index == 0:
        callbacks += [MetricsFile(directory), Progress(tokens_per_step(args, assembly.block_size))]
    row = assembly.validation.row if assembly.validation is not None else None
    try:
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=assembly.train,
            eval_dataset=assembly.validation,
            data_collator=assembly.task.collator(
                recipe.data, assembly.tokenizer, args.seed if args.data_seed is None else args.data_seed
            ),
            processing_class=assembly.tokenizer,
            compute_metrics=token_metrics(lambda sums: assembly.task.metrics(sums, row)) if row is not None else None,
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError, ImportError) as problem:  # a tracker that is not installed, upstream's own checks
        raise UserError(f"[trainer]: {' '.join(str(problem).split())}") from problem
    trainer.remove_callback(PrinterCallback)
    return trainer, stop


def preflight(trainer: Trainer) -> None:
    """Two evaluation batches before step 1: a night's training does not end at its first evaluation.

    Not under FSDP and DeepSpeed, which place the model only when training begins.
    """
    if not trainer.place_model_on_device:
        return
    loader = trainer.get_train_dataloader() if trainer.eval_dataset is None else trainer.get_eval_dataloader()
    trainer.model.eval()
    for _, inputs in zip(range(2), loader, strict=False):
        _, sums, _ = trainer.prediction_step(trainer.model, inputs, prediction_loss_only=False)
        if not bool(torch.isfinite(sums).all()):
            raise UserError("the loss of the untrained model is not finite", "check model.config and the precision")


def final_evaluation(trainer: Trainer) -> dict[str, float]:
    """The last metrics on the validation data, computed now unless the last step was just evaluated."""
    if trainer.eval_dataset is None:
        return {}
    if not trainer.args.load_best_model_at_end:
        for entry in reversed(trainer.state.log_history):
            if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
                return {key: value for key, value in entry.items() if key.startswith("eval_")}
    return dict(trainer.evaluate())


def tokens_per_step(args: TrainingArguments, block_size: int) -> int:
    """Tokens that one optimizer step learns from, over all processes and accumulated micro-batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * block_size


def introduce(
    recipe: Recipe, assembly: Assembly, facts: dict[str, Any], precision: str, args: TrainingArguments, directory: Path
) -> None:
    """What is about to happen, with the arithmetic, before step 1."""
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    say(f"run      {directory} ({recipe.task}, {facts['device']}, {processes})")
    for part in ("train", "validation"):
        if part in facts["data"]:
            d = facts["data"][part]
            say(
                f"data     {part}: {d['documents']:,} documents, {d['tokens']:,} tokens, {d['blocks']:,} blocks of "
                f"{assembly.block_size}, a tail of {d['tail']} tokens left out"
            )
    kind = type(assembly.config).__name__.removesuffix("Config")
    trained = facts["trainable_parameters"]
    part_of = "" if trained == facts["parameters"] else f", {trained:,} of them trained"
    say(f"model    {kind}, {facts['parameters']:,} parameters{part_of}, {facts['precision']} ({precision})")
    batch = f"{args.train_batch_size} blocks" + "".join(
        f" x {number} {what}"
        for number, what in ((args.gradient_accumulation_steps, "accumulated"), (args.world_size, "processes"))
        if number > 1
    )
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    tokens = tokens_per_step(args, assembly.block_size)
    say(f"training {length} of {batch} x {assembly.block_size} = {tokens:,} tokens")
    for note in assembly.notes:
        say(f"note     {note}")


def finish(recipe: Recipe, directory: Path, metrics: dict[str, float], facts: dict[str, Any], seconds: float) -> None:
    """Model card and record; only now is the run called finished."""
    write_model_card(recipe, directory, metrics, facts)
    runs.update_record(
        directory, status="finished", finished=round(time.time(), 3), seconds=round(seconds, 1), metrics=metrics
    )
    shown = [f"{key} {metrics[key]:.4f}" for key in ("train_loss", "eval_loss", "eval_perplexity") if key in metrics]
    say(f"finished in {clock(seconds)}: {', '.join(shown)}")
    if recipe.task == "causal-lm":
        say(f'try it: llmkit generate "Once upon a time" --model {directory}')


def write_model_card(recipe: Recipe, directory: Path, metrics: dict[str, float], facts: dict[str, Any]) -> None:
    """`README.md` in the Hub's format: what the model is, what it learned from, how well, and how to load it."""
    head = ["---", "library_name: transformers", "tags: [llmkit]"]
    hub_data = facts["data"]["revision"] is not None
    if recipe.model.init == "pretrained" and recipe.model.name and not Path(recipe.model.name).exists():
        head.append(f"base_model: {recipe.model.name}")
    if hub_data:
        head.append(f"datasets: [{recipe.data.path}]")
    auto_class = tasks.module(recipe.task).MODEL_CLASS.__name__
    source = recipe.data.path if hub_data else Path(recipe.data.path).name
    rows = [f"| {key} | {value:.4f} |" for key, value in metrics.items() if key in METRICS_ON_CARD]
    text = f"""# {directory.name}

A {recipe.task} model of {facts["parameters"]:,} parameters, trained on `{source}` with llmkit {facts["llmkit"]} in
{facts["precision"]} on {facts["processes"]} process{"es" if facts["processes"] > 1 else ""}. `recipe.toml` is the
recipe and `run.json` the record: versions, machine, data, metrics.

| metric | value |
| --- | --- |
{chr(10).join(rows)}

```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{directory.name}")
tokenizer = AutoTokenizer.from_pretrained("{directory.name}")
```
"""
    (directory / "README.md").write_text("\n".join([*head, "---", "", text]))


METRICS_ON_CARD = ("train_loss", "eval_loss", "eval_perplexity", "eval_bits_per_byte")


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
