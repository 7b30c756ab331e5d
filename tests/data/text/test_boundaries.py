"""Where words and sentences begin in token ids: the same for every kind of tokenizer, whatever it cuts words into."""

import random

import numpy as np
import pytest
import regex
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from llmkit.data.text import corruption
from llmkit.data.text.boundaries import sentence_starts, vocabulary, word_starts

KINDS = ("byte-bpe", "wordpiece", "unigram", "characters")
SPECIAL = {"unk_token": "[UNK]", "eos_token": "[EOS]", "mask_token": "[MASK]"}
LINES = [
    "The naïve hen saw 3.5 foxes, e.g. in Paris. Why? Nobody (not even J. Smith) knew!",
    "“It is été,” he said… She didn't: they met at 10:30. 我爱自然语言。你好\uff01再见\uff1f",
    'Ein Fuß in der Tür 😀 helps. हिन्दी भाषा 한국어 단어 x_y ❤️ now: "I".',
]
CHINESE = regex.compile(r"\p{Han}")
WORD = regex.compile(r"(?V1)\p{Han}|[\p{L}\p{N}--\p{Han}][\p{L}\p{N}\p{M}--\p{Han}]*|\S\p{M}*")
POOL = [word for line in LINES for word in WORD.findall(line)]


def trained(kind):
    special = list(SPECIAL.values())
    common = {"vocab_size": 420, "special_tokens": special, "show_progress": False}
    if kind == "byte-bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(**common)
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **common)
    else:
        characters = special + sorted(set("".join(LINES) + "\n"))
        backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(special)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    backend.train_from_iterator(LINES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return trained(request.param)


@pytest.fixture(scope="module")
def byte_bpe():
    return trained("byte-bpe")


@pytest.fixture(scope="module")
def wordpiece():
    return trained("wordpiece")


@pytest.fixture(scope="module")
def characters():
    return trained("characters")


def made(tokens, special=()):
    """A tokenizer whose vocabulary is exactly this, to write out what a case is about."""
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *tokens])}, unk_token="?"))
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(("eos_token", "pad_token"), special, strict=False))
    )


def ids_of(tokenizer, text):
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


def parts(tokenizer, ids, starts):
    return [tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(starts)[1:])]


def words_in(tokenizer, text):
    ids = ids_of(tokenizer, text)
    found = [part.strip() for part in parts(tokenizer, ids, word_starts(ids, vocabulary(tokenizer)))]
    return [word.removeprefix("##") for word in found if word]  # a piece behind an emoji, decoded alone


def sentences_in(tokenizer, text):
    ids = ids_of(tokenizer, text)
    return [part.strip() for part in parts(tokenizer, ids, sentence_starts(ids, vocabulary(tokenizer)))]


def starts_of(function, tokenizer, tokens):
    """The tokens that `function` says begin something."""
    ids = np.array(tokenizer.convert_tokens_to_ids(tokens))
    return [token for token, begins in zip(tokens, function(ids, vocabulary(tokenizer)), strict=True) if begins]


# --- what a vocabulary says -------------------------------------------------------------------------------------------


def test_special_tokens_are_never_drawn_and_all_others_are(tokenizer):
    table = vocabulary(tokenizer)
    assert set(np.flatnonzero(table.special)) == set(tokenizer.all_special_ids) == {0, 1, 2}
    assert table.ordinary.dtype == np.int64
    assert table.ordinary.tolist() == sorted(set(tokenizer.get_vocab().values()) - {0, 1, 2})
    assert len(table.special) == max(tokenizer.get_vocab().values()) + 1


def test_tokens_added_as_special_are_special_and_other_added_ones_are_not():
    added = trained("byte-bpe")
    added.add_tokens(["größer 日"])
    added.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    table = vocabulary(added)
    word, mark = added.convert_tokens_to_ids(["größer 日", "<sep>"])
    assert table.special[mark]
    assert not table.special[word]
    assert word in table.ordinary
    assert mark not in table.ordinary
    assert words_in(added, "The été helps.") == ["The", "été", "helps", "."]  # still known for what it is


def test_the_bytes_are_those_that_byte_level_bpe_writes(byte_bpe):
    """Every byte alone: only a continuation byte cannot begin a word behind a letter."""
    by_name = byte_bpe.get_vocab()
    a = by_name["a"]
    names = {byte: name for name, byte in zip(*byte_level_names(), strict=True)}
    table = vocabulary(byte_bpe)
    for byte in range(256):
        begins = word_starts(np.array([a, by_name[names[byte]]]), table)[1]
        if byte < 0x80:
            assert begins == (not chr(byte).isalnum())
        elif byte < 0xC0:
            assert not begins


