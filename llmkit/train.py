"""The story of one run, from a recipe to a finished run directory."""

import os
import platform
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from llmkit import adapt, report
from llmkit import model as models
from llmkit import run as runs
from llmkit.assemble import Assembly, assemble
from llmkit.clock import NO_END, Endless, MaxTime
from llmkit.errors import UserError, say
from llmkit.progress import Epochs, MetricsFile, Progress, StopOnSignal
from llmkit.recipe.schema import GENERATING, Recipe
from llmkit.tasks import multi_task
from llmkit.trainer import Trainer, batch_size

FINISHED, STOPPED = 0, 75
# Upstream lets DDP look for unused parameters at every step; our models use all of theirs. The other processes wait
# while the first prepares the data: a day, not half an hour.
FITTING_DEFAULTS = {"ddp_find_unused_parameters": False, "ddp_timeout": 86_400}
SEVERAL_TASKS = {"ddp_find_unused_parameters": True}  # a batch has one task: the other heads rest


def run(recipe: Recipe, directory: Path, resume: bool, max_time: int | None = None) -> int:
    """Train what `recipe` describes into `directory`; 0 when finished, 75 or 130 when stopped with a checkpoint.

    With `max_time` training ends so many seconds after its first step began, whatever the recipe says of its length.
    Raises UserError before the first step for whatever would have failed later.
    """
    started = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    if recipe.model.load_in_4bit:
        adapt.check_4bit()
    settings, precision = choose_precision({**(SEVERAL_TASKS if recipe.tasks else {}), **recipe.trainer})
    args = training_arguments(settings, directory)
    main = args.process_index == 0
    limit = None if max_time is None else MaxTime(max_time, args)
    with args.main_process_first(local=True):  # the others read what the first has prepared
        assembly = assemble(recipe, args.seed)
    model: Any
    if assembly.parts:
        model, made = multi_task.create(recipe.model, assembly.parts, args.seed)
    elif hasattr(assembly.task, "create"):  # a model that is made of several
        model, made = assembly.task.create(recipe.model, assembly.config, args.seed)
    else:
        model, made = models.create(
            recipe.model,
            assembly.config,
            assembly.task.MODEL_CLASS,
            args.seed,
            lora=recipe.lora,
            generation=recipe.generation if recipe.task in GENERATING else None,
            task_type=getattr(assembly.task, "PEFT_TYPE", None),
            pieces=assembly.pieces,
        )
    assembly.notes.extend(made)
    if assembly.begin is not None:
        assembly.begin(model)
    if limit is not None and isinstance(assembly.train, IterableDataset):
        assembly = replace(assembly, train=Endless(assembly.train))
    trainer, stop = build_trainer(recipe, assembly, model, args, directory, limit)
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
    if max_time is not None:
        facts["max_time"] = max_time
    if main:
        report.introduce(recipe, assembly, facts, precision, args, directory)
    checkpoint = runs.last_checkpoint(directory) if resume else None
    if resume and checkpoint is None and any(directory.glob("checkpoint-*")):  # starting anew would rotate them away
        raise UserError(
            f"no checkpoint in `{directory}` is whole: each needs {', '.join(runs.CHECKPOINT_FILES)}",
            "start a new run, from their weights if you like: model.name=.../checkpoint-N",
        )
    if resume and max_time is None and (before := runs.read_record(directory).get("max_time")):
        raise UserError(f"`{directory}` is a run by the clock", f"say so again: --max-time {before}s")
    if limit is not None:
        args.max_steps = NO_END
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
        runs.update_record(directory, steps=trainer.state.global_step)
        if recipe.lora is not None and recipe.task in GENERATING:
            model.generation_config.save_pretrained(directory)  # peft saves the adapter alone
        if not any((directory / name).is_file() for name in runs.WEIGHTS):
            raise RuntimeError(f"no weights were written to {directory}: FSDP needs a full state dict to end with")
        if assembly.length is not None:
            tokens = batch_size(args) * assembly.length
            metrics["train_tokens_per_second"] = round(tokens * result.metrics["train_steps_per_second"], 1)
        metrics["peak_memory_bytes"] = peak_memory()
        if recipe.tasks:
            report.finish_each(recipe, model, directory, metrics, facts)
        report.finish(recipe, directory, metrics, facts, time.monotonic() - started)
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


def build_trainer(
    recipe: Recipe,
    assembly: Assembly,
    model: Any,
    args: TrainingArguments,
    directory: Path,
    limit: MaxTime | None = None,
) -> tuple[Trainer, StopOnSignal]:
    """The Trainer with our few callbacks in place of upstream's printing ones."""
    strategies = (
        ("random", "sequential") if assembly.length is not None else ("random", "sequential", "group_by_length")
    )
    if args.train_sampling_strategy not in strategies:
        why = "blocks are all of one length" if assembly.length is not None else "it has no seed upstream"
        raise UserError(f"trainer.train_sampling_strategy: {why}; there are {', '.join(strategies)}")
    if not assembly.validation and args.eval_strategy != "no":
        raise UserError(
            "trainer.eval_strategy asks for evaluation, and there is no validation data", "see data.validation_fraction"
        )
    stop = StopOnSignal()
    callbacks: list[Any] = [Epochs(), stop, *([] if limit is None else [limit])]
    if recipe.early_stopping is not None:
        if recipe.tasks and (args.metric_for_best_model or "loss") in ("loss", "eval_loss"):
            names = ", ".join(f"eval_{name}_loss" for name in recipe.tasks)
            raise UserError(
                "early_stopping looks at one task: which?", f"trainer.metric_for_best_model, such as {names}"
            )
        callbacks.append(EarlyStoppingCallback(**recipe.early_stopping.model_dump()))
    if args.process_index == 0:
        shown = (assembly.length, "tokens") if assembly.length is not None else (1, assembly.unit)
        callbacks += [MetricsFile(directory), Progress(batch_size(args) * shown[0], shown[1], limit)]
    return make_trainer(assembly, model, args, callbacks), stop


def make_trainer(assembly: Assembly, model: Any, args: TrainingArguments, callbacks: list[Any]) -> Trainer:
    """The Trainer over the assembly's data."""
    try:
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=assembly.train,
            losses=assembly.losses,
            keep=assembly.keep,
            validation=assembly.validation,
            metrics=assembly.metrics,
            several=assembly.several,
            eval_dataset=next(iter(assembly.validation.values()), None),
            data_collator=assembly.collate,
            processing_class=assembly.tokenizer,
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError, ImportError) as problem:  # a tracker that is not installed, upstream's own checks
        raise UserError(f"[trainer]: {' '.join(str(problem).split())}") from problem
    trainer.remove_callback(PrinterCallback)
    return trainer


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
    step, found = trainer.evaluated
    as_they_were = step == trainer.state.global_step and not trainer.args.load_best_model_at_end
    return found if as_they_were else trainer.evaluate()


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
