"""Rows of classification: columns by name and by what they hold, whole columns of labels, and odd rows in them."""

import csv
import json
from types import SimpleNamespace

import pytest

from llmkit.data.rows import classification, content
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.labels import SINGLE, LabelSpec, numbers, resolve_labels
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import open_files
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData


def text(i):
    return f"the tale {i} of a fox"


@pytest.fixture
def written(tmp_path):
    """Write rows to a CSV file (a list of them, and the header) or, tables, to a JSON lines file; return its path."""

    def write(rows, header="text,label"):
        if isinstance(rows[0], dict):
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return file
        file = tmp_path / "rows.csv"
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([header.split(","), *rows])
        return file

    return write


def columns(file, labelled=True, **keys):
    data = ClassificationData(path=str(file), **keys)
    return classification.resolve_columns(data, open_files(data, "train"), labelled)


def opened(file, **keys):
    """(the labels of the rows that are used, the counts of those left out, the notes)"""
    data = ClassificationData(path=str(file), validation_fraction=0.2, **keys)
    read = tables(data, 42, classification)
    parts = [read.train, *read.validation.values()]
    labels = [classification.target_in(row, read.columns, data) for part in parts for _, row in part.read()]
    return labels, read.record.get("skipped", {}).get("train", {}), read.notes


def refused(file, **keys):
    with pytest.raises(UserError) as caught:
        opened(file, **keys)
    return str(caught.value)


def labels_of(values, **more):
    return [{"text": text(i), "label": value, **more} for i, value in enumerate(values)]


# ---- columns ---------------------------------------------------------------------------------------------------------

MOODS = ("sad", "glad")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (" Text ,LABEL", ("Text", "LABEL")),
        ("review,sentiment", ("review", "sentiment")),
        ("tweet,target", ("tweet", "target")),
        ("phrase,mood", ("phrase", "mood")),
        ("comment_text,y", ("comment_text", "y")),
    ],
)
def test_columns_are_found_by_name_in_any_case_and_by_what_they_hold(header, expected, written):
    file = written([(text(i), MOODS[i % 2]) for i in range(40)], header)
    assert columns(file) == dict(zip(("text", "label"), expected, strict=True))


def test_what_is_no_label_and_no_text_is_not_taken_for_one(written):
    rows = [
        (i * 7, f"{i:032x}", f"2024-01-{i % 3 + 1:02}", f"https://a.example/{i % 3}", i % 4 / 4, text(i), MOODS[i % 2])
        for i in range(40)
    ]
    file = written(rows, "number,hash,day,link,score,phrase,mood")
    assert columns(file) == {"text": "phrase", "label": "mood"}


def test_the_label_is_looked_for_in_all_rows_of_a_sorted_file(written):
    rows = [(text(i), "sad" if i < 1200 else "glad", f"c{i // 20}") for i in range(2400)]
    assert columns(written(rows, "phrase,mood,batch")) == {"text": "phrase", "label": "mood"}


def test_no_more_is_read_than_decides(written):
    file = written([(text(i), i, i * 3) for i in range(5000)], "phrase,a,b")
    rows = open_files(ClassificationData(path=str(file)), "train")
    read = 0

    def counted():
        nonlocal read
        for row in rows.read():
            read += 1
            yield row

    from dataclasses import replace

    held = content.look_at(replace(rows, read=counted), rows.columns)
    assert not any(column.is_label for column in held)
    assert read < content.LOOKED_AT + content.HEAD + 10


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("phrase,mood,country", lambda i: (MOODS[i % 2], "abc"[i % 3]), "`country` has 3 values: a, b, c"),
        ("phrase,kind", lambda i: (f"c{i % 60}",), "set data.label_column to one of: phrase, kind"),
        ("phrase,number", lambda i: (i,), "set data.label_column to one of: phrase, number"),
        ("phrase,a,b,mood", lambda i: (i % 2, i % 3 % 2, "abc"[i % 3]), 'data.label_column = ["a", "b"]'),
    ],
)
def test_the_label_is_asked_for_where_two_would_fit_or_none(header, row, said, written):
    error = refused(written([(text(i), *row(i)) for i in range(600)], header))
    assert "which column is the label?" in error
    assert said in error


