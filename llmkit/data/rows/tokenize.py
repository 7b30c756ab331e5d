"""Tokenize the texts of rows, alone or in pairs: the tokens are the tokenizer's own, in a fraction of its time.

Rows share most of their words. Where a tokenizer reads a text word by word, each word is tokenized once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any

import numpy as np

from llmkit.data.text.word_cache import CachedEncoder, word_by_word


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Texts or pairs as the model's inputs (int32), those of all rows end to end.

    By row: `lengths` are those of the inputs, and `whole` those before anything was cut off.
    """

    inputs: dict[str, np.ndarray]
    lengths: np.ndarray
    whole: np.ndarray


Tokenize = Callable[[list[str], list[str] | None], Tokenized]


class RowTokenizer:
    """Tokenize chunks of texts or pairs, cut to `length` tokens (of a pair, the longer text first).

    The first chunk, often the only one, goes through the tokenizer. Those behind it go through a cache of words, if the
    tokenizer allows it.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self._chunks = 0
        self._tokenize: Tokenize = self._by_tokenizer

    def __call__(self, texts: list[str], pairs: list[str] | None) -> Tokenized:
        if self._chunks == 1:
            self._tokenize = by_words(self.tokenizer, self.length, pairs is not None) or self._by_tokenizer
        self._chunks += 1
        return self._tokenize(texts, pairs)

    def _by_tokenizer(self, texts: list[str], pairs: list[str] | None) -> Tokenized:
        read = self.tokenizer(texts, pairs, truncation=False, padding=False, return_attention_mask=False, verbose=False)
        whole = [len(ids) for ids in read["input_ids"]]
        long = [i for i, size in enumerate(whole) if size > self.length]
        if long:
            shorter = self.tokenizer(
                [texts[i] for i in long],
                None if pairs is None else [pairs[i] for i in long],
                truncation=True,
                max_length=self.length,
                return_attention_mask=False,
            )
            for name in read:
                for position, i in enumerate(long):
                    read[name][i] = shorter[name][position]
        lengths = np.array([len(ids) for ids in read["input_ids"]])
        joined = {name: np.fromiter(chain.from_iterable(read[name]), np.int32, lengths.sum()) for name in read}
        return Tokenized(joined, lengths, np.array(whole))


def by_words(tokenizer: Any, length: int, paired: bool) -> Tokenize | None:
    """Make the function that tokenizes through a cache of words; None where its tokens might not be the tokenizer's."""
    from transformers import PreTrainedTokenizerFast

    as_upstream = tokenizer.is_fast and type(tokenizer)._encode_plus is PreTrainedTokenizerFast._encode_plus
    if not as_upstream or tokenizer.split_special_tokens or not word_by_word(tokenizer.backend_tokenizer):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encode = CachedEncoder(backend).as_bytes
    template = Template.of(tokenizer, paired, np.frombuffer(encode(["a"])[0], np.int32).tolist())
    if template is None or length <= template.num_special:
        return None
    room = length - template.num_special

    def tokenize(texts: list[str], pairs: list[str] | None) -> Tokenized:
        backend.no_truncation()
        parts = [encode(each) for each in (texts, pairs) if each is not None]
        sizes = np.array([[len(ids) // 4 for ids in part] for part in parts])
        whole = sizes.sum(axis=0) + template.num_special
        if (whole > length).any():
            sizes = longest_first(sizes, room)
            first = tokenizer.truncation_side == "left"
            parts = [
                [ids[-4 * size or len(ids) :] if first else ids[: 4 * size] for ids, size in zip(*each, strict=True)]
                for each in zip(parts, sizes.tolist(), strict=True)
            ]
        return Tokenized(template.fill(parts, sizes), sizes.sum(axis=0) + template.num_special, whole)

    return tokenize


def longest_first(sizes: np.ndarray, room: int) -> np.ndarray:
    """Compute how many tokens stay of each text, [1 or 2, N], where those of a row have `room` for so many together.

    The longer text of a pair loses its tokens first, as `tokenizers` has it.
    """
    if len(sizes) == 1:
        return np.minimum(sizes, room)
    shorter, longer = np.sort(sizes, axis=0)
    most = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
    both = np.stack([shorter, np.minimum(longer, most)])
    both = np.where(both.sum(axis=0) > room, [[room // 2], [room // 2 + room % 2]], both)
    cut = np.where(sizes[0] > sizes[1], both[::-1], both)
    return np.where(sizes.sum(axis=0) > room, cut, sizes)


@dataclass(frozen=True, slots=True)
class Template:
    """What a tokenizer sets around a text, or around and between the two of a pair.

    `ids` are the special tokens in their places, with None where a text stands. `types` are those of the special tokens
    and of the texts, where the tokenizer has types.
    """

    ids: list[int | None]
    types: list[int] | None

    @classmethod
    def of(cls, tokenizer: Any, paired: bool, inside: list[int]) -> "Template | None":
        """Read it from an example, the text "a" with the ids `inside`; None where an input is more than its texts."""
        example = tokenizer(["a"], ["a"] if paired else None, return_attention_mask=False, verbose=False)
        texts: list[list[int]] = []
        ids: list[int | None] = []
        types: list[int] = []
        ids_read = example["input_ids"][0]
        types_read = example["token_type_ids"][0] if "token_type_ids" in example else [0] * len(ids_read)
        read = zip(example.sequence_ids(0), ids_read, types_read, strict=True)
        for number, tokens in groupby(read, key=lambda token: token[0]):
            _, these, their_types = map(list, zip(*tokens, strict=True))
            if number is None:
                ids += these
                types += their_types
            elif number == len(texts) and len(set(their_types)) == 1:
                texts.append(these)
                ids.append(None)
                types.append(their_types[0])
            else:
                return None
        known = set(example) <= {"input_ids", "token_type_ids"} and texts == [inside] * (1 + paired)
        return cls(ids, types if "token_type_ids" in example else None) if known else None

    @property
    def num_special(self) -> int:
        return sum(id_ is not None for id_ in self.ids)

    def fill(self, parts: list[list[bytes]], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Put texts into their places; `sizes` are how many tokens each has, [1 or 2, N]."""
        texts = iter(parts)
        columns = [next(texts) if id_ is None else repeat(np.int32(id_).tobytes()) for id_ in self.ids]
        joined = b"".join(chain.from_iterable(zip(*columns)))  # noqa: B905 - some repeat without an end
        filled = {"input_ids": np.frombuffer(joined, np.int32)}
        if self.types is not None:
            counts = np.ones((sizes.shape[1], len(self.ids)), np.int64)
            counts[:, [place for place, id_ in enumerate(self.ids) if id_ is None]] = sizes.T
            filled["token_type_ids"] = np.repeat(np.tile(np.array(self.types, np.int32), len(counts)), counts.ravel())
        return filled
