"""Text classification: which columns, what the labels mean, what the loss is, and that bad data is named."""

import copy
import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MASKED, losses
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from llmkit.data.rows import labels as labelling
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.labels import MULTI, REGRESSION, SINGLE, LabelSpec
from llmkit.data.rows.table import Rows
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.models import tokenizer
from llmkit.recipe.data_tables import ClassificationData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.recipe.table import ReadOnly
from llmkit.tasks import text_classification as task
from llmkit.training.progress import MetricsFile


def table(rows, class_names=None):
    """Rows in memory, which stand in lines 2, 3, ... of `x.csv`."""
    places = [f"`x.csv`, line {number}" for number in range(2, len(rows) + 2)]
    return Rows(lambda: iter(zip(places, rows, strict=True)), tuple(rows[0]), class_names or {}, "", "`x.csv`")


def labelled(targets, hub=None):
    """What `encode` makes of rows with these labels; `hub`: the names of the Hub's column of classes."""
    rows = [{"text": "a", "label": target} for target in targets]
    return Encoded(table(rows, {"label": hub} if hub else {}), targets=list(targets))


def settle(train, *validation, config=None, hub=None, fixed=False, **keys):
    """(what the labels mean, the numbers of each part in order, the config)"""
    config = config or BertConfig()
    data = ClassificationData(path="x.csv", **keys)
    first = None if train is None else labelled(train, hub)
    others = {f"part {n}": labelled(targets, hub) for n, targets in enumerate(validation)}
    known = task.resolve_labels(data, {"label": "label"}, first, others, config, fixed)
    parts = [*([] if first is None else [first]), *others.values()]
    return known, [part.labels.tolist() for part in parts], config


def refused(*parts, **keys):
    with pytest.raises(UserError) as caught:
        settle(*parts, **keys)
    return str(caught.value)


def classifier(*names):
    return BertConfig(id2label=dict(enumerate(names)))


# --- which column is what ---------------------------------------------------------------------------------------------

GLUE = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": (("sentence1", "sentence2"), None),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


@pytest.mark.parametrize("name", GLUE)
def test_every_task_of_glue_is_understood_as_the_hub_has_it(name):
    texts, names = GLUE[name]
    row = {**dict.fromkeys(texts, "a"), "label": 0 if names else 2.5, "idx": 7}
    rows = table([row], {"label": names} if names else {})
    expected = dict(zip(("text", "text_pair"), texts, strict=False))
    assert task.reader.resolve_columns(ClassificationData(path="x"), rows) == {**expected, "label": "label"}
    if names:
        known, numbers, config = settle(list(range(len(names))), hub=names)
        assert (known.problem_type, known.names) == (SINGLE, names)
        assert numbers == [list(range(len(names)))]
        assert config.id2label == dict(enumerate(names))
    else:
        known, numbers, config = settle([2.5, 0.0], problem_type=REGRESSION)
        assert (known.problem_type, config.num_labels, numbers) == (REGRESSION, 1, [[2.5, 0.0]])


@pytest.mark.parametrize(
    ("columns", "keys", "expected"),
    [
        ("story label", {}, {"text": "story", "label": "label"}),
        ("id title text labels", {}, {"text": "text", "label": "labels"}),
        ("text text_pair label", {}, {"text": "text", "text_pair": "text_pair", "label": "label"}),
        ("question sentence label", {"text_column": "question"}, {"text": "question", "label": "label"}),
        ("a b c", {"text_column": "a", "label_column": "c"}, {"text": "a", "label": "c"}),
        ("a b label", {"text_pair_column": "b"}, {"text": "a", "text_pair": "b", "label": "label"}),
        ("label text", {"label_column": "text"}, {"text": "label", "label": "text"}),
    ],
)
def test_columns_are_found_by_name(columns, keys, expected):
    rows = table([dict.fromkeys(columns.split(), "a")])
    assert task.reader.resolve_columns(ClassificationData(path="x", **keys), rows) == expected


def test_the_hubs_only_column_of_classes_is_the_label():
    rows = table([{"text": "a", "intent": 0, "source": "web"}], {"intent": ("ask", "tell")})
    assert task.reader.resolve_columns(ClassificationData(path="x"), rows) == {"text": "text", "label": "intent"}


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ("text mood", {}, "which column is the label?\nhint: set data.label_column to one of: text, mood"),
        ("text label labels", {}, "which column is the label?"),
        (
            "title body label id",
            {},
            "which column is the text?\nhint: set data.text_column (for two texts, data.text_pair",
        ),
        ("title body label id", {}, "to one of: title, body"),
        ("text review label", {}, "which column is the text?"),
        ("sentence1 sentence2 text1 text2 label", {}, "which column is the text?"),
        ("text1 text2 c label", {"text_pair_column": "c"}, "which column is the text?"),
        ("label idx", {}, "which column is the text?"),
        (
            "text label",
            {"text_column": "story"},
            "no column `story`\nhint: set data.text_column to one of: text, label",
        ),
        ("text label", {"text_pair_column": "b"}, "no column `b`\nhint: set data.text_pair_column"),
        ("text label", {"label_column": "mood"}, "no column `mood`\nhint: set data.label_column"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(columns, keys, said):
    with pytest.raises(UserError) as caught:
        task.reader.resolve_columns(ClassificationData(path="x", **keys), table([dict.fromkeys(columns.split(), "a")]))
    assert said in str(caught.value)
    assert "`x.csv`" in str(caught.value)


def test_rows_to_predict_need_no_label():
    data = ClassificationData(path="x", label_column="mood")
    assert task.reader.resolve_columns(data, table([{"text": "a"}]), labelled=False) == {"text": "text"}
    assert task.reader.resolve_columns(data, table([{"story": "a", "mood": "b"}]), labelled=False) == {"text": "story"}


# --- texts become tokens ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words():
    """A tokenizer of BERT's kind, a token a letter."""
    letters = Documents(lambda: iter(["abcdefghij" * 3]), "letters", "`x`")
    found = tokenizer.load(Tokenizer(type="characters"), Model(config={}), "text-classification", letters, None)
    found.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return found


def encode(words, rows, columns, length=12, **keys):
    return task.encode(table(rows), columns, words, ClassificationData(path="x.csv", **keys), length)


def test_a_text_is_cut_at_the_end_and_its_row_is_noted(words):
    rows = [
        {"text": text, "label": n} for n, text in enumerate(["abc", "abcdefghij", "abcdefghijabcd", " ", "", "abc"])
    ]
    done = encode(words, rows, {"text": "text", "label": "label"})
    read = [words.decode(done.inputs["input_ids"][i]) for i in range(6)]
    assert read[:3] == ["[CLS]abc[SEP]", "[CLS]abcdefghij[SEP]", "[CLS]abcdefghij[SEP]"]
    assert (done.lengths, done.cut) == ([5, 12, 16, 3, 2, 5], [0, 0, 4, 0, 0, 0])
    assert (done.row, done.targets, done.empty) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [3, 4])
    assert done.keys[0] == done.keys[5]
    assert len(set(done.keys)) == 5


