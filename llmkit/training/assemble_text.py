"""Running text assembled: the documents of each source, tokenized and packed into blocks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit import tasks
from llmkit.data.cleaning import pipeline as cleaning
from llmkit.data.engines import ALONE, Workers
from llmkit.data.histogram import histogram
from llmkit.data.text import findings, mixture, pack, sources
from llmkit.data.text.documents import Corpus, Documents, chained
from llmkit.errors import UserError, quantity
from llmkit.models import architectures, unknown_tokens
from llmkit.models import tokenizer as tokenizers
from llmkit.models.config import choose_block_size, fit_to_tokenizer, load_config
from llmkit.recipe.data_tables import CausalData, MaskedData, TextData
from llmkit.recipe.schema import Recipe
from llmkit.training import samples
from llmkit.training.assembly import Assembly, has_own_tokenizer, load_tokenizer
from llmkit.training.trivial import text_comparison

STREAMED_VALIDATION = 512  # blocks held in memory for validation where data is streamed and no limit is set


def assemble_text(recipe: Recipe, seed: int, fixed: Any, workers: Workers = ALONE) -> Assembly:
    """Assemble the documents of `recipe` into blocks; `fixed` is the config of a finished model, which is evaluated."""
    task = tasks.text_task(recipe.task)
    data = recipe.data
    assert isinstance(data, TextData)
    check_use(data, fixed is not None)
    config, notes = (fixed, []) if fixed is not None else load_config(recipe.model)
    if fixed is None:
        architectures.check_architecture(config, recipe.task)
    block_size = choose_block_size(data.block_size, config)
    record: dict[str, Any] = {"block_size": block_size, "data": {}}
    corpora, cleaned = sources.cleaned(data, sources.corpora(data, seed), fixed is None, workers)
    text = chained([corpus.train for corpus in corpora.values()])
    tokenizer, subtokens, added = load_tokenizer(recipe, text, config)
    lines, warnings = list[str](), list[str]()
    if fixed is None:
        fit_to_tokenizer(config, recipe.model, tokenizer, has_own_tokenizer(recipe), len(subtokens))
        about = tokenizers.report(tokenizer, text)
        record["tokenizer"] = {**about, "added": tokenizer.convert_ids_to_tokens(list(subtokens))}
        lines.append(tokenizers.line(about))
        warnings += unknown_tokens.warnings(recipe, tokenizer, {"text": about["unknown"]})
    block_spec = task.block_spec(data, block_size)
    if block_spec.stride < 1:
        raise UserError(f"data.block_size = {block_size} leaves no room for text")
    separator = task.document_separator(tokenizer)
    data_seed = recipe.trainer.get("data_seed")
    data_seed = seed if data_seed is None else data_seed
    collate = task.collator(data, tokenizer, config, data_seed)  # which refuses a tokenizer that does not fit

    def evaluated(row: pack.TokenStream, limit: int | None) -> Any:
        """Return what is gone through in evaluation, without a tail that is left out where the task allows it."""
        if task.evaluation_windows is not None:
            return task.evaluation_windows(row, data, block_spec, limit, tokenizer)
        return pack.Blocks(row, block_spec, limit, evaluation=True)

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
            stream = pack.StreamedBlocks(corpus.train, tokenizer, separator, block_spec, data.max_train_samples)
            if next(iter(stream), None) is None:
                raise UserError(f"{corpus.train.source}: too little text for one block of {block_size} tokens")
        elif fixed is None:
            training[name] = _blocks(
                corpus.train, tokenizer, separator, block_spec, data.max_train_samples, here, "train", workers
            )
        held_out = corpus.train if measured_whole else corpus.validation
        if held_out is not None:
            validation[name or "validation"] = _held_out(
                held_out, tokenizer, separator, block_spec, data, here, evaluated, workers
            )
        if left_out := findings.left_out(corpus.findings):
            here["left_out"] = left_out
    train: Dataset[Any] | None = next(iter(training.values()), None)
    if stream is not None:
        train = pack.Endless(stream, data.buffer_size, data_seed)
    if several and training:
        weights = {name: weight for name, (_, weight) in data.named_sources().items()}
        train = mixture.MixedBlocks(training, weights, data_seed)
    if recipe.task == "masked-lm":
        record["mask_token"] = tokenizer.mask_token
    prepare, create = task.prepare_model, task.create_model
    beside = None if train is None else text_comparison(task, collate, train, len(tokenizer))
    return Assembly(
        config=config,
        tokenizer=tokenizer,
        unit="examples" if block_spec.within_documents else "blocks",
        length=None if block_spec.within_documents else block_size,
        train=train,
        validation=validation,
        collate=numbered(collate),
        losses=task.losses,
        preprocess_logits_for_metrics=task.preprocess_logits_for_metrics,
        prepare_model=None if prepare is None else lambda model: prepare(model, data),
        create_model=None if create is None else lambda table, seed: create(table, config, seed),
        metrics=lambda sums, part: task.metrics(sums, part.tokens),
        lines=_lines(record["data"], several, block_size, block_spec, corpora) + lines,
        notes=[*recipe.notes, *_notes(corpora), *notes, *added],
        warnings=warnings,
        record=record,
        subtokens=subtokens,
        several=several,
        all_learned=isinstance(data, CausalData) and data.pack == "running",
        sampler=None
        if fixed is not None
        else samples.of_text(recipe, tokenizer, config, validation or training, collate),
        compare=None if beside is None else lambda _, stats, part: beside(stats, part),
    )


def numbered(collate: Callable[[list[pack.Window]], dict[str, Any]]) -> Callable[[list[pack.Window]], dict[str, Any]]:
    """Return the batch with the blocks' numbers, `index` [B]: a step that goes wrong is to be named by them."""
    return lambda windows: {**collate(windows), "index": torch.tensor([window.index for window in windows])}


