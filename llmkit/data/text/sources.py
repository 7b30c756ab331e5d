"""Open the sources of running text, and clean each as the recipe says."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.data.cleaning import pipeline
from llmkit.data.engines import ALONE, Workers
from llmkit.data.text.documents import Corpus, Documents, chained, read_corpus
from llmkit.errors import UserError
from llmkit.recipe.cleaning import Clean
from llmkit.recipe.data_tables import Source, TextData


def corpora(data: TextData, seed: int) -> dict[str, Corpus]:
    """Open the documents of each source by its name; data without sources is one source with no name."""
    seed = seed if data.seed is None else data.seed
    return {name: _corpus(name, source, seed) for name, (source, _) in data.named_sources().items()}


def _corpus(name: str, data: TextData, seed: int) -> Corpus:
    """Open one source; in a mixture, let its messages name its own keys."""
    if not name:
        return read_corpus(data, seed)
    try:
        corpus = read_corpus(data, seed)
    except UserError as problem:
        keys = "|".join(Source.model_fields)
        message, hint = (
            re.sub(rf"data\.({keys})\b", rf"data.sources.{name}.\1", text) for text in (problem.message, problem.hint)
        )
        raise UserError(f"{name}: {message}", hint, problem.details) from problem
    return replace(corpus, notes=tuple(f"{name}: {note}" for note in corpus.notes))


def cleaned(
    data: TextData, corpora: Mapping[str, Corpus], training: bool, workers: Workers = ALONE
) -> tuple[dict[str, Corpus], dict[str, dict[str, Any]]]:
    """Clean each corpus as `clean` of its source says; return the corpora, and the reports on what was done to each.

    Training documents that overlap with the validation data of any source are dropped. Without validation data a
    finished model is measured on all documents, which are cleaned as validation data is.
    """
    sources = {name: source for name, (source, _) in data.named_sources().items()}
    tables = {name: data.clean if source.clean is None else source.clean for name, source in sources.items()}
    result, reports = dict(corpora), {name: dict[str, Any]() for name in corpora}
    held_out: list[Documents] = []

    def clean(name: str, documents: Documents, table: Clean, key: str, what: str) -> Documents:
        if data.streaming:
            return pipeline.clean_streamed(documents, table)
        against = chained(held_out) if held_out and what == "training" else None
        documents, reports[name][key] = pipeline.clean(documents, table, against, what, workers)
        return documents

    for name, corpus in corpora.items():
        table, validation = tables[name], corpus.validation
        if table is not None and validation is not None:
            validation = clean(name, validation, pipeline.without_comparisons(table), "clean_validation", "validation")
            result[name] = replace(corpus, validation=validation)
        held_out += [] if validation is None else [validation]
    for name, corpus in result.items():
        table = tables[name]
        if table is not None and training:
            result[name] = replace(corpus, train=clean(name, corpus.train, table, "clean", "training"))
        elif table is not None and not held_out:
            train = clean(name, corpus.train, pipeline.without_comparisons(table), "clean", "validation")
            result[name] = replace(corpus, train=train)
    return result, reports
