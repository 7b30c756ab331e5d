"""JSON values that are tables: what pandas, `datasets` and others write, splits in one file, and nested questions."""

import json

import pytest
from files_read import mistake, rows, write

from llmkit.data import files
from llmkit.errors import UserError

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": 1}]
COLUMNS = {"text": ["a", "b", "c"], "label": [1, 0, 1]}
BY_ROW = {name: dict(zip("012", values, strict=True)) for name, values in COLUMNS.items()}


def noted(tmp_path, content, indent=None, **options):
    """Read the rows of a value in a JSON file, and the remarks on it."""
    remarks = []
    file = write(tmp_path / "a.json", json.dumps(content, indent=indent, ensure_ascii=False))
    return [row for _, row in files.read_rows(file, files.ReadOptions(**options), note=remarks.append)], remarks


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "remark"),
    [
        (ROWS, None),
        (BY_ROW, "an object of columns, each with a value by row (text, label)"),
        ({str(number): row for number, row in enumerate(ROWS)}, "an object of rows by number"),
        (
            {"columns": ["text", "label"], "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
            "rows of `data` with the names in `columns`",
        ),
        (
            {
                "schema": {"fields": [], "primaryKey": ["index"], "pandas_version": "1.4.0"},
                "data": [{"index": number, **row} for number, row in enumerate(ROWS)],
            },
            "`index`, which numbers the rows, is not read",
        ),
        (COLUMNS, "an object of lists of one length: each is a column (text, label)"),
        ({"data": ROWS}, None),
        ({"rows": ROWS}, "the rows are those in `rows`"),
        ({"version": 1, "examples": ROWS}, "the rows are those in `examples`; not read: `version`"),
    ],
)
def test_every_layout_is_the_same_rows(tmp_path, content, remark, indent):
    found, remarks = noted(tmp_path, content, indent)
    assert found == ROWS
    assert remarks == ([] if remark is None else [f"`{tmp_path / 'a.json'}`: {remark}"])


def test_what_pandas_and_datasets_write(tmp_path):
    import datasets
    import pandas

    table = pandas.DataFrame(ROWS, index=[7, 3, 5])
    for orient in ("columns", "index", "split", "records", "table"):
        table.to_json(tmp_path / "a.json", orient=orient)
        assert rows(tmp_path / "a.json") == ROWS, orient
    table.to_json(tmp_path / "a.json", orient="values")
    assert mistake(tmp_path / "a.json").message.endswith("a list of lists has no column names")
    write(tmp_path / "a.json", json.dumps(datasets.Dataset.from_list(ROWS).to_dict()))
    assert rows(tmp_path / "a.json") == ROWS
    named = pandas.DataFrame({"text": [f"t{n}" for n in range(12)]}, index=[f"id{n}" for n in range(12)])
    named.to_json(tmp_path / "a.json")
    assert rows(tmp_path / "a.json") == [{"text": f"t{n}"} for n in range(12)]
    named.to_json(tmp_path / "a.json", orient="index")
    assert rows(tmp_path / "a.json") == [{"id": f"id{n}", "text": f"t{n}"} for n in range(12)]


@pytest.mark.parametrize(
    "row",
    [
        {"translation": {"en": "a", "de": "b"}},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"text": "a b", "entities": [{"start": 0, "end": 1, "label": "X"}]},
        {"conversations": [{"from": "human", "value": "a"}], "tools": [{"name": "x"}]},
        {"source": {"text": "a"}, "target": {"text": "b"}},
    ],
)
def test_one_object_on_one_line_that_is_a_row(tmp_path, row):
    assert noted(tmp_path, row) == ([row], [])


def test_a_list_under_another_name_is_taken_where_it_is_the_only_one(tmp_path):
    found, remarks = noted(tmp_path, {"Comments": ROWS, "about": "x"}, 1)
    assert (found, len(remarks)) == (ROWS, 1)
    error = mistake(write(tmp_path / "a.json", json.dumps({"one": ROWS, "two": ROWS[:1]}, indent=1)))
    assert error.message == f"`{tmp_path / 'a.json'}`: which list holds the rows, `one` or `two`?"


