"""Rows of multiple choice: data sets' own shapes, and rows without choices or without an answer."""

import pytest

from llmkit.data.rows import choices as reader
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.screening import screen
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChoiceData

DATA = ChoiceData(path="x")
NAMED = [{"label": "A", "text": "d"}, {"label": "B", "text": "e"}]


def table(*rows):
    return Rows(lambda: ((f"row {n}", row) for n, row in enumerate(rows, 1)), tuple(rows[0]), {}, "", "`x`")


def asked(answer, choices=("d", "e", "f"), **more):
    return {"question": "a", "choices": list(choices), "answer": answer, **more}


def screened(*rows, **keys):
    data = ChoiceData(path="x", **keys)
    found = table(*rows)
    return screen(found, reader.resolve_columns(data, found), reader, data)


@pytest.mark.parametrize(
    ("row", "first", "choices", "names", "answer"),
    [
        ({"question": {"stem": "a?", "choices": NAMED}, "answerKey": "B"}, "a?", ["d", "e"], ["A", "B"], "answerKey"),
        (
            {"question": "{'stem': 'a?', 'choices': [{'label': 'A', 'text': 'd'}, {'label': 'B', 'text': 'e'}]}"}
            | {"answerKey": "A"},
            "a?",
            ["d", "e"],
            ["A", "B"],
            "answerKey",
        ),
        ({"Article": "x", "Question": "a?", "Options": ["d", "e"], "Answer": "A"}, "x a?", ["d", "e"], None, "Answer"),
        ({"Question": "a?", "Choice1": "d", "Choice2": "e", "Label": 0}, "a?", ["d", "e"], None, "Label"),
        ({"sentence": "a _ b", "option1": "d", "option2": "e", "answer": "2"}, "a _ b", ["d", "e"], None, "answer"),
        (
            {"context": ["m: a", "w: b"], "question": "c?", "choice": ["d", "e"], "answer": "e"},
            None,
            None,
            None,
            "answer",
        ),
        ({"question": "a?", "options": "['d', 'e']", "answer": "A"}, "a?", ["d", "e"], None, "answer"),
        ({"question": "a?", "options": "['d' 'e']", "answer": "A"}, "a?", ["d", "e"], None, "answer"),  # NumPy's
        ({"question": "a?", "candidates": ["d", "e"], "label": 0}, "a?", ["d", "e"], None, "label"),
    ],
)
def test_the_shapes_of_data_sets_are_read(row, first, choices, names, answer):
    columns = reader.resolve_columns(DATA, table(row))
    assert columns["answer"] == answer
    assert reader.read_beginnings(row, columns)[0] == (first or "m: a\nw: b c?")
    assert reader.read_choices(row, columns) == (choices or ["d", "e"], names)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (asked(-1), "no answer", "no answer (is this a test split?)"),
        (asked("-1"), "no answer", "no answer"),
        (asked(None), "no answer", "no answer"),
        (asked("  "), "no answer", "no answer"),
        (asked(float("nan")), "no answer", "no answer"),
        ({"question": "a", "choices": ["d", "e"]}, "no `answer`", "no `answer`; the row has question, choices"),
        (asked(1, ["d"]), "fewer than two choices", "1 choice, where at least two are expected"),
        (asked(1, []), "fewer than two choices", "no choices, where at least two are expected"),
        (asked(1) | {"choices": None}, "fewer than two choices", "no choices"),
        (
            asked(1) | {"choices": "d, e"},
            "not a list of choices",
            '`choices` holds "d, e", which is not a list of choices',
        ),
        (
            asked(1) | {"choices": {"text": ["d", "e"], "label": ["A"]}},
            "choices without labels",
            "2 choices and 1 labels for them",
        ),
        (asked(0, ["d", ["e"]]), "no text in `choices`", "column `choices` holds list, not text"),
        (asked(0, question=3) | {"question": 3}, "no text in `question`", "column `question` holds int, not text"),
    ],
)
def test_a_row_that_cannot_be_learned(row, kind, message):
    columns = {"question": "question", "choices": "choices", "answer": "answer"}
    with pytest.raises(Unusable) as caught:
        reader.examine(row, columns, DATA, False)
    assert caught.value.kind == kind
    assert message in str(caught.value)


@pytest.mark.parametrize("answer", ["B", "e"])
def test_choices_may_be_a_table_from_label_to_text(answer):
    row = {"question": "a", "options": {"A": "d", "B": "e", "C": None}, "answer": answer}
    columns = reader.resolve_columns(DATA, table(row))
    choices, names = reader.read_choices(row, columns)
    assert (choices, names) == (["d", "e"], ["A", "B"])
    assert 1 in reader.readings(choices, names, answer).values()
    assert list(reader.texts(row, columns)) == ["a", "d", "e"]
    assert screened(*[row] * 9).skipped == {}


def test_minus_one_may_be_a_choice():
    found = reader.examine(asked("-1", ["-1", "1"]), {"choices": "choices", "answer": "answer"}, DATA, False)
    assert found.target == (("text",), "-1", 2)


def test_an_answer_that_is_no_choice_is_left_out_and_counted():
    found = screened(
        *[asked("AB"[n % 2], ["x", "y"]) for n in range(40)], asked("C", ["x", "y"]), asked("x", ["x", "y"])
    )
    assert found.skipped == {"the answer is not one of the choices": 2}
    assert found.notes == ("2 rows left out: the answer is not one of the choices, such as row 41",)
    with pytest.raises(UserError, match=r"5 of 9 rows cannot be used") as caught:
        screened(*[asked(n) for n in range(8)], asked(0))
    assert "row 4: answer 3 is out of range 0 to 2" in str(caught.value)
    assert "data.max_skipped_fraction" in caught.value.hint


def test_answers_that_count_from_1_are_kept_and_said(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("sentence,option1,option2,answer\n" + "".join(f"a {n} _,d,e,{1 + n % 2}\n" for n in range(30)))
    found = tables(ChoiceData(path=str(file)), 0, reader)
    assert reader.FROM_ONE in found.notes
    assert found.record == {}
    assert len(list(found.train.read())) == 30
    kept = screened(*[asked(n % 3) for n in range(30)], asked(3))
    assert kept.skipped == {"the answer is not one of the choices": 1}
    with pytest.raises(UserError, match="10 of 30 rows cannot be used"):
        screened(*[asked(1 + n % 3) for n in range(30)], answer_base=0)


def test_choices_in_a_table_from_label_to_text_are_read():
    rows = [asked("AB"[i % 2]) | {"choices": {"A": "d", "B": "e", "C": None}} for i in range(4)]
    assert reader.read_choices(rows[0], {"choices": "choices"}) == (["d", "e"], ["A", "B"])
    assert not screened(*rows).skipped


@pytest.mark.parametrize(
    ("choices", "names", "answer", "place"),
    [
        (["d", "e"], None, "(B)", {"letter": 1}),
        (["d", "e"], None, "B.", {"letter": 1}),
        (["d", "e"], ["A", "B"], "(B)", {"name": 1}),
        (["A Fox", "a dog"], None, "a fox", {"text": 0}),
        (["a", "A", "b."], None, "b.", {"text": 2}),
        (["Fox", "FOX"], None, "fox", {}),
    ],
)
def test_an_answer_may_be_written_otherwise_than_its_choice(choices, names, answer, place):
    assert reader.readings(choices, names, answer) == place
