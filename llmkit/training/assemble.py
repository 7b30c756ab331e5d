"""A recipe assembled before there is a model: data, tokenizer, architecture, and the task's part in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmkit import disk, language, tasks
from llmkit import metrics as measures
from llmkit.data import files
from llmkit.data.engines import ALONE, Workers
from llmkit.data.rows import summary, table
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.splits import tables
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError, quantity
from llmkit.models import unknown_tokens
from llmkit.models.config import fit_to_tokenizer, load_config
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.schema import PRETRAINING, Evaluation, Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.tasks import multi_task
from llmkit.tasks.encode_once import encode_once
from llmkit.tasks.inputs import LONGEST_INPUT, choose_collator, choose_length, fit_for_batches
from llmkit.tasks.task import RowTask
from llmkit.tasks.trivial import Comparison
from llmkit.training import samples
from llmkit.training.assemble_text import assemble_text
from llmkit.training.assembly import Assembly, has_own_tokenizer, load_tokenizer
from llmkit.training.trivial import Learned, compare_rows

Opener = Callable[[RowData, str], table.Rows]


def assemble(
    recipe: Recipe,
    seed: int,
    config: Any = None,
    from_hub: Opener = table.open_hub,
    learned: Learned | None = None,
    workers: Workers = ALONE,
) -> Assembly:
    """Read and tokenize the data of `recipe`; raises UserError where its parts do not fit together.

    With `config`, that of a model which is to be evaluated and not trained, the training data is left unread; `learned`
    is what the model's run knew of it. `from_hub` opens the rows of a split on the Hub. `workers` clean and tokenize
    running text.
    """
    if recipe.task == "multi-task":
        return _several(recipe, seed, from_hub)
    if recipe.task in PRETRAINING:
        return assemble_text(recipe, seed, config, workers)
    return _rows(recipe, seed, config, from_hub, learned)


# ---- rows: the tasks of fine-tuning --------------------------------------------------------------------------------


def _rows(recipe: Recipe, seed: int, fixed: Any, from_hub: Opener, learned: Learned | None = None) -> Assembly:
    task = tasks.row_task(recipe.task)
    data = recipe.data
    assert isinstance(data, RowData)
    if recipe.evaluation.language is not None and task.references is None:
        raise UserError(f"evaluation.language has no effect on {recipe.task}, which compares no texts", "leave it out")
    config, notes = (fixed, []) if fixed is not None else load_config(recipe.model, finetuning=True)
    splits = tables(data, seed, task.reader, train=fixed is None, from_hub=from_hub, fits_rows=recipe.fits_rows)
    first = splits.train if splits.train is not None else next(iter(splits.validation.values()))
    columns = splits.columns
    fingerprint = files.digest(first.fingerprint, sorted(columns.items()))
    documents = Documents(lambda: _texts(task, first, columns), fingerprint, first.source, verify=first.verify)
    tokenizer, subtokens, added = load_tokenizer(recipe, documents, config)
    fit_for_batches(tokenizer, config)
    if fixed is None:
        fit_to_tokenizer(config, recipe.model, tokenizer, has_own_tokenizer(recipe), len(subtokens))
    length = choose_length(data.max_length, config, task.LONGEST_INPUT or LONGEST_INPUT)

    def encode(rows: table.Rows) -> Encoded:
        return encode_once(task, rows, columns, tokenizer, data, length)

    train = None if splits.train is None else encode(splits.train)
    held_out = {name: encode(rows) for name, rows in splits.validation.items()}
    label_spec = task.resolve_labels(data, columns, train, held_out, config, fixed is not None)
    parts = {**({} if train is None else {"train": train}), **held_out}
    units = None
    if task.references is not None:
        compared = chain.from_iterable(map(task.references, held_out.values()))
        units = language.choose(recipe.evaluation.language, compared)
        label_spec = replace(label_spec, units=units)
    report, beside = choose_metrics(task, label_spec, recipe.evaluation)
    if train is not None:
        learned = Learned.of(task, train, label_spec, getattr(config, "num_labels", 0))
    record, warnings = summary.look(
        train, held_out, {name: task.label_counts(part, label_spec) for name, part in parts.items()}
    )
    texts = {name: _texts_of(recipe.task, part) for name, part in parts.items()}
    unknown = {name: unknown_tokens.share(tokenizer, tokens) for name, tokens in texts.items()}
    for name, found in unknown.items():
        if found is not None:
            record[name]["unknown"] = round(found, 6)
    sampler = None
    if train is not None:
        part = next(iter(held_out.values()), train)
        sampler = samples.of_rows(recipe, tokenizer, config, part, columns, length)
    about = {"fingerprint": first.fingerprint, "revision": splits.revision, **record}
    about |= _counts(splits.record, parts)
    scored = {} if units is None or not held_out else units.record
    train_examples = None if train is None else task.examples(train, label_spec, False)
    return Assembly(
        config=config,
        tokenizer=tokenizer,
        unit="examples",
        length=None,
        train=train_examples,
        validation={name: task.examples(part, label_spec, True) for name, part in held_out.items()},
        collate=choose_collator(task, tokenizer, config),
        losses=_with(task.losses, label_spec),
        preprocess_logits_for_metrics=_with(task.preprocess_logits_for_metrics, label_spec)
        if recipe.evaluation.metrics != ()
        else None,
        prepare_model=_with(task.prepare_model, label_spec),
        metrics=report,
        learned=learned,
        compare=beside,
        lines=[
            summary.columns_used(columns, first.columns, task.reader.LABEL_ROLES),
            *summary.lines(record),
            *([] if units is None else units.lines),
        ],
        notes=[*recipe.notes, *splits.notes, *_notes(parts), *_packed(train, train_examples), *notes, *added],
        subtokens=subtokens,
        warnings=[
            *unknown_tokens.warnings(recipe, tokenizer, unknown),
            *unknown_tokens.in_pieces(recipe, tokenizer, texts),
            *warnings,
        ],
        record={"data": about, "columns": columns, "max_length": length, **task.record(label_spec), **scored},
        example=_example(task, next(iter(splits.validation.values()), first), columns),
        rows=splits.rows,
        validation_fraction=splits.validation_fraction,
        sampler=sampler,
        judged_by=_judged_by(recipe, task.metric_names(label_spec)),
    )


def _notes(parts: Mapping[str, Encoded]) -> list[str]:
    """List what encoding says of the rows, of which part where there are several."""
    return [f"{name}: {note}" if len(parts) > 1 else note for name, part in parts.items() for note in part.notes]


def _packed(train: Encoded | None, examples: Sequence[Any] | None) -> list[str]:
    """Say how many conversations of the training data share an input; nothing where each has its own."""
    if train is None or examples is None:
        return []
    conversations = len(train.row) - len(train.unlearned)
    if len(examples) >= conversations:
        return []
    return [f"{quantity(conversations, 'conversation')} are packed into {quantity(len(examples), 'input')}"]


def _counts(record: Mapping[str, Any], parts: Mapping[str, Encoded]) -> dict[str, Any]:
    """Add the rows that encoding left out or mended to the record of those that screening did."""
    counts = {key: {name: dict(kinds) for name, kinds in record.get(key, {}).items()} for key in ("skipped", "mended")}
    for name, part in parts.items():
        for key in counts:
            if kinds := getattr(part, key):
                counts[key][name] = {**counts[key].get(name, {}), **kinds}
    return {**record, **{key: by_split for key, by_split in counts.items() if by_split}}


def _texts_of(task: str, part: Encoded) -> list[np.ndarray]:
    """Return the tokens of the rows' texts; where both are texts, of inputs and targets."""
    names = ("input_ids", "labels") if TASKS[task].auto_class == "AutoModelForSeq2SeqLM" else ("input_ids",)
    return [part.inputs[name].values for name in names if name in part.inputs]


