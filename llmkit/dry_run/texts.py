"""Read the first documents of a recipe's sources, and show them."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.data import files
from llmkit.data.display import Report
from llmkit.data.rows.head import BYTES, TooMuchError, bounded, whole_split
from llmkit.data.text import sources
from llmkit.data.text.documents import Corpus, Documents
from llmkit.data.text.head import first, number_of
from llmkit.dry_run.size import Size
from llmkit.models import architectures, unknown_tokens
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.schema import Recipe
from llmkit.training.assemble_text import check_use
from llmkit.training.assembly import load_tokenizer

EXAMPLES = 3
DOCUMENTS, STREAMED = 1000, 100  # that are read of each source


def read_texts(report: Report, recipe: Recipe, seed: int, config: Any, block_size: int) -> Size:
    """Show the first documents of each source, and estimate how many blocks there are; raise UserError as a run would.

    What is not read is not refused: rows and files behind the first documents, and what the text leaves too few of.
    """
    data = recipe.data
    assert isinstance(data, TextData)
    check_use(data, False)
    architectures.check_architecture(config, recipe.task)
    opened = _streamed(data)
    limit = STREAMED if data.streaming else DOCUMENTS
    held: dict[tuple[str, str], tuple[list[str], bool]] = {}
    corpora: Mapping[str, Corpus] = {}
    with bounded(BYTES):
        try:
            corpora = sources.corpora(opened, seed)
            for name, corpus in corpora.items():
                for part, documents in (("train", corpus.train), ("validation", corpus.validation)):
                    if documents is not None:
                        held[name, part] = first(documents, limit)
        except TooMuchError:
            report.add("data", f"only a part is read: a dry run downloads at most {BYTES // 1_000_000} MB")
    tokenizer = None
    if recipe.tokenizer.type is None:
        tokenizer, _, _ = load_tokenizer(recipe, Documents(lambda: iter(()), "", ""), config)
    rows: dict[str, float | None] = {}
    for (name, part), (texts, partial) in held.items():
        report.add("data", f"{f'{name}, ' if name else ''}{part}: {number_of(texts, partial)}")
        if part == "train":
            tokens = _tokens(tokenizer, texts)
            rate = _rate(tokens, texts)
            if rate:
                report.add("", f"  {1 / rate:.2f} characters per token")
                found = unknown_tokens.share(tokenizer, tokens)
                warnings = unknown_tokens.warnings(recipe, tokenizer, {name or "text": found})
                for warning in [*warnings, *unknown_tokens.in_pieces(recipe, tokenizer, {name or "text": tokens})]:
                    report.add("warning", warning)
            for text in texts[:EXAMPLES]:
                report.fit("", f"  {text}")
            size = _characters(opened.named_sources()[name][0], texts, partial)
            rows[name] = None if rate is None or size is None else rate * size
    for corpus in corpora.values():
        for note in dict.fromkeys([*corpus.notes, *(note for found in corpus.findings for note in found.notes)]):
            report.add("note", note)
    known = [each for each in rows.values() if each is not None]
    if not rows or len(known) < len(data.named_sources()):
        return Size(None, False)
    blocks = max(1, int(sum(known) // block_size))
    report.add("data", f"about {int(float(f'{sum(known):.3g}')):,} tokens, {blocks:,} blocks of {block_size:,}")
    return Size(blocks, False)


def _streamed(data: TextData) -> TextData:
    """Let data on the Hub be streamed, so that no more is downloaded than is read; offline its cache is read."""
    if all(files.is_local(source) for source, _ in data.named_sources().values()):
        return data
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return data
    listed = {
        name: source.model_copy(update={"split": whole_split(source.split)}) for name, source in data.sources.items()
    }
    return data.model_copy(update={"streaming": True, "split": whole_split(data.split), "sources": listed})


def _few(texts: list[str]) -> list[str]:
    return [text[:10_000] for text in itertools.islice(texts, 100)]


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokenize the first texts; none without a tokenizer."""
    few = _few(texts)
    if tokenizer is None or not few:
        return []
    tokens: list[list[int]] = tokenizer(few, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def _rate(tokens: list[list[int]], texts: list[str]) -> float | None:
    """Return the tokens of a character, by the first texts; None where they were not tokenized."""
    characters = sum(map(len, _few(texts)))
    return sum(map(len, tokens)) / characters if tokens and characters else None


def _characters(data: TextData, texts: list[str], partial: bool) -> float | None:
    """Return how many characters there are to train on; estimated by the size of text files; None for other files."""
    if not partial:
        return sum(map(len, texts))
    if not files.is_local(data):
        return None
    paths = [Path(file) for file in files.of_split(data, data.split)]
    if any(file.suffix.lower() not in files.TEXT_SUFFIXES for file in paths):
        return None
    size = sum(file.stat().st_size for file in paths)
    per_byte = sum(map(len, texts)) / max(1, sum(len(text.encode(errors="replace")) for text in texts))
    return size * per_byte * (1 - (data.validation_fraction or 0))
