"""Altered copies of training rows: what each way changes, what they hang on, and where WordNet is missing."""

import json
import re
from collections import Counter

import nltk
import numpy as np
import pytest
import torch
from conftest import MASKED, REST, corpus
from transformers import BertConfig

from llmkit import recipe
from llmkit.data.rows import augment
from llmkit.data.rows.table import Rows
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.models import tokenizer
from llmkit.recipe.data_tables import Augment, ClassificationData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.tasks import text_classification as task

TEXT = " ".join(f"w{number}" for number in range(50))


def altered(text, seed=0, synonym_of=None, **keys):
    return augment.altered(text, Augment(**keys), np.random.default_rng(seed), synonym_of)


# --- one text ---------------------------------------------------------------------------------------------------------


def test_words_left_out_are_the_share_that_was_asked_for_and_the_rest_stays_in_order():
    lengths = []
    for seed in range(200):
        left = altered(TEXT, seed, delete=0.3).split()
        assert left == [word for word in TEXT.split() if word in set(left)]
        lengths.append(len(left))
    assert np.mean(lengths) == pytest.approx(35, abs=0.7)  # five standard errors of 0.23 make 1.1
    assert np.std(lengths) > 2


def test_a_text_never_loses_all_its_words():
    for seed in range(100):
        assert altered("a b", seed, delete=0.99) in ("a", "b", "a b")
    assert {altered("a b c", seed, delete=0.99) for seed in range(100)} >= {"a", "b", "c"}
    assert altered("a", delete=0.99) == "a"
    assert altered("", delete=0.5) == altered("  ", delete=0.5) == ""


def test_words_that_change_places_are_the_share_that_was_asked_for():
    for seed in range(20):
        altered_words = altered(TEXT, seed, swap=0.4).split()
        assert Counter(altered_words) == Counter(TEXT.split())
        assert sum(one != other for one, other in zip(altered_words, TEXT.split(), strict=True)) == 20
    assert altered(TEXT, 0, swap=0.4) != altered(TEXT, 1, swap=0.4)


def test_short_texts_get_their_share_too():
    """A tenth of five words is half a word: one pair in every fourth text."""
    moved = sum(altered("a b c d e", seed, swap=0.1) != "a b c d e" for seed in range(1000))
    assert moved == pytest.approx(250, abs=45)  # three standard errors
    assert altered("a", swap=1.0) == "a"
    assert altered("a b", swap=1.0) == "b a"


def test_blanks_and_punctuation_stay_as_they_are():
    assert altered("one, two\n\nthree!  four", 3, swap=1.0).split() != ["one,", "two", "three!", "four"]
    assert re.sub(r"\S+", "x", altered("one, two\n\nthree!  four", 3, swap=1.0)) == "x x\n\nx  x"


def test_without_blanks_the_characters_are_the_words():
    for text in ("我爱自然语言处理", "これは日本語のテキスト"):
        swapped = {altered(text, seed, swap=1.0) for seed in range(5)}
        assert all(Counter(each) == Counter(text) and each != text for each in swapped)
        shorter = altered(text, delete=0.5)
        assert 0 < len(shorter) < len(text)
        assert set(shorter) <= set(text)
    mixed = altered("我们用 Python3 编程", 1, swap=1.0)
    assert "Python3" in mixed
    assert Counter(mixed.replace(" ", "")) == Counter("我们用Python3编程")
    assert "gr8!" in altered("gr8! ok", delete=0.5) + altered("gr8! ok", 1, delete=0.5)


PAIRS = {"movie": "film", "quick": "fast"}


def test_synonyms_are_written_as_the_words_were():
    assert altered("movie, (Movie) MOVIE mOvie movies 'movie'!", synonym_of=PAIRS.get, synonym=1.0) == (
        "film, (Film) FILM mOvie movies 'film'!"
    )


def test_synonyms_are_a_share_of_all_words_as_far_as_there_are_any():
    text = " ".join(["the quick movie was long"] * 10)
    for share, expected in ((0.2, 10), (0.1, 5), (0.9, 20)):
        altered_words = altered(text, synonym_of=PAIRS.get, synonym=share).split()
        assert sum(word in ("film", "fast") for word in altered_words) == expected
        assert len(altered_words) == 50


# --- rows -------------------------------------------------------------------------------------------------------------


def table(rows):
    places = [f"`x.csv`, line {number}" for number in range(2, len(rows) + 2)]
    return Rows(lambda: iter(zip(places, rows, strict=True)), tuple(rows[0]), {}, "", "`x.csv`")