# The metric of which more is better and which a user means, by task: of few rows the loss is least long before the
# answers are best. Others are judged by their loss.
JUDGED_BY = {
    "text-classification": "accuracy",
    "multiple-choice": "accuracy",
    "token-classification": "f1",
    "question-answering": "f1",
}


def _judged_by(recipe: Recipe, names: Sequence[str]) -> str:
    metric = JUDGED_BY.get(recipe.task)
    reported = names if recipe.evaluation.metrics is None else recipe.evaluation.metrics
    return metric if metric is not None and metric in names and metric in reported else "loss"


def _example(task: RowTask, rows: table.Rows, columns: Mapping[str, str]) -> str:
    """Return the text of the first row, where a task reads one text; else nothing."""
    inputs = [name for role, name in columns.items() if role not in task.reader.LABEL_ROLES]
    row = next((row for _, row in rows.read() if isinstance(row, Mapping)), {})
    text = row.get(inputs[0]) if len(inputs) == 1 else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def _with(function: Callable[..., Any] | None, label_spec: Any) -> Callable[..., Any] | None:
    """Bind the last argument of a task's function, what its labels mean; None for a task without it."""
    return None if function is None else lambda *args, **options: function(*args, label_spec, **options)


def _texts(task: RowTask, rows: table.Rows, columns: Mapping[str, str]) -> Any:
    """What a tokenizer of one's own is trained on: the texts of the rows, without their labels."""
    texts_of = task.reader.texts
    if texts_of is not None:
        texts = (text for _, row in rows.read() for text in texts_of(row, columns))
    else:
        read_by_model = [name for role, name in columns.items() if role not in task.reader.LABEL_ROLES]
        texts = (str(row.get(name) or "") for _, row in rows.read() for name in read_by_model)
    # Half a character (JSON can write it) is refused by `encode`, with its place.
    return (text.encode(errors="ignore").decode() for text in texts)


