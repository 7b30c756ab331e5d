"""The story of one run, from a recipe to a finished run directory."""

import math
import os
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Sequence, Sized
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, set_seed

from llmkit import disk, hub, process, tasks
from llmkit.errors import RunError, UserError, in_words, say, scrub
from llmkit.metrics import evaluation_metrics
from llmkit.models import trainable
from llmkit.models.weights import create_model
from llmkit.recipe import global_batch
from llmkit.recipe.schema import GENERATING, Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.runs import checkpoint, compatibility, environment
from llmkit.runs import directory as runs
from llmkit.runs.mirror import Mirror
from llmkit.training import batch_size, kept_rows, report, samples, sharded, strategy, trivial, zero3
from llmkit.training.arguments import (
    SEVERAL_TASKS,
    choose_data_workers,
    choose_precision,
    fit_memory,
    has_fast_bf16,
    total_batch_size,
    training_arguments,
    use_cpu,
)
from llmkit.training.assemble import assemble
from llmkit.training.build import build_trainer
from llmkit.training.failures import known_failure, stopped
from llmkit.training.max_time import NO_END, MaxTime
from llmkit.training.own_machine import fit_to_machine
from llmkit.training.own_rows import fit_to_rows
from llmkit.training.progress import MetricsFile
from llmkit.training.resumable_trainer import StoppedInEvaluation
from llmkit.training.resumption import Resumption, find_resumption
from llmkit.training.saving_trainer import NO_ROOM
from llmkit.training.schedule import Schedule, repetition
from llmkit.training.trainer import Trainer, compared, final_evaluation, final_samples

FINISHED = 0
EXPORT = ".draft-model"


