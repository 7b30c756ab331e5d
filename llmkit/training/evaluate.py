"""How good a finished model is, on the validation data of its own recipe or of another."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from llmkit import disk, process, temporary
from llmkit.data.output import Output
from llmkit.errors import UserError, say
from llmkit.recipe import load
from llmkit.recipe.addresses import fetched
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.draft import COMMAND_LINE
from llmkit.recipe.schema import PRETRAINING, Model, Recipe, Tokenizer
from llmkit.recipe.tasks import alike
from llmkit.runs.finished import check_model, one_task_of, recipe_of, record_of

# What makes only a part of the data be evaluated.
PARTIAL = ("validation_fraction", "max_eval_samples")
# What belongs to a training: a tracker of its own, and the sharding over several processes.
NOT_EVALUATED = ("report_to", "fsdp", "fsdp_config", "deepspeed")
# What would have it compute in less than fp32, or elsewhere.
NOT_FP32 = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "torch_compile", "use_cpu")


def find_recipe(name: str, path: str | None, task: str | None, overrides: list[str]) -> Recipe:
    """Find the recipe that names the data: one that was given, else the model's own.

    With a `data.path` of its own all of that data is evaluated, not the part that the recipe would hold out.
    """
    check_model(name)
    if path is None and task is None:
        path = recipe_of(name)
        if path is None:
            raise UserError(
                f"`{name}` is not a run, so the data to evaluate it on must be given", "name a recipe, or --task NAME"
            )
    recipe = load(path, overrides, task=task)
    made_for = one_task_of(name)
    if not alike(made_for, recipe.task):
        raise UserError(
            f"`{name}` is a model for {made_for}, and the recipe is for {recipe.task}", f"name a recipe for {made_for}"
        )
    given = {override.partition("=")[0] for override in overrides}
    partial = {f"data.{key}" for key in PARTIAL} - given if "data.path" in given else set()
    changes: dict[str, Any] = {key.removeprefix("data."): None for key in partial}
    if getattr(recipe.data, "unanswerable", True) is None:  # as the model learned it, whatever this data holds
        changes["unanswerable"] = record_of(name).get("unanswerable")
    assert recipe.data is not None  # of several tasks none is evaluated under one name
    recipe = fetched(recipe)
    assert recipe.data is not None
    data = recipe.data.model_copy(update=changes)
    return recipe.model_copy(update={"data": data, "model": Model(name=name), "tokenizer": Tokenizer(), "lora": None})


def _is_own(name: str, recipe: Recipe) -> bool:
    """Tell whether a recipe is that of the run which made a model, with its data."""
    own = recipe_of(name)
    return own is not None and recipe.source == Path(own).resolve() and recipe.origins["data.path"] != COMMAND_LINE


def _is_file_of(name: str, recipe: Recipe) -> bool:
    """Tell whether the data has the path of the data that a model was trained on."""
    path = recipe.data.path if recipe.data is not None else None
    return bool(path) and path in record_of(name).get("paths", {}).values()


def evaluate(
    name: str,
    recipe: Recipe,
    output: Output | None = None,
    precision: str | None = None,
    in_int8: Callable[[Any], AbstractContextManager[None]] | None = None,
) -> dict[str, Any]:
    """Return the metrics of `name` on the validation data of `recipe`, on all its data if there is none.

    Of classes a table is shown, and which is taken for which. Every row, or every document of running text, is written
    into `output` with what the model made of it, mistakes first. Rows that were left out are counted and not in it.
    `precision`, "bf16" or "fp32", is what the weights are in, whatever the recipe says; `in_int8` lets another engine
    compute the model's forward pass. Where they are given the metrics say so, under `precision` and `quantize`.
    Of causal-lm and masked-lm no token is left out: the last block is as long as what is left, which training drops.
    Of rows, `skipped_rows` were left out and `mended_rows` mended, where there are any; `scored_by` says that texts
    were compared by characters.
    Where each token was hidden in turn (`data.masking = "each"`) the perplexity is a pseudo-perplexity and called so.
    """
    import transformers

    from llmkit import tasks
    from llmkit.data.rows.splits import WHOLE
    from llmkit.metrics import evaluation_metrics
    from llmkit.models import loading
    from llmkit.training import trivial
    from llmkit.training.arguments import choose_precision, training_arguments, use_cpu, weights_in
    from llmkit.training.assemble import assemble
    from llmkit.training.build import make_trainer
    from llmkit.training.mistakes import Measured
    from llmkit.training.trainer import compared, final_evaluation

    if output is not None:
        _check_unread(output.path, recipe)
        output.check()
        if recipe.evaluation.metrics == () and recipe.task not in (*PRETRAINING, "chat"):
            raise UserError(
                "--output: no predictions to write, because evaluation.metrics = [] asks for the loss only",
                f"name a metric: 'evaluation.metrics=[\"{tasks.row_task(recipe.task).METRICS[0]}\"]'",
            )
    transformers.utils.logging.disable_progress_bar()
    settings = dict(recipe.trainer)
    if precision is not None or in_int8 is not None:
        settings = {key: value for key, value in settings.items() if key not in NOT_FP32} | {"bf16": False}
    settings, why = choose_precision(settings)
    weights = {} if precision is None else weights_in(precision)
    speed = recipe.speed
    if in_int8 is not None:
        why = "in int8"
        speed = speed.model_copy(update={"fused_loss": False, "skip_ignored": False})  # which need the output layer
    elif precision is not None:
        why = f"weights in {precision}"
    with temporary.folder() as nowhere:
        kept = {key: value for key, value in settings.items() if key not in NOT_EVALUATED}
        args = training_arguments(kept, nowhere)
        use_cpu(args, recipe.speed)
        load = tasks.text_task(recipe.task).load_model if recipe.task in PRETRAINING else None
        if load is not None and weights:
            raise UserError(f"--precision is not for {recipe.task}, which trains two models", "leave it out")
        model = (
            loading.load_model(name, tasks.model_class(recipe.task), from_pretrained_options=weights)
            if load is None
            else load(name)
        )
        if recipe.task == "seq2seq":  # it is asked to write
            model.generation_config.update(**recipe.generation)
        about = record_of(name).get("trivial", {})
        learned = trivial.Learned.from_record(about.get("learned", {}))
        assembly = assemble(recipe, args.seed, model.config, learned=learned)
        if assembly.prepare_model is not None and recipe.task in PRETRAINING:
            assembly.prepare_model(model)
        measured = Measured(recipe, assembly)
        trainer = make_trainer(replace(assembly, metrics=measured.metrics), model, args, [], speed=speed)
        say(f"model    {name} ({recipe.task}, {args.device}, {why})")
        for line in assembly.lines:
            say(f"{'' if line.startswith(' ') else 'data':8} {line}")
        for note in assembly.notes:
            say(f"note     {note}")
        for warning in assembly.warnings:
            say(f"warning  {warning}")
        if output is not None and recipe.task in PRETRAINING:
            trainer.watch_losses = measured.losses.add
        if WHOLE in assembly.record["data"] and (
            _is_own(name, recipe)  # its own recipe's, else by what they hold
            or assembly.record["data"]["fingerprint"] == record_of(name).get("data", {}).get("fingerprint")
        ):
            say("warning  the model was trained on these rows: the metrics will look better than they are")
        elif WHOLE in assembly.record["data"] and _is_file_of(name, recipe):
            say("warning  the model was trained on rows of this file: the metrics will look better than they are")
        process.collect_from_here()
        with nullcontext() if in_int8 is None else in_int8(model):
            logged = final_evaluation(trainer)
        measured.show(output)
        beside = {} if learned is None else compared(trainer, assembly.compare, learned)
    metrics: dict[str, Any] = evaluation_metrics(logged)
    if beside:
        about = trivial.record(beside)
        for key in [key for key in metrics if key in about["metrics"]]:
            say(f"result   {trivial.beside(key, metrics[key], about)}")
        for warns, line in trivial.verdicts(beside):
            say(f"{'warning' if warns else 'note':8} {line}")
    if metrics.get("eval_f1") is not None and (of_class := assembly.record.get("f1_of")):
        say(f'note     eval_f1 is that of the class "{of_class}"')
    if getattr(recipe.data, "masking", None) == "each":
        metrics = {key.replace("perplexity", "pseudo_perplexity"): value for key, value in metrics.items()}
    for key in ("skipped", "mended"):
        if kinds := assembly.record["data"].get(key):
            metrics[f"{key}_rows"] = sum(sum(counts.values()) for counts in kinds.values())
    unknown = [part.get("unknown_label_rows", 0) for part in assembly.record["data"].values() if isinstance(part, dict)]
    if any(unknown):
        metrics["unknown_label_rows"] = sum(unknown)
    if assembly.record.get("scored_by") == "characters" or "language" in assembly.record:
        metrics |= {key: assembly.record[key] for key in ("scored_by", "language")}
    if beside:
        metrics["trivial"] = {key: each["value"] for key, each in about["metrics"].items()}
    chosen = {"precision": precision, "quantize": None if in_int8 is None else "int8"}
    return metrics | {key: value for key, value in chosen.items() if value is not None}


def _check_unread(output: Path, recipe: Recipe) -> None:
    """Raise UserError for an `output` that is among the data to evaluate on, or would be."""
    data, file = recipe.data, output.resolve()
    assert data is not None
    sources = [source for source, _ in data.named_sources().values()] if isinstance(data, TextData) else [data]
    for source in sources:
        path, named = Path(source.path), source.data_files or ()
        patterns = chain.from_iterable(
            [each] if isinstance(each, str) else each
            for each in (named.values() if isinstance(named, Mapping) else [named])
        )
        files = [(path / each if disk.is_dir(path) else Path(each)).resolve() for each in patterns]
        inside = disk.is_dir(path) and not files and file.is_relative_to(path.resolve())
        if inside or file in [path.resolve(), *files]:
            raise UserError(f"--output: `{output}` is part of the data being read", "name another file")