ROWS = [{"text": f"a b c d e f g h{i}", "text_pair": f"i j k l m n{i}", "label": "xyz"[i % 3]} for i in range(12)]
COLUMNS = {"text": "text", "text_pair": "text_pair"}


def copies(rows=ROWS, **keys):
    return [row for _, row in augment.copies(table(rows), COLUMNS, Augment(**keys))]


def test_a_copy_follows_from_seed_row_and_copy_alone():
    rows = copies(swap=0.5, delete=0.2, copies=3, seed=7)
    assert rows == copies(swap=0.5, delete=0.2, copies=3, seed=7)
    assert rows[:12] == copies(swap=0.5, delete=0.2, seed=7)  # more copies leave the first as they were
    assert rows[:4] == copies(ROWS[:4], swap=0.5, delete=0.2, seed=7)  # and so do more rows
    assert len({row["text"] for row in (rows[0], rows[12], rows[24])}) == 3
    assert rows != copies(swap=0.5, delete=0.2, copies=3, seed=8)
    assert len({row["text"] for row in copies([ROWS[0]] * 4, swap=0.5)}) > 1  # rows alike have copies of their own


def test_both_texts_of_a_pair_are_altered_and_nothing_else():
    rows = copies(swap=1.0)
    for row, original in zip(rows, ROWS, strict=True):
        assert row["label"] == original["label"]
        for name in ("text", "text_pair"):
            assert row[name] != original[name]
            assert Counter(row[name].split()) == Counter(original[name].split())
    assert copies([{"text": "", "text_pair": None, "label": "x"}], swap=1.0)[0]["text_pair"] is None


@pytest.fixture(scope="module")
def letters_tokenizer():
    documents = Documents(lambda: iter(["a b c d e f g h i j k l m n 0 1 2 3 4 5 6 7 8 9"]), "abc", "`x`")
    return tokenizer.load(Tokenizer(type="wordpiece"), Model(config={}), "text-classification", documents, 64)


def settled(letters_tokenizer, **keys):
    data = ClassificationData(path="x", augment=Augment(**keys) if keys else None)
    columns = {**COLUMNS, "label": "label"}
    train, validation = (task.encode(table(ROWS), columns, letters_tokenizer, data, 64) for _ in range(2))
    label_spec = task.resolve_labels(data, columns, train, {"validation": validation}, BertConfig(), False)
    return train, validation, label_spec


def test_only_training_sees_the_copies_behind_the_rows_they_came_from(letters_tokenizer):
    train, validation, label_spec = settled(letters_tokenizer, swap=0.6, copies=2)
    plain, _, _ = settled(letters_tokenizer)
    training, held_out = task.examples(train, label_spec, False), task.examples(validation, label_spec, True)
    assert (len(training), len(held_out)) == (36, 12)
    assert training.row.tolist() == [*range(12)] * 3
    assert training.labels.tolist() == plain.labels.tolist() * 3
    expected = task.examples(plain, label_spec, False)
    for i in range(12):
        assert training[i]["input_ids"].tolist() == expected[i]["input_ids"].tolist()
        for copy in (i + 12, i + 24):
            assert training[copy]["input_ids"].tolist() != expected[i]["input_ids"].tolist()
            assert Counter(training[copy]["input_ids"].tolist()) == Counter(expected[i]["input_ids"].tolist())
            assert training[copy]["labels"] == expected[i]["labels"]
            assert training[copy]["index"] == copy
    assert training.lengths.tolist() == expected.lengths.tolist() * 3


def test_the_look_at_the_data_counts_rows_and_not_copies(letters_tokenizer):
    train, _, label_spec = settled(letters_tokenizer, swap=0.6, copies=2)
    assert (len(train.keys), len(train.lengths), len(train.row)) == (12, 12, 12)
    assert task.label_counts(train, label_spec) == {"x": 4, "y": 4, "z": 4}


# --- the recipe -------------------------------------------------------------------------------------------------------