def run(
    recipe: Recipe,
    directory: Path,
    resume: bool,
    max_time: int | None = None,
    allowed: Sequence[str] = (),
    watch: TrainerCallback | None = None,
    mirror: Mirror | None = None,
) -> int:
    """Train what `recipe` describes into `directory`; 0 when finished, 75 or 130 when stopped with a checkpoint.

    With `max_time` training ends so many seconds after its first step began, whatever the recipe says of its length.
    `allowed` are keys in which the recipe may differ from that of the run being resumed, `watch` is told of each step,
    `mirror` of each checkpoint.
    Raises UserError before the first step for most of what would have failed later.
    """
    started = time.monotonic()
    if resume:
        recipe = compatibility.as_begun(recipe, directory)
    recipe = choose_data_workers(recipe, (compatibility.tables_of(directory) or None) if resume else None)
    transformers.utils.logging.disable_progress_bar()
    if recipe.model.load_in_4bit:
        trainable.check_4bit()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batches, batch_notes = global_batch.divide(recipe, world)
    settings, precision = choose_precision({**(SEVERAL_TASKS if recipe.tasks else {}), **recipe.trainer, **batches})
    whole = {"load_best_model_at_end"} if recipe.fits_rows else set()  # needs what is chosen by the rows
    args = training_arguments({key: value for key, value in settings.items() if key not in whole}, directory)
    on_cpu = use_cpu(args, recipe.speed)
    main = args.process_index == 0
    longer = resume and runs.is_finished(directory)  # its weights stay until those of the longer run are whole
    with args.main_process_first(local=True):  # the others read what the first has prepared
        assembly = assemble(recipe, args.seed)
    fitted = fit_to_rows(recipe, assembly, args.world_size, timed=max_time is not None)
    batches, batch_notes = global_batch.divide(fitted, world)
    fitted, precision = fit_to_machine(
        fitted, assembly.config, assembly.train, assembly.length, {**fitted.trainer, **batches}, precision
    )
    if fitted is not recipe:
        recipe = fitted
        settings, _ = choose_precision({**(SEVERAL_TASKS if recipe.tasks else {}), **recipe.trainer, **batches})
        args = training_arguments(settings, directory)
    limit = None if max_time is None else MaxTime(max_time, args)
    if assembly.create_model is not None:  # a model that is made of several
        model, made = assembly.create_model(recipe.model, args.seed)
    else:
        make_model = partial(
            create_model,
            recipe.model,
            assembly.config,
            tasks.model_class(recipe.task),
            args.seed,
            lora=recipe.lora,
            generation=recipe.generation if recipe.task in GENERATING else None,
            task_type=TASKS[recipe.task].peft_type,
            subtokens=assembly.subtokens,
        )
        model, made = zero3.as_one_process_makes(make_model)
    assembly.notes.extend([*made, *batch_notes])
    if recipe.optimizer.name == "muon" and args.device.type == "cpu" and not has_fast_bf16():
        assembly.notes.append("Muon multiplies matrices in bf16, at which this CPU is slow: a step takes longer for it")
    if assembly.prepare_model is not None:
        assembly.prepare_model(model)
    record = runs.read_record(directory)
    trainer, stop = build_trainer(recipe, assembly, model, args, directory, limit, record.get("id", ""), mirror)
    while not batch_size.fits(trainer):
        batch_size.shrink(args)
        trainer, stop = build_trainer(recipe, assembly, model, args, directory, limit, record.get("id", ""), mirror)
    if watch is not None:
        trainer.add_callback(watch)
    strategy.check(trainer, process.asked())
    strategy.fit_wrapping(trainer)
    check_alike(trainer.fingerprints, args.world_size)
    steps, schedule = NO_END, Schedule.of(args, fits="started" not in record or "schedule" in record)
    if limit is None:
        steps = trainer.planned_steps()
        assembly.notes.extend(filter(None, [schedule.fit(args, steps)]))
        if isinstance(assembly.train, Sized):
            a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            assembly.notes.extend(filter(None, [repetition(recipe, steps, len(assembly.train) / a_step)]))
        if (share := process.stop_at()) is not None:
            stop.at_step = math.ceil(steps * share)
    if trainer.sampler is not None:
        assembly.notes.extend(filter(None, [samples.note(trainer.sampler, args, steps)]))
    needs = report.planned(recipe, assembly, args)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cpu, memory_notes = fit_memory(on_cpu, None if needs is None else needs.peak * here)
    assembly.notes.extend(memory_notes)
    facts = {
        "task": recipe.task,
        "name": recipe.name,
        **environment.surroundings(),
        "processes": args.world_size,
        **strategy.record(trainer),
        "parameters": sharded.num_parameters(model),
        "trainable_parameters": sharded.num_parameters(model, only_trainable=True),
        "speed": {**switches(trainer), **on_cpu},
        "revisions": hub.commits(),
        "settings": tomllib.loads(recipe.to_toml()),
        **assembly.record,
    }
    if schedule.fits and limit is None:
        facts["schedule"] = {"steps": steps, "warmup_steps": args.get_warmup_steps(steps)}
    if max_time is not None:
        facts["max_time"] = max_time
    if main:
        report.introduce(recipe, assembly, facts, needs, precision, args, directory)
    if resume and max_time is None and (before := record.get("max_time")):
        raise UserError(f"`{directory}` was started with --max-time", f"give it again: --max-time {before}s")
    resumption = find_resumption(trainer, directory, record, schedule, steps, allowed) if resume else Resumption()
    resumed = resumption.start
    if limit is not None:
        args.max_steps = NO_END
    preflight(trainer)
    process.collect_from_here()
    if main:
        checkpoint.sweep(directory)
        runs.sweep(directory)
        MetricsFile.cut(directory, resumed.manifest["metrics_bytes"] if resumed else 0)
        facts["started"] = record.get("started", facts["started"])
        if longer:
            runs.set_status(directory, "running", steps=steps, problem=None)
        else:
            describe(recipe, directory, facts)
        if resume:
            say(
                f"resuming from {resumed.path}"
                if resumed
                else "no checkpoint to resume from: starting from the beginning"
            )
        if resumption.schedule_note:
            say(f"note     {resumption.schedule_note}")

    def begin_to_replace() -> None:
        """From here on the weights are neither the old nor the new ones: first say so."""
        runs.update_record(directory, status="running")
        describe(recipe, directory, facts)

    set_seed(args.seed)
    with stop.watching():
        try:
            path = trainer.resume_from(
                resumed,
                new_schedule=resumption.new_schedule,
                longer=resumption.is_longer,
            )
            result = trainer.train(resume_from_checkpoint=path)
            metrics = {} if stop.stopped else {**result.metrics, **final_evaluation(trainer)}
            if not stop.stopped:
                final_samples(trainer)
            found = {} if stop.stopped else compared(trainer, assembly.compare, assembly.learned)
            if stop.stopped and not stop.signal:
                return judged(trainer, directory)
        except StoppedInEvaluation:
            if trainer.saved_at != trainer.state.global_step:
                trainer._save_checkpoint(trainer.model_wrapped, None)
        except Exception as problem:
            process.handle({signal.SIGCHLD: signal.SIG_DFL})  # torch's handler would raise again for a worker that died
            saved = not isinstance(problem, UserError) and trainer.save_after_failure()
            if saved and stop.received:  # the signal that ended the data workers, too
                stop.signal = stop.received
                return stopped(trainer, stop, directory, time.monotonic() - started)
            with suppress(OSError):
                message = scrub(f"{type(problem).__name__}: {problem}")
                if main:
                    runs.set_status(directory, "failed", problem=message)
            if saved:
                say(f"the weights so far are in checkpoint-{trainer.saved_at}: --resume goes on from there")
            if known := known_failure(problem):
                raise known from problem
            raise
        if stop.stopped:
            return stopped(trainer, stop, directory, time.monotonic() - started)
        written = export(trainer, directory, whole=begin_to_replace if longer and main else None)
    if main:
        sharded_tensors = sharded.count(trainer.model)
        runs.update_record(directory, steps=trainer.state.global_step, files=written, sharded_tensors=sharded_tensors)
        if recipe.lora is not None and recipe.task in GENERATING:
            model.generation_config.save_pretrained(directory)  # peft saves the adapter alone
        if not any((directory / name).is_file() for name in runs.WEIGHTS):
            raise RuntimeError(f"no weights were written to {directory}")
        if assembly.length is not None and "train_steps_per_second" in result.metrics:  # none if the clock stood still
            tokens = total_batch_size(args) * assembly.length
            metrics["train_tokens_per_second"] = round(tokens * result.metrics["train_steps_per_second"], 1)
        metrics["peak_memory_bytes"] = peak_memory()
        metrics["saving_seconds"] = round(trainer.saving_seconds, 3)
        if trainer.skipped_steps:
            metrics["skipped_steps"] = trainer.skipped_steps
        facts["trivial"] = trivial.record(found)
        if isinstance(assembly.learned, trivial.Learned):
            facts["trivial"]["learned"] = assembly.learned.record()
        if recipe.tasks:
            learned = {name: each.record() for name, each in assembly.learned.items()}
            report.finish_each(recipe, model, directory, metrics, facts, learned)
        loss, covered = report.last_loss(trainer.state.log_history)
        if covered:
            metrics |= {"last_train_loss": loss, "last_train_loss_steps": covered}
        if trainer.state.best_global_step and trainer.state.best_metric is not None:
            facts["best"] = report.best(trainer.state, args)
        examples = None if recipe.data is None else recipe.data.global_batch_size
        said, hint = trivial.judge(args, trainer.state, found, examples)
        runs.update_record(
            directory, "predictions", verdicts=[{"warning": warns, "says": line} for warns, line in said]
        )
        runs.remove_views(directory)  # those of a shorter training
        kept_rows.keep(recipe, assembly, trainer, directory)
        seconds = time.monotonic() - started
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        report.finish(recipe, directory, metrics, facts, seconds, said, hint, losses, assembly.example)
    return FINISHED


