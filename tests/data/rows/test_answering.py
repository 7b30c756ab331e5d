"""Questions and answers: columns under other names, answers in every form, and places that are not where they say."""

import pytest

from llmkit.data.rows import answering as reader
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import AnsweringData

CONTEXT = "to be or not to be [sic] 1912"
COLUMNS = {"question": "question", "context": "context", "answers": "answers"}
ONCE = "`answer_start` was wrong; the answer occurs once elsewhere"


def settings(**keys):
    return AnsweringData(path="-", **keys)


def table(*rows):
    return Rows(lambda: ((f"row {n}", row) for n, row in enumerate(rows, 1)), tuple(rows[0]), {}, "", "`made up`")


def read(value, context=CONTEXT, start=None, **more):
    row = {"question": "who?", "context": context, "answers": value, "answer_start": start, **more}
    columns = COLUMNS | ({"starts": "answer_start"} if start is not None else {})
    return reader.read_answers(row, columns | {"impossible": "is_impossible"} if more else columns, context)


def placed(text, start, context):
    found = read({"text": [text], "answer_start": [start]}, context)
    assert found.fault is None
    return *found.found[0], found.mended


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"text": ["be", "be"], "answer_start": [3, 16]}, [(3, "be"), (16, "be")]),  # the Hub's
        ({"text": [], "answer_start": []}, []),
        ({"text": "be", "answer_start": 16}, [(16, "be")]),
        ({"text": ["not"]}, [(9, "not")]),
        ([{"text": "be", "answer_start": 16}, {"text": "not", "answer_start": 9}], [(16, "be"), (9, "not")]),  # SQuAD's
        ([{"text": "not"}], [(9, "not")]),
        (["not", "or"], [(9, "not"), (6, "or")]),
        ([], []),
        ("not", [(9, "not")]),
        ("", []),
        (None, []),
        ({"text": [""], "answer_start": [-1]}, []),
        ('{"text": ["be"], "answer_start": [16]}', [(16, "be")]),  # a cell of a CSV
        ("{'text': ['be'], 'answer_start': [16]}", [(16, "be")]),  # as Python writes it
        ("{'text': array(['be'], dtype=object), 'answer_start': array([16], dtype=int32)}", [(16, "be")]),
        ("['not' 'or']", [(9, "not"), (6, "or")]),  # as NumPy writes it
        ('{"text": [], "answer_start": []}', []),
        (' [{"text": "be", "answer_start": 16}]', [(16, "be")]),
        ('["not"]', [(9, "not")]),
        ("[]", []),
        ("[sic]", [(19, "[sic]")]),
        ("1912", [(25, "1912")]),
    ],
)
def test_answers_are_read_in_every_form(value, found):
    assert read(value) == (found, None, None)


@pytest.mark.parametrize("start", [16, "16", 16.0, "16.0", "[16]"])
def test_an_answer_of_text_alone_begins_where_the_row_says(start):
    assert read("be", start=start).found == [(16, "be")]


@pytest.mark.parametrize("start", ["", float("nan")])
def test_of_several_places_without_a_start_the_first_is_taken_and_said(start):
    found, mended, _ = read("be", start=start)
    assert found == [(3, "be")]
    assert mended == "an answer occurs more than once, with no position given: the first is taken"


def test_a_number_in_brackets_can_be_an_answer():
    assert read("[7]", "as in [7]").found == [(6, "[7]")]


@pytest.mark.parametrize(
    ("context", "text", "start", "at", "mended"),
    [
        ("a fox and a hen", "hen", 3, 12, ONCE),
        ("a fox and a hen", "hen", -1, 12, ONCE),
        ("a fox and a hen", "hen", "x", 12, ONCE),
        ("é fox, é fox", "fox", 11, 9, "`answer_start` counts bytes"),
        ("😀 fox, 😀 fox", "fox", 11, 9, "`answer_start` counts UTF-16 code units"),
        ("  fox, fox", "fox", 5, 7, "`answer_start` counts from the first character that is not a space"),
        ("fox fox", "fox", 3, 4, "`answer_start` counts from the spaces before the answer"),
        ("a\nb\nfox fox", "fox", 6, 4, "`answer_start` counts a line end as two characters"),
        ("a\r\nb\r\nfox fox", "fox", 4, 6, "`answer_start` counts a line end as one character"),
    ],
)
def test_a_wrong_start_is_mended_where_one_place_is_meant(context, text, start, at, mended):
    assert placed(text, start, context) == (at, text, mended)


