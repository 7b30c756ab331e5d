"""Texts become tokens: the same whether they are encoded whole or, where they are long, in pieces."""

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llmkit.data.text.word_cache import Remembering, word_by_word

BATCH = 2**20  # characters that are tokenized at once, on all cores
# Characters: longer documents are tokenized in pieces, so that they keep every core busy in little memory.
PIECE = 2**16
CONTEXT = 100  # characters on either side of a cut that decide whether it changes a token
# Cores up to which one that looks words up outruns them all: on two, 4.5 MB/s beside 2.8 of documents of 2 kB. With
# more of them, all that tokenize are sooner ready than one that remembers.
FEW = 3
TRIES = 20  # places of a kind at which a cut is tried
OVERHEAD = 1000  # characters that a text counts for beside its own: a batch of empty lines has an end, too

# Where one word ends and before the next begins; then anywhere at the edge of a word, for text without blanks.
PLACES = (re.compile(r"(?<=\S)(?=\s)"), re.compile(r"\b"))

Encode = Callable[[list[str]], Iterable["array[int]"]]


class Piece(NamedTuple):
    """A document, or what is tokenized of it at once: `text` begins with context, whose first tokens are left out."""

    text: str
    num_context_tokens: int
    num_bytes: int  # of its own text
    end: int  # in characters of the document
    last: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of some pieces in a row: `ends` tells how many there are up to the end of each document.

    `characters` of the last document are tokenized; 0 where it is whole.
    """

    ids: "array[int]"
    ends: list[int]
    num_bytes: int
    characters: int


def encode(tokenizer: Any, texts: list[str]) -> Iterable["array[int]"]:
    """The token ids of each text, without special tokens."""
    return encoder(tokenizer)(texts)


def encoder(tokenizer: Any) -> Encode:
    """What gives the token ids of each text (uint32), without special tokens; a fast tokenizer uses every core.

    Many a `tokenizer.json` says that texts are to be cut off and padded: not where every token counts.
    """
    if not tokenizer.is_fast:
        return lambda texts: (
            array("I", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if cores() <= FEW and word_by_word(backend):
        return Remembering(backend)

    def encode_texts(texts: list[str]) -> Iterable["array[int]"]:
        if len(texts) == 1:  # in this thread: no need to wait for those of the tokenizer, which may have much to do
            return [array("I", backend.encode(texts[0], add_special_tokens=False).ids)]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return (array("I", encoding.ids) for encoding in encodings)

    return encode_texts


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoded(documents: Iterable[str], to_ids: Encode, separator: list[int], size: int) -> Iterator[Tokens]:
    """The tokens of all documents (int64), those of about `size` characters at a time."""
    for pieces in _batches(documents, to_ids, size):
        yield _tokens(pieces, to_ids, separator, np.dtype(np.int64))


def encoded_ahead(
    documents: Iterable[str], to_ids: Encode, separator: list[int], dtype: np.dtype, begin: int = 0
) -> Iterator[Tokens]:
    """The same as `dtype`, those of BATCH characters at a time; of the first document what follows `begin` characters.

    While one batch is handed out, the next is made in a thread: the tokenizer needs no interpreter for that.
    """
    coming: Future[Tokens] | None = None
    with ThreadPoolExecutor(1) as thread:
        for pieces in _batches(documents, to_ids, BATCH, begin):
            before, coming = coming, thread.submit(_tokens, pieces, to_ids, separator, dtype)
            if before is not None:
                yield before.result()
        if coming is not None:
            yield coming.result()


def _tokens(pieces: list[Piece], to_ids: Encode, separator: list[int], dtype: np.dtype) -> Tokens:
    return _join(pieces, to_ids([piece.text for piece in pieces]), separator, dtype)


def _join(pieces: Sequence[Piece], encoded: Iterable["array[int]"], separator: list[int], dtype: np.dtype) -> Tokens:
    joined = array("I")
    ends = []
    for piece, found in zip(pieces, encoded, strict=True):
        joined += found[piece.num_context_tokens :] if piece.num_context_tokens else found
        if piece.last:
            joined.fromlist(separator)
            ends.append(len(joined))
    ids = array(dtype.char, np.frombuffer(joined, np.uint32).astype(dtype).tobytes())
    characters = 0 if pieces[-1].last else pieces[-1].end
    return Tokens(ids, ends, sum(piece.num_bytes for piece in pieces), characters)


def _batches(documents: Iterable[str], to_ids: Encode, size: int, begin: int = 0) -> Iterator[list[Piece]]:
    """Pieces of about `size` characters together; of the first document those after its first `begin` characters."""
    batch: list[Piece] = []
    held = 0
    for text in documents:
        for piece in _pieces(text, to_ids, begin):
            batch.append(piece)
            held += len(piece.text) + OVERHEAD
            if held >= size:
                yield batch
                batch, held = [], 0
        begin = 0
    if batch:
        yield batch


def _pieces(text: str, to_ids: Encode, begin: int) -> Iterator[Piece]:
    """Cut a long document where its tokens stay what they are.

    That is tried at several places. Text in which there is none has a seam at a line break, a blank or anywhere: a
    place at which its tokens are not those of the whole, once in half a PIECE at most.
    """
    if not begin and len(text) <= PIECE:
        yield Piece(text, 0, len(text.encode()), len(text), True)
        return
    while True:
        context = _context(text, begin, to_ids) if begin else ""
        last = len(text) - begin <= PIECE
        end = len(text) if last else _cut(text, begin, to_ids)
        known = len(_ids(to_ids, context)) if context else 0
        yield Piece(context + text[begin:end], known, len(text[begin:end].encode()), end, last)
        if last:
            return
        begin = end


def _cut(text: str, begin: int, to_ids: Encode) -> int:
    low, high = begin + PIECE // 2, begin + PIECE
    near = max(low, high - 1000)
    for place in PLACES:
        tried = [near + found.start() for found in place.finditer(text[near:high])][-TRIES:]
        for end in reversed(tried):
            if _context(text, end, to_ids):
                return end
    return next((found for found in (text.rfind(blank, low, high) for blank in "\n ") if found > 0), high)


def _context(text: str, cut: int, to_ids: Encode) -> str:
    """The text before a cut, if it has the same tokens with and without what follows; else none.

    A piece is tokenized with it, because many a tokenizer begins a text with a blank of its own.
    """
    before = text[max(0, cut - CONTEXT) : cut]
    known = _ids(to_ids, before)
    return before if _ids(to_ids, text[max(0, cut - CONTEXT) : cut + CONTEXT])[: len(known)] == known else ""


def _ids(to_ids: Encode, text: str) -> "array[int]":
    return next(iter(to_ids([text])))