def judged(trainer: Trainer, directory: Path) -> int:
    """Evaluate a run where a sweep stops it, and record that under `rungs`; return the exit code.

    Its checkpoint is written, and knows nothing of this: the run goes on as if it had never stopped.
    """
    metrics, step = evaluation_metrics(trainer.evaluate()), trainer.state.global_step
    if trainer.args.process_index == 0:
        rungs = {**runs.read_record(directory).get("rungs", {}), str(process.stop_at()): {"step": step, **metrics}}
        runs.update_record(directory, status="stopped", rungs=rungs)
        say(f"stopped at step {step:,} of {trainer.state.max_steps:,}, where the sweep compares its trials")
    return FINISHED


def describe(recipe: Recipe, directory: Path, facts: dict[str, Any]) -> None:
    """Write what the run is, and that it is not finished."""
    again = recipe.model_copy(update={"output_dir": None})  # so that it can be run again
    runs.update_record(directory, paths=recipe.data_paths())  # first: the recipe is read with them
    runs.write_text(directory / runs.RECIPE_FILE, again.to_toml(comments=True, as_typed=True))
    runs.update_record(directory, **facts, status="running", problem=None)


def export(trainer: Trainer, directory: Path, whole: Callable[[], None] | None = None) -> dict[str, Any]:
    """Write the finished model beside its place, and then into it: what is read there is never half written.

    `whole` is called in between. Returns the size and checksum of each file.
    """
    draft, written = directory / EXPORT, {}
    try:
        if trainer.args.should_save:
            shutil.rmtree(draft, ignore_errors=True)
        trainer.save_model(str(draft))
        if trainer.args.should_save:
            disk.share_files(draft)
            for path in draft.rglob("*"):
                checkpoint.synced(path)
            written = checkpoint.files_of(draft)
            written.pop(runs.CARD_FILE, None)  # peft's, in whose place llmkit's comes
            if whole is not None:
                whole()
            for path in sorted(draft.iterdir()):
                if path.is_dir():
                    shutil.rmtree(directory / path.name, ignore_errors=True)
                path.replace(directory / path.name)
            draft.rmdir()
            checkpoint.synced(directory)
        return written
    except Exception as problem:
        shutil.rmtree(draft, ignore_errors=True)
        said = f"the finished weights could not be written to `{directory}`: {in_words(problem)}"
        known = isinstance(problem, NO_ROOM)
        if trainer.saved_at < 0:
            room = "free some disk space; " if known else ""
            raise RunError(f"{said}; there is no checkpoint", f"{room}--resume trains from the beginning") from problem
        raise RunError(
            f"{said}; checkpoint-{trainer.saved_at} holds them",
            "free some disk space; the same command with --resume writes them"
            if known
            else "that checkpoint is a model for the other commands; --resume tries to write them again",
        ) from problem