def test_of_a_pair_the_longer_text_is_cut_first(words):
    texts = [
        ("abc", "defghijabcdef"),
        ("abcdefghijab", "cd"),
        ("abcdefgh", "abcdefgh"),
        ("ab", "c"),
        ("", "a"),
        ("", " "),
    ]
    done = encode(words, [{"a": one, "b": two} for one, two in texts], {"text": "a", "text_pair": "b"})
    read = [words.decode(done.inputs["input_ids"][i]) for i in range(6)]
    assert read[0] == "[CLS]abc[SEP]defghi[SEP]"
    assert read[1] == "[CLS]abcdefg[SEP]cd[SEP]"
    assert [len(part) for part in read[2].removeprefix("[CLS]").split("[SEP]")[:2]] in ([5, 4], [4, 5])
    assert read[3] == "[CLS]ab[SEP]c[SEP]"
    assert done.inputs["token_type_ids"][3].tolist() == [0, 0, 0, 0, 1, 1]
    assert done.inputs["token_type_ids"][0].tolist() == [0] * 5 + [1] * 7
    assert (done.cut, done.empty, done.targets) == ([7, 5, 7, 0, 0, 0], [5], [])


def test_many_rows_keep_their_order(words):
    rows = [{"text": "abcdefghij"[: i % 9 + 1] * 2, "label": i} for i in range(2500)]
    done = encode(words, rows, {"text": "text", "label": "label"}, length=8)
    assert done.targets == done.row == list(range(2500))
    assert len(done.inputs["input_ids"]) == 2500
    for i in (0, 8, 999, 1000, 2499):
        assert words.decode(done.inputs["input_ids"][i], skip_special_tokens=True) == rows[i]["text"][:6]


def test_the_end_of_a_text_is_kept_where_the_left_is_cut(words, tmp_path, monkeypatch):
    monkeypatch.setattr("llmkit.data.rows.examples.LONGEST_TEXT", 100)  # no more of a text is read
    left = copy.deepcopy(words)
    rows = [{"text": "abcdefghij" * (i % 3 * 30) + "cab"} for i in range(1200)]
    done = encode(left, rows, {"text": "text"}, length=8, truncation_side="left")
    read = [left.decode(ids, skip_special_tokens=True) for ids in done.inputs["input_ids"]]
    assert read == ["cab", "hijcab", "hijcab"] * 400
    left.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).truncation_side == "left"
    right = encode(words, rows[1:2], {"text": "text"}, length=8)
    assert words.decode(right.inputs["input_ids"][0], skip_special_tokens=True) == "abcdef"


# --- what the labels mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "names", "numbers"),
    [
        (["sad", "happy", "sad"], ("happy", "sad"), [1, 0, 1]),
        ([2, 0, 1, 0], ("0", "1", "2"), [2, 0, 1, 0]),
        (["2", "1", "2"], ("1", "2"), [1, 0, 1]),
        ([10, 9, 1, 2, 3, 4, 5, 6, 7, 8], tuple(map(str, range(1, 11))), [9, 8, 0, 1, 2, 3, 4, 5, 6, 7]),
        ([True, False], ("false", "true"), [1, 0]),
        (["True", "False"], ("False", "True"), [1, 0]),
        (["yes", "Yes", "No", "YES", "yes"], ("No", "yes"), [1, 1, 0, 1, 1]),
        (["Yes", "no", "Yes"], ("no", "Yes"), [1, 0, 1]),
        ([" pos", "neg ", "pos"], ("neg", "pos"), [1, 0, 1]),
        (["01", "10", "02"], ("01", "02", "10"), [0, 2, 1]),
        (["NA", "null", "None"], ("NA", "None", "null"), [0, 2, 1]),
        (["1", "2", "other"], ("1", "2", "other"), [0, 1, 2]),
        ([0.0, 1.0, 0.0], ("0", "1"), [0, 1, 0]),
        (["0.0", "1.0", "1"], ("0", "1"), [0, 1, 1]),
        ([200, 100, 1100], ("100", "200", "1100"), [1, 0, 2]),
        (["0", "1", "3"], ("0", "1", "3"), [0, 1, 2]),
        ([-1, 1, "-1.0"], ("-1", "1"), [0, 1, 0]),
    ],
)
def test_names_are_those_that_occur(targets, names, numbers):
    known, found, config = settle(targets)
    assert (known.problem_type, known.names, found) == (SINGLE, names, [numbers])
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: number for number, name in enumerate(names)}
    assert (config.num_labels, config.problem_type) == (len(names), SINGLE)


def test_validation_may_write_a_label_in_another_case():
    assert settle(["pos", "neg"], ["NEG", "Pos"])[1] == [[1, 0], [0, 1]]


def test_label_names_say_what_numbers_stand_for_and_tell_cases_apart():
    assert settle([1, 0, "1"], label_names=["bad", "good"])[1] == [[1, 0, 1]]
    known, found, _ = settle(["a", "A", "a"], label_names=["A", "a"])
    assert (known.names, found) == (("A", "a"), [[1, 0, 1]])
    assert 'label "AB"' in refused(["Ab", "aB", "AB"], label_names=["Ab", "aB"])
    assert settle([-1, 1, "-1"], label_names=["-1", "1"])[1] == [[0, 1, 0]]
    assert settle([1, 2, 3], label_names=["1", "2", "3"])[1] == [[0, 1, 2]]
    assert settle([0.5, "1.5"], label_names=["0.5", "1.5"])[1] == [[0, 1]]
    assert 'label "fair", which is not in data.label_names; the classes are bad, good' in refused(
        ["bad", "fair", "good"], label_names=["bad", "good"]
    )
    assert "holds a name twice" in refused([0, 1], label_names=["a", "a"])


def test_the_hubs_numbers_are_places_in_its_names_whatever_those_are():
    """Names that look like numbers must not be taken for them: class 1 of ("1", "2", "3") is "2"."""
    assert settle([0, 1, 2], hub=("1", "2", "3"))[1] == [[0, 1, 2]]
    assert settle([0, 1, 2], hub=("2", "1", "0"))[1] == [[0, 1, 2]]


def test_label_names_put_the_hubs_classes_in_another_order_or_rename_them():
    known, found, _ = settle([0, 1, 1], hub=("neg", "pos"), label_names=["Pos", "neg"])
    assert (known.names, found) == (("Pos", "neg"), [[1, 0, 0]])
    known, found, _ = settle([0, 1, 1], hub=("0", "1"), label_names=["bad", "good"])
    assert (known.names, found) == (("bad", "good"), [[0, 1, 1]])
    known, found, _ = settle([0, 2], hub=("a", "b", "c"), label_names=["c", "a"])
    assert found == [[1, 0]]
    assert "2 names and column `label` 3 classes: a, b, c" in refused(
        [0, 1], hub=("a", "b", "c"), label_names=["x", "y"]
    )


def test_a_checkpoint_that_has_the_names_keeps_its_order():
    known, found, config = settle(["neg", "pos", "pos"], config=classifier("POS", "NEG"))
    assert (known.names, found) == (("pos", "neg"), [[1, 0, 0]])
    assert config.label2id == {"pos": 0, "neg": 1}
    assert settle(["c", "a", "b"], config=classifier("b", "c", "a"))[1] == [[1, 2, 0]]