# ---- several tasks at once -----------------------------------------------------------------------------------------


def _several(recipe: Recipe, seed: int, from_hub: Opener) -> Assembly:
    """Each task's own assembly, and what training is given of all of them."""
    made = {name: _rows(part.recipe(recipe), seed, None, from_hub) for name, part in recipe.tasks.items()}
    parts = [
        multi_task.Part(
            name,
            tasks.model_class(recipe.tasks[name].task),
            recipe.tasks[name].weight,
            each.config,
            each.train,
            each.collate,
            each.losses,
            each.preprocess_logits_for_metrics,
            each.prepare_model,
        )
        for name, each in made.items()
    ]
    first = next(iter(made.values()))
    validation = {
        name if len(each.validation) == 1 else f"{name}_{split}": multi_task.Named(name, examples)
        for name, each in made.items()
        for split, examples in each.validation.items()
    }
    metrics_of = {name: each.metrics for name, each in made.items()}

    def beside(learned: Mapping[str, Any], stats: Any, part: Any) -> Comparison | None:
        compare = made[part.name].compare
        return None if compare is None else compare(learned[part.name], stats, part.examples)

    return Assembly(
        config=first.config,
        tokenizer=first.tokenizer,
        unit="examples",
        length=None,
        train=multi_task.Mixture(parts),
        validation=validation,
        collate=multi_task.collator(parts),
        losses=multi_task.losses(parts),
        preprocess_logits_for_metrics=multi_task.preprocess_logits_for_metrics(parts),
        prepare_model=None,
        metrics=lambda stats, part: metrics_of[part.name](stats, part.examples),
        lines=[line for name, each in made.items() for line in (f"{name}:", *(f"  {line}" for line in each.lines))],
        notes=[*recipe.notes, *(f"{name}: {note}" for name, each in made.items() for note in each.notes)],
        warnings=[f"{name}: {warning}" for name, each in made.items() for warning in each.warnings],
        record={"tasks": {name: each.record for name, each in made.items()}},
        create_model=lambda table, seed: multi_task.create(table, parts, seed),
        learned={name: each.learned for name, each in made.items()},
        compare=beside,
        several=True,
    )


def choose_metrics(
    task: RowTask, label_spec: Any, table: Evaluation
) -> tuple[Callable[[Any, Any], dict[str, float]], Callable[[Any, Any, Any], Comparison | None]]:
    """Choose what reports the loss and the metrics, and what compares them with the trivial ones.

    The metrics are those that the recipe names, or all that the task has.

    Raises UserError before training for a metric that does not fit the data or is not to be had.
    """
    own = task.metric_names(label_spec)
    wanted = own if table.metrics is None else table.metrics
    unfit = [name for name in wanted if name in task.METRICS and name not in own]
    if unfit:
        raise UserError(f"evaluation.metrics: {unfit[0]} does not fit this data", f"choose from {', '.join(own)}")
    further = {name: _further(name, own, table.trust_remote_code) for name in wanted if name not in own}

    def report(stats: Any, part: Any) -> dict[str, float]:
        kept = stats if task.preprocess_logits_for_metrics is None else stats[:, 2:]
        metrics = task.metrics(kept, part) if wanted else {}
        figures = {
            "loss": measures.mean_loss(stats[:, :2]),
            **{name: metrics[name] for name in wanted if name in metrics},
        }
        if further:
            predictions, references = task.predictions_and_references(kept, part)
            for metric in further.values():
                result = metric.compute(predictions=predictions, references=references) or {}
                figures.update({key: float(value) for key, value in result.items() if isinstance(value, int | float)})
        return figures

    return report, partial(compare_rows, task, tuple(wanted), further)


def _further(name: str, own: Sequence[str], trusted: bool) -> Any:
    """A metric of the package `evaluate`: a script on this machine, or one from the Hub if its code is trusted."""
    if not disk.exists(Path(name)) and not trusted:
        raise UserError(
            f"evaluation.metrics: `{name}` is neither a metric of this task ({', '.join(own)}) nor a path",
            "a metric of the Hub is code that would run here: evaluation.trust_remote_code = true allows it",
        )
    import evaluate  # nine seconds

    try:
        return evaluate.load(name)
    except (FileNotFoundError, ImportError, TypeError, ValueError, OSError) as problem:
        raise UserError(f"evaluation.metrics: `{name}`: {' '.join(str(problem).split())}") from problem