def test_the_text_is_asked_for_where_two_columns_hold_texts(written):
    error = refused(written([(text(i), text(i * 2), MOODS[i % 2]) for i in range(40)], "title,body,label"))
    assert (
        "which column is the text?\n  `title` holds texts, such as the tale 0 of a fox\n  `body` holds texts" in error
    )


@pytest.mark.parametrize("header", ["#1 String,#2 String,Quality", "sentence_A,sentence_B,judgment", "s1,s2,same"])
def test_two_texts_whose_names_are_counted_are_a_pair(header, written):
    file = written([(text(i), text(i + 50), i % 2) for i in range(40)], header)
    first, second, label = header.split(",")
    assert columns(file) == {"text": first, "text_pair": second, "label": label}
    assert f"column `{second}` is taken for the second text; data.text_pair_column names another" in opened(file)[2]


def test_two_texts_with_other_names_are_asked_about(written):
    with pytest.raises(UserError, match="which column is the text"):
        columns(written([(text(i), text(i + 50), i % 2) for i in range(40)], "title,body,mood"))


@pytest.mark.parametrize("name", ["rating", "Stars", "overall"])
def test_the_rating_of_a_review_is_its_label_where_no_column_is_called_so(name, written):
    rows = [(text(i), i % 5 + 1, i % 3, MOODS[i % 2]) for i in range(60)]
    assert columns(written(rows, f"phrase,{name},useful,mood"))["label"] == name
    assert columns(written(rows, f"phrase,{name},useful,sentiment"))["label"] == "sentiment"


def test_the_values_of_a_regression_are_the_numbers_with_fractions(written):
    file = written([(text(i), f"{i % 21 / 4:.3f}", f"g{i % 3}", i % 4, i) for i in range(80)], "phrase,score,genre,n,m")
    assert columns(file, problem_type="regression") == {"text": "phrase", "label": "score"}
    with pytest.raises(UserError) as caught:
        columns(file)
    assert "`score` holds numbers from 0.000 to 5.000" in str(caught.value)
    assert 'to learn values, also set data.problem_type = "regression"' in str(caught.value)


def test_columns_that_were_chosen_by_what_they_hold_are_named(written):
    _, _, notes = opened(written([(text(i), MOODS[i % 2]) for i in range(40)], "phrase,mood"))
    assert "column `mood` is taken for the label; data.label_column names another" in notes
    assert "column `phrase` is taken for the text; data.text_column names another" in notes
    assert not opened(written([(text(i), MOODS[i % 2]) for i in range(40)], "review,sentiment"))[2]


def test_fields_inside_of_tables_are_named_or_found(written):
    rows = [{"data": {"text": text(i), "n": i}, "label": i % 2} for i in range(40)]
    assert columns(written(rows), text_column="data.text") == {"text": "data.text", "label": "label"}
    assert columns(written(rows)) == {"text": "data.text", "label": "label"}
    assert opened(written(rows))[0].count(1) == 20


# ---- several columns, separators, lists ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [(0, 1), ("False", "True"), ("0.0", "1.0")])
def test_columns_of_0_and_1_beside_a_text_are_labels(bits, written):
    rows = [(f"{i:016x}", text(i), bits[i % 2], bits[i % 3 > 1], bits[i % 5 > 3]) for i in range(60)]
    file = written(rows, "id,comment_text,toxic,severe_toxic,threat")
    assert columns(file) == {"text": "comment_text", "label": "toxic + severe_toxic + threat"}
    labels, _, notes = opened(file)
    assert labels.count(["toxic"]) == sum(i % 2 and i % 3 < 2 and i % 5 < 4 for i in range(60))
    assert "columns `toxic`, `severe_toxic`, `threat` hold 0 and 1 alone and are taken for labels" in " ".join(notes)
    labels, _, _ = opened(file, label_column=("threat", "Toxic"))
    assert ["threat", "Toxic".lower()] in labels