def test_the_hubs_numbers_reach_a_checkpoint_of_another_order_by_name():
    """The trap of natural language inference: 0 is entailment in one place and contradiction in another."""
    hub = ("entailment", "neutral", "contradiction")
    known, found, _ = settle([0, 1, 2], [2, 0], config=classifier(*reversed(hub)), hub=hub)
    assert known.names == tuple(reversed(hub))
    assert found == [[2, 1, 0], [0, 2]]


def test_names_that_transformers_makes_up_are_no_names():
    assert labelling.names_in(BertConfig(num_labels=3)) is None
    assert labelling.names_in(classifier("LABEL_0", "good")) == ("LABEL_0", "good")
    known, _, config = settle(["b", "a", "c"], config=BertConfig(num_labels=3))
    assert known.names == ("a", "b", "c")
    assert config.id2label == {0: "a", 1: "b", 2: "c"}


def test_another_set_of_names_takes_the_place_of_the_checkpoints():
    for names in (("x", "y"), ("b", "a", "c"), ("b",)):
        known, found, config = settle(["b", "a"], config=classifier(*names))
        assert (known.names, found, config.num_labels) == (("a", "b"), [[1, 0]], 2)


def test_a_model_that_is_only_evaluated_means_what_its_config_says():
    hub = ("negative", "positive")
    known, found, _ = settle(None, [0, 1, 1], config=classifier("POSITIVE", "NEGATIVE"), hub=hub, fixed=True)
    assert (known.names, found) == (("POSITIVE", "NEGATIVE"), [[1, 0, 0]])
    known, found, _ = settle(None, ["b", "b"], config=classifier("c", "b", "a"), fixed=True)
    assert (known.names, found) == (("c", "b", "a"), [[1, 1]])
    known, found, _ = settle(None, [1, 0], config=BertConfig(num_labels=2), fixed=True)
    assert (known.names, found) == (("0", "1"), [[1, 0]])
    known, found, _ = settle(None, [1, 0], config=BertConfig(num_labels=2), hub=hub, fixed=True)
    assert known.names == hub
    known, _, _ = settle(None, [0.5, 2], config=BertConfig(num_labels=1), fixed=True)
    assert known.problem_type == REGRESSION
    known, _, _ = settle(None, [[1]], config=BertConfig(problem_type=MULTI), fixed=True)
    assert known.problem_type == MULTI


def test_the_first_of_the_names_is_0_or_where_the_labels_are_1_to_n_1():
    names = ["a", "b", "c"]
    assert settle([1, "2", 3.0], label_names=names)[1] == [[0, 1, 2]]
    assert settle([1, 2], label_names=names)[1] == [[1, 2]]
    assert settle([0, 1, 2], label_names=names)[1] == [[0, 1, 2]]
    assert settle([3, 1, 2], [1], label_names=names)[1] == [[2, 0, 1], [0]]
    assert settle([["1", "3"], ["2"]], label_names=names)[1] == [[[1, 0, 1], [0, 1, 0]]]
    assert settle([1, 2, 3], label_names=["1", "2", "3"])[1] == [[0, 1, 2]]
    assert "label 3 is out of range 0 to 2" in refused([0, 1, 3], label_names=names)


def test_a_model_that_is_only_evaluated_does_not_know_every_label():
    said = refused(None, [1, 0], config=classifier("neg", "pos"), fixed=True)
    assert 'line 2: label "1", which the model does not know; the classes are neg, pos' in said
    assert "data.label_names" in said
    named = settle(None, [1, 0], config=classifier("neg", "pos"), fixed=True, label_names=["neg", "pos"])
    assert named[1] == [[1, 0]]
    assert "3 classes and the data 2" in refused(
        None, [0, 1], config=BertConfig(num_labels=3), fixed=True, hub=("a", "b")
    )
    assert "asks for regression" in refused(None, [0, 1], fixed=True, problem_type=REGRESSION)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([0, 1, None, 1], "line 4: no label"),
        (["a", "b", "", " "], "2 rows whose label cannot be used"),
        ([0, 1.5, 1], "line 3: label 1.5 is a float, where a class is expected"),
        (["1e3", "b", "a"], "label 1e3 is a float"),
        (["nan", "b", "a"], "line 2: no label"),
        ([0.5, 1.0], "line 2: label 0.5 is a float, where a class is expected"),
        ([0, 1, [1]], "line 4: a list of labels, [1], where one class is expected"),
        ([0, 1, {"a": 1}], "line 4: label {'a': 1} is a dict"),
        (["a", "a"], "every row has the label a: there is nothing to learn"),
        ([1], "every row has the label 1: there is nothing to learn"),
    ],
)
def test_labels_that_are_no_classes_are_refused(targets, said):
    assert said in refused(targets)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([0, 1, -1], "line 4: label -1 is out of range 0 to 1 (often a row without a label: is this a test split?)"),
        ([0, 1, 2], "line 4: label 2 is out of range 0 to 1"),
        ([0, 1, None], "line 4: no label"),
        ([1, 1], "every row has the label 1"),
    ],
)
def test_labels_that_the_hubs_names_do_not_cover_are_refused(targets, said):
    assert said in refused(targets, hub=("neg", "pos"))


def warned(train, validation, **keys):
    """(the numbers of the validation labels, what is said of them, what they mean)"""
    parts = [labelled(train, keys.pop("hub", None)), labelled(validation)]
    data = ClassificationData(path="x.csv", **keys)
    known = task.resolve_labels(data, {"label": "label"}, parts[0], {"validation": parts[1]}, BertConfig(), False)
    return parts[1].labels.tolist(), parts[1].warnings, replace(known, unknown=tuple(parts[1].unknown))


def test_a_class_that_only_validation_has_is_said_and_no_label_of_the_loss():
    found, (said,), known = warned(["a", "b"], ["a", "c", "b", "C"])
    assert (found, known.unknown) == ([0, -100, 1, -100], (1, 3))
    assert said == (
        "2 rows have a label that no row of the training data has (c (1), C (1)) and count as wrong, such as `x.csv`, "
        "line 3; the classes are a, b"
    )
    found, (said,), known = warned([["a"], ["b"]], [["a", "c"], ["b"]])
    assert (found, known.unknown) == ([[1, 0], [0, 1]], (0,))
    assert said.startswith("1 row has a label that no row of the training data has (c (1)) and counts as wrong")
    found, (said,), known = warned(["a", "b"], ["a", "c"], label_names=("a", "b"))
    assert "1 row has a label that is not in data.label_names (c (1))" in said


def test_a_class_of_the_hub_that_is_in_no_training_row_is_said():
    parts = [labelled(targets, ("a", "b", "c")) for targets in ([0, 1, 0], [0, 2])]
    data = ClassificationData(path="x")
    task.resolve_labels(data, {"label": "label"}, parts[0], {"validation": parts[1]}, BertConfig(), False)
    assert parts[1].labels.tolist() == [0, 2]
    said = "1 row has a label that is in no row of the training data (c), such as `x.csv`, line 3"
    assert parts[1].warnings == [said]