def test_a_row_of_another_kind_is_one_bad_row(tmp_path):
    file = write(tmp_path / "a.json", '[{"a": 1}, 5, {"a": 2}]')
    (_, first), (place, bad), (_, last) = files.read_rows(file, strict=False)
    assert (first, place, last) == ({"a": 1}, "item 2", {"a": 2})
    assert bad.message == "expected an object, found int"
    assert mistake(file).message == f"`{file}`, item 2: expected an object, found int"
    split = {"columns": ["a", "b"], "data": [[1, 2], [3]]}
    file = write(tmp_path / "a.json", json.dumps(split))
    assert mistake(file).message == f"`{file}`, row 2: 1 values, but `columns` has 2"


@pytest.mark.parametrize("member", [ROWS, COLUMNS, {"data": ROWS}])
@pytest.mark.parametrize("indent", [None, 2])
def test_splits_in_one_file(tmp_path, member, indent):
    other = [{"text": "held", "label": 0}]
    content = {"version": "1", "train": member, "dev": other, "test": other}
    found, remarks = noted(tmp_path, content, indent)
    assert found == ROWS
    assert remarks[0] == f"`{tmp_path / 'a.json'}`: read as the split `train`; not read: `dev`, `test`"
    assert files.json_splits(tmp_path / "a.json") == ("train", "dev", "test")
    found, remarks = noted(tmp_path, content, indent, member="dev")
    assert (found, remarks) == (other, [])
    with pytest.raises(UserError, match="holds `train`, `dev`, `test`, but no `mine`"):
        noted(tmp_path, content, indent, member="mine")


def test_what_holds_no_splits(tmp_path):
    for content in (ROWS, COLUMNS, {"data": ROWS}, {"train": ROWS, "other": ROWS}, {"trainer": ROWS}):
        assert files.json_splits(write(tmp_path / "a.json", json.dumps(content))) == ()
    assert files.json_splits(write(tmp_path / "a.json", '{"train": [{}]}\n{"train": [{}]}')) == ()
    assert files.json_splits(write(tmp_path / "a.jsonl", json.dumps({"train": ROWS}))) == ()
    assert files.json_splits(write(tmp_path / "a.json", "")) == ()
    with pytest.raises(UserError, match="holds `validation`, `test`, but no `train`"):
        noted(tmp_path, {"validation": ROWS, "test": ROWS})
    assert noted(tmp_path, {"test": ROWS})[0] == ROWS  # to predict or evaluate on


QUESTION = {"id": "q1", "question": "Where?", "answers": [{"text": "here", "answer_start": 3}]}
ANSWERS = {"text": ["here"], "answer_start": [3]}