RECIPE = """task = "text-classification"
[model]
name = "org/model"
[data]
path = "org/data"
[data.augment]
delete = 0.1
copies = 2
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return "recipe.toml"


def problems(path, *overrides):
    with pytest.raises(UserError) as caught:
        recipe.load(path, overrides)
    return caught.value.details


def test_the_table_is_read_overridden_unset_and_written_again(path, tmp_path):
    loaded = recipe.load(path)
    assert loaded.data.augment == Augment(delete=0.1, copies=2)
    assert loaded.origins["data.augment.delete"] == "recipe line 7"
    assert loaded.origins["data.augment.swap"] == "default"
    again = recipe.load(path, ["data.augment.delete=0.3", "data.augment.swap=1"])
    assert again.data.augment == Augment(delete=0.3, swap=1.0, copies=2)
    assert again.origins["data.augment.swap"] == "command line"
    for one in (loaded, again):
        (tmp_path / "again.toml").write_text(one.to_toml(comments=True))
        assert recipe.load("again.toml") == one
    assert recipe.load(path, ["data.augment="]).data.augment is None
    (tmp_path / "recipe.toml").write_text(RECIPE[: RECIPE.index("[data.a")])
    assert recipe.load(path).data.augment is None
    assert recipe.load(path, ["data.augment.swap=0.2"]).data.augment == Augment(swap=0.2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.augment.delte=0.1", "data.augment.delte: unknown key, did you mean `data.augment.delete=0.1`?"),
        ("data.augment.zzz=0.1", "unknown key; [data.augment] has delete, swap, synonym, copies, seed"),
        ("data.augment.learning_rate=0.1", "unknown key, did you mean `trainer.learning_rate=0.1`?"),
        ("data.synonym=0.1", "data.synonym: unknown key, did you mean `data.augment.synonym=0.1`?"),
        ("data.augment.delete=much", "data.augment.delete: must be a number, not much"),
        ('data.augment={delete="much"}', 'data.augment.delete: must be a number, not the string "much"'),
        ("data.augment.delete=1", "data.augment.delete: must be below 1, not 1"),
        ("data.augment.swap=1.5", "data.augment.swap: must be at most 1, not 1.5"),
        ("data.augment.copies=0", "data.augment.copies: must be at least 1, not 0"),
        ("data.augment=3", "data.augment: must be a table, not 3"),
        ("data.augment.delete=0", "data.augment: nothing would be altered: set `delete`, `swap` or `synonym`"),
        ("task=question-answering", "data.augment: belongs to the task text-classification"),
    ],
)
def test_mistakes_in_it_are_answered_as_any_other(override, message, path):
    (problem,) = problems(path, override)
    assert message in problem


def test_mistakes_in_the_file_have_their_line(path, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("delete", "delte").replace("2", '"two"'))
    assert [each.split("  ")[0] for each in problems(path)] == ["line 7", "line 8"]


# --- synonyms ---------------------------------------------------------------------------------------------------------

NUMBERS = {"n": "1", "v": "2", "a": "3", "r": "4"}
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# (class, {lemma: how often it was counted}), the most frequent sense of a word first
SYNSETS = [
    ("n", {"movie": 9, "film": 5, "motion_picture": 3, "flick": 0}),
    ("n", {"hour": 7, "hr": 0}),
    ("n", {"play": 7, "drama": 7}),  # a verb too
    ("v", {"play": 9, "act": 4}),
    ("a", {"big": 9, "large": 8, "great": 5}),  # which one?
    ("a", {"cool": 9, "chilly": 1}),
    ("a", {"fashionable": 3, "cool": 2}),  # not what "cool" means first
    ("n", {"past": 9, "by": 9}),
    ("n", {"faith": 4, "Islam": 5}),
    ("n", {"gelato": 2, "ice_cream": 3}),
    ("r", {"nearly": 5, "almost": 6}),
]


def write_wordnet(folder):
    """SYNSETS in the format of WordNet's own files (https://wordnet.princeton.edu/documentation/wndb5wn)."""
    folder.mkdir(parents=True)
    counts, senses = [], []
    for kind, suffix in FILES.items():
        content, index = "  1 WordNet 3.0 Copyright\n", {}
        for lemmas in [lemmas for each, lemmas in SYNSETS if each == kind]:
            offset = len(content)
            listed = " ".join(f"{lemma} 0" for lemma in lemmas)
            frames = "00 " if kind == "v" else ""
            content += f"{offset:08d} 00 {kind} {len(lemmas):02x} {listed} 000 {frames}| a gloss  \n"
            for lemma, count in lemmas.items():
                index.setdefault(lemma.lower(), []).append(offset)
                key = f"{lemma.lower()}%{NUMBERS[kind]}:00:00::"
                counts += [f"{key} 1 {count}"] if count else []
                senses.append(f"{key} {offset:08d} 1 {count}")
        lines = [
            f"{lemma} {kind} {len(at)} 0 {len(at)} 0 {' '.join(f'{o:08d}' for o in at)}  "
            for lemma, at in index.items()
        ]
        (folder / f"data.{suffix}").write_text(content)
        (folder / f"index.{suffix}").write_text("".join(f"{line}\n" for line in sorted(lines)))
        (folder / f"{suffix}.exc").write_text("")
    (folder / "lexnames").write_text("00\tall\t1\n")
    (folder / "cntlist.rev").write_text("".join(f"{line}\n" for line in sorted(counts)))
    (folder / "index.sense").write_text("".join(f"{line}\n" for line in sorted(senses)))


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    """nltk with nothing but this small WordNet."""
    write_wordnet(tmp_path / "nltk_data/corpora/wordnet")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    yield
    from nltk.corpus import wordnet

    wordnet._unload()


