"""Cache the tokens of each word, for tokenizers that read a text word by word.

Most words of a text have occurred before, and a look-up takes a tenth of the time that a tokenizer needs.
"""

import json
import re
from array import array
from itertools import chain
from typing import Any

MOST = 2**18  # words in the cache, which keeps the first that come: some 60 MB
LONGEST = 64  # characters of a word that is worth caching

# White space with what follows it, up to a blank: that a word ends where a blank follows something else is certain.
# A line break or a tab does not end one: in GPT-4's rule, punctuation takes the line break behind it.
WORDS = re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*(?:[^\S ]\s*\Z)?|\s+")

# What Llama 3's and Qwen 2's tokenizers split by, in place of GPT-2's rule, which is built in: none of their
# alternatives goes from anything else into a blank.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = (f"{_CONTRACTIONS}{{1,3}}{_SIGNS}", f"{_CONTRACTIONS}{_SIGNS}")


class CachedEncoder:
    """Encode texts as token ids (uint32) through a cache of words, with a tokenizer for which `word_by_word` holds."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.cache: dict[str, bytes] = {}
        # Added tokens whose match depends on more than the word in which they stand.
        added = backend.get_added_tokens_decoder().values()
        self.far = [t.content for t in added if t.lstrip or t.rstrip or re.search(r"\s", t.content)]

    def __call__(self, texts: list[str]) -> list["array[int]"]:
        return [array("I", ids) for ids in self.as_bytes(texts)]

    def as_bytes(self, texts: list[str]) -> list[bytes]:
        """Encode each text as the bytes of its token ids (uint32)."""
        split = [[text] if self.far and self._holds_far(text) else WORDS.findall(text) for text in texts]
        known = self.cache.__getitem__
        found, unknown = [], []
        for number, words in enumerate(split):
            try:
                found.append(b"".join(map(known, words)))
            except KeyError:
                found.append(b"")
                unknown.append(number)
        if unknown:
            ids_of = self._encoded(set(chain.from_iterable(split[number] for number in unknown)))
            for number in unknown:
                found[number] = b"".join(map(ids_of.__getitem__, split[number]))
        return found

    def _holds_far(self, text: str) -> bool:
        return any(token in text for token in self.far)

    def _encoded(self, words: set[str]) -> dict[str, bytes]:
        """Return the ids of each word, and add those of new ones to the cache."""
        new = list(words.difference(self.cache))
        encodings = self.backend.encode_batch_fast(new, add_special_tokens=False)
        encoded = {word: array("I", encoding.ids).tobytes() for word, encoding in zip(new, encodings, strict=True)}
        if len(self.cache) < MOST:  # only added to: another thread may be about to look a word up
            self.cache.update((word, ids) for word, ids in encoded.items() if len(word) <= LONGEST)
        return {word: encoded[word] if word in encoded else self.cache[word] for word in words}


def word_by_word(backend: Any) -> bool:
    """Tell whether the tokens of a text are those of its WORDS, one after the other.

    They are with BERT's WordPiece, and with byte-level BPE that puts no blank before a text, splits by GPT-2's rule or
    by one of SPLITS, and normalizes no more than case and composition (NFC).
    """
    rules = json.loads(backend.to_str())
    model, normalizer, splitter = rules["model"], rules["normalizer"], rules["pre_tokenizer"]
    far = (t for t in rules["added_tokens"] if t["lstrip"] or t["rstrip"] or re.search(r"\s", t["content"]))
    if splitter is None or (normalizer and any(token["normalized"] for token in far)):
        return False  # such tokens are looked for in the normalized text, which is not seen here
    if model["type"] == "WordPiece":
        return bool(normalizer) and normalizer["type"] == "BertNormalizer" and splitter["type"] == "BertPreTokenizer"
    if model["type"] != "BPE" or model.get("dropout"):
        return False
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    *before, last = splitter.get("pretokenizers", [splitter])
    plain = all(step["type"] in ("Lowercase", "NFC") for step in steps)
    splits = [rule["pattern"].get("Regex") in SPLITS for rule in before if rule["type"] == "Split"]
    known_splits = all(splits) and all(rule["type"] in ("Split", "Digits") for rule in before)
    by_words = last["type"] == "ByteLevel" and not last["add_prefix_space"] and (last["use_regex"] or bool(splits))
    return plain and known_splits and by_words
