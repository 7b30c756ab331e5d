"""Find where words and sentences begin in token ids, for any tokenizer and without the text itself.

Once for a tokenizer, every entry of the vocabulary becomes a short string with one letter for the kind of each
character (`KINDS`). For a block these strings are joined, and patterns over the kinds find where words and sentences
begin.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from tokenizers import pre_tokenizers

# The kinds; the first that matches counts. Three more have no pattern: `w` is a blank that WordPiece may have seen but
# does not show, `s` a special token, and `~` the rest of a character whose first bytes are in an earlier token.
KINDS = {
    "n": regex.compile(r"[\n\v\f\r\x85\u2028\u2029]"),
    "b": regex.compile(r"\s"),
    "x": regex.compile(r"[\p{M}\p{Cf}\p{Emoji_Modifier}]"),  # changes the character before it: accents, joiners
    ".": regex.compile(r"\."),
    "?": regex.compile(r"[!?]"),
    "f": regex.compile(r"[\p{Sentence_Terminal}…]"),  # ends a sentence even without a blank: 。 and its like
    ")": regex.compile(r"[\p{Pe}\p{Pi}\p{Pf}\"']"),  # may follow the end of a sentence: brackets, quotation marks
    "u": regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}--\p{N}]", regex.V1),
    "0": regex.compile(r"\p{N}"),
    "a": regex.compile(r"\p{L}"),
    "p": regex.compile(r"."),
}
# The end of a sentence: the next one begins where a match ends.
SENTENCE_END = re.compile(
    r"""
      (?=s) | s                                     # before a special token and behind it
    | n[bnw]*                                       # a line that ends
    | [.?]*f[.?fx]*\)*[bnw]*                        # 。 and the like
    | (?: \?                                        # ! or ?
        | (?<![^a0ux~]a)(?<!^a)(?!(?<=0)\.w0)\.     # a point, but neither that of "J." and "e.g." nor that of 3 . 5
      ) [.?]* \)* [bnw]+                            # and a blank: there is none in "3.5" and "example.com"
    """,
    re.VERBOSE,
)
UNSEEN, REST = "\ufdd0", "\ufdd1"  # noncharacters: for a blank that may be there, and for bytes that end a character
CONTINUATION = bytes(range(0x80, 0xC0))  # the bytes of UTF-8 that begin no character
# An unfinished character is completed as one in the middle of those that begin so (\x90: \xed\xa0 begins none).
FILLERS = (b"", b"\xa0", b"\xa0\xa0", b"\xa0\xa0\xa0", b"\x90", b"\x90\x90")


class _KindOf(dict[int, str]):
    """Map code points to their kinds, each found when it is first asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = next(kind for kind, pattern in KINDS.items() if pattern.match(chr(code)))
        return self[code]


_KIND_OF = _KindOf({ord(UNSEEN): "w", ord(REST): "~"})
# The characters that byte-level BPE writes for bytes: printable ones for themselves, others in order for the rest.
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_PRINTABLE = [ord(character) for character in _ALPHABET if ord(character) < 256]
_BYTE_OF = dict(zip(map(ord, _ALPHABET), [*_PRINTABLE, *sorted(set(range(256)) - set(_PRINTABLE))], strict=True))


@dataclass(frozen=True)
class Vocabulary:
    """The properties of each token of a tokenizer, V being its highest id + 1.

    `special` bool [V]: never hidden, moved or drawn. `ordinary` int64: the ids of all others, in ascending order, from
    which random tokens are drawn. `kinds` object [V]: a string with the kind of each character. `lengths` int64 [V]:
    those of these strings.
    """

    special: np.ndarray
    ordinary: np.ndarray
    kinds: np.ndarray
    lengths: np.ndarray


def vocabulary(tokenizer: Any) -> Vocabulary:
    """Build the table of a tokenizer that marks words with `##`, `Ġ`, `▁` or not at all.

    Its vocabulary shows which: WordPiece's, byte-level BPE's or SentencePiece's. Special are the tokenizer's special
    tokens, and those that were added as such. So is the unknown token, but it counts as a word in a text, unless it
    has another role too, as in GPT-2.
    """
    entries = tokenizer.get_vocab()
    ids = np.fromiter(entries.values(), np.int64, len(entries))
    special = np.zeros(ids.max() + 1, bool)
    added = tokenizer.added_tokens_decoder
    special[[*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)]] = True
    kinds = np.full(len(special), "p", object)
    characters = set("".join(token for token, number in entries.items() if number not in added))
    kinds[ids] = [text.translate(_KIND_OF) or "x" for text in _texts(list(entries), characters)]
    kinds[special] = "s"
    if tokenizer.unk_token_id not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        kinds[tokenizer.unk_token_id] = "p"
    lengths = np.fromiter(map(len, kinds), np.int64, len(kinds))
    return Vocabulary(special, np.setdiff1d(ids, np.flatnonzero(special)), kinds, lengths)


