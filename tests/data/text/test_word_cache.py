"""What a word becomes is remembered, and nothing changes by that."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from llmkit.data.text import word_cache
from llmkit.data.text.word_cache import SPLITS, CachedEncoder, word_by_word

ODD = [
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u200b"),
    *(
        "word",
        "Don't",
        "it's",
        "I'LL",
        "12345",
        "1",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "...",
        "!",
        "?\n",
        "ﬁ",
        "Σ",
        "ΑΣ",
    ),
    *("😀", "👩\u200d👧", "\x00", "\ufeff", "##a", "x" * 120, "<|end|>", "<far>", "İ", "the", "cat"),
]
DRAW = random.Random(1)
NOISE = ["".join(DRAW.choices(ODD, k=DRAW.randint(1, 30))) for _ in range(4000)]
PLAIN = [" ".join(DRAW.choices(["the", "cat", "sat", "on", "mats,", "it's", "2024."], k=20)) for _ in range(500)]


def byte_level(splitter, normalizer=None, **options):
    made = Tokenizer(models.BPE(**options))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        NOISE[:500] + PLAIN, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<far>", lstrip=True, special=True)])
    return made


def word_piece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        NOISE[:500] + PLAIN,
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", "<|end|>"], show_progress=False),
    )
    return made


def with_token(made, token):
    made.add_tokens([token])
    return made


def split_by(pattern, *before):
    steps = [
        *before,
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
WORD_BY_WORD = {
    "gpt2": lambda: byte_level(GPT2),
    "lower case": lambda: byte_level(GPT2, normalizers.Sequence([normalizers.Lowercase()])),
    "llama3": lambda: byte_level(split_by(SPLITS[0])),
    "qwen2": lambda: byte_level(split_by(SPLITS[1]), normalizers.NFC()),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])),
    "bert": word_piece,
}


@pytest.mark.parametrize("name", WORD_BY_WORD)
@pytest.mark.parametrize("most", [50, 2**18])
def test_the_tokens_are_those_of_the_whole_text(name, most, monkeypatch):
    monkeypatch.setattr(word_cache, "MOST", most)
    backend = WORD_BY_WORD[name]()
    assert word_by_word(backend)
    encode = CachedEncoder(backend)
    texts = [*NOISE, *PLAIN, *NOISE[:100]]
    found = [ids.tolist() for start in range(0, len(texts), 300) for ids in encode(texts[start : start + 300])]
    assert found == [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


def test_a_word_is_tokenized_once():
    backend = byte_level(GPT2)
    encode = CachedEncoder(backend)
    encode(PLAIN)
    asked = []

    class Watched:
        def encode_batch_fast(self, texts, **options):
            asked.extend(texts)
            return backend.encode_batch_fast(texts, **options)

    encode.backend = Watched()
    again = encode(PLAIN)
    assert asked == []
    assert [ids.tolist() for ids in again] == [
        each.ids for each in backend.encode_batch(PLAIN, add_special_tokens=False)
    ]


def test_long_words_and_those_that_come_late_are_not_kept(monkeypatch):
    encode = CachedEncoder(byte_level(GPT2))
    encode(["a b " + "x" * 100])
    assert set(encode.cache) == {"a", " b"}
    monkeypatch.setattr(word_cache, "MOST", 3)
    encode(["a c"])
    encode(["a d e f"])
    assert set(encode.cache) == {"a", " b", " c"}


def test_two_threads_may_ask_at_once(monkeypatch):
    monkeypatch.setattr(word_cache, "MOST", 50)
    backend = byte_level(GPT2)
    encode = CachedEncoder(backend)
    wanted = [each.ids for each in backend.encode_batch(NOISE, add_special_tokens=False)]

    def read(shift):
        order = [*range(shift, len(NOISE)), *range(shift)]
        for i in range(0, len(order), 7):
            some = order[i : i + 7]
            assert [ids.tolist() for ids in encode([NOISE[j] for j in some])] == [wanted[j] for j in some]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, (0, 1000, 2000, 3000)))


@pytest.mark.parametrize(
    "made",
    [
        lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: byte_level(GPT2, dropout=0.1),
        lambda: byte_level(GPT2, normalizers.NFKC()),
        lambda: byte_level(GPT2, normalizers.Replace(" ", "_")),
        lambda: byte_level(split_by(r"\w+ \w+")),
        lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), GPT2])),
        lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda: with_token(word_piece(), AddedToken("New York", normalized=True)),
        lambda: Tokenizer(models.BPE()),
        lambda: Tokenizer(models.Unigram()),
    ],
)
def test_other_tokenizers_read_the_whole_text(made):
    assert not word_by_word(made())
