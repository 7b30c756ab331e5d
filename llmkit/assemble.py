"""What a recipe becomes before there is a model: data, tokenizer, architecture, and the task's part in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import Dataset

from llmkit import metrics as measures
from llmkit import model as models
from llmkit import tasks, tokenizer
from llmkit.data import examples as rows_to_examples
from llmkit.data import files, look, pack, read, table
from llmkit.errors import UserError
from llmkit.recipe.schema import PRETRAINING, Evaluation, Recipe, RowData, TextData
from llmkit.tasks import multi_task

STREAMED_VALIDATION = 512  # blocks held in memory for validation where data is streamed and no limit is set
LONGEST_INPUT = 512  # tokens of a row where the recipe does not say: what encoders of BERT's kind read at most


@dataclass(frozen=True)
class Assembly:
    """All that every process must agree on. The functions are what the Trainer is given."""

    task: ModuleType
    config: Any
    tokenizer: Any
    unit: str  # what a batch counts: "blocks" or "examples"
    length: int | None  # tokens in each of them, where all have the same
    train: Dataset[Any] | None
    validation: Mapping[str, Dataset[Any]]
    collate: Callable[..., dict[str, torch.Tensor]]
    losses: Callable[..., torch.Tensor]
    keep: Callable[..., torch.Tensor] | None
    begin: Callable[[Any], None] | None
    metrics: Callable[[Any, Any], dict[str, float]]
    lines: list[str]
    notes: list[str]
    warnings: list[str]
    record: dict[str, Any]
    parts: Sequence[multi_task.Part] = ()  # of several tasks at once


def assemble(recipe: Recipe, seed: int, config: Any = None) -> Assembly:
    """Read and tokenize the data of `recipe`; raises UserError where its parts do not fit together.

    With `config`, that of a model which is to be evaluated and not trained, the training data is left unread.
    """
    if recipe.task == "multi-task":
        return _several(recipe, seed)
    return (_text if recipe.task in PRETRAINING else _rows)(recipe, seed, config)


# ---- running text: causal-lm, masked-lm ----------------------------------------------------------------------------


def _text(recipe: Recipe, seed: int, fixed: Any) -> Assembly:
    task = tasks.module(recipe.task)
    data = recipe.data
    assert isinstance(data, TextData)
    config, notes = (fixed, []) if fixed is not None else models.load_config(recipe.model)
    block_size = models.choose_block_size(data.block_size, config)
    corpus = read.corpus(data, seed)
    words = _tokenizer(recipe, corpus.train, config)
    if fixed is None:
        models.fit_to_tokenizer(config, recipe.model, words, _own_tokenizer(recipe))
    separator = task.separator(words)
    length, stride = task.window(block_size)
    if stride < 1:
        raise UserError(f"data.block_size = {block_size} leaves no room for text")
    record: dict[str, Any] = {"block_size": block_size, "data": {"fingerprint": corpus.train.fingerprint}}
    train: Dataset[pack.Window] | None = None
    if fixed is None and data.streaming:
        train = pack.StreamedBlocks(corpus.train, words, separator, length, stride, data.max_train_samples)
        if next(iter(train), None) is None:
            raise UserError(f"{corpus.train.source}: too little text for one block of {block_size} tokens")
    elif fixed is None:
        train = _blocks(corpus.train, words, separator, length, stride, data.max_train_samples, record, "train")
    held_out = corpus.validation if corpus.validation is not None or fixed is None else corpus.train
    validation = None
    if held_out is not None and data.streaming:
        limit = data.max_eval_samples or STREAMED_VALIDATION
        row = pack.materialize(pack.StreamedBlocks(held_out, words, separator, length, stride, limit), limit)
        validation = pack.Blocks(row, length, stride, limit, evaluation=True)
        if not len(validation):
            raise UserError(f"{held_out.source}: too little validation text for one block")
    elif held_out is not None:
        validation = _blocks(held_out, words, separator, length, stride, data.max_eval_samples, record, "validation")
    record["data"]["revision"] = corpus.revision
    if recipe.task == "masked-lm":
        record["mask_token"] = words.mask_token
    lines = [
        f"{part}: {d['documents']:,} documents, {d['tokens']:,} tokens, {d['blocks']:,} blocks of {block_size}, "
        f"a tail of {d['tail']} tokens left out"
        for part, d in record["data"].items()
        if part in ("train", "validation")
    ]
    draw = recipe.trainer.get("data_seed")
    return Assembly(
        task=task,
        config=config,
        tokenizer=words,
        unit="blocks",
        length=block_size,
        train=train,
        validation={} if validation is None else {"validation": validation},
        collate=task.collator(data, words, seed if draw is None else draw),
        losses=task.losses,
        keep=None,
        begin=None,
        metrics=lambda sums, part: task.metrics(sums, part.row),
        lines=lines,
        notes=[*recipe.notes, *corpus.notes, *notes],
        warnings=[],
        record=record,
    )


def _tokenizer(recipe: Recipe, documents: read.Documents, config: Any) -> Any:
    segments = getattr(config, "type_vocab_size", 0) > 1
    return tokenizer.load(
        recipe.tokenizer, recipe.model, recipe.task, documents, models.positions(config), segments=segments
    )


def _own_tokenizer(recipe: Recipe) -> bool:
    return recipe.tokenizer.type is not None or recipe.tokenizer.name is not None or recipe.model.name is None


def _blocks(
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


# ---- rows: the tasks of fine-tuning --------------------------------------------------------------------------------


def _rows(recipe: Recipe, seed: int, fixed: Any) -> Assembly:
    task = tasks.module(recipe.task)
    data = recipe.data
    assert isinstance(data, RowData)
    config, notes = (fixed, []) if fixed is not None else models.load_config(recipe.model, finetuning=True)
    found = table.tables(data, seed, train=fixed is None)
    first = found.train if found.train is not None else next(iter(found.validation.values()))
    columns = task.layout(data, first)
    fingerprint = files.digest(first.fingerprint, sorted(columns.items()))
    documents = read.Documents(lambda: _texts(task, first, columns), fingerprint, first.source)
    words = _tokenizer(recipe, documents, config)
    fit_for_batches(words, config)
    if fixed is None:
        models.fit_to_tokenizer(config, recipe.model, words, _own_tokenizer(recipe))
    length = choose_length(data.max_length, config, getattr(task, "LONGEST_INPUT", LONGEST_INPUT))
    encode = partial(task.encode, columns=columns, tokenizer=words, data=data, length=length)
    train = None if found.train is None else encode(found.train)
    held_out = {name: encode(rows) for name, rows in found.validation.items()}
    known = task.settle(data, columns, train, held_out, config, fixed is not None)
    report = choose_metrics(task, known, recipe.evaluation)
    parts = {**({} if train is None else {"train": train}), **held_out}
    record, warnings = look.look(train, held_out, {name: task.balance(part, known) for name, part in parts.items()})
    about = {"fingerprint": first.fingerprint, "revision": found.revision, **record}
    return Assembly(
        task=task,
        config=config,
        tokenizer=words,
        unit="examples",
        length=None,
        train=None if train is None else task.examples(train, known, evaluation=False),
        validation={name: task.examples(part, known, evaluation=True) for name, part in held_out.items()},
        collate=choose_collator(task, words, config),
        losses=partial(task.losses, known=known),
        keep=partial(task.keep, known=known) if recipe.evaluation.metrics != () else None,
        begin=partial(task.begin, known=known) if hasattr(task, "begin") else None,
        metrics=report,
        lines=look.lines(record),
        notes=[*recipe.notes, *found.notes, *notes],
        warnings=warnings,
        record={"data": about, "columns": columns, "max_length": length, **task.described(known)},
    )


def _texts(task: ModuleType, rows: table.Rows, columns: Mapping[str, str]) -> Any:
    """What a tokenizer of one's own is trained on: the texts of the rows, without their labels."""
    if hasattr(task, "texts"):
        return (text for _, row in rows.read() for text in task.texts(row, columns))
    read_by_model = [name for role, name in columns.items() if role not in task.TARGETS]
    return (str(row.get(name) or "") for _, row in rows.read() for name in read_by_model)