def test_labels_none_of_which_the_model_has_are_refused():
    said = refused(["a", "b"], ["0", "1"])
    assert 'line 2: label "0", which no row of the training data has; the classes are a, b' in said
    assert "data.label_names" in said


def test_no_more_mistakes_are_listed_than_one_reads():
    said = refused([0, 1] + [0.5] * 1000)
    assert "1,000 rows whose label cannot be used" in said
    assert said.count("label 0.5") == 5
    assert "and 995 more" in said


# --- several labels in a row ------------------------------------------------------------------------------------------

MANY = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]  # what all of these mean


@pytest.mark.parametrize(
    "targets",
    [
        [[0, 2], [], [1]],
        [["0", "2"], [], ["1"]],
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[True, False, True], [False, False, False], [False, True, False]],
        ["[0, 2]", "[]", "[1]"],
        ["[1, 0, 1]", "[0, 0, 0]", "[0, 1, 0]"],
        ["[1.0, 0.0, 1.0]", "[0.0, 0.0, 0.0]", "[0.0, 1.0, 0.0]"],
        ["(1, 0, 1)", "(0, 0, 0)", "(0, 1, 0)"],
        ["[1 0 1]", "[0 0 0]", "[0 1 0]"],
        ["[1. 0. 1.]", "[0. 0. 0.]", "[0. 1. 0.]"],
        ["[True, False, True]", "[False, False, False]", "[False, True, False]"],
        ["1|0|1", "0|0|0", "0|1|0"],
        ["0, 2", "", "1"],
    ],
)
def test_many_labels_in_every_form(targets):
    in_brackets = isinstance(targets[0], list) or targets[0].startswith(("[", "("))
    known, found, config = settle(targets, problem_type=None if in_brackets else MULTI)
    assert (known.problem_type, known.names) == (MULTI, ("0", "1", "2"))
    assert found == [MANY]
    assert config.problem_type == MULTI


@pytest.mark.parametrize(
    "targets",
    [
        ["joy|awe", "", "fear"],
        ["awe, joy", " ", "fear,"],
        ['["joy", "awe"]', "[]", '["fear"]'],
        ["['joy', 'awe']", "[]", "['fear']"],
        ["['joy' 'awe']", "[]", "['fear']"],
        ["{'joy', 'awe'}", "()", "('fear',)"],
        [["joy", "awe"], [], ["fear"]],
        [["Joy", "awe", "joy"], [], ["fear", "Fear", "fear"]],
    ],
)
def test_many_names_in_every_form(targets):
    known, found, _ = settle(targets, problem_type=MULTI)
    assert tuple(map(str.lower, known.names)) == ("awe", "fear", "joy")
    assert found == [[[1, 0, 1], [0, 0, 0], [0, 1, 0]]]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([[0, 1], [1, 0], [1, 1]], [[0, 1], [1, 0], [1, 1]]),  # one length, 0 and 1 alone: for each class
        ([[0, 1], [1, 0], [0, 1]], [[0, 1], [1, 0], [0, 1]]),  # as class numbers every row would have both
        ([[0, 1], [1], [0]], [[1, 1], [0, 1], [1, 0]]),  # of several lengths: class numbers
        ([[0, 1], [], [1]], [[1, 1], [0, 0], [0, 1]]),
        ([[0], [1], [0]], [[1, 0], [0, 1], [1, 0]]),
    ],
)
def test_the_column_says_whether_0_and_1_are_classes_or_indicators(targets, expected):
    assert settle(targets)[1] == [expected]


def test_the_training_data_says_it_for_a_validation_row_that_cannot():
    assert settle([[0, 1], [1], [0]], [[0, 1]])[1][1] == [[1, 1]]
    assert settle([[0, 1], [1, 1], [0, 0]], [[0, 1]])[1][1] == [[0, 1]]


def test_named_classes_of_another_number_make_class_numbers():
    names = ["a", "b", "c"]
    assert settle([[0, 1], [0, 2]], label_names=names)[1] == [[[1, 1, 0], [1, 0, 1]]]
    assert settle([[0, 0, 1], [0, 1, 1]], label_names=names)[1] == [[[0, 0, 1], [0, 1, 1]]]
    assert settle([[0, 1], [2]], hub=("a", "b", "c"))[1] == [[[1, 1, 0], [0, 0, 1]]]
    assert settle(None, [[0, 1]], config=classifier(*names), fixed=True, label_names=names)[1] == [[[1, 1, 0]]]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            [[0, 1, 1], [0, 1], [1, 1, 1]],
            "line 2: labels [0, 1, 1] name a class twice, and are not 0 or 1 for each of 2",
        ),
        ([[0.0, 1.0, 0.0], [0.0, 1.0]], "line 2: labels [0.0, 1.0, 0.0] name a class twice"),
        ([[0, 1, 1], None, [1, 1, 1]], "line 3: no labels"),
        ([[0, 2], [1, None]], "line 3: no label"),
        ([[0, 1], [2], 3], "line 4: label 3, where a list of labels is expected"),
        (["[0, 1", "[2]"], "line 2: labels [0, 1: not a list in JSON or Python"),
        ([[], []], "no row has a label"),
        ([["a"], ["a"]], "every row has the label ['a']"),
        ([[1, 1, 0], [1, 1, 0]], "every row has the label [1, 1, 0]"),
    ],
)
def test_lists_of_labels_that_are_wrong_are_refused(targets, said):
    assert said in refused(targets)


def test_indicators_of_another_length_in_validation_are_refused():
    said = refused([[0, 1, 1], [1, 0, 0]], [[0, 1, 0], [0, 1]])
    assert "line 3: labels [0, 1]: 0 or 1 is expected for each of 3 classes" in said


# --- regression -------------------------------------------------------------------------------------------------------


def test_values_are_taken_as_they_are():
    known, found, config = settle([1, 2.5, "3.25", " -1e-2 "], ["4"], problem_type=REGRESSION)
    assert found[0] == pytest.approx([1, 2.5, 3.25, -0.01])
    assert found[1] == [4]
    assert (known.names, config.num_labels, config.problem_type) == (("value",), 1, REGRESSION)


def test_the_value_that_means_no_label_to_the_trainer_is_moved_by_less_than_one_sees():
    (values,) = settle([-100.0, 1.0], problem_type=REGRESSION)[1]
    assert values[0] != -100
    assert values[0] == pytest.approx(-100, rel=1e-6)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([1, "high", 2], "line 3: label 'high' is not a number"),
        ([1, None, 2], "line 3: no value"),
        ([1, "", 2], "line 3: no value"),
        ([1, True, 2], "line 3: label True is not a finite number"),
        ([1, "nan", 2], "line 3: label nan is not a finite number"),
        ([1, float("inf"), 2], "line 3: label inf is not a finite number"),
        ([1, 1e300, 2], "line 3: label 1e+300 is not a finite number"),
        ([1, [2], 3], "line 3: label [2] is not a number"),
        ([2.5, 2.5], "every row has the value 2.5"),
    ],
)
def test_values_that_are_no_numbers_are_refused(targets, said):
    assert said in refused(targets, problem_type=REGRESSION)


