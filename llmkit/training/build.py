"""The Trainer of a run, over what was assembled, with llmkit's callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llmkit.errors import UserError, say, scrub
from llmkit.models import tokenizer
from llmkit.recipe.schema import Recipe
from llmkit.runs import compatibility
from llmkit.runs.mirror import Mirror
from llmkit.training.arguments import total_batch_size
from llmkit.training.assembly import Assembly
from llmkit.training.max_time import MaxTime
from llmkit.training.progress import MetricsFile, Progress
from llmkit.training.signals import StopOnSignal
from llmkit.training.trainer import Trainer


def build_trainer(
    recipe: Recipe,
    assembly: Assembly,
    model: Any,
    args: TrainingArguments,
    directory: Path,
    limit: MaxTime | None = None,
    run: str = "",
    mirror: Mirror | None = None,
) -> tuple[Trainer, StopOnSignal]:
    """Build the Trainer with our few callbacks in place of upstream's printing ones."""
    strategies = (
        ("random", "sequential") if assembly.length is not None else ("random", "sequential", "group_by_length")
    )
    if args.train_sampling_strategy not in strategies:
        why = "all blocks have the same length" if assembly.length is not None else "it has no seed upstream"
        raise UserError(f"trainer.train_sampling_strategy: {why}; choose from {', '.join(strategies)}")
    if not assembly.validation and args.eval_strategy != "no":
        raise UserError(
            "trainer.eval_strategy asks for evaluation, and there is no validation data", "see data.validation_fraction"
        )
    stop = StopOnSignal(speaks=args.process_index == 0)
    callbacks: list[Any] = [stop, *([] if limit is None else [limit])]
    if recipe.early_stopping is not None:
        if recipe.tasks and (args.metric_for_best_model or "loss") in ("loss", "eval_loss"):
            names = ", ".join(f"eval_{name}_loss" for name in recipe.tasks)
            raise UserError(
                "early_stopping monitors one task, and none is chosen",
                f"set trainer.metric_for_best_model, such as {names}",
            )
        callbacks.append(EarlyStoppingCallback(**recipe.early_stopping.model_dump()))
    if args.process_index == 0:
        shown = (assembly.length, "tokens") if assembly.length is not None else (1, assembly.unit)
        per_step = total_batch_size(args) * shown[0]
        callbacks += [MetricsFile(directory, per_step, shown[1]), Progress(per_step, shown[1], limit)]
    args.save_total_limit = None  # upstream would remove by date, and anybody's
    saving = {
        "run": run,
        "mirror": mirror,
        "limit": recipe.trainer.get("save_total_limit"),
        "fingerprints": compatibility.fingerprints(
            recipe,
            assembly.record,
            assembly.config.to_dict(),
            tokenizer.fingerprint(assembly.tokenizer),
            args.train_batch_size if recipe.tasks else total_batch_size(args),
            by_length=args.train_sampling_strategy == "group_by_length",
        ),
    }
    options = {"optimizer": recipe.optimizer, "guard": recipe.guard, "speed": recipe.speed, "stop": stop, **saving}
    return make_trainer(assembly, model, args, callbacks, **options), stop


def make_trainer(
    assembly: Assembly, model: Any, args: TrainingArguments, callbacks: list[Any], **options: Any
) -> Trainer:
    """Make the Trainer over the assembly's data."""
    try:
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=assembly.train,
            losses=assembly.losses,
            preprocess_logits_for_metrics=assembly.preprocess_logits_for_metrics,
            validation=assembly.validation,
            metrics=assembly.metrics,
            several=assembly.several,
            all_learned=assembly.all_learned,
            sampler=assembly.sampler,
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
            said = scrub(f"{type(problem).__name__}: {problem}")
            say(f"warning  {type(tracker).__name__} failed, and the run goes on without it: {said}")
            return None

    return call
