"""Tokenize texts, long ones in chunks, with the same tokens as if they were encoded whole."""

import os
import pickle
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmkit.data.engines import Engine
from llmkit.data.text.word_cache import CachedEncoder, word_by_word

BATCH = 2**20  # characters that are tokenized at once, on all cores
# Characters: longer documents are tokenized in chunks, so that they keep every core busy in little memory.
CHUNK = 2**16
CONTEXT = 100  # characters on either side of a cut that decide whether it changes a token
# Up to this many cores, one core that looks words up outruns them all: on two, 4.5 MB/s against 2.8 MB/s, with
# documents of 2 kB. With more cores, all of them tokenizing are faster than one with a cache.
FEW_CORES = 3
TRIES = 20  # cuts that are tried for each pattern
OVERHEAD = 1000  # characters that a text counts for beside its own, so that a batch of empty lines ends too

# Cut between the end of a word and the blank behind it; else at any edge of a word, for text without blanks.
CUT_PATTERNS = (re.compile(r"(?<=\S)(?=\s)"), re.compile(r"\b"))

Encode = Callable[[list[str]], Iterable["array[int]"]]


class Chunk(NamedTuple):
    """A document, or the part of it that is tokenized at once; `text` begins with context, whose tokens are dropped."""

    text: str
    num_context_tokens: int
    num_bytes: int  # of its text without the context
    end: int  # in characters of the document
    last: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of consecutive chunks: `ends` counts them up to the end of each document.

    Of the last document `characters` are tokenized; 0 where it is whole.
    """

    ids: "array[int]"
    ends: list[int]
    num_bytes: int
    characters: int


def encode(tokenizer: Any, texts: list[str]) -> Iterable["array[int]"]:
    """Encode each text as token ids (uint32), without special tokens."""
    return encoder(tokenizer)(texts)


def encoder(tokenizer: Any, one_thread: bool = False) -> Encode:
    """Make the function that encodes texts as token ids (uint32), without special tokens.

    Fast tokenizers use every core, or `one_thread` where other processes have the other cores. Truncation and padding,
    which many a `tokenizer.json` asks for, are switched off: every token counts here.
    """
    if not tokenizer.is_fast:
        return lambda texts: (
            array("I", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if (one_thread or cores() <= FEW_CORES) and word_by_word(backend):
        return CachedEncoder(backend)

    def encode_texts(texts: list[str]) -> Iterable["array[int]"]:
        if len(texts) == 1:  # in this thread: those of the tokenizer may be busy
            return [array("I", backend.encode(texts[0], add_special_tokens=False).ids)]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return (array("I", encoding.ids) for encoding in encodings)

    return encode_texts


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoded(documents: Iterable[str], to_ids: Encode, document_separator: list[int], size: int) -> Iterator[Tokens]:
    """Yield the tokens of all documents (int64), about `size` characters at a time."""
    for chunks in _batches(documents, to_ids, size):
        yield _tokens(chunks, to_ids, document_separator, np.dtype(np.int64))


def encoded_ahead(
    documents: Iterable[str], to_ids: Encode, document_separator: list[int], dtype: np.dtype, begin: int = 0
) -> Iterator[Tokens]:
    """Yield the tokens of all documents as `dtype`, about BATCH characters at a time, and tokenize one batch ahead.

    The first document begins behind its first `begin` characters. A thread makes the next batch while one is used: the
    tokenizer does not need the interpreter for that.
    """
    ahead: Future[Tokens] | None = None
    with ThreadPoolExecutor(1) as thread:
        for chunks in _batches(documents, to_ids, BATCH, begin):
            ready, ahead = ahead, thread.submit(_tokens, chunks, to_ids, document_separator, dtype)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def encoded_by(
    engine: Engine,
    documents: Iterable[str],
    tokenizer: Path,
    to_ids: Encode,
    document_separator: list[int],
    dtype: np.dtype,
    begin: int = 0,
) -> Iterator[Tokens]:
    """Yield the same tokens in the same batches, each made by a worker of `engine` with the tokenizer of a file."""
    batches = _batches(documents, to_ids, BATCH, begin)
    return engine(partial(_tokens_with, tokenizer, document_separator, dtype.str), batches)


def _tokens_with(tokenizer: Path, document_separator: list[int], dtype: str, chunks: list[Chunk]) -> Tokens:
    return _tokens(chunks, _encoder_of(tokenizer), document_separator, np.dtype(dtype))


@lru_cache(maxsize=1)
def _encoder_of(tokenizer: Path) -> Encode:
    """Load a tokenizer that `token_cache` saved: once in a worker."""
    return encoder(pickle.loads(tokenizer.read_bytes()), one_thread=True)


def _tokens(chunks: list[Chunk], to_ids: Encode, document_separator: list[int], dtype: np.dtype) -> Tokens:
    return _join(chunks, to_ids([chunk.text for chunk in chunks]), document_separator, dtype)


def _join(
    chunks: Sequence[Chunk], encoded: Iterable["array[int]"], document_separator: list[int], dtype: np.dtype
) -> Tokens:
    joined = array("I")
    ends = []
    for chunk, chunk_ids in zip(chunks, encoded, strict=True):
        joined += chunk_ids[chunk.num_context_tokens :] if chunk.num_context_tokens else chunk_ids
        if chunk.last:
            joined.fromlist(document_separator)
            ends.append(len(joined))
    ids = array(dtype.char, np.frombuffer(joined, np.uint32).astype(dtype).tobytes())
    characters = 0 if chunks[-1].last else chunks[-1].end
    return Tokens(ids, ends, sum(chunk.num_bytes for chunk in chunks), characters)


def _batches(documents: Iterable[str], to_ids: Encode, size: int, begin: int = 0) -> Iterator[list[Chunk]]:
    """Yield lists of chunks, each of about `size` characters; leave out the first `begin` of the first document."""
    batch: list[Chunk] = []
    held = 0
    for text in documents:
        for chunk in _chunks(text, to_ids, begin):
            batch.append(chunk)
            held += len(chunk.text) + OVERHEAD
            if held >= size:
                yield batch
                batch, held = [], 0
        begin = 0
    if batch:
        yield batch


def _chunks(text: str, to_ids: Encode, begin: int) -> Iterator[Chunk]:
    """Cut a long document into chunks where its tokens stay what they are.

    Several cuts are tried. If all of them change a token, the text is cut at a line break, a blank or anywhere, and its
    tokens there are not those of the whole: once in half a CHUNK at most.
    """
    if not begin and len(text) <= CHUNK:
        yield Chunk(text, 0, len(text.encode()), len(text), True)
        return
    while True:
        context = _context(text, begin, to_ids) if begin else ""
        last = len(text) - begin <= CHUNK
        end = len(text) if last else _next_cut(text, begin, to_ids)
        num_context_tokens = len(_ids(to_ids, context)) if context else 0
        yield Chunk(context + text[begin:end], num_context_tokens, len(text[begin:end].encode()), end, last)
        if last:
            return
        begin = end


def _next_cut(text: str, begin: int, to_ids: Encode) -> int:
    """Choose where the chunk that starts at `begin` ends: the last cut that changes no token, if there is one."""
    low, high = begin + CHUNK // 2, begin + CHUNK
    near = max(low, high - 1000)
    for pattern in CUT_PATTERNS:
        cuts = [near + match.start() for match in pattern.finditer(text[near:high])][-TRIES:]
        for cut in reversed(cuts):
            if _context(text, cut, to_ids):
                return cut
    return next((cut for cut in (text.rfind(blank, low, high) for blank in "\n ") if cut > 0), high)


def _context(text: str, cut: int, to_ids: Encode) -> str:
    """Return the text before a cut, if its tokens are the same with and without what follows; else "".

    A chunk is tokenized with it, because many a tokenizer puts a blank of its own before a text.
    """
    before = text[max(0, cut - CONTEXT) : cut]
    alone = _ids(to_ids, before)
    return before if _ids(to_ids, text[max(0, cut - CONTEXT) : cut + CONTEXT])[: len(alone)] == alone else ""


def _ids(to_ids: Encode, text: str) -> "array[int]":
    return next(iter(to_ids([text])))
