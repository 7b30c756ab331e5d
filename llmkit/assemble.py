"""What a recipe becomes before there is a model: data, tokenizer, architecture, and the task's part in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import Dataset

from llmkit import metrics as measures
from llmkit import tasks
from llmkit.data import files
from llmkit.data.cleaning import pipeline as cleaning
from llmkit.data.rows import examples as rows_to_examples
from llmkit.data.rows import summary, table
from llmkit.data.text import mixture, pack, sources
from llmkit.data.text.documents import Documents, chained
from llmkit.errors import UserError
from llmkit.models import added_tokens, architectures, tokenizer
from llmkit.models.config import choose_block_size, fit_to_tokenizer, load_config, positions
from llmkit.recipe.data_tables import CausalData, MaskedData, RowData, TextData
from llmkit.recipe.schema import PRETRAINING, Evaluation, Recipe
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
    losses: Callable[..., torch.Tensor] | None  # of what predicts tokens: `llmkit.speed.fused_loss` has them
    keep: Callable[..., torch.Tensor] | None
    begin: Callable[[Any], None] | None
    metrics: Callable[[Any, Any], dict[str, float]]
    lines: list[str]
    notes: list[str]
    warnings: list[str]
    record: dict[str, Any]
    parts: Sequence[multi_task.Part] = ()  # of several tasks at once
    pieces: Mapping[int, list[int]] = field(default_factory=dict)  # of each token that is new in this run
    several: bool = False  # `validation` holds several things of equal standing: tasks, or sources


def assemble(recipe: Recipe, seed: int, config: Any = None) -> Assembly:
    """Read and tokenize the data of `recipe`; raises UserError where its parts do not fit together.

    With `config`, that of a model which is to be evaluated and not trained, the training data is left unread.
    """
    if recipe.task == "multi-task":
        return _several(recipe, seed)
    return (_text if recipe.task in PRETRAINING else _rows)(recipe, seed, config)


# ---- running text: the tasks of pretraining ------------------------------------------------------------------------


def _text(recipe: Recipe, seed: int, fixed: Any) -> Assembly:
    task = tasks.module(recipe.task)
    data = recipe.data
    assert isinstance(data, TextData)
    check_use(data, fixed is not None)
    config, notes = (fixed, []) if fixed is not None else load_config(recipe.model)
    if fixed is None:
        architectures.check_architecture(config, recipe.task)
    block_size = choose_block_size(data.block_size, config)
    record: dict[str, Any] = {"block_size": block_size, "data": {}}
    corpora, cleaned = sources.cleaned(data, sources.corpora(data, seed), fixed is None)
    text = chained([corpus.train for corpus in corpora.values()])
    words, pieces, added = _tokenizer(recipe, text, config)
    lines = []
    if fixed is None:
        fit_to_tokenizer(config, recipe.model, words, _own_tokenizer(recipe), len(pieces))
        about = tokenizer.report(words, text)
        record["tokenizer"] = {**about, "added": words.convert_ids_to_tokens(list(pieces))}
        lines.append(tokenizer.line(about))
    cut = task.cut(data, block_size)
    if cut.stride < 1:
        raise UserError(f"data.block_size = {block_size} leaves no room for text")
    separator = task.separator(words)
    draw = recipe.trainer.get("data_seed")
    draw = seed if draw is None else draw
    collate = task.collator(data, words, config, draw)  # which refuses a tokenizer that does not fit

    def evaluated(row: pack.TokenRow, limit: int | None) -> Any:
        """What is gone through in evaluation: of a finished model without a tail that is left out."""
        if fixed is not None and hasattr(task, "measured"):
            return task.measured(row, data, cut, limit, words)
        return pack.Blocks(row, cut, limit, evaluation=True)

    several = len(corpora) > 1
    measured_whole = fixed is not None and all(corpus.validation is None for corpus in corpora.values())
    training: dict[str, pack.Blocks] = {}
    stream: pack.StreamedBlocks | None = None
    validation: dict[str, Dataset[Any]] = {}
    for name, corpus in corpora.items():
        about = {"fingerprint": corpus.train.fingerprint, "revision": corpus.revision, **cleaned[name]}
        record["data"] |= {name: about} if several else about
        here = record["data"][name] if several else record["data"]
        if fixed is None and data.streaming:
            stream = pack.StreamedBlocks(corpus.train, words, separator, cut, data.max_train_samples)
            if next(iter(stream), None) is None:
                raise UserError(f"{corpus.train.source}: too little text for one block of {block_size} tokens")
        elif fixed is None:
            training[name] = _blocks(corpus.train, words, separator, cut, data.max_train_samples, here, "train")
        held_out = corpus.train if measured_whole else corpus.validation
        if held_out is not None:
            validation[name or "validation"] = _held_out(held_out, words, separator, cut, data, here, evaluated)
    train: Dataset[Any] | None = next(iter(training.values()), None)
    if stream is not None:
        train = pack.Endless(stream, data.buffer_size, draw)
    if several and training:
        weights = {name: weight for name, (_, weight) in data.each().items()}
        train = mixture.MixedBlocks(training, weights, draw)
    if recipe.task == "masked-lm":
        record["mask_token"] = words.mask_token
    return Assembly(
        task=task,
        config=config,
        tokenizer=words,
        unit="examples" if cut.within_documents else "blocks",
        length=None if cut.within_documents else block_size,
        train=train,
        validation=validation,
        collate=numbered(collate),
        losses=getattr(task, "losses", None),
        keep=getattr(task, "keep", None),
        begin=partial(task.begin, data=data) if hasattr(task, "begin") else None,
        metrics=lambda sums, part: task.metrics(sums, part.row),
        lines=_lines(record["data"], several, block_size, cut) + lines,
        notes=[*recipe.notes, *(note for corpus in corpora.values() for note in corpus.notes), *notes, *added],
        warnings=[],
        record=record,
        pieces=pieces,
        several=several,
    )


def numbered(collate: Callable[[list[pack.Window]], dict[str, Any]]) -> Callable[[list[pack.Window]], dict[str, Any]]:
    """The batch with the blocks' numbers, `index` [B]: a step that goes wrong is to be named by them."""
    return lambda windows: {**collate(windows), "index": torch.tensor([window.index for window in windows])}


