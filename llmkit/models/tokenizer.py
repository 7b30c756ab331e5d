"""Load a run's tokenizer from the Hub or a folder, or train it on the run's text; report how good it is."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit import hub
from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import encode, is_whole, new_cache_entry
from llmkit.disk import cache_dir
from llmkit.errors import UserError
from llmkit.models import unknown_tokens
from llmkit.models.loading import load_tokenizer
from llmkit.recipe.schema import Model
from llmkit.recipe.schema import Tokenizer as Table
from llmkit.recipe.tasks import CAUSAL_TOKENS, TASKS

SAMPLE_BYTES = 1_000_000  # of text in a report
SAMPLE_TEXT_LENGTH = 4_000  # characters in each of its texts
MARK = "\u2581"  # a space in SentencePiece
LONG_RUN = re.compile(r"\S{1000}|\s{1000}")
ANY_CHARACTER = Regex(r"[\s\S]")


def load(
    table: Table, model: Model, task: str, documents: Documents, max_length: int | None, segments: bool = False
) -> Any:
    """Load or train the tokenizer that the recipe's [tokenizer] (`table`) and [model] describe.

    Args:
        table: Names a tokenizer, or the type of one to train.
        model: Names the model whose tokenizer is the default.
        task: Decides the special tokens of a trained one.
        documents: The text to train on.
        max_length: What a trained one records as `model_max_length`.
        segments: Whether a trained one returns token types, which tell the two texts of a pair apart.

    Raises:
        UserError: There is no such tokenizer, or none can be trained on this text.
    """
    if table.type is not None:
        return _trained(table, task, documents, max_length, segments)
    name = table.name or model.name
    if name is None:
        raise UserError(
            "a model defined by model.config needs a tokenizer",
            'name one (tokenizer.name) or train one on the data (tokenizer.type = "byte-bpe")',
        )
    revision = hub.commit(name, model.revision if table.name is None else None)
    tokenizer = load_tokenizer(name, revision, model.trust_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # upstream invents one where there are no files
        raise UserError(f"`{name}` has no tokenizer", "name one (tokenizer.name), or train one (tokenizer.type)")
    return tokenizer


def _trained(table: Table, task: str, documents: Documents, max_length: int | None, segments: bool) -> Any:
    """Train a tokenizer, or load it from the cache if the same text and table gave one before.

    Every process loads it from there, and so has the same. The arguments are those of `load`.
    """
    key = xxhash.xxh3_128_hexdigest(
        repr((5, documents.cache_key, table.model_dump(), task, max_length, segments)).encode()
    )
    folder = cache_dir() / f"tokenizer-{key}"
    if not is_whole(folder, f"the tokenizer of {documents.source}"):
        if next(iter(documents), None) is None:
            raise UserError(f"{documents.source} is empty: no text to train a tokenizer on")
        record = TASKS[task] if task in TASKS else TASKS["masked-lm"]  # several tasks share an encoder
        # The last entries, in T5's order.
        sentinels = [f"<extra_id_{number}>" for number in reversed(range(record.num_sentinels))]
        tokens = {**record.special_tokens, **(table.special_tokens or {})}
        if table.type in ("characters", "wordpiece", "unigram"):
            tokens.setdefault("unk_token", "<unk>" if record.special_tokens is CAUSAL_TOKENS else "[UNK]")
        backend = _train(table, documents, tokens, table.vocab_size - len(sentinels))
        backend.add_special_tokens(sentinels)
        if record.ends_with_eos:  # where a text ends is what the model learns to stop by
            end = tokens["eos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=["$A", end],
                pair=["$A", end, "$B", end],
                special_tokens=[(end, backend.token_to_id(end))],
            )
        elif "cls_token" in tokens and "sep_token" in tokens:
            begin, end = tokens["cls_token"], tokens["sep_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=[begin, "$A", end],
                pair=[begin, "$A", end, "$B:1", f"{end}:1"],
                special_tokens=[(token, backend.token_to_id(token)) for token in (begin, end)],
            )
        options: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
        if segments:
            options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        if sentinels:
            options["extra_special_tokens"] = sentinels
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens, **options
        )
        with new_cache_entry(folder, sealed=True) as draft:
            tokenizer.save_pretrained(draft)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _split_long_runs(documents: Iterable[str]) -> Iterator[str]:
    """Split texts behind each long run without (or of) white space: training is quadratic in the longest word."""
    for text in documents:
        begin = 0
        for run in LONG_RUN.finditer(text):
            yield text[begin : run.end()]
            begin = run.end()
        yield text[begin:]


def _train(table: Table, documents: Documents, tokens: dict[str, str], max_entries: int) -> Tokenizer:
    """Train on `documents`; the same text gives the same tokenizer on every machine.

    `tokens` are the special tokens by role. The vocabulary has at most `max_entries`; UserError where these do not hold
    the special tokens and the alphabet.
    """
    special = list(dict.fromkeys(tokens.values()))
    common: dict[str, Any] = {"vocab_size": max(0, max_entries), "special_tokens": special, "show_progress": False}
    min_count = table.min_frequency if table.min_frequency is not None else 1 if table.type == "characters" else 2
    trainer: Any
    lowercase = [normalizers.Lowercase()] if table.lowercase else []
    if table.type == "byte-bpe":
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence(lowercase) if lowercase else None
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(min_frequency=min_count, initial_alphabet=alphabet, **common)
    elif table.type == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token=tokens["unk_token"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=table.lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        alphabet, inner_pieces = _wordpiece_alphabet(backend, documents, max(0, max_entries) // 4)
        # Unless it is given all letters inside words, the trainer numbers them in the order of a hash map.
        common["special_tokens"] = special + inner_pieces
        trainer = trainers.WordPieceTrainer(
            min_frequency=min_count, initial_alphabet=alphabet, limit_alphabet=len(alphabet), **common
        )
    elif table.type == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), *lowercase])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=tokens["unk_token"], **common)
    else:
        counts = Counter(character for text in documents for character in (text.lower() if table.lowercase else text))
        frequent = sorted((c for c in counts if counts[c] >= min_count), key=lambda c: (-counts[c], c))
        kept = [*special, *frequent[: max(0, max_entries - len(special))]]
        backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(kept)}, unk_token=tokens["unk_token"]))
        backend.normalizer = normalizers.Sequence(lowercase) if lowercase else None
        backend.pre_tokenizer = pre_tokenizers.Split(ANY_CHARACTER, "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(special)
        trainer = None
    try:
        if trainer is not None:
            backend.train_from_iterator(_split_long_runs(documents), trainer)
        size = backend.get_vocab_size()
    except Exception as problem:  # of no class of its own
        if "not large enough" not in str(problem):
            raise
        size = None
    if size is None or size > max_entries:
        num_sentinels = table.vocab_size - max_entries
        raise UserError(
            f"tokenizer.vocab_size = {table.vocab_size} is too small: the special tokens and the single characters of "
            + (
                f"{documents.source} alone need more"
                if size is None
                else f"a {table.type} tokenizer alone need {size + num_sentinels}"
            ),
            "make it larger" if table.type == "byte-bpe" else 'make it larger, or use tokenizer.type = "byte-bpe"',
        )
    if table.type == "wordpiece":
        trained, backend = backend, Tokenizer(backend.model)
        backend.normalizer, backend.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
        backend.decoder = trained.decoder
        backend.add_special_tokens(special)  # and not the letters inside words
    elif table.type == "unigram":
        backend.model = _reproducible(json.loads(backend.to_str())["model"], len(special))
    return backend


def _wordpiece_alphabet(backend: Tokenizer, documents: Documents, limit: int) -> tuple[list[str], list[str]]:
    """Find the `limit` most frequent characters, and the entries (`##a`) of those that can occur inside a word."""
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(backend.normalizer.normalize_str(text))
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:limit]

    def stands_inside(c: str) -> bool:
        text = backend.normalizer.normalize_str(f"a{c}")
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == [f"a{c}"]

    return frequent, [f"##{c}" for c in frequent if stands_inside(c)]


def _reproducible(model: dict[str, Any], num_special: int) -> models.Unigram:
    """Make a trained unigram model reproducible: round its scores, and sort ties by entry.

    The trainer sums scores in the order of a hash map. Characters that it pruned and adds again score 0.0001 more each,
    in that order; here they all get the same score. `num_special` entries at the front stay.
    """
    special, entries = model["vocab"][:num_special], model["vocab"][num_special:]
    low = min((score for _, score in entries), default=0.0)
    high = low + 0.0001 * sum(len(piece) == 1 for piece, _ in entries)
    rounded = [(p, round(low if len(p) == 1 and score <= high else score, 6)) for p, score in entries]
    rounded.sort(key=lambda pair: (-pair[1], pair[0]))
    return models.Unigram([*map(tuple, special), *rounded], model["unk_id"])


# ---- how good it is ------------------------------------------------------------------------------------------------


def fingerprint(tokenizer: Any) -> str:
    """Hash what decides how a text is tokenized: equal for tokenizers that differ in padding and truncation alone."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    else:
        rules = tokenizer.get_vocab()
    return xxhash.xxh3_128_hexdigest(json.dumps(rules, sort_keys=True).encode())