def test_blanks_around_an_answer_are_taken_off():
    assert placed(" hen ", 11, "a fox, a hen.") == (9, "hen", ONCE)
    assert placed("  hen\n", 7, "a fox, a hen, a hen.") == (9, "hen", "spaces around an answer are removed")


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("king", "answer not in its context", 'the answer "king" is not in its context'),
        ("king " * 20, "answer not in its context", 'the answer "king king king king king king king ki..." is not'),
        (
            {"text": ["be"], "answer_start": [4]},
            "`answer_start` is wrong, and the answer occurs more than once",
            'the answer "be" is not at character 4 of its context, but at 3 and elsewhere',
        ),
        ({"text": ["be"], "answer_start": []}, "answers that cannot be read", "two lists of the same length"),
        ({"answer": "be"}, "answers that cannot be read", "two lists of the same length"),
        ([{"answer": "be"}], "the answer is not text", "the answer {'answer': 'be'} is not text"),
        (1912, "the answer is not text", "the answer 1912 is not text"),
        ([1912], "the answer is not text", "the answer 1912 is not text"),
    ],
)
def test_a_row_whose_answer_cannot_be_learned(value, kind, message):
    row = {"question": "who?", "context": CONTEXT, "answers": value}
    with pytest.raises(Unusable) as caught:
        reader.examine(row, COLUMNS, settings(), False)
    assert caught.value.kind == kind
    assert message in str(caught.value)


def test_another_answer_that_is_there_is_learned():
    row = {"question": "who?", "context": CONTEXT, "answers": ["king", "not"]}
    examined = reader.examine(row, COLUMNS, settings(), False)
    assert examined == (True, "its first answer is not in its context: another one is learned")
    assert read(["king", "not"]).found == [(-1, "king"), (9, "not")]


def test_a_question_whose_answer_has_no_place_is_scored():
    row = {"question": "who?", "context": CONTEXT, "answers": ["king", "queen"]}
    examined = reader.examine(row, COLUMNS, settings(), True)
    assert examined == (True, "answer not in its context; scored anyway")
    assert read(["king", "queen"]).found == [(-1, "king"), (-1, "queen")]


@pytest.mark.parametrize("said", [True, "True", "true", 1])
def test_a_question_that_is_impossible_has_no_answer(said):
    found = read("not", is_impossible=said)
    assert found == ([], "`is_impossible` is true: its answer is ignored", None)
    assert read(None, is_impossible=said) == ([], None, None)
    assert read("not", is_impossible=False).found == [(9, "not")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("question context answers id", ("question", "context", "answers")),
        ("question context answers answer", ("question", "context", "answers")),
        ("Question, Context ,ANSWER", ("Question", " Context ", "ANSWER")),
        ("query passage answer_text", ("query", "passage", "answer_text")),
        ("question document answer answer_start", ("question", "document", "answer", "answer_start")),
        ("question context document answers", ("question", "context", "answers")),
    ],
)
def test_columns_are_found_by_name(row, expected):
    names = row.split(",") if "," in row else row.split()
    found = reader.resolve_columns(settings(), table(dict.fromkeys(names, "a")))
    assert tuple(found.values()) == expected
    unlabelled = reader.resolve_columns(settings(), table(dict.fromkeys(names, "a")), labelled=False)
    assert tuple(unlabelled.values()) == expected[:2]


def test_answers_that_are_cut_into_columns_are_found():
    row = {"context": CONTEXT, "question": "who?", "text": "be", "answer_start": 16}
    found = reader.resolve_columns(settings(), table(row))
    assert found == {"question": "question", "context": "context", "answers": "text", "starts": "answer_start"}