def _texts(tokens: list[str], characters: set[str]) -> list[str]:
    """Return the text of each token, with its blanks; `characters` are those of all tokens but the added ones."""
    if "Ġ" in characters and characters <= set(_ALPHABET):  # only byte-level BPE has no other mark and no blank
        # Latin-1 writes the code points below 256 as one byte each; tokens that were added may hold others.
        written = [t.translate(_BYTE_OF) for t in tokens]
        return [_text(w.encode("latin-1")) if w.isascii() or max(w) < "\u0100" else w for w in written]
    if sum(t.startswith("##") for t in tokens) > sum(t.startswith("▁") for t in tokens):
        # Points and what closes a sentence are taken to follow without a blank, all else to follow one.
        follows = tuple(".?f)")
        return [
            t[2:] if t.startswith("##") and len(t) > 2 else t if t[:1].translate(_KIND_OF) in follows else UNSEEN + t
            for t in tokens
        ]
    byte = re.compile("<0x([0-9A-F]{2})>")  # as SentencePiece writes it
    return [_text(bytes.fromhex(b[1])) if (b := byte.fullmatch(t)) else t.replace("▁", " ") for t in tokens]


def _text(data: bytes) -> str:
    """Decode bytes of UTF-8 that may begin or end inside a character."""
    whole = data.lstrip(CONTINUATION)
    rest = REST if len(whole) < len(data) else ""
    for filler in FILLERS:
        try:
            return rest + (whole + filler).decode()
        except UnicodeDecodeError:
            continue
    return rest + whole.decode(errors="replace")


def word_starts(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Mark the tokens that begin a word: ids [T] -> bool [T]; the first one does.

    A word is a run of letters and digits, with the blank before it where that is part of its token. Any other character
    is a word of its own, such as a blank that is a token, or an apostrophe where the tokenizer splits `don't` at it. In
    scripts that set no blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each token begins a word, unless it is an
    accent or the rest of a character. Special tokens are words of their own.
    """
    text, offsets = _kinds_in(ids, vocabulary)
    kinds = np.frombuffer(text.encode(), np.uint8)
    whole = np.flatnonzero((kinds != ord("x")) & (kinds != ord("~")))
    inside = (kinds[whole] == ord("a")) | (kinds[whole] == ord("0"))
    begins = np.zeros(len(kinds), bool)
    begins[whole] = ~(inside & np.append(False, inside)[:-1])
    starts = begins[offsets]
    starts[:1] = True
    return starts


def sentence_starts(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Mark the tokens that begin a sentence: ids [T] -> bool [T]; the first one does.

    A sentence ends with a line, or with one of . ! ? and a blank, or with … or one of the marks that need no blank (the
    full-width ones and those of other scripts), and with the closing brackets and quotation marks behind. The point of
    a single letter ("e.g.", "J. Smith") ends none; that of a longer abbreviation ("Dr. Smith") is taken for an end.
    WordPiece shows no blanks: there any point may end one, except that of `3 . 5`, and quotation marks behind it close.
    Marks of which the vocabulary has single bytes only are not seen. Special tokens are sentences of their own, but not
    the unknown token.
    """
    kinds, offsets = _kinds_in(ids, vocabulary)
    ends = np.array([match.end() for match in SENTENCE_END.finditer(kinds)], np.int64)
    starts = np.zeros(len(ids), bool)
    starts[np.searchsorted(offsets, ends[ends < len(kinds)], side="right") - 1] = True
    starts[:1] = True
    return starts


def _kinds_in(ids: np.ndarray, vocabulary: Vocabulary) -> tuple[str, np.ndarray]:
    """Join the kinds of all characters of a block; return them, and where each token begins in them, int64 [T]."""
    lengths = vocabulary.lengths[ids]
    return "".join(vocabulary.kinds[ids].tolist()), np.cumsum(lengths) - lengths
