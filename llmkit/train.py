"""The story of one run, from a recipe to a finished run directory."""

import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import is_liger_kernel_available, is_torch_tf32_available

from llmkit import hub, memory, process, report
from llmkit.assemble import Assembly, assemble
from llmkit.clock import NO_END, MaxTime
from llmkit.errors import RunError, UserError, say
from llmkit.models import tokenizer, trainable
from llmkit.models.weights import create_model
from llmkit.process import STOPPED
from llmkit.progress import MetricsFile, Progress
from llmkit.recipe.schema import GENERATING, Recipe, Speed
from llmkit.resuming import NO_ROOM, StoppedInEvaluation
from llmkit.runs import checkpoint, compatibility, environment
from llmkit.runs import directory as runs
from llmkit.speed import cpu
from llmkit.stopping import StopOnSignal
from llmkit.tasks import multi_task
from llmkit.trainer import Trainer, batch_size

FINISHED = 0
EXPORT = ".draft-model"
LEAVE_FIRST = 5.0  # seconds: the launcher ends all others when one ends, and who is to blame should be first
LOST = re.compile(r"Connection (closed|reset) by peer|Timed out waiting|gloo/transport|Broken pipe")  # as gloo says it
UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")  # of a model's config
# Upstream lets DDP look for unused parameters at every step; our models use all of theirs.
FITTING_DEFAULTS = {"ddp_find_unused_parameters": False}
SEVERAL_TASKS = {"ddp_find_unused_parameters": True}  # a batch has one task: the other heads rest