def check_alike(fingerprints: dict[str, Any], processes: int) -> None:
    """Raise UserError where the processes of a run have not read the same: each opens the files by itself."""
    if processes == 1:
        return
    read: list[Any] = [None] * processes
    torch.distributed.all_gather_object(read, fingerprints)
    for number, other in enumerate(read):
        if changes := [key for key, *_ in compatibility.differences(read[0], other)]:
            raise UserError(
                f"process {number} has read something else than process 0: {', '.join(changes)}",
                "wait until nothing writes to the data; several machines need the same files",
            )


def switches(trainer: Trainer) -> dict[str, Any]:
    """For the record: what was switched on to make the run fast."""
    args, head = trainer.args, trainer.head
    record = {
        "fused_loss": head is not None and head.fused,
        "skip_ignored": head is not None and head.skip,
        "split_batches": trainer.splits,
        "fast_dropout": trainer.fast_dropout,
        "attn_implementation": getattr(trainer.model.config, "_attn_implementation", None),
        "torch_compile": args.torch_compile,
        "activation_checkpointing": bool(args.activation_checkpointing),
    }
    if args.device.type == "cpu":
        return record
    return {**record, "tf32": bool(args.tf32), "use_liger_kernel": args.use_liger_kernel}


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


def peak_memory() -> int:
    """Measure the most memory that this process has held, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