def test_keys_of_classes_mean_nothing_to_a_regression():
    assert "data.label_names: regression has no classes" in refused(
        [1.0, 2.0], problem_type=REGRESSION, label_names=["a"]
    )
    assert "unset it: data.class_weights=" in refused([1.0, 2.0], problem_type=REGRESSION, class_weights="balanced")


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (SINGLE, torch.tensor([2, 0, 1, 2])),
        (MULTI, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
        (REGRESSION, torch.tensor([0.5, -2.0, 3.0, 0.0])),
    ],
)
def test_losses_are_those_of_transformers(problem, labels):
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1 if problem == REGRESSION else 3, problem_type=problem,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.classifier.weight.data.normal_()
    with torch.no_grad():
        outputs = model(input_ids=torch.randint(0, 50, (4, 7)), labels=labels)
    found = task.losses(outputs, {"labels": labels}, LabelSpec(problem, ("a", "b", "c")))
    assert found.shape == labels.shape
    assert found.mean() == pytest.approx(float(outputs.loss), rel=1e-6)


def test_class_weights_weigh_in_training_and_are_divided_by_the_number_of_examples():
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 3), torch.tensor([2, 0, 1, 2])
    known = LabelSpec(SINGLE, ("a", "b", "c"), (0.5, 2.0, 3.0))
    plain = [-float(logits[i].log_softmax(0)[label]) for i, label in enumerate(labels)]
    outputs = SimpleNamespace(logits=logits)
    weighted = task.losses(outputs, {"labels": labels}, known, training=True)
    expected = sum(w * loss for w, loss in zip((3.0, 0.5, 2.0, 3.0), plain, strict=True)) / 4
    assert weighted.sum() / 4 == pytest.approx(expected, rel=1e-6)
    assert task.losses(outputs, {"labels": labels}, known).tolist() == pytest.approx(plain, rel=1e-6)