def run(recipe: Recipe, directory: Path, resume: bool, max_time: int | None = None, allowed: Sequence[str] = ()) -> int:
    """Train what `recipe` describes into `directory`; 0 when finished, 75 or 130 when stopped with a checkpoint.

    With `max_time` training ends so many seconds after its first step began, whatever the recipe says of its length.
    `allowed` are keys in which the recipe may differ from the one that a run to go on with was begun with. Raises
    UserError before the first step for whatever would have failed later.
    """
    started = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    if recipe.model.load_in_4bit:
        trainable.check_4bit()
    settings, precision = choose_precision({**(SEVERAL_TASKS if recipe.tasks else {}), **recipe.trainer})
    args = training_arguments(settings, directory)
    on_cpu = use_cpu(args, recipe.speed)
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
        model, made = create_model(
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
    record = runs.read_record(directory)
    trainer, stop = build_trainer(recipe, assembly, model, args, directory, limit, record.get("id", ""))
    while not memory.fits(trainer):
        memory.shrink(args)
        trainer, stop = build_trainer(recipe, assembly, model, args, directory, limit, record.get("id", ""))
    facts = {
        "task": recipe.task,
        "name": recipe.name,
        **environment.surroundings(),
        "processes": args.world_size,
        "device": str(args.device),
        "precision": args.mixed_precision if args.mixed_precision != "no" else "fp32",
        "parameters": model.num_parameters(),
        "trainable_parameters": model.num_parameters(only_trainable=True),
        "speed": {**switches(trainer), **on_cpu},
        "revisions": hub.commits(),
        **assembly.record,
    }
    if max_time is not None:
        facts["max_time"] = max_time
    if main:
        report.introduce(recipe, assembly, facts, precision, args, directory)
    found = find_checkpoint(directory, record.get("id", "")) if resume else None
    if resume and max_time is None and (before := record.get("max_time")):
        raise UserError(f"`{directory}` is a run by the clock", f"say so again: --max-time {before}s")
    changed: list[str] = []
    if found is not None:
        other = list(compatibility.differences(found.manifest["fingerprints"], trainer.fingerprints))
        compatibility.refuse(other, allowed, directory)
        changed = [key for key, *_ in other]
        if "trainer.optim" in changed:
            raise UserError("another optimizer cannot go on from the state of this one", "keep trainer.optim")
    if limit is not None:
        args.max_steps = NO_END
    preflight(trainer)
    process.collect_from_here()
    if main:
        checkpoint.sweep(directory)
        runs.sweep(directory)
        MetricsFile.cut(directory, found.manifest["metrics_bytes"] if found else 0)
        again = recipe.model_copy(update={"output_dir": None})  # so that it can be run again
        runs.write_text(directory / runs.RECIPE_FILE, again.to_toml(comments=True))
        facts["started"] = record.get("started", facts["started"])
        runs.update_record(directory, **facts, status="running", problem=None)
        if resume:
            say(f"going on from {found.path}" if found else "no checkpoint to go on from: starting anew")
    set_seed(args.seed)
    with stop.watching():
        try:
            place = trainer.go_on_from(found, new_schedule=any(key.startswith("trainer.") for key in changed))
            result = trainer.train(resume_from_checkpoint=place)
            metrics = {} if stop.stopped else {**result.metrics, **final_evaluation(trainer)}
        except StoppedInEvaluation:
            if trainer.saved_at != trainer.state.global_step:
                trainer._save_checkpoint(trainer.model_wrapped, None)
        except Exception as problem:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again for a worker that died
            saved = not isinstance(problem, UserError) and trainer.save_after_failure()
            if saved and stop.received:  # the signal that ended the data workers, too
                stop.signal = stop.received
                return stopped(trainer, stop, directory, time.monotonic() - started)
            with suppress(OSError):
                said = hub.scrub(f"{type(problem).__name__}: {problem}")
                if main:
                    runs.update_record(directory, status="failed", problem=said)
            if saved:
                say(f"what was learned is in checkpoint-{trainer.saved_at}: --resume goes on from there")
            if known := known_failure(problem):
                raise known from problem
            raise
        if stop.stopped:
            return stopped(trainer, stop, directory, time.monotonic() - started)
        written = export(trainer, directory)
    if main:
        runs.update_record(directory, steps=trainer.state.global_step, files=written)
        if recipe.lora is not None and recipe.task in GENERATING:
            model.generation_config.save_pretrained(directory)  # peft saves the adapter alone
        if not any((directory / name).is_file() for name in runs.WEIGHTS):
            raise RuntimeError(f"no weights were written to {directory}: FSDP needs a full state dict to end with")
        if assembly.length is not None:
            tokens = batch_size(args) * assembly.length
            metrics["train_tokens_per_second"] = round(tokens * result.metrics["train_steps_per_second"], 1)
        metrics["peak_memory_bytes"] = peak_memory()
        metrics["saving_seconds"] = round(trainer.saving_seconds, 3)
        if trainer.skipped_steps:
            metrics["skipped_steps"] = trainer.skipped_steps
        if recipe.tasks:
            report.finish_each(recipe, model, directory, metrics, facts)
        report.finish(recipe, directory, metrics, facts, time.monotonic() - started)
    return FINISHED


def known_failure(problem: Exception) -> RunError | None:
    """In words, what a data worker or the memory died of; None of anything else, which is shown as it is."""
    said = " ".join(str(problem).split())
    if isinstance(problem, KeyError) and "metric_for_best_model" in said:
        return RunError(said.strip("\"'"), "trainer.metric_for_best_model is to be one of them")
    if isinstance(problem, torch.OutOfMemoryError):
        return RunError(
            f"out of memory: {said}", "a smaller trainer.per_device_train_batch_size, and more accumulation"
        )
    if "DataLoader worker" in said and ("exited unexpectedly" in said or "is killed by signal" in said):
        return RunError(
            f"a data worker was killed: {said}",
            "by too little memory, or too little of it in /dev/shm? trainer.dataloader_num_workers=0 needs none",
        )
    if isinstance(problem, torch.distributed.DistError) or LOST.search(said):
        time.sleep(LEAVE_FIRST)
        return RunError(
            "another process of this run is gone, or has not answered for trainer.ddp_timeout: "
            + said.partition(". This is")[0],
            "--resume goes on from the last checkpoint",
        )
    if "DataLoader timed out" in said:
        return RunError(
            f"a data worker hung: {said}", "guard.dataloader_timeout is how long to wait; is the storage there?"
        )
    return None


def find_checkpoint(directory: Path, run: str) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint; raises UserError where there are some and none is whole."""
    found, wrong = checkpoint.newest(directory, run)
    for problem in wrong:
        say(f"warning  passed over: {problem}")
    if found is None and wrong:  # starting anew would hide them
        raise UserError(
            f"no checkpoint in `{directory}` is whole",
            "start a new run, from their weights if you like: model.name=.../checkpoint-N",
            tuple(wrong),
        )
    return found


def stopped(trainer: Trainer, stop: StopOnSignal, directory: Path, seconds: float) -> int:
    """What is said and left when a signal ended the run; the exit code."""
    step, saved = trainer.state.global_step, trainer.saved_at
    if trainer.args.process_index == 0:
        with suppress(OSError):
            runs.update_record(directory, status="stopped", seconds=round(seconds, 1))
        if saved == step:
            say(f"stopped at step {step}; the same command with --resume goes on from there")
    if saved != step:
        behind = f"checkpoint-{saved} is there, from which --resume goes on" if saved >= 0 else "no checkpoint is there"
        raise RunError(f"stopped at step {step}, which could not be saved; {behind}", "is the disk full?")
    return 130 if stop.signal == signal.SIGINT else STOPPED


def export(trainer: Trainer, directory: Path) -> dict[str, Any]:
    """Write the finished model beside its place, and then into it: what is read there is never half written.

    Returns the size and checksum of each file.
    """
    draft, written = directory / EXPORT, {}
    try:
        if trainer.args.should_save:
            shutil.rmtree(draft, ignore_errors=True)
        trainer.save_model(str(draft))
        if trainer.args.should_save:
            for path in draft.rglob("*"):
                checkpoint.synced(path)
            written = checkpoint.files_of(draft)
            for path in sorted(draft.iterdir()):
                if path.is_dir():
                    shutil.rmtree(directory / path.name, ignore_errors=True)
                path.replace(directory / path.name)
            draft.rmdir()
            checkpoint.synced(directory)
        return written
    except NO_ROOM as problem:
        shutil.rmtree(draft, ignore_errors=True)
        kept = f"checkpoint-{trainer.saved_at} holds them" if trainer.saved_at >= 0 else "there is no checkpoint"
        raise RunError(
            f"the finished weights could not be written to `{directory}`: {' '.join(str(problem).split())}; {kept}",
            "make room; the same command with --resume writes them",
        ) from problem


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


def choose_kernels(settings: dict[str, Any]) -> dict[str, Any]:
    """TF32 and Liger's kernels on a GPU that has the one and where the other are installed; each is off by its key.

    `trainer.torch_compile` is left to the user: it takes minutes before the first step.
    """
    if not torch.cuda.is_available() or settings.get("use_cpu"):
        return settings
    return {"tf32": is_torch_tf32_available(), "use_liger_kernel": is_liger_kernel_available(), **settings}


def use_cpu(args: TrainingArguments, speed: Speed) -> dict[str, Any]:
    """As many threads as asked for, or as there are cores, unless the environment says how many; what was chosen."""
    if args.device.type != "cpu":
        return {}
    if speed.threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(speed.threads or cpu.share(1))
    return {"threads": torch.get_num_threads(), "reuse_memory": speed.reuse_memory and cpu.reuse_memory()}


def switches(trainer: Trainer) -> dict[str, Any]:
    """For the record: what was switched on to make the run fast."""
    args, head = trainer.args, trainer.head
    found = {
        "fused_loss": head is not None and head.fused,
        "skip_ignored": head is not None and head.skip,
        "split_batches": trainer.splits,
        "fast_dropout": trainer.fast_dropout,
        "attn_implementation": getattr(trainer.model.config, "_attn_implementation", None),
        "torch_compile": args.torch_compile,
        "activation_checkpointing": bool(args.activation_checkpointing),
    }
    if args.device.type == "cpu":
        return found
    return {**found, "tf32": bool(args.tf32), "use_liger_kernel": args.use_liger_kernel}


def has_fast_bf16() -> bool:
    """The CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); without, it is hundreds of times slower than fp32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def training_arguments(settings: dict[str, Any], directory: Path) -> TrainingArguments:
    """`[trainer]` as upstream's class, which also joins the other processes; refuses what would go wrong silently."""
    join_others(settings)
    fitting = {**FITTING_DEFAULTS, "dataloader_pin_memory": torch.accelerator.is_available()}
    try:
        args = TrainingArguments(
            **{**fitting, **choose_kernels(settings)},
            output_dir=str(directory),
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            label_names=["labels"],
        )
        _ = args.device
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


