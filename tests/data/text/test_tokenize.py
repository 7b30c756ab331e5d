"""A text that is encoded in chunks has the tokens of the whole."""

import json
import random
from array import array
from pathlib import Path

import pytest
from conftest import ROOT
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from llmkit.data.text import tokenize
from llmkit.data.text.documents import Documents
from llmkit.data.text.tokenize import encoded, encoder
from llmkit.models.tokenizer import load
from llmkit.recipe.schema import Model
from llmkit.recipe.schema import Tokenizer as Table

STORIES = (ROOT / "recipes" / "tiny" / "stories.txt").read_text()[:60_000]
CODE = Path(tokenize.__file__).read_text() * 4
ODD = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "word",
    "Don't",
    "12345",
    "é",
    "日本",
    "...",
    "<|endoftext|>",
    "x" * 120,
    "\uff21\uff22",
    "ﬁ",
]
NOISE = "".join(random.Random(1).choices(ODD, k=5000))
CHINESE = "".join(random.Random(2).choices("的一是不了人我在有他这中大来、。", k=20_000))
TEXTS = {"stories": STORIES, "code": CODE, "noise": NOISE, "chinese": CHINESE}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Many cuts in little text."""
    monkeypatch.setattr(tokenize, "CHUNK", 2000)


def trained(kind):
    documents = Documents(lambda: iter([STORIES, CODE[:5000], NOISE[:5000]]), f"encode {kind}", "`test`")
    size = 300 if kind == "byte-bpe" else 400
    return load(Table(type=kind, vocab_size=size), Model(config={}), "causal-lm", documents, None)


def without_words(*begin):
    """BPE over the whole text, which no pre-tokenizer cuts into words: what Llama 2 and Gemma have."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.train_from_iterator(
        [STORIES, NOISE[:5000]], trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    )
    return Tokenizer.from_str(json.dumps({**json.loads(made.to_str()), "pre_tokenizer": None}))


def of_sentencepiece(scheme):
    """T5 and its kind: blanks are a part of words, the text's own edges are stripped, runs of blanks are one."""
    made = Tokenizer(models.Unigram())
    collapsed = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), collapsed])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    made.train_from_iterator([STORIES, NOISE[:5000]], trainer)
    return made


def of_gpt4():
    """Numbers in groups of three, punctuation together with the line break behind it."""
    made = Tokenizer(models.BPE())
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [STORIES, CODE], trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    return made


TOKENIZERS = {
    **{kind: lambda kind=kind: trained(kind) for kind in ("byte-bpe", "wordpiece", "unigram", "characters")},
    "llama": lambda: PreTrainedTokenizerFast(tokenizer_object=without_words(normalizers.Prepend("▁"))),
    "gemma": lambda: PreTrainedTokenizerFast(tokenizer_object=without_words()),
    "t5": lambda: PreTrainedTokenizerFast(tokenizer_object=of_sentencepiece("always")),
    "mistral": lambda: PreTrainedTokenizerFast(tokenizer_object=of_sentencepiece("first")),
    "gpt4": lambda: PreTrainedTokenizerFast(tokenizer_object=of_gpt4()),
}


def in_chunks(tokenizer, *texts):
    return [id for batch in encoded(texts, encoder(tokenizer), [], 10_000) for id in batch.ids]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_chunks_have_the_tokens_of_the_whole(name):
    tokenizer = TOKENIZERS[name]()
    for text in TEXTS.values():
        whole = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert in_chunks(tokenizer, text) == whole
    chunks = list(tokenize._chunks(STORIES, encoder(tokenizer), 0))
    assert len(chunks) >= 30
    assert all(chunk.num_context_tokens for chunk in chunks[1:])


def test_pieces_are_the_same_from_wherever_they_are_gone_on_with():
    to_ids = encoder(TOKENIZERS["llama"]())
    chunks = list(tokenize._chunks(STORIES, to_ids, 0))
    for n in (0, 1, 7, len(chunks) - 2):
        assert list(tokenize._chunks(STORIES, to_ids, chunks[n].end)) == chunks[n + 1 :]


def test_a_word_without_an_end_that_nobody_knows_stays_one():
    assert in_chunks(one_word_one_token(), "x" * 10_500) == [0]


def one_word_one_token():
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class Lines(PreTrainedTokenizer):
    """A slow one, for which no cut will do: a token says how long its text is."""

    vocab_size = 10_000

    def get_vocab(self):
        return {str(n): n for n in range(self.vocab_size)}

    def _tokenize(self, text, **_):
        return [str(len(text))]

    def _convert_token_to_id(self, token):
        return int(token)


def test_text_in_which_no_place_will_do_has_few_seams():
    text = "x" * 10_500
    assert in_chunks(Lines(), text) == [2000] * 5 + [500]
    chunks = list(tokenize._chunks(text, encoder(Lines()), 0))
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.last for chunk in chunks] == [False] * 5 + [True]


def test_where_no_place_will_do_a_line_break_is_preferred():
    text = ("y" * 1400 + "\n" + "z z z z ") * 4
    assert [chunk.end for chunk in tokenize._chunks(text, encoder(Lines()), 0)][:2] == [1400, 2809]


def test_a_slow_tokenizer_is_read_text_by_text():
    tokenizer = Lines()
    assert not tokenizer.is_fast
    assert in_chunks(tokenizer, "abc", "de", "f") == [3, 2, 1]
    assert list(tokenize.encode(tokenizer, ["ab", "cde"])) == [array("I", [2]), array("I", [3])]


def test_batches_end_where_they_are_full():
    batches = list(encoded(["a b"] * 50, encoder(one_word_one_token()), [7], 10_000))
    assert [len(batch.ends) for batch in batches] == [10] * 5  # a text counts for a thousand characters more
    assert batches[0].ids.tolist() == [0, 0, 7] * 10
    assert (batches[0].num_bytes, batches[0].characters) == (30, 0)
    long = list(encoded([STORIES], encoder(one_word_one_token()), [7], 10_000))
    assert [len(batch.ends) for batch in long] == [0] * (len(long) - 1) + [1]
    assert [batch.characters > 0 for batch in long] == [True] * (len(long) - 1) + [False]
    assert sum(batch.num_bytes for batch in long) == len(STORIES.encode())