def byte_level_names():
    """Characters and their bytes, asked of the decoder itself."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs = []
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in range(0x800):
        written = split.pre_tokenize_str(chr(code))[0][0]
        pairs += zip(written, chr(code).encode(), strict=True)
    for code in (0x800, 0xFFFD, 0x10000, 0x40000, 0x80000, 0xC0000, 0x100000, *range(0x1000, 0x10000, 0x1000)):
        if not 0xD800 <= code < 0xE000:
            pairs += zip(split.pre_tokenize_str(chr(code))[0][0], chr(code).encode(), strict=True)
    names = dict(pairs)
    left = set(range(256)) - set(names.values())  # bytes that UTF-8 never holds
    for name, byte in zip(sorted(set(alphabet) - set(names)), sorted(left), strict=True):
        names[name] = byte
    return list(names), list(names.values())


def test_a_slow_tokenizer_gives_the_same_as_a_fast_one(wordpiece, tmp_path):
    entries = sorted(wordpiece.get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "vocab.txt").write_text("\n".join(token for token, _ in entries), encoding="utf-8")
    slow = BertTokenizerLegacy(
        str(tmp_path / "vocab.txt"), do_lower_case=False, sep_token="[EOS]", pad_token="[EOS]", cls_token="[EOS]"
    )
    assert not slow.is_fast
    ids = ids_of(wordpiece, " ".join(LINES))
    fast_table, slow_table = vocabulary(wordpiece), vocabulary(slow)
    assert slow_table.special.tolist() == fast_table.special.tolist()
    assert slow_table.ordinary.tolist() == fast_table.ordinary.tolist()
    for function in (word_starts, sentence_starts):
        assert function(ids, slow_table).tolist() == function(ids, fast_table).tolist()


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_of_letters_and_digits_and_marks_alone(tokenizer):
    assert words_in(tokenizer, "The hen saw 10 foxes, (not Paris) now!") == [
        *("The", "hen", "saw", "10", "foxes", ",", "(", "not", "Paris", ")", "now", "!")
    ]
    assert words_in(tokenizer, "met at 3.5") == ["met", "at", "3", ".", "5"]
    assert words_in(tokenizer, "x_y") == ["x", "_", "y"]


def test_words_with_blanks_between_them_are_found_one_by_one(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        chosen = rng.choices(POOL, k=30)
        assert words_in(tokenizer, " ".join(chosen)) == chosen


def test_no_word_of_any_text_is_cut(tokenizer):
    """Words run together at random: where a word of the tokens begins, one begins in the text, too."""
    rng = random.Random(1)
    tried = 0
    for _ in range(100):
        text = "".join(rng.choice(POOL) + rng.choice(("", " ", " ")) for _ in range(30))
        if tokenizer.unk_token_id in ids_of(tokenizer, text):
            continue
        tried += 1
        found, expected = words_in(tokenizer, text), WORD.findall(text)
        assert "".join(found).replace(" ", "") == "".join(expected)
        begin = {"".join(expected[:number]) for number in range(len(expected))}
        assert {"".join(found[:number]).replace(" ", "") for number in range(len(found))} <= begin
        letters = [word for word in found if word[0].isalnum() and not CHINESE.match(word)]
        assert [word for word in letters if word not in expected and word[-1].isalnum()] == []
    assert tried >= 20


def test_every_chinese_token_begins_a_word(tokenizer):
    text = "我爱自然语言。你好"
    table = vocabulary(tokenizer)
    ids = ids_of(tokenizer, text)
    assert (ids != tokenizer.unk_token_id).all()
    starts = word_starts(ids, table)
    whole = [tokenizer.decode([i]) for i in ids[starts]]
    assert "".join(parts(tokenizer, ids, starts)).replace(" ", "") == text
    assert all("\ufffd" not in part for part in parts(tokenizer, ids, starts))  # no word begins or ends in a character
    if "Ġ" not in tokenizer.get_vocab():
        assert starts.all()
        assert len(whole) >= 4


def test_characters_of_several_bytes_stay_whole_in_words(byte_bpe):
    """Seldom seen ones, in one byte a token: the word they stand in is one, the emoji is one, each kanji is one."""
    text = "wörd Ťěž привет 日本語 ok🦊🐙ok μέσα 한단 é"
    ids = ids_of(byte_bpe, text)
    assert len(ids) > len(text)
    assert words_in(byte_bpe, text) == [
        *("wörd", "Ťěž", "привет", "日", "本", "語", "ok", "🦊", "🐙", "ok", "μέσα", "한단", "é")
    ]


def test_accents_and_selectors_continue_what_stands_before_them(characters, byte_bpe):
    assert words_in(characters, "हिन्दी भाषा ❤️ now") == ["हिन्दी", "भाषा", "❤️", "now"]
    assert words_in(byte_bpe, "हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert "❤️" in words_in(byte_bpe, "now ❤️now")


def test_an_apostrophe_cuts_a_word_where_the_tokenizer_cuts_it(byte_bpe, wordpiece):
    assert words_in(byte_bpe, "didn't") == ["didn", "'t"]
    assert words_in(wordpiece, "didn't") == ["didn", "'", "t"]
    assert starts_of(word_starts, made(["▁didn't", "▁a"]), ["▁didn't", "▁a"]) == ["▁didn't", "▁a"]


def test_marks_of_words_are_read_as_each_kind_writes_them():
    pieces = made(["play", "##ing", ",", "##", "日", "##本"])
    assert starts_of(word_starts, pieces, ["play", "##ing", ",", "play", "日", "##本"]) == [
        *("play", ",", "play", "日", "##本")
    ]
    metaspace = made(["▁play", "ing", ",", "▁", "<0xE6>", "<0x97>", "<0xA5>", "<0x0A>", "a"])
    assert starts_of(
        word_starts, metaspace, ["▁play", "ing", ",", "a", "<0xE6>", "<0x97>", "<0xA5>", "a", "<0x0A>", "ing"]
    ) == ["▁play", ",", "a", "<0xE6>", "a", "<0x0A>", "ing"]


def test_special_tokens_are_words_of_their_own(tokenizer):
    table = vocabulary(tokenizer)
    hen = ids_of(tokenizer, "hen")
    for special in (0, 1, 2):
        ids = np.concatenate([hen, [special, special], hen])
        starts = word_starts(ids, table)
        assert starts[len(hen) : len(hen) + 3].tolist() == [True, True, True]


def test_a_block_may_begin_in_the_middle_of_a_word_or_be_empty(tokenizer):
    table = vocabulary(tokenizer)
    ids = ids_of(tokenizer, "Nobody knew")
    for function in (word_starts, sentence_starts):
        for first in range(len(ids)):
            starts = function(ids[first:], table)
            assert starts.dtype == bool
            assert starts[0]
            assert len(starts) == len(ids) - first
        assert function(ids[:0], table).tolist() == []


# --- sentences --------------------------------------------------------------------------------------------------------


def test_sentences_end_with_marks_and_a_blank(tokenizer):
    assert [s.replace(" ", "") for s in sentences_in(tokenizer, "Why? Nobody knew! The hen saw foxes... Paris.")] == [
        *("Why?", "Nobodyknew!", "Thehensawfoxes...", "Paris.")
    ]


def test_points_inside_stay_inside(tokenizer):
    text = "J. Smith saw 3.5 foxes, e.g. in Paris. Nobody knew."
    assert [s.replace(" ", "") for s in sentences_in(tokenizer, text)] == [
        *("J.Smithsaw3.5foxes,e.g.inParis.", "Nobodyknew.")
    ]


def test_a_point_without_a_blank_ends_nothing_where_blanks_show(byte_bpe, characters):
    for each in (byte_bpe, characters):
        assert sentences_in(each, "helps.now! e.t.e! 10. 3 foxes") == ["helps.now!", "e.t.e!", "10.", "3 foxes"]


def test_closing_marks_belong_to_the_sentence_that_they_close(byte_bpe, characters):
    for each in (byte_bpe, characters):
        assert sentences_in(each, '(Why?) "Nobody!" \'She knew.\' "She (J. S.) knew..." now') == [
            *("(Why?)", '"Nobody!"', "'She knew.'", '"She (J. S.) knew..."', "now")
        ]
    assert sentences_in(characters, "“Nobody!” “She (J. S.) knew…” now") == ["“Nobody!”", "“She (J. S.) knew…”", "now"]


def test_chinese_sentences_need_no_blank(characters, wordpiece):
    for each in (characters, wordpiece):
        found = [s.replace(" ", "") for s in sentences_in(each, "我爱自然语言。你好\uff01再见\uff1f我爱")]
        assert found == ["我爱自然语言。", "你好\uff01", "再见\uff1f", "我爱"]


def test_a_line_ends_a_sentence(byte_bpe, characters):
    for each in (byte_bpe, characters):
        assert sentences_in(each, "The hen\nsaw it.\n\n  “Why?”\n") == ["The hen", "saw it.", "“Why?”"]
    ids = ids_of(characters, "a\n\n b")
    assert sentence_starts(ids, vocabulary(characters)).tolist() == [True, False, False, False, True]


def test_special_tokens_end_sentences_but_the_unknown_one_does_not(tokenizer):
    table = vocabulary(tokenizer)
    hen = ids_of(tokenizer, "hen saw")
    for special, cuts in ((tokenizer.eos_token_id, True), (tokenizer.unk_token_id, False)):
        ids = np.concatenate([hen, [special], hen])
        assert sentence_starts(ids, table)[len(hen)] == cuts
        assert sentence_starts(ids, table)[len(hen) + 1] == cuts
    both = made(["Ġ", "a", "Ġa"], ["<|end|>"])  # GPT-2: its end is its unknown token, and ends a text all the same
    both.unk_token = "<|end|>"
    assert starts_of(sentence_starts, both, ["a", "<|end|>", "a"]) == ["a", "<|end|>", "a"]


# --- together with the corruptions ------------------------------------------------------------------------------------


def test_whole_words_are_hidden_whole(tokenizer):
    table = vocabulary(tokenizer)
    ids = np.concatenate([ids_of(tokenizer, line) for line in LINES] + [[tokenizer.eos_token_id]])
    starts, allowed = word_starts(ids, table), ~table.special[ids]
    word = np.cumsum(starts)
    for index in range(200):
        for choose, more in ((corruption.choose_words, ()), (corruption.choose_spans, (3.0,))):
            chosen = choose(corruption.generator(0, 0, index), starts, allowed, 0.15, *more)
            assert not table.special[ids[chosen]].any()
            assert set(chosen) == set(np.flatnonzero(np.isin(word, word[chosen]) & allowed))