def join_others(settings: Mapping[str, Any]) -> None:
    """Meet the other processes, with an end to waiting for one that hangs: upstream forgets `ddp_timeout` on a CPU."""
    on_cpu = settings.get("use_cpu") or os.environ.get("ACCELERATE_USE_CPU") == "true"
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        seconds = settings.get("ddp_timeout", 1800)
        torch.distributed.init_process_group(settings.get("ddp_backend") or "gloo", timeout=timedelta(seconds=seconds))


def build_trainer(
    recipe: Recipe,
    assembly: Assembly,
    model: Any,
    args: TrainingArguments,
    directory: Path,
    limit: MaxTime | None = None,
    run: str = "",
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
    callbacks: list[Any] = [stop, *([] if limit is None else [limit])]
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
    args.save_total_limit = None  # upstream would remove by date, and anybody's
    saving = {
        "run": run,
        "limit": recipe.trainer.get("save_total_limit"),
        "fingerprints": fingerprints(recipe, assembly, args),
    }
    options = {"guard": recipe.guard, "speed": recipe.speed, "stop": stop, **saving}
    return make_trainer(assembly, model, args, callbacks, **options), stop


def fingerprints(recipe: Recipe, assembly: Assembly, args: TrainingArguments) -> dict[str, Any]:
    """What the data, the tokenizer and the model of a run are known by when it goes on."""

    def data(about: Mapping[str, Any]) -> Mapping[str, Any]:
        if "fingerprint" not in about:  # of each source, or each task
            return {name: data(each) for name, each in about.items() if isinstance(each, dict)}
        counted = ("documents", "tokens", "blocks", "rows", "examples")
        train = {key: value for key, value in about.get("train", {}).items() if key in counted}
        return {"fingerprint": about["fingerprint"], **({"train": train} if train else {})}

    several = {name: each["data"] for name, each in assembly.record.get("tasks", {}).items()}
    settings = assembly.config.to_dict()
    found: dict[str, Any] = {
        "data": data(several or assembly.record["data"]),
        "tokenizer": tokenizer.fingerprint(assembly.tokenizer),
        "trainer": {key: value for key, value in recipe.trainer.items() if not compatibility.is_free(f"trainer.{key}")},
        "model": {key: value for key, value in settings.items() if key not in UNIMPORTANT and not key.startswith("_")},
    }
    if recipe.lora is not None and recipe.model.name:  # whose weights are in no checkpoint
        place = Path(recipe.model.name)
        weights = [path.name for path in sorted(place.glob("*.safetensors"))] if place.is_dir() else []
        found["base"] = checkpoint.files_of(place, only=weights) or hub.commit(recipe.model.name, recipe.model.revision)
    if recipe.tasks or args.train_sampling_strategy == "group_by_length":  # the order of examples follows from it
        found["batch"] = args.train_batch_size if recipe.tasks else batch_size(args)
    return json.loads(json.dumps(found, default=str))


def make_trainer(
    assembly: Assembly, model: Any, args: TrainingArguments, callbacks: list[Any], **options: Any
) -> Trainer:
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
            rows=assembly.length is None,
            eval_dataset=next(iter(assembly.validation.values()), None),
            data_collator=assembly.collate,
            processing_class=assembly.tokenizer,
            callbacks=callbacks,
            **options,
        )
    except (ValueError, RuntimeError, ImportError) as problem:  # a tracker that is not installed, upstream's own checks
        raise UserError(f"[trainer]: {' '.join(str(problem).split())}") from problem
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            unharmed(callback)
    return trainer


def unharmed(tracker: Any) -> None:
    """A tracker whose service fails is told nothing more; the run does not depend on it."""
    for event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
        setattr(tracker, event, _unharmed(tracker, getattr(tracker, event)))


def _unharmed(tracker: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(tracker, "gave_up", False):
            return None
        try:
            return method(*args, **kwargs)
        except Exception as problem:
            tracker.gave_up = True
            said = hub.scrub(f"{type(problem).__name__}: {problem}")
            say(f"warning  {type(tracker).__name__} failed, and the run goes on without it: {said}")
            return None

    return call


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
