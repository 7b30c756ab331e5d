"""Measure how much of a text a tokenizer does not know, and name models that read more languages."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmkit.recipe.schema import Recipe

MUCH = 0.02  # the share of unknown tokens above which a warning is given
IN_PIECES = 0.2  # that of tokens that are a part of a character: emoji and curly quotes in English stay far below
CHUNK = 2**20  # ids that are counted at once
BYTES = 1_000  # entries of a vocabulary, below which it is one of bytes on purpose, as ByT5's
# Models of about a hundred languages, Qwen's of some thirty, and how many parameters they have: by task, else ENCODERS.
ENCODERS = (
    ("intfloat/multilingual-e5-small", "118M"),
    ("google-bert/bert-base-multilingual-cased", "178M"),
    ("FacebookAI/xlm-roberta-base", "278M"),
)
BASE_RATE = 5e-5  # the learning rate above which encoders of base size often learn nothing
ENCODER_DECODERS = (("google/mt5-small", "300M"), ("facebook/mbart-large-50", "611M"))
MULTILINGUAL: dict[str, tuple[tuple[str, str], ...]] = {
    "masked-lm": ENCODERS[1:],  # the first has no head for it
    "seq2seq": ENCODER_DECODERS,
    "denoising": ENCODER_DECODERS,
    "causal-lm": (("Qwen/Qwen2.5-0.5B", "494M"), ("Qwen/Qwen2.5-1.5B", "1.5B")),
    "chat": (("Qwen/Qwen2.5-0.5B-Instruct", "494M"), ("Qwen/Qwen2.5-1.5B-Instruct", "1.5B")),
    "replaced-token-detection": (),
}


def share(tokenizer: Any, sequences: Iterable[Any]) -> float | None:
    """Compute the share of unknown tokens in sequences of ids, special ones not counted.

    None for a tokenizer that writes none: it has no unknown token, or one that has another role, as GPT-2's.
    """
    unknown = tokenizer.unk_token_id
    others = [name for name in ("bos", "eos", "pad", "sep", "cls") if getattr(tokenizer, f"{name}_token_id") == unknown]
    if unknown is None or others:
        return None
    counts = counts_of(sequences)
    total = counts.total() - sum(counts[token] for token in {*tokenizer.all_special_ids} - {unknown})
    return counts[unknown] / max(total, 1)


def counts_of(sequences: Iterable[Any]) -> Counter[int]:
    """Count how often each token is in sequences of ids."""
    counts: Counter[int] = Counter()
    for ids in map(np.ravel, sequences):
        for begin in range(0, len(ids), CHUNK):
            chunk = ids[begin : begin + CHUNK].astype(np.int64)
            least = int(chunk.min())  # -100, where a label is none
            numbers = np.bincount(chunk - least)
            found = np.flatnonzero(numbers)
            counts.update(dict(zip((found + least).tolist(), numbers[found].tolist(), strict=True)))
    return counts


def share_in_pieces(tokenizer: Any, sequences: Iterable[Any]) -> float:
    """Compute the share of tokens that are part of a character, as byte-level tokenizers write what they never saw."""
    if len(tokenizer) < BYTES:
        return 0.0
    counts = counts_of(sequences)
    of_text = counts.keys() - {*tokenizer.all_special_ids, -100}
    total = sum(counts[token] for token in of_text)
    return sum(counts[token] for token in of_text if "\ufffd" in tokenizer.decode([token])) / max(total, 1)


def warnings(recipe: Recipe, tokenizer: Any, shares: Mapping[str, float | None]) -> list[str]:
    """Warn of the first part of the data that has many unknown tokens, and say what would know them."""
    part, found = next(((part, found) for part, found in shares.items() if (found or 0) > MUCH), ("", None))
    if found is None:
        return []
    about = f"{found:.1%} of the tokens are `{tokenizer.unk_token}`: the model cannot see the text behind them"
    return [f"{part}: {about}; {_remedy(recipe)}"]


def in_pieces(recipe: Recipe, tokenizer: Any, parts: Mapping[str, Iterable[Any]]) -> list[str]:
    """Warn of the first part of the data most of whose text a pretrained byte-level tokenizer never saw.

    `parts` are sequences of ids by the part's name.
    """
    if recipe.tokenizer.type is not None:  # it was made of this text, and has been reported on
        return []
    for part, sequences in parts.items():
        if (found := share_in_pieces(tokenizer, sequences)) > IN_PIECES:
            about = f"{found:.1%} of the tokens are only part of a character: the model hardly knows this script"
            return [f"{part}: {about}; {_remedy(recipe)}"]
    return []


def _remedy(recipe: Recipe) -> str:
    if recipe.tokenizer.type is not None:
        return "raise tokenizer.vocab_size, or set tokenizer.type = byte-bpe, which covers every character"
    models = MULTILINGUAL.get(recipe.task, ENCODERS)
    if not models:
        return "train a tokenizer on the text (tokenizer.type)"
    key = "tokenizer.name" if recipe.tokenizer.name is not None else "model.name"
    named = ", ".join(f"{name} ({size} parameters)" for name, size in models)
    too_fast = models is ENCODERS and recipe.trainer.get("learning_rate", BASE_RATE) > BASE_RATE
    slower = "; all but the first with trainer.learning_rate=2e-5" if too_fast else ""
    return f"try a multilingual model as {key}: {named}{slower}"