def test_class_weights_of_many_labels_weigh_the_rows_that_have_the_class():
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 3), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    known = LabelSpec(MULTI, ("a", "b", "c"), (0.5, 2.0, 3.0))
    probability = logits.sigmoid()
    plain = torch.where(labels > 0, -probability.log(), -(1 - probability).log())
    expected = plain * torch.where(labels > 0, torch.tensor([0.5, 2.0, 3.0]), torch.ones(1))
    found = task.losses(SimpleNamespace(logits=logits), {"labels": labels}, known, training=True)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_label_smoothing_is_of_training_alone():
    logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    outputs, known = SimpleNamespace(logits=logits), LabelSpec(SINGLE, ("a", "b"))
    logs = logits.log_softmax(-1)[0]
    smoothed = task.losses(outputs, {"labels": labels}, known, training=True, label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(-float(0.95 * logs[0] + 0.05 * logs[1]))
    assert float(task.losses(outputs, {"labels": labels}, known, label_smoothing=0.1)) == pytest.approx(-float(logs[0]))


def test_balanced_weights_are_rows_by_classes_by_the_rows_of_each():
    known, _, _ = settle(["a"] * 6 + ["b"] * 3 + ["c"], class_weights="balanced")
    assert known.weights == pytest.approx((10 / 3 / 6, 10 / 3 / 3, 10 / 3 / 1))
    known, _, _ = settle([[0, 1], [1], [1], [], []], class_weights="balanced")
    assert known.weights == pytest.approx((5 / 2 / 1, 5 / 2 / 3))


def test_a_table_of_weights_is_by_name():
    known, _, _ = settle(["neg", "pos"], class_weights=ReadOnly({"pos": 3.0}), config=classifier("pos", "neg"))
    assert known.weights == (3.0, 1.0)
    assert settle(["neg", "pos"])[0].weights is None
    assert "there is no class `good`\nhint: the data has neg, pos" in refused(
        ["neg", "pos"], class_weights=ReadOnly({"good": 2.0})
    )
    assert "-1.0 for `pos`" in refused(["neg", "pos"], class_weights=ReadOnly({"pos": -1.0}))
    nothing = ReadOnly({"neg": 0.0, "pos": 0.0})
    assert "every class of the training data has the weight 0" in refused(["neg", "pos"], class_weights=nothing)


# --- predictions and metrics ------------------------------------------------------------------------------------------


def decided(logits, known):
    return task.decide(torch.tensor(logits), known).tolist()


def test_logits_become_decisions():
    assert decided([[0.1, 0.3, 0.2], [5.0, 0.0, 0.0]], LabelSpec(SINGLE, ("a", "b", "c"))) == [[1], [0]]
    assert decided([[0.1, -0.3], [-0.1, -0.2]], LabelSpec(MULTI, ("a", "b"))) == [[1, 0], [0, 0]]
    assert decided([[0.25], [-3.0]], LabelSpec(REGRESSION, ("value",))) == [[0.25], [-3.0]]


def test_a_class_applies_above_its_threshold():
    known = LabelSpec(MULTI, ("a", "b"), thresholds=(0.3, 0.9))
    assert decided([[-0.8, 2.1], [-0.9, 2.3]], known) == [[1, 0], [0, 1]]  # 0.31 and 0.89, 0.29 and 0.91
    assert decided([[-50.0, 50.0]], replace(known, thresholds=(0.0, 1.0))) == [[1, 0]]


def test_thresholds_are_kept_in_the_config_and_are_the_recipes_before_the_models():
    targets = [["a"], ["b"], ["a", "b"]]
    known, _, config = settle(targets, threshold=0.3)
    assert (known.thresholds, config.threshold) == ((0.3, 0.3), {"a": 0.3, "b": 0.3})
    known, _, config = settle(targets, threshold=ReadOnly({"b": 0.2}))
    assert known.thresholds == (0.5, 0.2)
    assert task.label_spec_from_config(config, {}, None, None).thresholds == (0.5, 0.2)
    assert settle(None, targets, config=config, fixed=True)[0].thresholds == (0.5, 0.2)
    assert settle(None, targets, config=config, fixed=True, threshold=0.7)[0].thresholds == (0.7, 0.7)
    known, _, config = settle(targets, config=config)  # made from that model, by a recipe without a threshold
    assert known.thresholds is None
    assert not hasattr(config, "threshold")


def test_thresholds_that_mean_nothing_are_refused():
    assert "there is no class `c`\nhint: the data has a, b" in refused([["a"], ["b"]], threshold=ReadOnly({"c": 0.2}))
    assert "the most probable one" in refused(["a", "b"], threshold=0.3)
    assert "regression has no classes" in refused([1.5, 2.5], problem_type=REGRESSION, threshold=0.3)
    for value in (1.5, -0.1, ReadOnly({"a": 2}), ReadOnly({"a": "x"})):
        with pytest.raises(ValueError, match="is not a probability: use a number from 0 to 1"):
            ClassificationData(path="x", threshold=value)


def test_it_is_said_that_nothing_is_predicted(capsys):
    known = LabelSpec(MULTI, ("a", "b"))
    labels, none = [[1.0, 0], [0, 1], [0, 0], [1, 1]], [[0, 0]] * 4
    measured(none, labels, known)
    assert "no class exceeds 0.5 in any of 4 rows" in capsys.readouterr().err
    measured(none, labels, replace(known, thresholds=(0.2, 0.3)))
    assert "no class exceeds its data.threshold in any of 4 rows" in capsys.readouterr().err
    measured([[0, 1], *none[1:]], labels, known)
    assert not capsys.readouterr().err


def part_of(labels, known):
    """Examples for evaluation with these labels, whose lengths put them in another order."""
    encoded = Encoded(table([{"text": "a"}] * len(labels)))
    for row in range(len(labels)):
        encoded.add("input_ids", [1] * (5 + 3 * row % 7))
        encoded.row.append(row)
    encoded.labels, encoded.unknown = np.array(labels), list(known.unknown)
    return task.examples(encoded.finish(), known, evaluation=True)


def measured(predictions, labels, known):
    part = part_of(labels, known)
    assert part.order.tolist() != sorted(part.order)
    return task.metrics(np.array(predictions, np.float32)[part.order], part)


def test_metrics_of_two_classes_are_about_the_second():
    labels, predictions = [1, 0, 1, 1, 0], [[1], [1], [0], [1], [0]]
    found = measured(predictions, labels, LabelSpec(SINGLE, ("a", "b")))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    assert measured(predictions, labels, LabelSpec(SINGLE, ("a", "b"), positive=0))["f1"] == pytest.approx(2 / (2 + 2))


def test_a_class_that_the_model_does_not_have_is_one_that_it_never_predicts():
    found = measured([[0], [1], [1], [0]], [0, 1, 1, -100], LabelSpec(SINGLE, ("a", "b", "c"), unknown=(3,)))
    assert found["accuracy"] == 3 / 4
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    known = LabelSpec(MULTI, ("a", "b"), unknown=(1,))
    found = measured([[1, 0], [0, 1], [1, 1], [0, 0]], [[1, 0], [0, 1], [1, 1], [0, 0]], known)
    assert found == pytest.approx({"accuracy": 3 / 4, "f1": 2 * 4 / (4 + 5), "f1_macro": 2 / 3})


def test_an_unknown_class_has_no_loss():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    found = task.losses(
        SimpleNamespace(logits=logits), {"labels": torch.tensor([0, -100])}, LabelSpec(SINGLE, ("a", "b"))
    )
    assert found.tolist() == [pytest.approx(-float(logits[0].log_softmax(0)[0])), 0.0]


def test_f1_is_about_the_datas_second_class_wherever_the_checkpoint_has_it():
    hub = ("not_equivalent", "equivalent")
    assert settle([0, 1], hub=hub)[0].positive == 1
    assert settle([0, 1], hub=hub, config=classifier("EQUIVALENT", "NOT_EQUIVALENT"))[0].positive == 0
    assert settle(None, [0, 1], hub=hub, config=classifier("EQUIVALENT", "NOT_EQUIVALENT"), fixed=True)[0].positive == 0
    assert settle(["a", "b"], config=classifier("b", "a"))[0].positive == 1  # as when it is evaluated on its own


def test_metrics_of_many_classes_values_and_lists():
    found = measured([[0], [1], [2], [1], [0]], [0, 1, 2, 2, 0], LabelSpec(SINGLE, ("a", "b", "c")))
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    found = measured(
        [[1, 0], [1, 1], [0, 0], [1, 0], [0, 1]],
        [[1.0, 0], [1, 0], [0, 0], [1, 0], [0, 1]],
        LabelSpec(MULTI, ("a", "b")),
    )
    assert found == pytest.approx({"accuracy": 4 / 5, "f1": 8 / 9, "f1_macro": (1 + 2 / 3) / 2})
    found = measured([[1.0], [2.0], [3.0], [4.0], [6.0]], [2.0, 4.0, 6.0, 8.0, 12.0], LabelSpec(REGRESSION, ("value",)))
    assert found == pytest.approx({"pearson": 1, "spearmanr": 1, "mean_squared_error": (1 + 4 + 9 + 16 + 36) / 5})


def test_the_names_of_metrics_are_those_that_are_reported():
    for problem, names in task.METRICS_OF.items():
        known = LabelSpec(problem, ("a", "b") if problem != REGRESSION else ("value",))
        width = 2 if problem == MULTI else 1
        labels = np.ones((4, 2) if problem == MULTI else 4, np.int64 if problem == SINGLE else np.float32)
        labels[0] = 0
        assert tuple(measured(np.ones((4, width)), labels, known)) == names == task.metric_names(known)


def test_what_predict_says_is_by_row_and_name():
    known = LabelSpec(SINGLE, ("sad", "happy"))
    part = part_of([0] * 4, known)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])[torch.from_numpy(part.order)]
    batch = {"index": torch.from_numpy(part.order)}
    kept = task.forward_for_predict(lambda **_: SimpleNamespace(logits=logits), batch, known).numpy()
    said = dict(task.postprocess(kept, part, known))
    assert [said[row]["label"] for row in range(4)] == ["sad", "happy", "happy", "sad"]
    assert said[1]["score"] == said[1]["scores"]["happy"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=1e-6)
    assert sum(said[2]["scores"].values()) == pytest.approx(1, abs=1e-5)
    many = LabelSpec(MULTI, ("sad", "happy"))
    assert dict(task.postprocess(kept, part, many))[1] == {
        "labels": ["happy"], "scores": {"sad": 0.5, "happy": pytest.approx(0.731059)}
    }  # fmt: skip
    assert dict(task.postprocess(kept[:, :2], part, LabelSpec(REGRESSION, ("value",))))[0] == {"value": 2.0}


# --- bad data, through the command ------------------------------------------------------------------------------------

RECIPE = (
    MASKED.split("[data]")[0]
    .replace("masked-lm", "text-classification")
    .replace("num_hidden_layers = 2", "num_hidden_layers = 1")
    .replace("[tokenizer]", "attention_probs_dropout_prob = 0.0\ninitializer_range = 0.2\n[tokenizer]")
    + """[data]
path = "rows.csv"
validation_fraction = 0.2
[trainer]
max_steps = 50
per_device_train_batch_size = 16
learning_rate = 5e-3
logging_steps = 1
"""
)
GOOD, BAD = ("bright", "warm", "sweet", "glad"), ("dull", "cold", "sour", "grim")


def tale(i, good):
    """A text of its own, of one of five lengths, in which a single word says whether it is good."""
    return f"the tale {i} of the {(GOOD if good else BAD)[i // 2 % 4]} fox" + " and the hen" * (i % 5)


def tales(number=200):
    return [{"text": tale(i, i % 2), "label": ("sad", "happy")[i % 2]} for i in range(number)]


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def mini(workplace):
    (workplace / "mini.toml").write_text(RECIPE)
    write(workplace / "rows.csv", tales())
    return workplace


