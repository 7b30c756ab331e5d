"""Extend an existing tokenizer with words, each as a token of its own."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import regex
import xxhash

from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import is_whole, new_cache_entry
from llmkit.data.words import ALONE
from llmkit.disk import cache_dir
from llmkit.errors import UserError
from llmkit.recipe.schema import Tokenizer as Table

MIN_COUNT = 5  # a rarer word would be a token that is hardly trained
MOST_WORDS = 2_000_000  # in memory while they are counted
LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")
MARK = "\u2581"  # a space in a unigram tokenizer
EXTENSION_FILE = "extension.json"


def extend(tokenizer: Any, table: Table, documents: Documents) -> tuple[Any, dict[int, list[int]], list[str]]:
    """Extend a tokenizer by the words of `add_tokens` and `add_from_text`.

    New ids follow the last one; all others stay. In byte-level BPE and in unigram a word is one token together with the
    space before it (in byte-level BPE also without it: two entries). In other tokenizers, and where the pre-tokenizer
    splits the word (covid-19), the space is not part of it. Words are matched whole, with two exceptions: in scripts
    without spaces between words, and in unigram, where the beginning of a longer word matches too if it was split
    there.

    Args:
        tokenizer: Left as it is; the extended one is a copy.
        table: The recipe's [tokenizer].
        documents: The text that `add_from_text` counts words in.

    Returns:
        The extended tokenizer; for each new token the ids of the subtokens that its word was split into before; notes.

    Raises:
        UserError: The tokenizer cannot be extended in this way.
    """
    if table.add_tokens is None and table.add_from_text is None:
        return tokenizer, {}, []
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer.add_tokens and tokenizer.add_from_text need a fast tokenizer, not {type(tokenizer).__name__}",
            "set tokenizer.name to one that has a tokenizer.json",
        )
    for index, word in enumerate(table.add_tokens or ()):
        if not word or word != word.strip():
            raise UserError(
                f"tokenizer.add_tokens: {word!r} (number {index + 1}) is empty, or begins or ends with a space"
            )
    text = documents.cache_key if table.add_from_text else None
    rules = tokenizer.backend_tokenizer.to_str()
    cache_key = (2, rules, repr(tokenizer), tokenizer.chat_template, table.add_tokens, table.add_from_text, text)
    folder = cache_dir() / f"tokenizer-{xxhash.xxh3_128_hexdigest(repr(cache_key).encode())}"
    if not is_whole(folder, "the extended tokenizer"):
        new_words = _Words(tokenizer.backend_tokenizer)
        for word in table.add_tokens or ():
            new_words.add(word)
        if table.add_from_text is not None:
            new_words.add_from_text(table.add_from_text, documents)
        with new_cache_entry(folder, sealed=True) as draft:
            new_words.save(tokenizer, draft)
    from transformers import PreTrainedTokenizerFast

    extension = json.loads((folder / EXTENSION_FILE).read_text())
    tokenizer_class = PreTrainedTokenizerFast if extension["rebuilt"] else type(tokenizer)
    subtokens = {int(token): ids for token, ids in extension["pieces"].items()}
    return tokenizer_class.from_pretrained(folder), subtokens, extension["notes"]


class _Words:
    """The words to add: `entries` of the tokenizer's model, and words `matched` in the text before the model sees it.

    Both map a word to the ids of the subtokens that it is split into now.
    """

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
        """Add one word, or note that it is a token already."""
        forms = self._forms(word)
        if forms:
            new = {form: subtokens for form in forms if not self._is_token(subtokens := self._subtokens(form))}
            self.entries |= new
        else:
            subtokens = self.backend.encode(word, add_special_tokens=False).ids
            new = {} if self._is_token(subtokens) else {word: subtokens}
            self.matched |= new
        if not new:
            self.notes.append(f"tokenizer.add_tokens: `{word}` is already a token")

    def _forms(self, word: str) -> list[str]:
        """Return the word as the model sees it, with the space before it and without; nothing if it is split."""
        unspaced = ALONE.match(word) is not None
        if self.unigram and unspaced:
            return [self._normalized(word)]
        if not (self.unigram or self.byte_level) or unspaced:
            return []
        pretokens = [self._pretokenize(text) for text in (f" {word}", word)]
        return sorted({parts[0] for parts in pretokens}) if all(len(parts) == 1 for parts in pretokens) else []

    def add_from_text(self, number: int, documents: Documents) -> None:
        """Add the `number` words that save the most tokens; each occurrence saves one less than the word's subtokens.

        Words consist of letters alone, have two subtokens at least and occur `MIN_COUNT` times at least.
        """
        if not (self.unigram or self.byte_level or self.kind == "WordPiece"):
            raise UserError(
                f"tokenizer.add_from_text: this kind of tokenizer ({self.kind}) does not split text into words "
                "that can "
                "be counted",
                "list the words in tokenizer.add_tokens",
            )
        savings = {}
        for form, count in self._word_counts(documents).items():
            subtokens = self._subtokens(form)
            if count >= MIN_COUNT and len(subtokens) > 1 and form not in self.entries and form not in self.matched:
                savings[form] = (count * (len(subtokens) - 1), subtokens)
        chosen = sorted(savings, key=lambda form: (-savings[form][0], form))[:number]
        new = self.matched if self.kind == "WordPiece" else self.entries
        new |= {form: savings[form][1] for form in chosen}
        if len(chosen) < number:
            self.notes.append(
                f"tokenizer.add_from_text: {len(chosen)} words are added, not {number}: no other words occur "
                f"{MIN_COUNT} "
                "times and take more than one token"
            )

    def _word_counts(self, documents: Documents) -> Counter[str]:
        """Count words in one pass; where there are more than `MOST_WORDS`, drop the rarest on the way."""
        counts: Counter[str] = Counter()
        forgotten = 0
        for text in documents:
            counts.update(self._pretokenize(text))
            while len(counts) > MOST_WORDS:
                forgotten += 1
                counts = Counter({pretoken: count for pretoken, count in counts.items() if count > forgotten})
        words: Counter[str] = Counter()
        for pretoken, count in counts.items():
            if self.unigram:  # punctuation may follow the word, and is not part of the new token
                word = LETTERS.match(pretoken, 1) if pretoken.startswith(MARK) else None
                if word is not None:
                    words[pretoken[: word.end()]] += count
            else:
                text_form = self.backend.decoder.decode([pretoken]) if self.byte_level else pretoken
                if LETTERS.fullmatch(text_form.removeprefix(" ")):
                    words[pretoken] += count
        return words

    def _pretokenize(self, text: str) -> list[str]:
        """Normalize and pre-tokenize a text."""
        return [pretoken for pretoken, _ in self.backend.pre_tokenizer.pre_tokenize_str(self._normalized(text))]

    def _normalized(self, text: str) -> str:
        return self.backend.normalizer.normalize_str(text) if self.backend.normalizer is not None else text

    def _subtokens(self, form: str) -> list[int]:
        return [token.id for token in self.backend.model.tokenize(form)]

    def _is_token(self, subtokens: list[int]) -> bool:
        return len(subtokens) == 1 and not self._is_unknown(subtokens[0])

    def _is_unknown(self, token: int) -> bool:
        model = self.rules["model"]
        unknown = model["unk_id"] if self.kind == "Unigram" else self.backend.token_to_id(model.get("unk_token") or "")
        return token == unknown

    def save(self, tokenizer: Any, folder: Path) -> None:
        """Write the extended tokenizer, and the subtokens of its new tokens, to `folder`."""
        from tokenizers import AddedToken

        tokenizer = copy.deepcopy(tokenizer)
        last = max(tokenizer.get_vocab().values())
        tokenizer.add_tokens(
            [
                # A word with punctuation at an edge ends there anyway. An uncased tokenizer matches lower-cased text.
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
        subtokens = [*self.matched.values(), *self.entries.values()]
        extension = {
            "rebuilt": bool(self.entries),
            "pieces": dict(zip(ids, subtokens, strict=True)),
            "notes": self.notes,
        }
        (folder / EXTENSION_FILE).write_text(json.dumps(extension))

    def _rebuild(self, tokenizer: Any, folder: Path, first: int) -> None:
        """Write the entries into the saved tokenizer's model, from the id `first` on.

        Byte-level BPE looks a word up before it merges (`ignore_merges`), as Llama 3's does. In unigram an entry scores
        slightly more than its subtokens together: it replaces them wherever they occurred, and changes no other split.
        """
        file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
        rules = json.loads(file.read_text())
        model = rules["model"]
        added_tokens = {token["id"]: token["content"] for token in rules["added_tokens"]}
        if self.byte_level:
            # The added tokens too: the tokenizer numbers later ones by the number of the model's entries.
            for token, content in added_tokens.items():
                model["vocab"].setdefault(content, token)
            model["vocab"] |= {form: first + index for index, form in enumerate(self.entries)}
            model["ignore_merges"] = True
        else:
            scores = [score for _, score in model["vocab"]]
            low = min(scores)
            for token in range(len(scores), first):
                model["vocab"].append([added_tokens[token], low])
            for form, subtokens in self.entries.items():
                all_known = not any(self._is_unknown(token) for token in subtokens)
                model["vocab"].append([form, sum(scores[token] for token in subtokens) + 1e-6 if all_known else low])
        file.write_text(json.dumps(rules, ensure_ascii=False))
        # The classes of single models rebuild the tokenizer from vocabulary and merges; this one keeps everything.
        config = json.loads(settings.read_text())
        config |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": tokenizer.model_input_names,
            "padding_side": tokenizer.padding_side,
            "truncation_side": tokenizer.truncation_side,
        }
        settings.write_text(json.dumps(config, ensure_ascii=False, indent=2))