def test_columns_are_found_by_what_they_hold():
    rows = [{"ask": "who barked?", "article": f"the fox and hen {n} barked", "answer": f"hen {n}"} for n in range(4)]
    assert reader.resolve_columns(settings(), table(*rows)) == {
        "question": "ask",
        "context": "article",
        "answers": "answer",
    }
    two = [{**row, "again": row["article"]} for row in rows]
    with pytest.raises(UserError, match=r"which column holds the context\?"):
        reader.resolve_columns(settings(), table(*two))
    with pytest.raises(UserError, match=r"which column holds the answers\?") as caught:
        reader.resolve_columns(settings(), table({"question": "", "context": ""}))
    assert caught.value.hint == "set data.answers_column to one of: question, context"


def test_columns_are_named_and_missed():
    rows = table({"question": "", "context": "", "answer": "", "other": ""})
    found = reader.resolve_columns(settings(context_column="Other", answers_column="answer"), rows)
    assert found == {"question": "question", "context": "other", "answers": "answer"}
    for keys in ({"answers_column": "gold"}, {"question_column": "asked"}, {"starts_column": "begin"}):
        with pytest.raises(UserError, match="has no column") as caught:
            reader.resolve_columns(settings(**keys), rows)
        assert f"data.{next(iter(keys))} to one of: question, context, answer, other" in caught.value.hint


# ---- files -----------------------------------------------------------------------------------------------------------


def opened(file, **keys):
    return tables(AnsweringData(path=str(file), **keys), 0, reader)


def test_a_csv_with_answer_text_and_answer_start(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text(
        "context,question,answer_text,answer_start\n"
        + "".join(f"In 18{n:02} and 18{n:02} it was built.,When was {n} built?,18{n:02},12\n" for n in range(20))
    )
    found = opened(file, validation_fraction=0.2)
    assert found.columns["starts"] == "answer_start"
    rows = [row for _, row in found.train.read()]
    assert len(rows) == 16
    assert all(reader.read_answers(row, found.columns, row["context"]).found[0][0] == 12 for row in rows)
    assert found.record == {}


def test_rows_left_out_and_mended_are_counted(tmp_path):
    file = tmp_path / "train.csv"
    lines = [f"a fox {n} and a hen {n},who?,hen {n},{13 + len(str(n))}" for n in range(200)]
    lines[3] = "a fox and a hen,who?,owl,2"
    lines[5] = "a fox and a hen,who?,hen,2"
    file.write_text("context,question,answer,answer_start\n" + "\n".join(lines) + "\n")
    found = opened(file)
    assert found.record == {
        "skipped": {"train": {"answer not in its context": 1}},
        "mended": {"train": {ONCE: 1}},
    }
    assert f"1 row left out: answer not in its context, such as `{file}`, line 5" in found.notes
    assert f"1 row mended: {ONCE}, such as `{file}`, line 7" in found.notes


def test_a_file_with_too_many_of_them_is_refused_with_the_key(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text(
        "context,question,answer\n" + "".join(f"fox {n},who?,{'fox' * (n % 4 > 0) or 'hen'}\n" for n in range(40))
    )
    with pytest.raises(UserError, match=r"10 of 40 rows cannot be used: answer not in its context") as caught:
        opened(file)
    assert "an answer is a span of its context" in caught.value.hint
    assert caught.value.hint.endswith("to leave them out: data.max_skipped_fraction = 0.25")


@pytest.mark.parametrize(
    ("text", "start", "context", "at", "there"),
    [
        ("paris", 7, "he saw Paris", 7, "Paris"),
        ("PARIS", 0, "Paris or paris", 0, "Paris"),
        ("new  york", 3, "in New York", 3, "New York"),
        ("New York", 3, "in New\u00a0York", 3, "New\u00a0York"),
    ],
)
def test_an_answer_is_found_in_the_spelling_of_its_context(text, start, context, at, there):
    assert placed(text, start, context) == (
        at,
        there,
        "an answer differs from its context in capitals or spaces",
    )


@pytest.mark.parametrize(("text", "context"), [("AI", "he said so"), ("paris", "Paris or PARIS")])
def test_an_answer_in_another_spelling_is_not_guessed(text, context):
    found = read({"text": [text], "answer_start": [3]}, context)
    assert found.fault.kind == "answer not in its context"


def test_a_start_of_minus_one_says_of_no_place():
    at, text, mended = placed("be", -1, CONTEXT)
    assert (at, text) == (3, "be")
    assert "the first is taken" in mended