def check_use(data: TextData, evaluating: bool) -> None:
    """Raise UserError for a key that means something in evaluation alone."""
    if evaluating:
        return
    if isinstance(data, CausalData) and data.stride is not None:
        raise UserError(
            "data.stride is for llmkit evaluate: training predicts each token once as it is", "leave it out"
        )
    if isinstance(data, MaskedData) and data.masking == "each":
        raise UserError(
            'data.masking = "each" is for llmkit evaluate: it hides one token at a time', "token, whole-word or span"
        )


def _lines(about: Mapping[str, Any], several: bool, block_size: int, cut: pack.Cut) -> list[str]:
    """What was read, in words: of each source, if there are several."""
    said = []
    for name, found in (about if several else {"": about}).items():
        before = f"{name}, " if name else ""
        if "clean" in found:
            said += [f"{before}{line}" for line in cleaning.lines(found["clean"])]
        for part in ("train", "validation"):
            if part in found:
                d = found[part]
                said.append(
                    f"{before}{part}: {d['documents']:,} documents, {d['tokens']:,} tokens, {d['blocks']:,} "
                    + (f"pieces of {block_size} at most" if cut.within_documents else f"blocks of {block_size}")
                    + (f", a tail of {d['tail']} tokens left out" if d["tail"] else "")
                )
    return said


def _held_out(
    documents: Documents,
    words: Any,
    separator: list[int],
    cut: pack.Cut,
    data: TextData,
    record: dict[str, Any],
    evaluated: Callable[[pack.TokenRow, int | None], Any],
) -> Any:
    """What is evaluated on; of a stream, the first blocks, held in memory."""
    if not data.streaming:
        return _blocks(documents, words, separator, cut, data.max_eval_samples, record, "validation", evaluated)
    limit = data.max_eval_samples or STREAMED_VALIDATION
    row = pack.materialize(pack.StreamedBlocks(documents, words, separator, cut, limit), limit)
    found = evaluated(row, limit)
    if not len(found):
        raise UserError(f"{documents.source}: too little validation text for one block")
    return found


def _tokenizer(recipe: Recipe, documents: Documents, config: Any) -> tuple[Any, dict[int, list[int]], list[str]]:
    """The tokenizer, for each token that is new in it what it was before, and notes."""
    segments = getattr(config, "type_vocab_size", 0) > 1
    found = tokenizer.load(recipe.tokenizer, recipe.model, recipe.task, documents, positions(config), segments=segments)
    return added_tokens.extend(found, recipe.tokenizer, documents)