def test_a_row_with_another_value_in_a_column_of_0_and_1_is_left_out(written):
    rows = [(text(i), i % 2, "?" if i == 7 else i % 3 % 2) for i in range(60)]
    labels, skipped, _ = opened(written(rows, "text,a,b"), label_column=("a", "b"))
    assert (len(labels), skipped) == (59, {"a label that is neither 0 nor 1": 1})


def test_the_only_label_in_a_list_is_a_class_where_the_recipe_says_so(written):
    labels, _, _ = opened(written(labels_of([["a"], ["b"]] * 10)), problem_type="single_label_classification")
    assert sorted(labels) == ["a"] * 10 + ["b"] * 10


def test_a_column_of_labels_that_never_repeat_is_asked_about(written):
    message = refused(written(labels_of(range(60))))
    assert "each of the 60 rows has a class of its own" in message
    assert "regression" in message


def test_a_separator_leaves_numbers_alone(written):
    labels, skipped, _ = opened(written(labels_of(["1;2", 1, 2] * 10)), label_separator=";")
    assert (skipped, [1] in labels, ["1", "2"] in labels) == ({}, True, True)


def test_a_separator_is_suggested_and_never_guessed(written):
    file = written([(text(i), ("a;b", "b;c", "c;a", "a")[i % 4]) for i in range(60)])
    labels, _, notes = opened(file)
    assert "a;b" in labels
    assert any('data.label_separator = ";"' in note for note in notes)
    labels, _, notes = opened(file, label_separator=";")
    assert sorted({tuple(names) for names in labels}) == [("a",), ("a", "b"), ("b", "c"), ("c", "a")]
    assert not notes
    _, _, notes = opened(written([(text(i), ("North/South", "East/West")[i % 2]) for i in range(60)]))
    assert not notes


def test_a_separator_is_suggested_between_labels_that_stand_alone_in_most_rows(written):
    labels, _, notes = opened(written([(text(i), ("a", "b", "a;b")[i % 3]) for i in range(60)]))
    assert "a;b" in labels
    assert any('data.label_separator = ";"' in note for note in notes)


def test_a_table_that_says_0_or_1_of_each_label_lists_those_that_apply(written):
    rows = [(text(i), str({"a": i % 2, "b": 1 - i % 2, "c": True})) for i in range(20)]
    labels, _, _ = opened(written(rows))
    assert labels.count(["a", "c"]) == labels.count(["b", "c"]) == 10
    error = refused(written(labels_of([{"name": ("x", "y")[i % 2], "id": i % 2} for i in range(20)])))
    assert 'set data.label_column to one of its entries: "label.name", "label.id"' in error
    labels, _, _ = opened(written(labels_of([{"name": "xy"[i % 2]} for i in range(20)])), label_column="label.name")
    assert labels.count("x") == 10


def test_a_set_of_python_may_be_empty(written):
    rows = [(text(i), ("{'a', 'b'}", "set()", "{'b'}")[i % 3]) for i in range(30)]
    file = written(rows)
    data = ClassificationData(path=str(file))
    read = tables(data, 42, classification)
    encoded = Encoded(read.train, targets=[classification.target_in(row, read.columns, data) for _, row in read.train])
    config = SimpleNamespace(id2label=None, num_labels=2)
    assert resolve_labels(data, read.columns, encoded, {}, config, False).names == ("a", "b")


def test_of_two_columns_that_differ_in_case_the_one_called_exactly_so_is_read(written):
    rows = [(text(i), text(i + 100), i % 2) for i in range(20)]
    assert columns(written(rows, "text,Text,label"))["text"] == "text"
    assert columns(written(rows, "TEXT,text,label"))["text"] == "text"


def test_entries_of_tables_inside_of_tables_are_found_and_named(written):
    rows = [{"of": {"body": {"text": text(i)}}, "meta": {"label": i % 2, "by": "xyz"[i % 3]}} for i in range(20)]
    assert columns(written(rows)) == {"text": "of.body.text", "label": "meta.label"}
    rows = [{"text": text(i), "meta": {"mood": MOODS[i % 2], "by": "xyz"[i % 3]}} for i in range(20)]
    assert "set data.label_column to one of: text, meta.mood, meta.by" in refused(written(rows))