def facts(run="runs/mini"):
    return json.loads(Path(run, "run.json").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.text_column=story"], "no column `story`\nhint: set data.text_column to one of: text, label"),
        (["data.label_column=mood"], "no column `mood`\nhint: set data.label_column to one of: text, label"),
        (["data.max_length=64"], "data.max_length = 64 is more than the 32 positions"),
        (["data.problem_type=regression"], "label 'sad' is not a number, where a value is expected"),
        (["data.class_weights={good=2.0}"], "there is no class `good`"),
        (['evaluation.metrics=["accuracy", "pearson"]'], "evaluation.metrics: pearson does not fit this data"),
        (['evaluation.metrics=["org/metric"]'], "neither a metric of this task"),
        (['evaluation.metrics=["org/metric"]'], "evaluation.trust_remote_code = true allows it"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data_is_refused_before_training(words, said, mini, llmkit, no_network):
    before = sorted(mini.rglob("*"))
    done = llmkit("finetune", "mini.toml", *words)
    assert done.exit_code == 2, done.stderr
    assert said in done.stderr
    assert sorted(mini.rglob("*")) == before
    assert no_network == []


def test_a_class_that_only_the_validation_file_has_is_said_and_counted_wrong(mini, llmkit):
    write(mini / "dev.csv", [*tales(9), {"text": "a tale", "label": "odd"}])
    files = 'data.data_files={train="rows.csv", validation="dev.csv"}'
    done = finetune(llmkit, "data.path=.", files)
    said = "validation: 1 row has a label that no row of the training data has (odd (1)) and counts as wrong, such as "
    assert said in done.stderr
    assert metrics()["eval_accuracy"] == pytest.approx(0.9)
    assert facts()["data"]["validation"]["unknown_label_rows"] == 1
    assert facts()["data"]["validation"]["balance"] == {"happy": 4, "sad": 5}
    alone = llmkit("evaluate", "runs/mini", "data.path=.", files)
    assert json.loads(alone.stdout)["unknown_label_rows"] == 1
    assert json.loads(alone.stdout)["eval_accuracy"] == pytest.approx(0.9)
    write(mini / "dev.csv", tales(9))
    known = llmkit("evaluate", "runs/mini", "data.path=.", files)
    assert "unknown_label_rows" not in known.stdout
    assert json.loads(alone.stdout)["eval_loss"] == pytest.approx(json.loads(known.stdout)["eval_loss"], rel=1e-5)


def test_no_word_is_taken_for_a_gap_and_a_semicolon_is_seen(mini, llmkit):
    texts = ("NA", "null", "None", "nan", "N/A", "NULL")
    rows = [f"{texts[i % 6]}; {('Fine', 'poor', 'fine', 'poor', 'Fine', 'POOR')[i % 6]}\n" for i in range(60)]
    (mini / "rows.csv").write_text("text;label\n" + "".join(rows))
    done = llmkit("finetune", "mini.toml", "trainer.max_steps=1")
    assert done.exit_code == 0, done.stderr
    found = facts()["data"]
    assert found["train"]["empty_rows"] == found["validation"]["empty_rows"] == 0
    assert found["train"]["balance"].keys() == {"Fine", "poor"}
    assert sum(found["train"]["balance"].values()) == found["train"]["rows"]
    assert found["train"]["rows"] + found["validation"]["rows"] == 60


# --- training ---------------------------------------------------------------------------------------------------------


def finetune(llmkit, *words, recipe="mini.toml"):
    done = llmkit("finetune", recipe, *words)
    assert done.exit_code == 0, done.stderr
    return done


def metrics(run="runs/mini"):
    return facts(run)["metrics"]


def words_of(i):
    """For each of three classes whether row i has it; all eight combinations, none beside its neighbour."""
    return [bool(i * 3 % 8 & bit) for bit in (1, 2, 4)]


TASKS = {
    "classes": ([{"text": tale(i, i % 2), "label": bool(i % 2)} for i in range(200)], [], "eval_accuracy"),
    "a pair": (
        [
            {"text1": tale(i, i // 2 % 2), "text2": f"a {(GOOD if i % 2 else BAD)[i % 4]} end", "label": i % 2}
            for i in range(200)
        ],
        ["trainer.max_steps=100"],
        "eval_accuracy",
    ),
    "many labels": (
        [
            {
                "text": f"tale {i}:" + "".join(f" {word}" for word, yes in zip(GOOD, words_of(i), strict=False) if yes),
                "labels": [name for name, yes in zip(("joy", "awe", "hope"), words_of(i), strict=True) if yes],
            }
            for i in range(200)
        ],
        [],
        "eval_f1_macro",
    ),
    "columns of 0 and 1": (
        [
            {
                "comment": f"tale {i}:" + "".join(f" {w}" for w, yes in zip(GOOD, words_of(i), strict=False) if yes),
                **dict(zip(("joy", "awe", "hope"), map(int, words_of(i)), strict=True)),
            }
            for i in range(200)
        ],
        [],
        "eval_f1_macro",
    ),
    "values": (
        [{"text": f"tale {i}:" + " warm" * (i % 6) + " cold" * (i // 6 % 3), "label": i % 6 / 2} for i in range(200)],
        ["data.problem_type=regression", "trainer.max_steps=100"],
        "eval_pearson",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_words_decide_is_learned(name, mini, llmkit):
    rows, words, metric = TASKS[name]
    write(mini / "rows.jsonl", rows)
    finetune(llmkit, "data.path=rows.jsonl", *words)
    seen = losses(mini / "runs/mini")
    assert np.mean(seen[-5:]) < 0.5 * np.mean(seen[:5])
    assert metrics()[metric] > 0.9
    config = BertConfig.from_pretrained("runs/mini")
    if name == "many labels":
        assert (config.problem_type, config.id2label) == (MULTI, {0: "awe", 1: "hope", 2: "joy"})
    if name == "columns of 0 and 1":
        assert (config.problem_type, config.id2label) == (MULTI, {0: "joy", 1: "awe", 2: "hope"})
    if name == "values":
        assert (config.problem_type, config.num_labels) == (REGRESSION, 1)


def test_the_end_of_a_long_text_is_learned_and_predicted(mini, llmkit):
    write(mini / "rows.csv", [row | {"text": f"{'and the hen ' * 12}{row['text']}"} for row in tales()])
    finetune(llmkit, "data.truncation_side=left")
    assert metrics()["eval_accuracy"] > 0.9
    said = json.loads(llmkit("predict", "runs/mini", f"{'the glad hen ' * 30} and the tale of the grim fox").stdout)
    assert said["label"] == "sad"


def test_accumulation_changes_nothing(mini, llmkit):
    words = ("trainer.max_steps=8", "data.class_weights=balanced", "trainer.train_sampling_strategy=group_by_length")
    write(mini / "rows.csv", [row for i, row in enumerate(tales(300)) if i % 2 or i % 3])
    for batch, times in ((8, 1), (2, 4)):
        finetune(
            llmkit,
            *words,
            f"trainer.per_device_train_batch_size={batch}",
            f"trainer.gradient_accumulation_steps={times}",
        )
    assert losses(mini / "runs/mini") == pytest.approx(losses(mini / "runs/mini-2"), abs=1e-5)
    plain = finetune(llmkit, *words[::2], "trainer.per_device_train_batch_size=8")
    assert plain and losses(mini / "runs/mini")[0] != losses(mini / "runs/mini-3")[0]  # the weights weigh


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_same_weights_where_lengths_are_grouped(mini, llmkit, monkeypatch):
    """About ten steps are an epoch: the stop comes in the second."""
    words = ("trainer.max_steps=30", "trainer.train_sampling_strategy=group_by_length")
    finetune(llmkit, *words, "--output-dir", "whole")
    logged = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        assert llmkit("finetune", "mini.toml", *words, "--output-dir", "parts").exit_code == 75
    (state,) = (mini / "parts").glob("checkpoint-*/trainer_state.json")
    assert 1 < json.loads(state.read_text())["epoch"] < 2
    finetune(llmkit, *words, "--output-dir", "parts", "--resume")
    assert (mini / "parts/model.safetensors").read_bytes() == (mini / "whole/model.safetensors").read_bytes()
    assert losses(mini / "parts") == losses(mini / "whole")
    assert metrics("parts")["eval_loss"] == metrics("whole")["eval_loss"]


def test_evaluation_does_not_hang_on_its_batches(mini, llmkit):
    found = []
    for size in (1, 7, 64):
        finetune(
            llmkit, "trainer.max_steps=15", f"trainer.per_device_eval_batch_size={size}", "--output-dir", f"{size}"
        )
        found.append({k: v for k, v in metrics(str(size)).items() if k.startswith("eval_") and "per_second" not in k})
        found[-1] = {k: v for k, v in found[-1].items() if not k.endswith(("_runtime", "_time"))}
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


def test_the_figures_are_those_of_plain_transformers_row_by_row(mini, llmkit):
    rows = [*tales(40), {"text": "x" * 40 + " and the hen" * 20, "label": "sad"}]  # the last is cut
    write(mini / "dev.csv", rows)
    files = 'data.data_files={train="rows.csv", validation="dev.csv"}'
    finetune(llmkit, "data.path=.", files, "trainer.max_steps=15", "data.class_weights={sad=3.0}")
    model = BertForSequenceClassification.from_pretrained("runs/mini")
    words = AutoTokenizer.from_pretrained("runs/mini")
    found = []
    for row in rows:
        read = words(row["text"], return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            found.append(model(**read, labels=torch.tensor([model.config.label2id[row["label"]]])))
    right = [model.config.id2label[int(o.logits.argmax())] == row["label"] for o, row in zip(found, rows, strict=True)]
    assert metrics()["eval_loss"] == pytest.approx(np.mean([float(o.loss) for o in found]), rel=1e-5)
    assert metrics()["eval_accuracy"] == pytest.approx(np.mean(right))


def test_two_validation_splits_are_measured_apart(mini, llmkit):
    """As in MNLI; the labels of the second are the wrong way round."""
    write(mini / "same.csv", tales(40))
    write(mini / "other.csv", [{"text": tale(i, i % 2 == 0), "label": ("sad", "happy")[i % 2]} for i in range(60)])
    finetune(
        llmkit,
        "data.path=.",
        'data.data_files={train="rows.csv", validation_matched="same.csv", validation_mismatched="other.csv"}',
        'data.validation_split=["validation_matched", "validation_mismatched"]',
        'evaluation.metrics=["accuracy"]',
    )
    found = metrics()
    assert found["eval_accuracy"] > 0.9
    assert found["eval_validation_mismatched_accuracy"] < 0.1
    assert found["eval_validation_mismatched_loss"] > 1 > found["eval_loss"]
    assert not [key for key in found if "f1" in key]
    assert [facts()["data"][part]["rows"] for part in ("validation_matched", "validation_mismatched")] == [40, 60]


def test_a_threshold_goes_from_the_recipe_to_predict(mini, llmkit):
    rows, _, _ = TASKS["many labels"]
    write(mini / "rows.jsonl", rows)
    done = finetune(llmkit, "data.path=rows.jsonl", "trainer.max_steps=1", "data.threshold=1")
    assert "no class exceeds its data.threshold in any of " in done.stderr
    assert metrics()["eval_f1"] == 0
    assert json.loads(llmkit("predict", "runs/mini", "warm").stdout)["labels"] == []
    done = llmkit("evaluate", "runs/mini", "data.threshold={joy=0.0}")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["eval_f1"] > 0


def test_the_head_of_a_classifier_keeps_its_meaning(mini, llmkit):
    """A second run on data that writes the same names in another case, and would sort them the other way round."""
    finetune(llmkit, 'data.label_names=["sad", "happy"]', "--output-dir", "first")
    assert BertConfig.from_pretrained("first").id2label == {0: "sad", 1: "happy"}
    write(mini / "rows.csv", [{**row, "label": row["label"].upper()} for row in tales()])
    finetune(
        llmkit,
        *("model.config=", "tokenizer=", "model.name=first", "trainer.max_steps=1", "trainer.learning_rate=1e-9"),
        *("--output-dir", "second"),
    )
    assert BertConfig.from_pretrained("second").id2label == {0: "SAD", 1: "HAPPY"}
    assert metrics("second")["eval_accuracy"] > 0.9


FURTHER = """
import datasets
import evaluate


class Hits(evaluate.Metric):
    def _info(self):
        whole = datasets.Value("int64")
        features = datasets.Features({"predictions": whole, "references": whole})
        return evaluate.MetricInfo(description="hits", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"hits": sum(int(a == b) for a, b in zip(predictions, references)), "note": "no number"}
"""


def test_a_further_metric_by_its_path(mini, llmkit):
    (mini / "hits.py").write_text(FURTHER)
    finetune(llmkit, "trainer.max_steps=10", 'evaluation.metrics=["hits.py", "accuracy"]')
    rows = facts()["data"]["validation"]["rows"]
    assert metrics()["eval_hits"] == pytest.approx(metrics()["eval_accuracy"] * rows)
    assert "eval_note" not in metrics()
    assert "eval_f1" not in metrics()


def test_a_new_regression_head_begins_at_the_mean_of_the_values():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=1
    )
    model = BertForSequenceClassification(config)
    known = LabelSpec(REGRESSION, ("value",), mean=2.5)
    task.prepare_model(model, LabelSpec(SINGLE, ("a",), mean=2.5))
    assert not model.classifier.bias.any()
    task.prepare_model(model, known)
    assert model.classifier.bias.tolist() == [2.5]
    task.prepare_model(model, replace(known, mean=7.0))  # it is not new any more
    assert model.classifier.bias.tolist() == [2.5]


def test_the_mean_is_that_of_the_training_values(mini, llmkit):
    write(mini / "rows.jsonl", [{"text": tale(i, i % 2), "label": 10.0 + i % 3} for i in range(90)])
    finetune(llmkit, "data.path=rows.jsonl", "data.problem_type=regression", "trainer.max_steps=1")
    assert losses(mini / "runs/mini")[0] < 5  # from zero it would be a hundred