def test_a_word_has_a_synonym_where_it_is_clear(wordnet):
    synonym_of = augment.synonyms()
    assert (synonym_of("movie"), synonym_of("film")) == ("film", "movie")
    assert (synonym_of("hour"), synonym_of("hr")) == (None, "hour")  # no text that was counted has "hr"
    assert (synonym_of("drama"), synonym_of("play")) == ("play", None)  # a play may be a noun or a verb
    assert synonym_of("big") is None
    assert (synonym_of("fashionable"), synonym_of("chilly")) == (None, "cool")
    assert (synonym_of("by"), synonym_of("faith"), synonym_of("islam"), synonym_of("gelato")) == (None,) * 4
    assert (synonym_of("movies"), synonym_of("zzz")) == (None, None)  # inflected, unknown


def test_copies_have_synonyms(wordnet):
    rows = [{"text": "A movie, nearly!", "text_pair": "Movies by the hour", "label": 0}]
    assert copies(rows, synonym=1.0) == [{"text": "A film, almost!", "text_pair": "Movies by the hour", "label": 0}]


@pytest.fixture
def place(workplace):
    """A recipe that learns from copies, in a folder with its data."""
    rows = [f"{line.split(' at ')[0]},{'fox' if 'fox' in line[:8] else 'none'}" for line in corpus(100).splitlines()]
    (workplace / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    base = MASKED.removesuffix(REST).replace("masked-lm", "text-classification")
    trainer = "[trainer]\nnum_train_epochs = 1\nper_device_train_batch_size = 8\n"
    (workplace / "recipe.toml").write_text(f'{base}[data]\npath = "rows.csv"\nvalidation_fraction = 0.2\n{trainer}')
    return workplace


def finetune(llmkit, *overrides):
    return llmkit("finetune", "recipe.toml", *overrides, "--output-dir", "run")


def test_a_run_learns_from_the_rows_and_their_copies(place, llmkit):
    done = finetune(llmkit, "data.augment.delete=0.2", "data.augment.swap=0.2", "data.augment.copies=2")
    assert done.exit_code == 0, done.stderr
    record = json.loads((place / "run/run.json").read_text())
    rows = record["data"]["train"]["rows"]
    assert record["data"]["train"]["examples"] == rows < 100
    last = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()][-1]
    assert last["step"] == -(-3 * rows // 8)
    assert "augment.copies = 2" in (place / "run/recipe.toml").read_text()
    assert llmkit("predict", "run", "the fox saw").exit_code == 0
    found = json.loads(llmkit("evaluate", "run").stdout)
    assert found["eval_loss"] == pytest.approx(record["metrics"]["eval_loss"], rel=1e-6)


def test_where_wordnet_is_missing_nothing_is_trained(place, llmkit, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    done = finetune(llmkit, "data.augment.synonym=0.1")
    assert done.exit_code == 2
    assert "data.augment.synonym needs WordNet, but nltk cannot find it on this machine" in done.stderr
    assert "hint: download it once: python -m nltk.downloader wordnet" in done.stderr
    assert not list(place.glob("run/*.safetensors"))


def test_weights_do_not_depend_on_what_else_the_process_drew(letters_tokenizer):
    torch.manual_seed(1)
    first = [each["input_ids"].tolist() for each in task.examples(*settled(letters_tokenizer, delete=0.3)[::2], False)]
    np.random.seed(5)
    torch.manual_seed(2)
    assert first == [
        each["input_ids"].tolist() for each in task.examples(*settled(letters_tokenizer, delete=0.3)[::2], False)
    ]
