"""The tokenizer of a run: from the Hub, from a folder, or trained on the run's own text."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit import hub
from llmkit.data.pack import cache_dir, new_cache_entry
from llmkit.data.read import Documents
from llmkit.errors import UserError
from llmkit.recipe.schema import Model
from llmkit.recipe.schema import Tokenizer as Table

# Upstream's own: what GPT-2 (with a pad token of its own, so that padding is never taken for the end) and BERT use.
CAUSAL_TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
MASKED_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ANY_CHARACTER = Regex(r"[\s\S]")


def load(table: Table, model: Model, task: str, documents: Documents, max_length: int | None) -> Any:
    """The tokenizer that `[tokenizer]` and `[model]` describe; `max_length` is noted in a trained one."""
    if table.type is not None:
        return _trained(table, task, documents, max_length)
    name = table.name or model.name
    if name is None:
        raise UserError(
            "a model from a config table needs a tokenizer",
            'name one (tokenizer.name) or train one on the data (tokenizer.type = "byte-bpe")',
        )
    revision = model.revision if table.name is None else None
    if not Path(name).exists():
        hub.check(name, "model", revision)
    with hub.loading(name, "model"):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=model.trust_remote_code)


def _trained(table: Table, task: str, documents: Documents, max_length: int | None) -> Any:
    """Train, or read from the cache what the same text and table gave before (every process reads the same)."""
    key = xxhash.xxh3_128_hexdigest(repr((1, documents.fingerprint, table.model_dump(), task, max_length)).encode())
    folder = cache_dir() / f"tokenizer-{key}"
    if not folder.exists():
        tokens = {**(CAUSAL_TOKENS if task == "causal-lm" else MASKED_TOKENS), **(table.special_tokens or {})}
        if table.type in ("characters", "wordpiece", "unigram"):
            tokens.setdefault("unk_token", "<unk>" if task == "causal-lm" else "[UNK]")
        texts = iter(documents)
        first = next(texts, None)
        if first is None:
            raise UserError(f"{documents.source} is empty: no text to train a tokenizer on")
        backend = _train(table, itertools.chain([first], texts), tokens)
        if "cls_token" in tokens and "sep_token" in tokens:
            begin, end = tokens["cls_token"], tokens["sep_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A {end}",
                pair=f"{begin} $A {end} $B:1 {end}:1",
                special_tokens=[(token, backend.token_to_id(token)) for token in (begin, end)],
            )
        limit = {} if max_length is None else {"model_max_length": max_length}
        made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens, **limit)
        with new_cache_entry(folder) as draft:
            made.save_pretrained(draft)
    return AutoTokenizer.from_pretrained(folder)


def _train(table: Table, texts: Iterator[str], tokens: dict[str, str]) -> Tokenizer:
    special = list(dict.fromkeys(tokens.values()))
    common: dict[str, Any] = {"vocab_size": table.vocab_size, "special_tokens": special, "show_progress": False}
    often = table.min_frequency if table.min_frequency is not None else 1 if table.type == "characters" else 2
    trainer: Any
    lowercase = [normalizers.Lowercase()] if table.lowercase else []
    if table.type == "byte-bpe":
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence(lowercase) if lowercase else None
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(min_frequency=often, initial_alphabet=alphabet, **common)
    elif table.type == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token=tokens["unk_token"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=table.lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(min_frequency=often, **common)
    elif table.type == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), *lowercase])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=tokens["unk_token"], **common)
    else:
        backend = Tokenizer(models.WordLevel(unk_token=tokens["unk_token"]))
        backend.normalizer = normalizers.Sequence(lowercase) if lowercase else None
        backend.pre_tokenizer = pre_tokenizers.Split(ANY_CHARACTER, "isolated")
        backend.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(min_frequency=often, **common)
    backend.train_from_iterator(texts, trainer)
    return backend