def _own_tokenizer(recipe: Recipe) -> bool:
    return recipe.tokenizer.type is not None or recipe.tokenizer.name is not None or recipe.model.name is None


def _blocks(
    documents: Documents,
    words: Any,
    separator: list[int],
    cut: pack.Cut,
    limit: int | None,
    record: dict[str, Any],
    part: str,
    evaluated: Callable[[pack.TokenRow, int | None], Any] | None = None,
) -> Any:
    """Tokenize one part of the data and cut it; raises UserError where that gives no block."""
    row = pack.tokenize_documents(documents, words, separator)
    found = pack.Blocks(row, cut, limit) if evaluated is None else evaluated(row, limit)
    if not row.num_documents:
        raise UserError(f"{documents.source}: no text in the {part} data", "an empty file, or a fraction too small?")
    if not len(found):
        raise UserError(
            f"{documents.source}: the {part} data has {len(row.ids):,} tokens, less than one block of {cut.length}",
            "more text or a smaller data.block_size"
            + (' (a single document: data.validation_from = "end")' if part == "validation" else ""),
        )
    record[part] = {
        "documents": row.num_documents,
        "bytes": row.num_bytes,
        "tokens": len(row.ids),
        "blocks": found.num_blocks,
        "tail": found.tail,
    }
    return found


# ---- rows: the tasks of fine-tuning --------------------------------------------------------------------------------


def _rows(recipe: Recipe, seed: int, fixed: Any) -> Assembly:
    task = tasks.module(recipe.task)
    data = recipe.data
    assert isinstance(data, RowData)
    config, notes = (fixed, []) if fixed is not None else load_config(recipe.model, finetuning=True)
    found = table.tables(data, seed, train=fixed is None)
    first = found.train if found.train is not None else next(iter(found.validation.values()))
    columns = task.layout(data, first)
    fingerprint = files.digest(first.fingerprint, sorted(columns.items()))
    documents = Documents(lambda: _texts(task, first, columns), fingerprint, first.source)
    words, pieces, added = _tokenizer(recipe, documents, config)
    fit_for_batches(words, config)
    if fixed is None:
        fit_to_tokenizer(config, recipe.model, words, _own_tokenizer(recipe), len(pieces))
    length = choose_length(data.max_length, config, getattr(task, "LONGEST_INPUT", LONGEST_INPUT))
    encode = partial(task.encode, columns=columns, tokenizer=words, data=data, length=length)
    train = None if found.train is None else encode(found.train)
    held_out = {name: encode(rows) for name, rows in found.validation.items()}
    known = task.settle(data, columns, train, held_out, config, fixed is not None)
    report = choose_metrics(task, known, recipe.evaluation)
    parts = {**({} if train is None else {"train": train}), **held_out}
    record, warnings = summary.look(train, held_out, {name: task.balance(part, known) for name, part in parts.items()})
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
        losses=partial(task.losses, known=known) if hasattr(task, "losses") else None,
        keep=partial(task.keep, known=known) if hasattr(task, "keep") and recipe.evaluation.metrics != () else None,
        begin=partial(task.begin, known=known) if hasattr(task, "begin") else None,
        metrics=report,
        lines=summary.lines(record),
        notes=[*recipe.notes, *found.notes, *notes, *added],
        pieces=pieces,
        warnings=warnings,
        record={"data": about, "columns": columns, "max_length": length, **task.described(known)},
    )


def _texts(task: ModuleType, rows: table.Rows, columns: Mapping[str, str]) -> Any:
    """What a tokenizer of one's own is trained on: the texts of the rows, without their labels."""
    if hasattr(task, "texts"):
        found = (text for _, row in rows.read() for text in task.texts(row, columns))
    else:
        read_by_model = [name for role, name in columns.items() if role not in task.TARGETS]
        found = (str(row.get(name) or "") for _, row in rows.read() for name in read_by_model)
    # Half a character (JSON can write it) is refused by `encode`, with its place.
    return (text.encode(errors="ignore").decode() for text in found)


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
        several=True,
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
    limit = positions(config)
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
        kept = stats[:, 2:] if hasattr(task, "keep") else stats
        found = task.metrics(kept, part) if wanted else {}
        said = {"loss": measures.mean_loss(stats[:, :2]), **{name: found[name] for name in wanted if name in found}}
        if further:
            predictions, references = task.predictions_and_references(kept, part)
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