def report(tokenizer: Any, documents: Documents) -> dict[str, Any]:
    """Measure a tokenizer on the first megabyte of the text, in texts of `SAMPLE_TEXT_LENGTH`, for the run's record.

    Returns `bytes_per_token`; `unknown`, the share of unknown tokens; `round_trip`, the share of texts that decode to
    the original or to its normalization by the tokenizer (lower case, NFKC); `round_trip_but_for_spaces`, the same
    without comparing white space; and the tokenizer's and the sample's sizes.
    """
    texts = list(_sample(documents))
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    normalizer = backend.normalizer if backend is not None else None
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = exact = but_for_spaces = 0
    every = []
    for text, encoded in zip(texts, encode(tokenizer, texts), strict=True):
        ids = list(encoded)
        every.append(ids)
        num_tokens += len(ids)
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        originals = (text, normalizer.normalize_str(text) if normalizer is not None else text)
        exact += decoded in originals
        but_for_spaces += _without_spaces(decoded) in map(_without_spaces, originals)
    return {
        "type": type(backend.model if backend is not None else tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "bytes_per_token": round(num_bytes / max(1, num_tokens), 4),
        "unknown": round(unknown_tokens.share(tokenizer, every) or 0.0, 6),
        "round_trip": round(exact / max(1, len(texts)), 4),
        "round_trip_but_for_spaces": round(but_for_spaces / max(1, len(texts)), 4),
        "sample_bytes": num_bytes,
        "sample_texts": len(texts),
    }


def line(report: dict[str, Any]) -> str:
    """Format the report as one line for the terminal."""
    text = (
        f"tokenizer: {report['type']}, {report['vocab_size']:,} entries: {report['bytes_per_token']:.2f} bytes per "
        f"token, {report['unknown']:.2%} unknown, {report['round_trip']:.1%} of texts decode to the original"
    )
    if report["round_trip_but_for_spaces"] == report["round_trip"]:
        return text
    return f"{text} ({report['round_trip_but_for_spaces']:.1%} ignoring spaces)"


def _sample(documents: Documents) -> Iterator[str]:
    remaining = SAMPLE_BYTES
    for text in documents:
        for start in range(0, len(text), SAMPLE_TEXT_LENGTH):
            sample = text[start : start + SAMPLE_TEXT_LENGTH]
            yield sample
            remaining -= len(sample.encode())
            if remaining <= 0:
                return


def _without_spaces(text: str) -> str:
    return "".join(text.replace(MARK, " ").split())