def check_use(data: TextData, evaluating: bool) -> None:
    """Raise UserError for a key that means something in evaluation alone."""
    if evaluating:
        return
    if isinstance(data, CausalData) and data.stride is not None:
        raise UserError("data.stride is for llmkit evaluate: training always predicts each token once", "leave it out")
    if isinstance(data, MaskedData) and data.masking == "each":
        raise UserError(
            'data.masking = "each" is for llmkit evaluate: it hides one token at a time',
            "use token, whole-word or span",
        )


def _notes(corpora: Mapping[str, Corpus]) -> list[str]:
    """List the notes on each source, and what reading it showed."""
    notes: list[str] = []
    for name, corpus in corpora.items():
        shown = dict.fromkeys(note for found in corpus.findings for note in found.notes)
        notes += [*corpus.notes, *(f"{name}: {note}" if name else note for note in shown)]
    return notes


def _lines(
    about: Mapping[str, Any],
    several: bool,
    block_size: int,
    block_spec: pack.BlockSpec,
    corpora: Mapping[str, Corpus],
) -> list[str]:
    """What was read, in words: of each source, if there are several."""
    lines = []
    for name, part_of in (about if several else {"": about}).items():
        before = f"{name}, " if name else ""
        lines += [f"{before}{line}" for line in findings.lines(corpora[name].findings)]
        if "clean" in part_of:
            lines += [f"{before}{line}" for line in cleaning.lines(part_of["clean"])]
        for part in ("train", "validation"):
            if part in part_of:
                d = part_of[part]
                lines.append(
                    f"{before}{part}: {quantity(d['documents'], 'document')}, {quantity(d['tokens'], 'token')}, "
                    + f"{quantity(d['blocks'], 'piece' if block_spec.within_documents else 'block')} of {block_size}"
                    + (" at most" if block_spec.within_documents else "")
                    + (f", a tail of {quantity(d['tail'], 'token')} left out" if d["tail"] else "")
                )
    return lines


def _held_out(
    documents: Documents,
    tokenizer: Any,
    separator: list[int],
    block_spec: pack.BlockSpec,
    data: TextData,
    record: dict[str, Any],
    evaluated: Callable[[pack.TokenStream, int | None], Any],
    workers: Workers,
) -> Any:
    """What is evaluated on; of a stream, the first blocks, held in memory."""
    if not data.streaming:
        return _blocks(
            documents, tokenizer, separator, block_spec, data.max_eval_samples, record, "validation", workers, evaluated
        )
    limit = data.max_eval_samples or STREAMED_VALIDATION
    row = pack.materialize(pack.StreamedBlocks(documents, tokenizer, separator, block_spec, limit), limit)
    windows = evaluated(row, limit)
    if not len(windows):
        raise UserError(f"{documents.source}: too little validation text for one block")
    return windows


def _blocks(
    documents: Documents,
    tokenizer: Any,
    separator: list[int],
    block_spec: pack.BlockSpec,
    limit: int | None,
    record: dict[str, Any],
    part: str,
    workers: Workers,
    evaluated: Callable[[pack.TokenStream, int | None], Any] | None = None,
) -> Any:
    """Tokenize one part of the data and cut it; raises UserError where that gives no block."""
    row = pack.tokenize_documents(documents, tokenizer, separator, engine=workers.engine)
    windows = pack.Blocks(row, block_spec, limit) if evaluated is None else evaluated(row, limit)
    if not row.num_documents:
        raise UserError(
            f"{documents.source}: no text in the {part} data", "is the file empty, or the fraction too small?"
        )
    if not len(windows):
        raise UserError(
            f"{documents.source}: the {part} data has {len(row.ids):,} tokens, less than one block of "
            f"{block_spec.length}",
            "use more text or a smaller data.block_size"
            + (' (for a single document, set data.validation_from = "end")' if part == "validation" else ""),
        )
    record[part] = {
        "documents": row.num_documents,
        "bytes": row.num_bytes,
        "tokens": len(row.ids),
        "blocks": windows.num_blocks,
        "tail": windows.tail,
        "length_histogram": histogram(np.diff(row.ends, prepend=0)),
    }
    return windows
