"""Tokenizers that a run trains: what goes in comes out, and the same text gives the same tokenizer."""

import itertools
import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.data.text import pack, token_cache
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.models import tokenizer as tokenizing
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.recipe.table import ReadOnly

TYPES = ("byte-bpe", "wordpiece", "unigram", "characters")
TASKS = ("causal-lm", "masked-lm")
RARE = "ß"


def story(seed=0, number=400):
    """Lines with many ties in frequency, which is where an order that is not fixed shows."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(150)]
    vocabulary += [word.capitalize() for word in vocabulary[:20]] + ["don't", "3.14", "(a)", "日本", "été"]
    return [" ".join(draw.choices(vocabulary, k=12)) + "." for _ in range(number)] + [f"Once:\n\ttwo  spaces {RARE}"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setattr(tokenizing, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def documents(texts, fingerprint="story"):
    return Documents(lambda: iter(texts), fingerprint, "`stories.txt`")


def train(kind, task="causal-lm", texts=None, fingerprint="story", max_length=64, vocab_size=600, **keys):
    table = Tokenizer(type=kind, vocab_size=vocab_size, **keys)
    texts = story() if texts is None else texts
    return tokenizing.load(table, Model(config=ReadOnly()), task, documents(texts, fingerprint), max_length)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def round_trip(tokenizer, text):
    return tokenizer.decode(ids_of(tokenizer, text))


# --- what goes in comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_byte_bpe_brings_back_any_text(task):
    tokenizer = train("byte-bpe", task)
    draw = random.Random(1)
    any_text = [chr(n) for n in range(0x11000) if not 0xD800 <= n < 0xE000] + ["😀", "👩\u200d👧"]
    for text in (*story(), " lead", "trail \n", "a  b", "don 't .", "\r\n\0", "[UNK", "e\u0301", "ﬁ"):
        assert round_trip(tokenizer, text) == text
    for _ in range(50):
        text = "".join(draw.choices(any_text, k=50))
        assert round_trip(tokenizer, text) == text


@pytest.mark.parametrize("task", TASKS)
def test_characters_bring_back_any_text_of_known_characters(task):
    tokenizer = train("characters", task)
    known = sorted(set("".join(story())))
    draw = random.Random(1)
    for text in (*story(), " lead", "  \n\n\t  ", "don't .", *("".join(draw.choices(known, k=50)) for _ in range(50))):
        assert round_trip(tokenizer, text) == text
        assert len(ids_of(tokenizer, text)) == len(text)
    assert ids_of(tokenizer, "aéa".replace("é", "😀"))[1] == tokenizer.unk_token_id


def test_characters_keep_the_rare_ones():
    tokenizer = train("characters")
    assert RARE in tokenizer.get_vocab()
    assert set("".join(story())) | {"<unk>", "<|endoftext|>", "<|pad|>"} == set(tokenizer.get_vocab())
    assert RARE not in train("characters", min_frequency=2).get_vocab()


@pytest.mark.parametrize("task", TASKS)
def test_unigram_brings_back_plain_text(task):
    tokenizer = train("unigram", task)
    for text in (*story()[:-1], "don't .", "a , b ?"):
        assert round_trip(tokenizer, text) == text.replace(",", tokenizer.unk_token).replace("?", tokenizer.unk_token)


@pytest.mark.parametrize("task", TASKS)
def test_wordpiece_brings_back_words(task):
    tokenizer = train("wordpiece", task)
    for text in story()[:-1]:
        plain = "".join(c for c in text if (c.isalpha() and c.isascii()) or c == " ")
        assert round_trip(tokenizer, " ".join(plain.split())) == " ".join(plain.split())


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("task", TASKS)
def test_special_tokens(kind, task):
    tokenizer = train(kind, task)
    if task == "causal-lm":
        expected = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
        if kind != "byte-bpe":
            expected["unk_token"] = "<unk>"
    else:
        expected = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    assert dict(tokenizer.special_tokens_map) == expected
    assert sorted(tokenizer.all_special_ids) == list(range(len(expected)))
    ids = tokenizer("ba da")["input_ids"]
    if task == "masked-lm":
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert ids[1:-1] == ids_of(tokenizer, "ba da")
        pair = tokenizer("ba", "da")
        one, two = ids_of(tokenizer, "ba"), ids_of(tokenizer, "da")
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        assert pair["input_ids"] == [cls, *one, sep, *two, sep]
    else:
        assert ids == ids_of(tokenizer, "ba da")
    marker = tokenizer.mask_token if task == "masked-lm" else tokenizer.eos_token
    assert ids_of(tokenizer, f"ba{marker}").count(tokenizer.convert_tokens_to_ids(marker)) == 1
    assert marker not in tokenizer.decode(tokenizer(f"ba{marker}")["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("kind", TYPES)
def test_a_saved_tokenizer_is_the_same_and_loads_without_llmkit(kind, tmp_path):
    tokenizer = train(kind, "masked-lm", max_length=77)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.is_fast
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_max_length == tokenizer.model_max_length == 77
    assert loaded.clean_up_tokenization_spaces is False
    for text in story()[:20]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(ids_of(loaded, text)) == round_trip(tokenizer, text)


@pytest.mark.parametrize("kind", ["byte-bpe", "unigram", "characters"])
def test_spaces_before_punctuation_stay(kind):
    texts = [*story(), "do n't ! a . b ? c , d 's"]
    tokenizer = train(kind, texts=texts)
    assert round_trip(tokenizer, "do n't ! a . b ? c , d 's") == "do n't ! a . b ? c , d 's"


@pytest.mark.parametrize("kind", TYPES)
def test_special_tokens_can_be_named(kind):
    named = ReadOnly({"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<?>"})
    tokenizer = train(kind, special_tokens=named)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == ("</s>", "<s>", "<?>")
    assert tokenizer.pad_token == "<|pad|>"
    assert "<|endoftext|>" not in tokenizer.get_vocab()
    assert ids_of(tokenizer, "</s>") == [tokenizer.eos_token_id]
    bert = train(kind, "masked-lm", special_tokens=ReadOnly({"cls_token": "<s>", "sep_token": "</s>"}))
    assert bert.convert_ids_to_tokens(bert("ba")["input_ids"])[:: len(bert("ba")["input_ids"]) - 1] == ["<s>", "</s>"]


@pytest.mark.parametrize("kind", TYPES)
def test_lower_case(kind):
    texts = [*story(), "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz"]
    tokenizer = train(kind, texts=texts, lowercase=True)
    assert ids_of(tokenizer, "BA Da") == ids_of(tokenizer, "ba da")
    assert round_trip(tokenizer, "BA Da") == "ba da"
    special = set(tokenizer.all_special_tokens)
    inside = [token for token in tokenizer.get_vocab() if token not in special]
    if kind != "byte-bpe":  # whose alphabet writes bytes as letters of either case
        assert all(token == token.lower() for token in inside)
    cased = train(kind, texts=texts)
    assert ids_of(cased, "BA Da") != ids_of(cased, "ba da")


@pytest.mark.parametrize("kind", TYPES)
def test_for_denoising_the_sentinels_are_the_last_entries(kind):
    tokenizer = train(kind, "denoising", vocab_size=400)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3]
    tokens = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.mask_token)
    assert tokens == ("<pad>", "</s>", "<unk>", "<mask>")
    sentinels = [f"<extra_id_{n}>" for n in range(100)]
    last = len(tokenizer) - 1
    assert tokenizer.convert_tokens_to_ids(sentinels) == [last - n for n in range(100)]
    assert len(tokenizer) == 400 if kind in ("byte-bpe", "wordpiece") else len(tokenizer) <= 400
    assert set(sentinels) < set(tokenizer.all_special_tokens)
    read = tokenizer("ba<extra_id_7> da<mask>")["input_ids"]
    assert (read.count(last - 7), read.count(3), read[-1]) == (1, 1, 1)
    assert tokenizer.decode(read, skip_special_tokens=True).split() == ["ba", "da"]
    assert tokenizer("ba", "da")["input_ids"] == [*ids_of(tokenizer, "ba"), 1, *ids_of(tokenizer, "da"), 1]


@pytest.mark.parametrize(("kind", "size"), [("byte-bpe", 358), ("unigram", 90), ("wordpiece", 103), ("characters", 90)])
def test_the_sentinels_leave_room_for_text_or_the_size_is_refused(kind, size):
    with pytest.raises(UserError, match=f"tokenizer.vocab_size = {size} is too small"):
        train(kind, "denoising", vocab_size=size)


def test_for_replaced_tokens_it_is_that_of_a_masked_language_model():
    replaced, masked = train("wordpiece", "replaced-token-detection"), train("wordpiece", "masked-lm")
    assert replaced.backend_tokenizer.to_str() == masked.backend_tokenizer.to_str()


# --- Chinese ----------------------------------------------------------------------------------------------------------


def hanzi():
    draw = random.Random(3)
    chosen = ["机器", "学习", "语言", "模型", "我们", "今天", "天气", "很好", "图书馆", "的", "是", "在", "看", "书"]
    return ["".join(draw.choices(chosen, k=15)) + "。" for _ in range(200)]


@pytest.mark.parametrize("kind", ["byte-bpe", "unigram"])
def test_chinese_comes_back_and_its_words_are_tokens(kind):
    tokenizer = train(kind, texts=hanzi())
    assert all(round_trip(tokenizer, text) == text for text in hanzi())
    report = tokenizing.report(tokenizer, documents(hanzi()))
    assert (report["unknown"], report["round_trip"]) == (0, 1)
    assert report["bytes_per_token"] > 6  # two characters of three bytes
    assert len(ids_of(tokenizer, "图书馆")) < 3 * (3 if kind == "byte-bpe" else 1)


def test_byte_bpe_knows_characters_that_it_never_saw():
    tokenizer = train("byte-bpe", texts=hanzi())
    report = tokenizing.report(tokenizer, documents(["龘靐齉"]))
    assert (report["unknown"], report["round_trip"], report["bytes_per_token"]) == (0, 1, 1)


def test_in_wordpiece_each_chinese_character_is_a_word():
    tokenizer = train("wordpiece", "masked-lm", texts=hanzi())
    assert tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "我们看图书馆。")) == list("我们看图书馆。")
    assert ids_of(tokenizer, "龘") == [tokenizer.unk_token_id]


# --- how good it is ---------------------------------------------------------------------------------------------------


def test_a_report_counts_bytes_tokens_and_what_comes_back():
    tokenizer = train("characters", texts=["ab cd", "é"])
    report = tokenizing.report(tokenizer, documents(["ab cd", "aé", "ax"]))
    assert report == {
        "type": "WordLevel",
        "vocab_size": 9,  # ab cd é, a space, three special tokens
        "bytes_per_token": round(10 / 9, 4),
        "unknown": round(1 / 9, 6),
        "round_trip": round(2 / 3, 4),
        "round_trip_but_for_spaces": round(2 / 3, 4),
        "sample_bytes": 10,
        "sample_texts": 3,
    }
    assert tokenizing.line(report) == (
        "tokenizer: WordLevel, 9 entries: 1.11 bytes per token, 11.11% unknown, 66.7% of texts decode to the original"
    )


def test_the_tokenizers_own_normalisation_is_no_loss():
    tokenizer = train("unigram", texts=[*story(), "ABCDEFGHIJKLMNOPQRSTUVWXYZ 1"], lowercase=True)
    assert round_trip(tokenizer, "BA \uff11") == "ba 1"  # a full-width digit
    assert tokenizing.report(tokenizer, documents(["BA \uff11"]))["round_trip"] == 1
    assert tokenizing.report(tokenizer, documents(["BA ?"]))["round_trip"] == 0


def test_white_space_that_is_lost_is_told_apart():
    tokenizer = train("wordpiece", "masked-lm")
    report = tokenizing.report(tokenizer, documents(["ba da", "ba  da\n", "ba (a)", "ba ☃"]))
    assert (report["round_trip"], report["round_trip_but_for_spaces"]) == (0.25, 0.75)
    assert tokenizing.line(report).endswith("25.0% of texts decode to the original (75.0% ignoring spaces)")


def test_of_much_text_the_beginning_is_looked_at(monkeypatch):
    monkeypatch.setattr(tokenizing, "SAMPLE_BYTES", 10_000)
    tokenizer = train("byte-bpe")
    report = tokenizing.report(tokenizer, documents(itertools.repeat("ba" * 4500)))  # without end, and long
    assert (report["sample_texts"], report["sample_bytes"]) == (4, 4000 + 4000 + 1000 + 4000)


# --- how large it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", [300, 400])
def test_the_vocabulary_is_no_larger_than_asked(kind, size):
    tokenizer = train(kind, vocab_size=size)
    assert len(tokenizer) <= size
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    if kind in ("byte-bpe", "wordpiece"):
        assert len(tokenizer) == size


def test_wordpiece_gives_the_rarest_characters_up_and_not_the_limit():
    many = [*story(), "".join(chr(n) for n in range(0x4E00, 0x4E00 + 500))]
    tokenizer = train("wordpiece", texts=many, vocab_size=300)
    assert len(tokenizer) == 300
    assert {"a", "##a", "t"} <= set(tokenizer.get_vocab())
    assert round_trip(tokenizer, "ba da \u4ff3") == "ba da <unk>"


@pytest.mark.parametrize(("kind", "size"), [("byte-bpe", 257), ("unigram", 20)])
def test_a_vocabulary_too_small_for_its_characters_is_refused(kind, size, cache):
    with pytest.raises(UserError) as caught:
        train(kind, vocab_size=size)
    assert caught.value.message.startswith(f"tokenizer.vocab_size = {size} is too small")
    assert "make it larger" in caught.value.hint
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize("kind", TYPES)
def test_no_text_to_train_on(kind):
    with pytest.raises(UserError, match=r"`stories.txt` is empty"):
        train(kind, texts=["", ""])


# --- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_the_same_text_gives_the_same_tokenizer(kind):
    """Processes on two machines may each train it: another numbering would spoil the run."""
    backends = {train(kind, "masked-lm", fingerprint=str(n)).backend_tokenizer.to_str() for n in range(5)}
    assert len(backends) == 1


@pytest.mark.parametrize("kind", TYPES)
def test_the_second_time_it_comes_from_the_cache(kind, cache, monkeypatch):
    first = train(kind)
    (entry,) = cache.iterdir()
    monkeypatch.setattr(tokenizing, "_train", None)
    assert train(kind).backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    monkeypatch.undo()
    monkeypatch.setattr(tokenizing, "cache_dir", lambda: cache)
    for changed in ({"fingerprint": "other"}, {"task": "masked-lm"}, {"vocab_size": 500}, {"max_length": 65}):
        train(kind, **changed)
    assert len(list(cache.iterdir())) == 5
    assert entry in cache.iterdir()


def test_a_trained_tokenizer_tokenizes_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "cache_dir", lambda: tmp_path / "tokens")
    tokenizer = train("byte-bpe")
    texts = story()
    row = pack.tokenize_documents(documents(texts), tokenizer, [tokenizer.eos_token_id])
    assert tokenizer.decode(row.ids.tolist()) == "".join(f"{text}<|endoftext|>" for text in texts)


# --- one that exists --------------------------------------------------------------------------------------------------


def test_from_a_folder(tmp_path):
    tokenizer = train("byte-bpe")
    tokenizer.save_pretrained(tmp_path / "saved")
    for table, model in (
        (Tokenizer(name=str(tmp_path / "saved")), Model(config=ReadOnly())),
        (Tokenizer(), Model(name=str(tmp_path / "saved"))),
    ):
        loaded = tokenizing.load(table, model, "causal-lm", documents([]), None)
        assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_none_at_all():
    with pytest.raises(UserError, match="needs a tokenizer") as caught:
        tokenizing.load(Tokenizer(), Model(config=ReadOnly()), "causal-lm", documents([]), None)
    assert "tokenizer.type" in caught.value.hint


# --- the cache --------------------------------------------------------------------------------------------------------


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "tokenizer.json"),
        lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-9]),
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: (folder / ".checksums.json").write_text("{}"),
    ],
)
def test_a_damaged_tokenizer_is_made_anew_and_says_so(cache, damage, capsys):
    before = train("byte-bpe").backend_tokenizer.to_str()
    damage(next(cache.glob("tokenizer-*")))
    assert train("byte-bpe").backend_tokenizer.to_str() == before
    assert "the cache of the tokenizer of `stories.txt` was damaged" in capsys.readouterr().err
    train("byte-bpe")
    assert "damaged" not in capsys.readouterr().err


def test_two_tokenizers_that_were_swapped_in_the_cache_are_not_taken_for_one_another(cache, capsys):
    before = {kind: train(kind).get_vocab() for kind in ("byte-bpe", "characters")}
    first, second = cache.glob("tokenizer-*")
    first.rename(cache / "aside")
    second.rename(first)
    (cache / "aside").rename(second)
    assert {kind: train(kind).get_vocab() for kind in before} == before
    assert capsys.readouterr().err.count("was damaged") == 2
    assert sorted(cache.glob("tokenizer-*")) == sorted([first, second])