def test_an_error_on_columns_says_that_the_first_row_looks_like_data(written):
    rows = [(1 + i % 4, text(i), text(i + 7)) for i in range(20)]
    file = written(rows[1:], ",".join(map(str, rows[0])))
    assert "looks like data (`1` is a number): if it is, set data.header = false" in refused(file)
    keys = {"header": False, "text_column": "2", "text_pair_column": "3"}
    assert len(opened(file, **keys)[0]) == 20


def test_an_empty_cell_has_no_label_of_several(written):
    labels, skipped, _ = opened(written([(text(i), ("a;b", "b", "")[i % 3]) for i in range(60)]), label_separator=";")
    assert (labels.count([]), skipped) == (20, {})


def test_one_list_of_another_kind_among_many_is_left_out(written):
    lists = ["[0 1 0]", "[1 1 0]", "[1 0 0]"]
    labels = [lists[i % 3] for i in range(60)]
    assert opened(written(labels_of([*labels, "[1 0]"])))[1] == {"not 0 or 1 for each class": 1}
    assert opened(written(labels_of([*labels, "[1 0"])))[1] == {"a list that cannot be read": 1}
    assert opened(written(labels_of([*[[0, 2], [1], []] * 20, 5])))[1] == {"not a list of labels": 1}


# ---- odd labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (None, "no label"),
        ("", "no label"),
        (" ", "no label"),
        (float("nan"), "no label"),
        (["a"], "a list of labels"),
        ({"a": 1}, "a list of labels"),
        ({"a": "b"}, "a table as label"),
        (5, "a number among names"),
        (0.5, "a number with a fraction"),
    ],
)
def test_an_odd_label_among_many_is_left_out_and_counted(odd, kind, written):
    labels, skipped, notes = opened(written(labels_of([*MOODS * 20, odd, *MOODS * 20])))
    assert (sorted(labels), skipped) == (sorted(MOODS * 40), {kind: 1})
    assert any(note.startswith(f"1 row left out: {kind}, such as ") and note.endswith("line 41") for note in notes)


def test_a_row_without_a_label_is_left_out(written):
    rows = [*labels_of(MOODS * 20), {"text": "alone"}]
    assert opened(written(rows))[1] == {"no label": 1}


def test_a_name_among_numbers_is_left_out_where_the_file_tells_them_apart(written):
    assert opened(written(labels_of([*[0, 1] * 20, "none"])))[1] == {"a name among numbers": 1}
    assert opened(written([(text(i), ("1", "2", "other")[i % 3]) for i in range(60)]))[1] == {}


def test_a_column_of_two_kinds_is_asked_about_with_the_places(written):
    rows = [{"text": "alone"}, *labels_of([5, "sad"] * 20)]
    error = refused(written(rows))
    assert "20 rows with a " in error
    assert "to leave these rows out: data.max_skipped_fraction = 0.5" in error
    assert '.jsonl`, line 3: label "sad" is a name' in error or ".jsonl`, line 2: label 5 is a number" in error


def test_numbers_with_a_fraction_are_asked_about(written):
    error = refused(written([(text(i), i % 9 / 2) for i in range(60)]))
    assert "line 3: label 0.5 is a float, where a class is expected" in error
    assert 'data.problem_type = "regression"' in error
    assert "list them all in data.label_names" in error
    named = tuple(str(i / 2) for i in range(9))
    assert len(opened(written([(text(i), i % 9 / 2) for i in range(60)]), label_names=named)[0]) == 60


def test_many_different_numbers_are_asked_about(written):
    file = written([(text(i), i * 3) for i in range(80)])
    error = refused(file)
    assert "80 rows have 80 different numbers as labels: is each number a class?" in error
    assert len(opened(file, problem_type="regression")[0]) == 80
    assert len(opened(written([(text(i), i % 60 * 100) for i in range(600)]))[0]) == 600


