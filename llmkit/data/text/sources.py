"""The sources of running text: each opened, and cleaned as its recipe says."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.data.cleaning import pipeline
from llmkit.data.text.documents import Corpus, Documents, chained, read_corpus
from llmkit.errors import UserError
from llmkit.recipe.cleaning import Clean
from llmkit.recipe.data_tables import Source, TextData


def corpora(data: TextData, seed: int) -> dict[str, Corpus]:
    """Each source's documents by its name; of data without sources, its own under no name."""
    return {name: _corpus(name, each, seed) for name, (each, _) in data.each().items()}


def _corpus(name: str, data: TextData, seed: int) -> Corpus:
    """The corpus of one source of a mixture, whose messages name its keys; of data without sources, as it is."""
    if not name:
        return read_corpus(data, seed)
    try:
        found = read_corpus(data, seed)
    except UserError as problem:
        keys = "|".join(Source.model_fields)
        said = [
            re.sub(rf"data\.({keys})\b", rf"data.sources.{name}.\1", each) for each in (problem.message, problem.hint)
        ]
        raise UserError(f"{name}: {said[0]}", said[1], problem.details) from problem
    return replace(found, notes=tuple(f"{name}: {note}" for note in found.notes))


def cleaned(
    data: TextData, corpora: Mapping[str, Corpus], training: bool
) -> tuple[dict[str, Corpus], dict[str, dict[str, Any]]]:
    """The corpora as their sources' `clean` wants them, and what was done to each.

    Nothing is trained on that overlaps with the validation data of any source. Where there is none, a finished model is
    measured on all documents, which are cleaned as validation data is.
    """
    tables = {name: each.clean if each.clean is not None else data.clean for name, (each, _) in data.each().items()}
    found, reports = dict(corpora), {name: dict[str, Any]() for name in corpora}

    held_out: list[Documents] = []

    def through(name: str, documents: Documents, table: Clean, key: str, what: str) -> Documents:
        if data.streaming:
            return pipeline.clean_streamed(documents, table)
        against = chained(held_out) if held_out and what == "training" else None
        documents, reports[name][key] = pipeline.clean(documents, table, against, what)
        return documents

    for name, corpus in corpora.items():
        table, validation = tables[name], corpus.validation
        if table is not None and validation is not None:
            validation = through(name, validation, pipeline.alone(table), "clean_validation", "validation")
            found[name] = replace(corpus, validation=validation)
        held_out += [] if validation is None else [validation]
    for name, corpus in found.items():
        table = tables[name]
        if table is not None and training:
            found[name] = replace(corpus, train=through(name, corpus.train, table, "clean", "training"))
        elif table is not None and not held_out:
            train = through(name, corpus.train, pipeline.alone(table), "clean", "validation")
            found[name] = replace(corpus, train=train)
    return found, reports