# ---- several tasks at once -----------------------------------------------------------------------------------------


def _several(recipe: Recipe, seed: int) -> Assembly:
    """Each task's own assembly, and what training is given of all of them."""
    made = {name: _rows(part.recipe(recipe), seed, None) for name, part in recipe.tasks.items()}
    parts = [
        multi_task.Part(
            name,
            each.task,
            recipe.tasks[name].weight,
            each.config,
            each.train,
            each.collate,
            each.losses,
            each.keep,
            each.begin,
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
    return Assembly(
        task=multi_task,
        config=first.config,
        tokenizer=first.tokenizer,
        unit="examples",
        length=None,
        train=multi_task.Mixture(parts),
        validation=validation,
        collate=multi_task.collator(parts),
        losses=multi_task.losses(parts),
        keep=multi_task.keep(parts),
        begin=None,
        metrics=lambda stats, part: metrics_of[part.name](stats, part.examples),
        lines=[line for name, each in made.items() for line in (f"{name}:", *(f"  {line}" for line in each.lines))],
        notes=[*recipe.notes, *(f"{name}: {note}" for name, each in made.items() for note in each.notes)],
        warnings=[f"{name}: {warning}" for name, each in made.items() for warning in each.warnings],
        record={"tasks": {name: each.record for name, each in made.items()}},
        parts=parts,
    )


def choose_collator(task: ModuleType, words: Any, config: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """The task's own, where its batches are more than one row of tokens an example, else the common one."""
    multiple = 8 if torch.cuda.is_available() else 1
    if hasattr(task, "collator"):
        return task.collator(words, config, multiple)
    return rows_to_examples.collator(words, multiple)


def fit_for_batches(words: Any, config: Any) -> None:
    """Inputs of several lengths need a token to pad with; a GPT-2 that has none takes its end-of-text token."""
    if words.pad_token_id is None:
        words.pad_token = words.eos_token or words.unk_token
    if words.pad_token_id is None:
        raise UserError("the tokenizer has no token to pad with", "use one that has: tokenizer.name")
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = words.pad_token_id


def choose_length(wanted: int | None, config: Any, longest: int = LONGEST_INPUT) -> int:
    """`data.max_length`, or as many tokens as the model has positions, `longest` at most."""
    limit = models.positions(config)
    if wanted is None:
        return min(limit or longest, longest)
    if limit is not None and wanted > limit:
        raise UserError(f"data.max_length is {wanted} and the model has {limit} positions", "make it smaller")
    return wanted


def choose_metrics(task: ModuleType, known: Any, table: Evaluation) -> Callable[[Any, Any], dict[str, float]]:
    """What reports the loss and the metrics: those that the recipe names, or all that the task has.

    Raises UserError before training for a metric that does not fit the data or is not to be had.
    """
    own = task.available(known)
    wanted = own if table.metrics is None else table.metrics
    unfit = [name for name in wanted if name in task.METRICS and name not in own]
    if unfit:
        raise UserError(f"evaluation.metrics: {unfit[0]} does not fit this data", f"there are {', '.join(own)}")
    further = {name: _further(name, own, table.trust_remote_code) for name in wanted if name not in own}

    def report(stats: Any, part: Any) -> dict[str, float]:
        found = task.metrics(stats[:, 2:], part) if wanted else {}
        said = {"loss": measures.mean_loss(stats[:, :2]), **{name: found[name] for name in wanted if name in found}}
        if further:
            predictions, references = task.predictions_and_references(stats[:, 2:], part)
            for metric in further.values():
                result = metric.compute(predictions=predictions, references=references) or {}
                said.update({key: float(value) for key, value in result.items() if isinstance(value, int | float)})
        return said

    return report


def _further(name: str, own: Sequence[str], trusted: bool) -> Any:
    """A metric of the package `evaluate`: a script on this machine, or one from the Hub if its code is trusted."""
    if not Path(name).exists() and not trusted:
        raise UserError(
            f"evaluation.metrics: `{name}` is neither a metric of this task ({', '.join(own)}) nor a path",
            "a metric of the Hub is code that would run here: evaluation.trust_remote_code = true allows it",
        )
    import evaluate  # nine seconds

    try:
        return evaluate.load(name)
    except (FileNotFoundError, ImportError, TypeError, ValueError, OSError) as problem:
        raise UserError(f"evaluation.metrics: `{name}`: {' '.join(str(problem).split())}") from problem