def test_a_value_that_is_no_number_is_left_out_of_a_regression(written):
    file = written([(text(i), "high" if i == 4 else i * 3) for i in range(80)])
    assert opened(file, problem_type="regression")[1] == {"not a number": 1}


# ---- -1 --------------------------------------------------------------------------------------------------------------


def test_minus_1_beside_three_classes_is_no_label(written):
    labels, skipped, notes = opened(written([(text(i), -1 if i % 20 == 3 else i % 3) for i in range(200)]))
    assert (len(labels), skipped) == (190, {"no label (-1)": 10})
    assert any(note.startswith("10 rows left out: no label (-1), such as ") for note in notes)


def test_one_row_of_minus_1_more_than_the_share_is_asked_about(written):
    rows = [(text(i), i % 3) for i in range(189)] + [(text(i), -1) for i in range(189, 200)]
    assert "11 of 200 rows have the label -1: is it a class, or no label?" in refused(written(rows))


@pytest.mark.parametrize("values", [[-1, 0, 1], [-1, 0], [-1, 0, 1, 2], [-1, 0, 2, 3]])
def test_minus_1_is_asked_about_and_both_answers_work(values, written):
    file = written([(text(i), values[i % len(values)]) for i in range(60)])
    error = refused(file)
    assert f"{60 // len(values)} of 60 rows have the label -1: is it a class, or no label?" in error
    names = tuple(map(str, values))
    assert f"if a class, data.label_names = {json.dumps(names)}" in error
    assert len(opened(file, label_names=names)[0]) == 60
    share = float(error.rpartition("data.max_skipped_fraction = ")[2])
    _, skipped, _ = opened(file, label_names=names[1:], max_skipped_fraction=share)
    assert skipped == {"no label (-1)": 60 // len(values)}


def test_a_few_rows_of_minus_1_beside_two_classes_are_left_out_by_the_names_of_these(written):
    file = written([(text(i), -1 if i < 2 else i % 2) for i in range(60)])
    error = refused(file)
    assert error.endswith('if no label, leave these rows out: data.label_names = ["0", "1"]')
    assert opened(file, label_names=("0", "1"))[1] == {"no label (-1)": 2}


@pytest.mark.parametrize("values", [[-1, 1], [-2, -1, 0, 1, 2], [-1, 1, 2]])
def test_minus_1_is_a_class_among_others_that_are_not_counted_from_0(values, written):
    labels, skipped, _ = opened(written([(text(i), values[i % len(values)]) for i in range(60)]))
    assert (len(labels), skipped) == (60, {})


def test_minus_1_is_no_label_where_the_source_declares_its_classes():
    rows = [(f"`x`, row {i}", {"text": text(i), "label": label}) for i, label in enumerate([0, 1] * 30 + [-1])]
    from llmkit.data.rows.screening import screen
    from llmkit.data.rows.table import Rows

    declared = Rows(lambda: iter(rows), ("text", "label"), {"label": ("bad", "good")}, "", "`x`")
    data = ClassificationData(path="x")
    found = screen(declared, {"text": "text", "label": "label"}, classification, data)
    assert found.skipped == {"no label (-1)": 1}
    rows[0] = ("`x`, row 0", {"text": "a", "label": 2})
    found = screen(declared, {"text": "text", "label": "label"}, classification, data)
    assert found.skipped == {"a label out of range": 1, "no label (-1)": 1}


@pytest.mark.parametrize("mark", ["-", "--", "?"])
def test_a_dash_or_a_question_mark_among_names_is_no_label(mark, written):
    names = ["Entailment", "neutral", "contradiction"]
    file = written([(text(i), mark if i % 25 == 3 else names[i % 3]) for i in range(200)])
    labels, skipped, _ = opened(file)
    assert (len(labels), skipped) == (192, {f"no label ({mark})": 8})
    assert len(opened(file, label_names=(mark, *names))[0]) == 200


def test_many_dashes_are_asked_about(written):
    file = written([(text(i), "-" if i % 5 == 3 else ("yes", "no")[i % 2]) for i in range(200)])
    assert "40 of 200 rows have the label -: is it a class, or no label?" in refused(file)
    assert opened(file, label_names=("no", "yes"), max_skipped_fraction=0.2)[1] == {
        "a label that is not in data.label_names": 40
    }


@pytest.mark.parametrize("values", [["-", "+"], ["-", "+", "0"], ["-", "yes"]])
def test_a_dash_is_a_class_among_signs_or_beside_one_name(values, written):
    labels, skipped, _ = opened(written([(text(i), values[i % len(values)]) for i in range(60)]))
    assert (len(labels), skipped) == (60, {})


# ---- names of the recipe ---------------------------------------------------------------------------------------------


def test_labels_from_1_are_said_to_be_counted_from_1(written):
    file = written([(text(i), i % 4 + 1) for i in range(60)])
    labels, skipped, notes = opened(file, label_names=("a", "b", "c", "d"))
    assert (len(labels), skipped) == (60, {})
    assert notes == ("label 1 is taken for a, the first of data.label_names: 0 is in no row",)
    assert "label 4 is out of range 0 to 3" in refused(
        written([(text(i), i % 5) for i in range(60)]), label_names=("a", "b", "c", "d")
    )


def test_a_label_that_the_recipe_does_not_name_is_left_out_of_training_and_kept_in_evaluation(written):
    file = written([(text(i), "odd" if i == 7 else MOODS[i % 2]) for i in range(60)])
    assert opened(file, label_names=MOODS)[1] == {"a label that is not in data.label_names": 1}
    data = ClassificationData(path=str(file), label_names=MOODS)
    read = tables(data, 42, classification, train=False)
    assert len(list(read.validation["evaluated"].read())) == 60


# ---- strata ----------------------------------------------------------------------------------------------------------


def strata(targets, **keys):
    data = ClassificationData(path="x", **keys)
    rows = open_in_memory([{"text": text(i), "label": target} for i, target in enumerate(targets)])
    found, unusable = classification.strata(targets, rows, {"text": "text", "label": "label"}, data)
    assert not unusable
    return list(found)


def open_in_memory(rows):
    from llmkit.data.rows.table import Rows

    return Rows(lambda: iter([(f"row {i}", row) for i, row in enumerate(rows)]), ("text", "label"), {}, "", "`x`")


def test_one_class_is_one_stratum_however_it_is_written():
    assert strata(["1", "1.0", " 1", "0"]) == ["1", "1", "1", "0"]
    assert strata([1, 1.0, 0, 0.0]) == ["1", "1", "0", "0"]
    assert strata(["Yes", "yes", "NO"]) == ["yes", "yes", "no"]
    assert strata(["A", "a", "a"], label_names=("A", "a")) == ["A", "a", "a"]


def test_of_several_labels_the_rarest_is_the_stratum_and_of_values_there_is_one():
    assert strata([["a"], ["a", "b"], ["a"]]) == ["a", "b", "a"]
    assert len(set(strata([1.5, 2.5, 3.5], problem_type="regression"))) == 1


def test_a_class_with_one_row_stays_in_training(written):
    rows = [(text(i), MOODS[i % 2]) for i in range(50)] + [(f"rare wish {i}", f"rare_{i}") for i in range(10)]
    data = ClassificationData(path=str(written(rows)), validation_fraction=0.2)
    for seed in range(5):
        read = tables(data, seed, classification)
        assert {row["label"] for _, row in read.validation["validation"].read()} <= set(MOODS)
        assert len(list(read.validation["validation"].read())) == 12


@pytest.mark.parametrize(("label", "hint"), [("odd", "the same classes"), ("7", "what the numbers stand for")])
def test_the_hint_on_numbers_is_given_for_numbers_alone(label, hint, written):
    file = written([(text(0), label)])
    data = ClassificationData(path=str(file))
    part = Encoded(open_files(data, "train"), targets=[label])
    with pytest.raises(UserError, match=hint):
        numbers(part, LabelSpec(SINGLE, ("sad", "glad")), None, False, "the model does not know")