@pytest.mark.parametrize("article", [False, True])
def test_json_lines_of_paragraphs_or_articles_are_one_row_a_question(tmp_path, article):
    lines = [{"context": f"{n} is here", "qas": [QUESTION, {"question": "Why?"}]} for n in range(2)]
    lines = [{"title": "t", "paragraphs": [line]} for line in lines] if article else lines
    title = {"title": "t"} if article else {}
    wanted = [
        row
        for n in range(2)
        for row in (
            {"id": "q1", **title, "context": f"{n} is here", "question": "Where?", "answers": ANSWERS},
            {"id": str(2 * n + 2), **title, "context": f"{n} is here", "question": "Why?"},
        )
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for name, content in (("a.jsonl", text), ("b.json", text), ("c.json", json.dumps(lines))):
        assert [row for _, row in files.read_rows(write(tmp_path / name, content))] == wanted
    header = write(tmp_path / "mrqa.jsonl", '{"header": {"dataset": "d"}}\n' + text)
    assert [row for _, row in files.read_rows(header, strict=False)][1:] == wanted


def test_an_article_alone(tmp_path):
    found, _ = noted(tmp_path, {"paragraphs": [{"context": "is here", "qas": [QUESTION]}]}, 1)
    assert found == [{"id": "q1", "context": "is here", "question": "Where?", "answers": ANSWERS}]


def test_a_place_that_stands_in_quotes(tmp_path):
    quoted = {**QUESTION, "answers": [{"text": "here", "answer_start": "3"}]}
    found, _ = noted(tmp_path, [{"context": "is here", "qas": [quoted]}])
    assert found[0]["answers"] == ANSWERS


def test_paragraphs_without_articles(tmp_path):
    found, _ = noted(tmp_path, [{"context": "is here", "qas": [QUESTION, {"question": "Why?"}]}])
    assert found == [
        {"id": "q1", "context": "is here", "question": "Where?", "answers": ANSWERS},
        {"id": "2", "context": "is here", "question": "Why?"},
    ]
    wrapped, _ = noted(tmp_path, {"data": [{"title": "t", "context": "is here", "qas": [QUESTION]}]})
    assert wrapped == [{"id": "q1", "title": "t", "context": "is here", "question": "Where?", "answers": ANSWERS}]
    articles, _ = noted(tmp_path, [{"title": "t", "paragraphs": [{"context": "is here", "qas": [QUESTION]}]}])
    assert articles == wrapped


def test_drcd_and_cmrc(tmp_path):
    answer = {"id": "1", "text": "台北", "answer_start": 2}
    drcd = {"title": "t", "id": "9", "paragraphs": [{"context": "在于台北", "id": "9-1", "qas": [QUESTION]}]}
    drcd["paragraphs"][0]["qas"] = [{"id": "9-1-1", "question": "哪里?", "answers": [answer, answer]}]
    (row,), _ = noted(tmp_path, {"version": "1.3", "data": [drcd]})
    assert row["answers"] == {"text": ["台北", "台北"], "answer_start": [2, 2]}
    cmrc = {
        "context_id": "TRIAL_0",
        "context_text": "在于台北",
        "qas": [{"query_id": "TRIAL_0_QUERY_0", "query_text": "哪里?", "answers": ["台北", "台北"]}],
        "title": "地",
    }
    assert noted(tmp_path, [cmrc])[0] == [
        {
            "id": "TRIAL_0_QUERY_0",
            "title": "地",
            "context": "在于台北",
            "question": "哪里?",
            "answers": ["台北", "台北"],
            "context_id": "TRIAL_0",
        }
    ]


def test_one_malformed_question_is_one_bad_row(tmp_path):
    file = write(tmp_path / "a.json", json.dumps([{"context": "is here", "qas": [QUESTION, {"id": "q2"}, QUESTION]}]))
    found = list(files.read_rows(file, strict=False))
    assert [isinstance(row, files.BadRow) for _, row in found] == [False, True, False]
    assert mistake(file).message == f"`{file}`, item 1, question q2: `question` is missing"


def test_answers_without_places_are_texts(tmp_path):
    (row,), _ = noted(tmp_path, [{"context": "c", "qas": [{"question": "?", "answers": [{"text": "a"}]}]}])
    assert row["answers"] == ["a"]
    (row,), _ = noted(tmp_path, [{"context": "c", "qas": [{"question": "?", "answer": "a"}]}])
    assert row["answer"] == "a"


def test_c3(tmp_path):
    asked = {"question": "What?", "choice": ["x", "y"], "answer": "y"}
    content = [[["A: hello", "B: yes"], [asked, asked], "4-1"], [["C"], [asked], "4-2"]]
    found, _ = noted(tmp_path, content, 1)
    assert found == [
        {"id": "4-1-1", "context": "A: hello\nB: yes", **asked},
        {"id": "4-1-2", "context": "A: hello\nB: yes", **asked},
        {"id": "4-2-1", "context": "C", **asked},
    ]
    file = write(tmp_path / "a.json", json.dumps([*content, [1, 2]]))
    assert mistake(file).message == f"`{file}`, item 3: not a list of lines, questions and an id"


def test_race(tmp_path):
    article = {
        "article": "A.",
        "questions": ["1?", "2?"],
        "options": [["a", "b"]] * 2,
        "answers": ["A", "B"],
        "id": "h1",
    }
    right = [
        {"id": "h1-1", "article": "A.", "question": "1?", "options": ["a", "b"], "answer": "A"},
        {"id": "h1-2", "article": "A.", "question": "2?", "options": ["a", "b"], "answer": "B"},
    ]
    assert noted(tmp_path, article) == (right, [])
    assert noted(tmp_path, [article, article], 1)[0] == right * 2
    file = write(tmp_path / "h1.txt", json.dumps(article))
    assert [row for _, row in files.read_rows(file, files.ReadOptions(format="json"))] == right
    file = write(tmp_path / "a.json", json.dumps(article | {"answers": ["A"]}))
    assert mistake(file).message == f"`{file}`, questions: 2 questions and 2, 1 options or answers"
