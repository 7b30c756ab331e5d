"""Words that join a tokenizer which exists: whole words, their spaces kept, all other text as it was."""

import json
import random

import pytest
import torch
from tiny_models import IDS, STACKS, VOCABULARY, language_model, refused
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    RobertaTokenizer,
    T5Tokenizer,
)

from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.models import added_tokens, loading, tokenizer
from llmkit.models.config import fit_to_tokenizer, load_config
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.recipe.table import ReadOnly

KINDS = ("gpt2", "roberta", "bert", "t5", "characters")
WITH_WORDS = ("gpt2", "roberta", "bert", "t5")  # those that split text into words
PLAIN = "bafu deka, Limo gose. bafu rato!"


def story(number=300):
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(100)]
    words += [word.capitalize() for word in words[:20]]
    texts = [" ".join(draw.choices(words, k=12)) + draw.choice(".!,") for _ in range(number)]
    return [*texts, "abcdefghijklmnopqrstuvwxyz (-) 0123456789"]


def documents(texts, fingerprint="story"):
    return Documents(lambda: iter(texts), fingerprint, "`stories.txt`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizers of transformers' own classes, over small vocabularies, as they would come from the Hub."""
    root = tmp_path_factory.mktemp("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "cache_dir", lambda: root / "cache")

        def model(kind, task, **keys):
            table = Tokenizer(type=kind, vocab_size=500, **keys)
            made = tokenizer.load(table, Model(config=ReadOnly()), task, documents(story()), 64)
            return made, json.loads(made.backend_tokenizer.to_str())["model"]

        bpe, subtokens, scored = (
            model("byte-bpe", "causal-lm")[1],
            model("wordpiece", "masked-lm", lowercase=True)[1],
            model("unigram", "seq2seq")[1],
        )
        merges = [tuple(pair) for pair in bpe["merges"]]
        made = {
            "gpt2": GPT2Tokenizer(vocab=bpe["vocab"], merges=merges),
            "roberta": RobertaTokenizer(vocab=bpe["vocab"], merges=merges),
            "bert": BertTokenizer(vocab=subtokens["vocab"]),
            "t5": T5Tokenizer(vocab=[tuple(pair) for pair in scored["vocab"]]),
            "characters": model("characters", "causal-lm")[0],
        }
    for kind, words in made.items():
        words.save_pretrained(root / kind)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(added_tokens, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def load(folders):
    return lambda kind: AutoTokenizer.from_pretrained(folders / kind)


def extend(words, *added, from_text=None, texts=(), fingerprint="story"):
    table = Tokenizer(add_tokens=added or None, add_from_text=from_text)
    return added_tokens.extend(words, table, documents(texts, fingerprint))


def tokens_of(words, text):
    return words.convert_ids_to_tokens(words(text, add_special_tokens=False)["input_ids"])


def decoded(words, text):
    return words.decode(words(text, add_special_tokens=False)["input_ids"])


# --- words that are named ---------------------------------------------------------------------------------------------


def test_where_nothing_is_asked_the_tokenizer_stays(load):
    words = load("gpt2")
    assert added_tokens.extend(words, Tokenizer(), documents([])) == (words, {}, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_one_token_and_its_spaces_stay(kind, load):
    old = load(kind)
    new, subtokens, notes = extend(load(kind), "tokamak")
    assert notes == []
    assert len(new) == len(old) + len(subtokens)
    assert sorted(subtokens) == list(range(len(old), len(new)))
    for text in ("the tokamak is hot", "tokamak", "a tokamak. (tokamak) -tokamak", "two tokamak tokamak"):
        assert decoded(new, text) == decoded(old, text)
        assert len(tokens_of(new, text)) < len(tokens_of(old, text))
    added = {"gpt2": "Ġtokamak", "roberta": "Ġtokamak", "t5": "▁tokamak"}.get(kind, "tokamak")
    assert tokens_of(new, "so tokamak")[-1] == added
    if kind in ("gpt2", "roberta"):  # at the beginning of a text there is no space
        assert tokens_of(new, "tokamak") == ["tokamak"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_within_another_is_not_touched(kind, load):
    old = load(kind)
    new, _, _ = extend(load(kind), "cat")
    for text in ("concatenate", "so concatenate it", "scat", "so scat"):
        assert tokens_of(new, text) == tokens_of(old, text)
        assert decoded(new, text) == decoded(old, text)
    if kind != "t5":
        assert tokens_of(new, "a category, cats") == tokens_of(old, "a category, cats")
    assert decoded(new, "a category, cats") == decoded(old, "a category, cats")


def test_in_unigram_a_longer_word_may_begin_with_it_if_it_was_split_there(load):
    old = load("t5")
    new, subtokens, _ = extend(load("t5"), "cat")
    (former,) = [old.convert_ids_to_tokens(each) for each in subtokens.values()]
    before, after = tokens_of(old, "category"), tokens_of(new, "category")
    assert before[: len(former)] == former
    assert after == ["▁cat", *before[len(former) :]]


@pytest.mark.parametrize("kind", KINDS)
def test_all_other_text_has_the_tokens_that_it_had(kind, load):
    old = load(kind)
    number = 3 if kind in WITH_WORDS else None
    new, subtokens, _ = extend(load(kind), "tokamak", "covid-19", "<think>", from_text=number, texts=["Wintertime"] * 9)
    for text in (*story()[:100], PLAIN, " lead", "a  b\n\tc", "don't", "2019"):
        assert new(text)["input_ids"] == old(text)["input_ids"]
        assert new(text, "ba")["input_ids"] == old(text, "ba")["input_ids"]
    for token, number in old.get_vocab().items():
        assert new.convert_tokens_to_ids(token) == number
    assert new.special_tokens_map == old.special_tokens_map
    assert new.all_special_ids == old.all_special_ids
    assert new.model_input_names == old.model_input_names
    assert not set(subtokens) & set(old.get_vocab().values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_what_the_word_was_before(kind, load):
    old = load(kind)
    new, subtokens, _ = extend(load(kind), "tokamak", "tokamak shot")
    for number, former in subtokens.items():
        text = new.decode([number])
        assert old.decode(former).strip() == text.strip()
        assert former == old(text, add_special_tokens=False)["input_ids"]


def test_what_is_no_single_word_is_matched_too(load):
    new, _, _ = extend(load("gpt2"), "covid-19", "<think>", "C++")
    assert "covid-19" in tokens_of(new, "the covid-19 wave")
    assert "covid-19" not in tokens_of(new, "the covid-199 wave")
    assert tokens_of(new, "so<think>so").count("<think>") == 1
    assert "C++" in tokens_of(new, "in C++.")
    assert "C++" not in tokens_of(new, "in C++11")
    assert "C++" not in tokens_of(new, "OC++")
    for text in ("the covid-19 wave", "so<think>so", "so <think> so", "in C++."):
        assert decoded(new, text) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_chinese_word_is_found_in_running_text(kind, load):
    new, _, _ = extend(load(kind), "机器")
    assert tokens_of(new, "学机器学习").count("机器") == 1
    if kind in ("gpt2", "roberta"):
        assert decoded(new, "学机器学习。") == "学机器学习。"


def test_an_uncased_tokenizer_finds_it_in_either_case(load):
    new, subtokens, _ = extend(load("bert"), "Tokamak")
    (number,) = subtokens
    assert new("TOKAMAK tokamak", add_special_tokens=False)["input_ids"] == [number, number]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_a_token_already_is_named_and_not_added(kind, load):
    old = load(kind)
    found = ["b", *" ".join(story()).split()]
    blanks = kind == "characters"
    known = next(w for w in found if len(tokens_of(old, w)) == 1 and len(tokens_of(old, f"{w} {w}")) == 2 + blanks)
    new, subtokens, notes = extend(load(kind), known, "tokamak", "tokamak")
    assert notes == [f"tokenizer.add_tokens: `{known}` is already a token"]
    assert len(new) - len(old) == len(subtokens) == (2 if kind in ("gpt2", "roberta") else 1)
    again, none, notes = added_tokens.extend(new, Tokenizer(add_tokens=("tokamak",)), documents([]))
    assert (none, notes) == ({}, ["tokenizer.add_tokens: `tokamak` is already a token"])
    assert len(again) == len(new)


def test_a_word_with_blanks_at_its_ends_is_refused(load):
    for word in ("", " tokamak", "tokamak\n"):
        with pytest.raises(
            UserError, match=r"tokenizer.add_tokens: .* \(number 2\) is empty, or begins or ends with a space"
        ):
            extend(load("gpt2"), "good", word)


# --- words of the text ------------------------------------------------------------------------------------------------


def text_with(**often):
    """A text in which each word occurs so often."""
    words = [word for word, count in often.items() for _ in range(count)]
    random.Random(1).shuffle(words)
    return [" so ".join(words[start : start + 7]) + " so." for start in range(0, len(words), 7)]


@pytest.mark.parametrize("kind", WITH_WORDS)
def test_the_words_that_save_most_are_added(kind, load):
    old = load(kind)
    texts = text_with(zzzzzzzz=40, qxqxqx=40, wvwv=12, hjhjhjhjhjhj=4, so=300)
    new, subtokens, notes = extend(old, from_text=2, texts=[f" {text}" for text in texts])
    added = {new.decode([number]).strip() for number in subtokens}
    assert added == {"zzzzzzzz", "qxqxqx"}
    assert notes == []
    more, subtokens, notes = extend(load(kind), from_text=50, texts=[f" {text}" for text in texts], fingerprint="x")
    names = [more.decode([number]).strip() for number in subtokens]
    assert names[:3] == ["zzzzzzzz", "qxqxqx", "wvwv"]
    assert "hjhjhjhjhjhj" not in names  # too rare
    assert notes == [
        f"tokenizer.add_from_text: {len(subtokens)} words are added, not 50: no other words occur 5 times and take "
        "more than one token"
    ]


@pytest.mark.parametrize("kind", WITH_WORDS)
def test_a_word_saves_one_less_than_its_pieces_wherever_it_occurs(kind, load):
    texts = [f" {text}" for text in text_with(zzzzzzzz=40, qxqxqx=40, so=30)]
    old = load(kind)
    new, subtokens, _ = extend(load(kind), from_text=2, texts=texts)
    before, after = (sum(len(tokens_of(words, text)) for text in texts) for words in (old, new))
    assert before - after == sum(40 * (len(former) - 1) for former in subtokens.values())
    assert all(decoded(new, text) == decoded(old, text) for text in texts)


def test_ties_go_to_the_first_in_the_alphabet(load):
    texts = [f" {text}" for text in text_with(xqxq=9, qxqx=9, zqzq=9)]
    old = load("bert")
    assert len({len(tokens_of(old, word)) for word in ("xqxq", "qxqx", "zqzq")}) == 1
    new, subtokens, _ = extend(load("bert"), from_text=1, texts=texts)
    assert [new.decode([number]) for number in subtokens] == ["qxqx"]


@pytest.mark.parametrize("kind", WITH_WORDS)
def test_only_words_of_letters_are_added(kind, load):
    texts = [" zq12 --- 20202 zq_zq éqéq ,,,,,,, \n\n\n\n"] * 20
    new, subtokens, _ = extend(load(kind), from_text=50, texts=texts)
    assert all(new.decode([number]).strip().isalpha() for number in subtokens)
    assert subtokens


def test_a_word_that_is_named_is_not_counted_again(load):
    new, subtokens, _ = extend(load("gpt2"), "zzzzzzzz", from_text=1, texts=[" zzzzzzzz qxqxqx"] * 9)
    assert sorted(new.decode([number]) for number in subtokens) == [" qxqxqx", " zzzzzzzz", "zzzzzzzz"]


def test_counting_forgets_the_rarest_words_where_there_are_too_many(load, monkeypatch):
    monkeypatch.setattr(added_tokens, "MOST_WORDS", 50)
    draw = random.Random(0)
    rare = ["".join(draw.choices("qxzw", k=9)) for _ in range(2000)]
    texts = [f" {a} zzzzzzzz {b}" for a, b in zip(rare[::2], rare[1::2], strict=True)]
    new, subtokens, _ = extend(load("gpt2"), from_text=5, texts=texts)
    assert [new.decode([number]) for number in subtokens] == [" zzzzzzzz"]


def test_a_tokenizer_without_words_has_none_to_count(load):
    with pytest.raises(UserError, match="add_from_text: this kind of tokenizer") as caught:
        extend(load("characters"), from_text=5, texts=["some text"])
    assert "tokenizer.add_tokens" in caught.value.hint


# --- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_WORDS)
def test_it_is_made_once_and_is_the_same_for_everyone(kind, load, cache, monkeypatch):
    texts = [f" {text}" for text in text_with(zzzzzzzz=40, qxqxqx=40, wvwv=12)]
    first = extend(load(kind), "tokamak", from_text=2, texts=texts)
    (entry,) = cache.iterdir()
    monkeypatch.setattr(added_tokens, "_Words", None)
    again = extend(load(kind), "tokamak", from_text=2, texts=texts)
    assert again[0].backend_tokenizer.to_str() == first[0].backend_tokenizer.to_str()
    assert again[1:] == first[1:]
    monkeypatch.undo()
    monkeypatch.setattr(added_tokens, "cache_dir", lambda: cache)
    extend(load(kind), "tokamak", from_text=2, texts=texts, fingerprint="other")
    extend(load(kind), "tokamak", from_text=1, texts=texts)
    extend(load(kind), "stellarator", from_text=2, texts=texts)
    assert len(list(cache.iterdir())) == 4
    assert entry in cache.iterdir()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_with_a_run_it_loads_in_plain_transformers(kind, load, tmp_path):
    new, _, _ = extend(load(kind), "tokamak", "covid-19", "机器")
    new.save_pretrained(tmp_path / "run")
    model_type = "gpt2" if kind == "characters" else kind
    AutoConfig.for_model(model_type).save_pretrained(tmp_path / "run")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert len(loaded) == len(new)
    for text in (*story()[:20], "a tokamak (tokamak) tokamaks, covid-19 机器学习 cat"):
        assert loaded(text, "ba")["input_ids"] == new(text, "ba")["input_ids"]
        assert decoded(loaded, text) == decoded(new, text)
    assert loaded.special_tokens_map == new.special_tokens_map
    assert loaded.add_tokens(["one more"]) == 1  # behind all that are there
    assert loaded.convert_tokens_to_ids("one more") == len(new)


def test_a_chat_template_and_a_side_to_pad_on_stay(load):
    words = load("gpt2")
    words.chat_template, words.padding_side, words.model_max_length = "{{ messages }}", "left", 77
    new, _, _ = extend(words, "tokamak")
    assert (new.chat_template, new.padding_side, new.model_max_length) == ("{{ messages }}", "left", 77)


def test_a_tokenizer_that_is_one_long_word_takes_what_is_named(load):
    """Llama 2's, which sees text as one piece: its words cannot be counted."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, **{c: n for n, c in enumerate("abcdefghijklmnopqrstuvwxyz", 4)}}
    words = LlamaTokenizer(vocab=vocab, merges=[])
    new, _, _ = extend(words, "tokamak")
    assert tokens_of(new, "the tokamak is").count("tokamak") == 1
    assert tokens_of(new, "the tokamaks").count("tokamak") == 0
    assert decoded(new, "the tokamak is") == "the tokamak is"
    with pytest.raises(UserError, match="add_from_text"):
        extend(words, from_text=5, texts=["some text"])


SUBTOKENS = {VOCABULARY: [5, 9], VOCABULARY + 1: [7], VOCABULARY + 2: [3, 3, 30]}


def extended(folder, model_class, subtokens, **options):
    table = Model(name=str(folder), **options)
    config, _ = load_config(table)
    return create_model(table, config, model_class, 0, subtokens=subtokens)


@pytest.mark.parametrize("kind", ["bert", "albert", "modernbert", "gpt2", "llama", *STACKS])
def test_a_new_token_begins_as_the_mean_of_its_pieces(kind, tmp_path):
    old, model_class = language_model(kind, tmp_path / "old")
    new, notes = extended(tmp_path / "old", model_class, SUBTOKENS)
    assert notes == ["3 new tokens: each embedding starts as the mean of its subtokens' embeddings"]
    assert new.config.vocab_size == VOCABULARY + 3
    tied = old.get_output_embeddings().weight is old.get_input_embeddings().weight
    assert (new.get_output_embeddings().weight is new.get_input_embeddings().weight) == tied
    before, resized = old.state_dict(), set()
    for name, tensor in new.state_dict().items():
        if tensor.shape == before[name].shape:
            assert torch.equal(tensor, before[name]), name
            continue
        rows, former = (tensor[0], before[name][0]) if name == "final_logits_bias" else (tensor, before[name])
        assert torch.equal(rows[:VOCABULARY], former)
        for token, ids in SUBTOKENS.items():
            assert_close(rows[token], former[ids].mean(0))
        resized.add(name)
    beside = {"bart": {"final_logits_bias"}, "marian": {"final_logits_bias"}, "llama": {"lm_head.weight"}}
    assert resized >= beside.get(kind, set())
    assert tied == (kind != "llama")
    decoder = {"decoder_input_ids": IDS[:1]} if kind in STACKS else {}
    with torch.no_grad():
        here = new.eval()(input_ids=IDS[:1], **decoder).logits
        there = old.eval()(input_ids=IDS[:1], **decoder).logits
    assert_close(here[..., :VOCABULARY], there)
    assert_close(here[..., VOCABULARY], there[..., [5, 9]].mean(-1))


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_model_with_new_tokens_trains_and_loads_in_plain_transformers(kind, tmp_path):
    _, model_class = language_model(kind, tmp_path / "old")
    new, _ = extended(tmp_path / "old", model_class, SUBTOKENS)
    ids = torch.tensor([[5, VOCABULARY, VOCABULARY + 2, 7]])
    new(input_ids=ids, labels=ids).loss.backward()
    assert new.get_input_embeddings().weight.grad[[*SUBTOKENS]].abs().sum() > 0
    with loading.quiet():
        new.save_pretrained(tmp_path / "new")
    loaded = model_class.from_pretrained(tmp_path / "new")
    assert loaded.config.vocab_size == VOCABULARY + 3
    with torch.no_grad():
        assert_close(loaded.eval()(input_ids=ids, labels=ids).logits, new.eval()(input_ids=ids, labels=ids).logits)


def test_embeddings_with_room_keep_their_size(tmp_path):
    old, model_class = language_model("gpt2", tmp_path / "old")
    new, notes = extended(tmp_path / "old", model_class, {VOCABULARY - 2: [5, 9]})
    assert notes[-1].startswith("1 new token: its embedding starts")
    rows = new.get_input_embeddings().weight
    assert new.config.vocab_size == VOCABULARY
    assert_close(rows[VOCABULARY - 2], old.get_input_embeddings().weight[[5, 9]].mean(0))
    assert torch.equal(rows[: VOCABULARY - 2], old.get_input_embeddings().weight[: VOCABULARY - 2])
    assert torch.equal(rows[VOCABULARY - 1], old.get_input_embeddings().weight[VOCABULARY - 1])


def test_a_classifier_gets_the_new_tokens_too(base):
    table = Model(name=base("bert"))
    config, _ = load_config(table, finetuning=True)
    model, notes = create_model(table, config, AutoModelForSequenceClassification, 0, subtokens=SUBTOKENS)
    assert model.get_input_embeddings().num_embeddings == VOCABULARY + 3
    assert notes[-1].startswith("3 new tokens: each embedding starts as the mean")


@pytest.mark.parametrize("part", ["head", "top-1", "lora"])
def test_new_tokens_whose_embeddings_would_not_be_trained_are_refused(part, base):
    table = Model(name=base("bert")) if part == "lora" else Model(name=base("bert"), train=part)
    config, _ = load_config(table)
    lora = {} if part == "lora" else None
    said = refused(create_model, table, config, AutoModelForMaskedLM, 0, lora=lora, subtokens=SUBTOKENS)
    assert "new tokens need trainable embeddings" in said
    assert "tokenizer.add_tokens" in said


def test_a_model_from_scratch_has_room_for_new_tokens(base):
    words = AutoTokenizer.from_pretrained(base("bert"))
    words.add_tokens(["tokamak", "stellarator"])
    scratch, pretrained = Model(name=base("bert"), init="scratch"), Model(name=base("bert"))
    for table, num_new, size in ((scratch, 2, VOCABULARY + 2), (pretrained, 2, VOCABULARY)):
        config, _ = load_config(table)
        fit_to_tokenizer(config, table, words, own_tokenizer=False, num_new=num_new)
        assert config.vocab_size == size
    config, _ = load_config(Model(name=base("bert"), config=ReadOnly({"vocab_size": 50})))
    fit_to_tokenizer(config, scratch, words, own_tokenizer=False, num_new=2)
    assert config.vocab_size == 50  # padded
    for table in (scratch, pretrained):
        config, _ = load_config(table)
        said = refused(fit_to_tokenizer, config, table, words, own_tokenizer=False)
        assert "the tokenizer has 42 tokens, but the model has embeddings for only 40" in said


def test_a_damaged_extension_in_the_cache_is_made_anew_and_says_so(cache, load, capsys):
    before = extend(load("gpt2"), "kumquat")[0].get_vocab()
    file = next(cache.glob("tokenizer-*/tokenizer.json"))
    file.write_text(file.read_text()[:-20])
    assert extend(load("gpt2"), "kumquat")[0].get_vocab() == before
    assert "the cache of the extended tokenizer was damaged" in capsys.readouterr().err
