"""Rows tokenized through a cache of words have the tokens that the tokenizer gives them."""

import random
from functools import cache
from itertools import product

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from llmkit.data.rows.tokenize import RowTokenizer, by_words, longest_first

DRAW = random.Random(1)
ODD = [
    "the",
    "The",
    "cat",
    "cats,",
    "it's",
    "É",
    "e\u0301",
    "日本語",
    "東",
    "x" * 70,
    "😀",
    "[MASK]",
    "<new>",
    "\x00",
    "2024",
]
BLANKS = [" ", " ", " ", "  ", "\t", "\n", "\u3000", "\xa0", ""]
TEXTS = [
    "",
    " ",
    "a",
    *("".join(word + DRAW.choice(BLANKS) for word in DRAW.choices(ODD, k=DRAW.randint(1, 30))) for _ in range(500)),
]
NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPECIAL = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), NAMES, strict=True))
AROUND = [("[CLS]", 2), ("[SEP]", 3)]


def bert(lowercase=True, **keys):
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(NAMES), show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=AROUND
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, **{"model_input_names": names, **SPECIAL, **keys})


def byte_level(prefixed=False, processor=None, **keys):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(NAMES), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processor or processors.ByteLevel(trim_offsets=False)
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, **{"model_input_names": names, **SPECIAL, **keys})


def with_tokens(tokenizer, *tokens):
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def with_truncation(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    return tokenizer


@cache
def trained_unigram():
    """It takes a second to train."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=150, special_tokens=list(NAMES), unk_token="[UNK]", show_progress=False),
    )
    return made.to_str()


def unigram():
    made = Tokenizer.from_str(trained_unigram())
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=AROUND
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def template(single, pair):
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=AROUND)


ROBERTA = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=True, add_prefix_space=False)
BY_WORDS = {
    "bert": bert,
    "cased": lambda: bert(lowercase=False),
    "bert without types": lambda: bert(model_input_names=["input_ids", "attention_mask"]),
    "bert from the left": lambda: bert(truncation_side="left"),
    "bert with its own truncation": lambda: with_truncation(bert()),
    "added token": lambda: with_tokens(bert(), "<new>"),
    "added token that takes the blanks before it": lambda: with_tokens(
        bert(), AddedToken("<new>", lstrip=True, normalized=False)
    ),
    "gpt2": byte_level,
    "gpt2 with types": lambda: byte_level(model_input_names=["input_ids", "token_type_ids"]),
    "roberta": lambda: byte_level(processor=ROBERTA),
    "text last": lambda: byte_level(processor=template("[CLS] [CLS] $A", "$A [SEP] [CLS]:1 $B:1")),
}
BY_TOKENIZER = {
    "prefix space": lambda: byte_level(prefixed=True),
    "added token in the normalized text": lambda: with_tokens(
        bert(), AddedToken("<new>", lstrip=True, normalized=True)
    ),
    "special tokens split": lambda: bert(split_special_tokens=True),
    "text twice": lambda: byte_level(processor=template("$A [SEP] $A", "$A [SEP] $B")),
    "texts turned round": lambda: byte_level(processor=template("$A:1", "$B:1 [SEP] $A")),
    "unigram": unigram,
    "no fast one": ByT5Tokenizer,
}


def pairs_of(texts):
    return [*texts[7:], *texts[:7]]


def expected(tokenizer, texts, pairs, length):
    """By row: the inputs, and how many tokens there were."""
    cut = tokenizer(texts, pairs, truncation=True, max_length=length, return_attention_mask=False)
    whole = tokenizer(texts, pairs, truncation=False, padding=False, verbose=False)["input_ids"]
    return dict(cut), [len(ids) for ids in whole]


def by_row(found):
    ends = np.cumsum(found.lengths)[:-1]
    return {name: [each.tolist() for each in np.split(values, ends)] for name, values in found.inputs.items()}


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("name", [*BY_WORDS, *BY_TOKENIZER])
def test_the_inputs_are_those_of_the_tokenizer(name, paired):
    tokenizer = {**BY_WORDS, **BY_TOKENIZER}[name]()
    for length in (6, 20, 1000):
        tokenize = RowTokenizer(tokenizer, length)
        for begin in (0, 100, 300) if length == 20 else (0,):
            texts = TEXTS[begin : begin + 200]
            pairs = pairs_of(texts) if paired else None
            found = tokenize(texts, pairs)
            inputs, whole = expected(tokenizer, texts, pairs, length)
            assert by_row(found) == inputs
            assert found.whole.tolist() == whole
            assert all(values.dtype == np.int32 for values in found.inputs.values())


@pytest.mark.parametrize("paired", [False, True])
def test_words_are_cached_where_the_tokenizer_allows_it(paired):
    assert [name for name, make in BY_WORDS.items() if by_words(make(), 20, paired) is None] == []
    refused = [name for name, make in BY_TOKENIZER.items() if by_words(make(), 20, paired) is None]
    assert {*BY_TOKENIZER} - {*refused} <= ({"text twice"} if paired else {"texts turned round"})


def test_a_length_that_leaves_no_room_is_left_to_the_tokenizer():
    assert by_words(bert(), 2, False) is None
    assert by_words(bert(), 3, True) is None


def test_of_a_pair_the_longer_text_is_cut_first():
    tokenizer = byte_level()
    for first, second, room in product(range(7), range(7), range(1, 9)):
        read = tokenizer(["a" + " 2" * first], ["a" + " 2" * second], truncation=True, max_length=room)
        sequence = read.sequence_ids(0)
        sizes = np.array([[len(tokenizer("a" + " 2" * number)["input_ids"])] for number in (first, second)])
        assert longest_first(sizes, room).ravel().tolist() == [sequence.count(0), sequence.count(1)]


def test_only_chunks_behind_the_first_fill_the_cache(monkeypatch):
    made = []
    monkeypatch.setattr("llmkit.data.rows.tokenize.by_words", lambda *given: made.append(given))
    tokenize = RowTokenizer(bert(), 20)
    tokenize(["a"], None)
    assert made == []
    tokenize(["a"], None)
    tokenize(["a"], None)
    assert len(made) == 1


def test_a_saved_tokenizer_is_read_by_words_too(tmp_path):
    bert().save_pretrained(tmp_path)
    assert by_words(AutoTokenizer.from_pretrained(tmp_path), 20, True) is not None
