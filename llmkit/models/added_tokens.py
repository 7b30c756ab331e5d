"""Words that join the vocabulary of a tokenizer that exists, each as a token of its own."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import regex
import xxhash

from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import cache_dir, new_cache_entry
from llmkit.data.words import ALONE
from llmkit.errors import UserError
from llmkit.recipe.schema import Tokenizer as Table

RARE = 5  # a word of the text that occurs less often would be a token that is hardly trained
MOST_WORDS = 2_000_000  # kept in memory while they are counted
LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")
MARK = "\u2581"  # what stands for a space in a unigram tokenizer
ABOUT = "extension.json"


def extend(tokenizer: Any, table: Table, documents: Documents) -> tuple[Any, dict[int, list[int]], list[str]]:
    """The tokenizer with `add_tokens` and `add_from_text`, the ids of each new token's former pieces, and notes.

    New ids follow the last one; all others stay. In byte-level BPE and in unigram a word is one token together with the
    space before it (in byte-level BPE also without: two entries); elsewhere, and where it is not of one piece for the
    tokenizer (covid-19), the space is no part of it. Words are matched whole, but for two cases: in scripts that set no
    blanks between them, and in unigram, where the beginning of a longer word is taken too if it was split there. Raises
    UserError for a tokenizer that cannot be extended so.
    """
    if table.add_tokens is None and table.add_from_text is None:
        return tokenizer, {}, []
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer.add_tokens and tokenizer.add_from_text need a fast tokenizer, not {type(tokenizer).__name__}",
            "is there one with a tokenizer.json? Name it: tokenizer.name",
        )
    for number, word in enumerate(table.add_tokens or ()):
        if not word or word != word.strip():
            raise UserError(f"tokenizer.add_tokens: {word!r} (number {number + 1}) is empty or has blanks at an end")
    text = documents.fingerprint if table.add_from_text else None
    rules = tokenizer.backend_tokenizer.to_str()
    told = (1, rules, repr(tokenizer), tokenizer.chat_template, table.add_tokens, table.add_from_text, text)
    folder = cache_dir() / f"tokenizer-{xxhash.xxh3_128_hexdigest(repr(told).encode())}"
    if not folder.exists():
        made = _Words(tokenizer.backend_tokenizer)
        for word in table.add_tokens or ():
            made.add(word)
        if table.add_from_text is not None:
            made.add_from_text(table.add_from_text, documents)
        with new_cache_entry(folder) as draft:
            made.save(tokenizer, draft)
    from transformers import PreTrainedTokenizerFast

    about = json.loads((folder / ABOUT).read_text())
    kind = PreTrainedTokenizerFast if about["rebuilt"] else type(tokenizer)
    pieces = {int(token): former for token, former in about["pieces"].items()}
    return kind.from_pretrained(folder), pieces, about["notes"]


class _Words:
    """What is to be added: `entries` of the tokenizer's model, and `matched` in the text before the model sees it."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.rules = json.loads(backend.to_str())
        self.kind = self.rules["model"]["type"]
        splitting = json.dumps(self.rules["pre_tokenizer"])
        self.byte_level = self.kind == "BPE" and '"ByteLevel"' in splitting
        self.unigram = self.kind == "Unigram" and '"Metaspace"' in splitting
        self.entries: dict[str, list[int]] = {}
        self.matched: dict[str, list[int]] = {}
        self.notes: list[str] = []

    def add(self, word: str) -> None:
        """Add one word; one that is a token already is noted."""
        forms = self._forms(word)
        if forms:
            new = {form: pieces for form in forms if not self._is_token(pieces := self._pieces(form))}
            self.entries |= new
        else:
            pieces = self.backend.encode(word, add_special_tokens=False).ids
            new = {} if self._is_token(pieces) else {word: pieces}
            self.matched |= new
        if not new:
            self.notes.append(f"tokenizer.add_tokens: `{word}` is a token already")

    def _forms(self, word: str) -> list[str]:
        """The word as the model meets it, with the space before it and without; nothing if it is not met in one."""
        alone = ALONE.match(word) is not None
        if self.unigram and alone:
            return [self._normal(word)]
        if not (self.unigram or self.byte_level) or alone:
            return []
        split = [self._split(text) for text in (f" {word}", word)]
        return sorted({pieces[0] for pieces in split}) if all(len(pieces) == 1 for pieces in split) else []

    def add_from_text(self, number: int, documents: Documents) -> None:
        """Add the `number` words that save the most tokens: a word saves one less than its pieces, wherever it occurs.

        Words are of letters alone, of two pieces at least, and not rare.
        """
        if not (self.unigram or self.byte_level or self.kind == "WordPiece"):
            raise UserError(
                f"tokenizer.add_from_text: a tokenizer of this kind ({self.kind}) splits text into no words that could "
                "be counted",
                "name the words: tokenizer.add_tokens",
            )
        saved = {}
        for form, count in self._counted(documents).items():
            pieces = self._pieces(form)
            if count >= RARE and len(pieces) > 1 and form not in self.entries and form not in self.matched:
                saved[form] = (count * (len(pieces) - 1), pieces)
        best = sorted(saved, key=lambda form: (-saved[form][0], form))[:number]
        new = self.matched if self.kind == "WordPiece" else self.entries
        new |= {form: saved[form][1] for form in best}
        if len(best) < number:
            self.notes.append(
                f"tokenizer.add_from_text: {len(best)} words are added, not {number}: no others occur {RARE} times and "
                "are more than one token"
            )

    def _counted(self, documents: Documents) -> Counter[str]:
        """How often each word occurs, in one pass; where there are too many, the rarest are forgotten on the way."""
        counts: Counter[str] = Counter()
        forgotten = 0
        for text in documents:
            counts.update(self._split(text))
            while len(counts) > MOST_WORDS:
                forgotten += 1
                counts = Counter({piece: count for piece, count in counts.items() if count > forgotten})
        found: Counter[str] = Counter()
        for piece, count in counts.items():
            if self.unigram:  # whose pieces have punctuation behind the word, which the new token leaves alone
                word = LETTERS.match(piece, 1) if piece.startswith(MARK) else None
                if word is not None:
                    found[piece[: word.end()]] += count
            else:
                shown = self.backend.decoder.decode([piece]) if self.byte_level else piece
                if LETTERS.fullmatch(shown.removeprefix(" ")):
                    found[piece] += count
        return found

    def _split(self, text: str) -> list[str]:
        """What the model is given one after the other."""
        return [piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(self._normal(text))]

    def _normal(self, text: str) -> str:
        return self.backend.normalizer.normalize_str(text) if self.backend.normalizer is not None else text

    def _pieces(self, form: str) -> list[int]:
        return [token.id for token in self.backend.model.tokenize(form)]

    def _is_token(self, pieces: list[int]) -> bool:
        return len(pieces) == 1 and not self._is_unknown(pieces[0])

    def _is_unknown(self, token: int) -> bool:
        model = self.rules["model"]
        unknown = model["unk_id"] if self.kind == "Unigram" else self.backend.token_to_id(model.get("unk_token") or "")
        return token == unknown

    def save(self, tokenizer: Any, folder: Path) -> None:
        """Write the extended tokenizer and what its new tokens were before."""
        from tokenizers import AddedToken

        tokenizer = copy.deepcopy(tokenizer)
        last = max(tokenizer.get_vocab().values())
        tokenizer.add_tokens(
            [
                # With signs at its edges it has its borders. Uncased tokenizers match what is in lower case by then.
                AddedToken(
                    word,
                    single_word=regex.search(r"^\w|\w$", word) is not None and not ALONE.match(word),
                    normalized=self.kind == "WordPiece" and not ALONE.match(word),
                )
                for word in self.matched
            ]
        )
        tokenizer.save_pretrained(folder)
        first = last + 1 + len(self.matched)
        if self.entries:
            self._rebuild(tokenizer, folder, first)
        ids = [*tokenizer.convert_tokens_to_ids(list(self.matched)), *range(first, first + len(self.entries))]
        former = [*self.matched.values(), *self.entries.values()]
        about = {
            "rebuilt": bool(self.entries),
            "pieces": dict(zip(ids, former, strict=True)),
            "notes": self.notes,
        }
        (folder / ABOUT).write_text(json.dumps(about))

    def _rebuild(self, tokenizer: Any, folder: Path, first: int) -> None:
        """Write the entries into the saved tokenizer's model, from the id `first` on.

        Byte-level BPE looks a word up before it merges, as Llama 3's does. In unigram an entry scores a little more
        than its pieces together: it stands wherever they stood, and nothing else is split in another way.
        """
        file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
        rules = json.loads(file.read_text())
        model = rules["model"]
        behind = {token["id"]: token["content"] for token in rules["added_tokens"]}
        if self.byte_level:
            # Those behind the model too: it numbers what is added later by how many entries it has.
            for token, content in behind.items():
                model["vocab"].setdefault(content, token)
            model["vocab"] |= {form: first + place for place, form in enumerate(self.entries)}
            model["ignore_merges"] = True
        else:
            scores = [score for _, score in model["vocab"]]
            low = min(scores)
            for token in range(len(scores), first):
                model["vocab"].append([behind[token], low])
            for form, pieces in self.entries.items():
                known = not any(self._is_unknown(token) for token in pieces)
                model["vocab"].append([form, sum(scores[token] for token in pieces) + 1e-6 if known else low])
        file.write_text(json.dumps(rules, ensure_ascii=False))
        # The classes of single models make a new tokenizer out of vocabulary and merges: this one keeps all of it.
        config = json.loads(settings.read_text())
        config |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": tokenizer.model_input_names,
            "padding_side": tokenizer.padding_side,
            "truncation_side": tokenizer.truncation_side,
        }
        settings.write_text(json.dumps(config, ensure_ascii=False, indent=2))
