"""JSON and JSON lines: what is a table, SQuAD, and where one is broken."""

import gzip
import json

import pytest
from files_read import ROWS, mistake, places, rows, write

from llmkit.data import files

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "In France, in the 10th century.",
                    "qas": [
                        {
                            "id": "56ddde6b",
                            "question": "Where?",
                            "is_impossible": False,
                            "answers": [
                                {"text": "France", "answer_start": 3},
                                {"text": "In France", "answer_start": 0},
                            ],
                        },
                        {"id": "5ad39d53", "question": "Why?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        },
        {
            "title": "Warsaw",
            "paragraphs": [
                {
                    "context": "Poland",
                    "qas": [{"question": "What?"}, {"id": "", "question": "Who?", "is_impossible": True}],
                }
            ],
        },
    ],
}


@pytest.mark.parametrize("content", ['{"a": 1}\n{"a": 2}\n', '\n{"a": 1}\n\n{"a": 2}', '\ufeff{"a": 1}\n{"a": 2}'])
def test_json_lines_that_are_called_json(tmp_path, content):
    assert rows(write(tmp_path / "a.json", content)) == [{"a": 1}, {"a": 2}]


def test_one_json_line_that_is_called_json(tmp_path):
    file = write(tmp_path / "a.json", '{"text": "a", "data": "no list"}\n')
    assert rows(file) == [{"text": "a", "data": "no list"}]
    assert places(file) == ["line 1"]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_an_object_with_a_list_of_rows(tmp_path, indent):
    file = write(tmp_path / "a.json", json.dumps({"about": 1, "data": ROWS}, indent=indent))
    assert rows(file) == ROWS
    assert places(file)[:2] == ["item 1", "item 2"]
    assert rows(write(file, '{"data": []}')) == []


def test_an_object_whose_rows_stand_one_a_line(tmp_path):
    file = write(tmp_path / "a.json", '{"data": [\n{"a": 1},\n{"a": 2}\n]}')
    assert rows(file) == [{"a": 1}, {"a": 2}]
    error = mistake(write(file, '{"data": [\n{"a": 1},\n{"a": 2\n]}'))
    assert error.message.startswith(f"`{file}`: not JSON (Expecting ',' delimiter: line 4 column 1")


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_squad(tmp_path, indent, suffix):
    """In the shape in which the Hub has it: rajpurkar/squad and rajpurkar/squad_v2."""
    content = json.dumps(SQUAD, indent=indent).encode()
    file = tmp_path / f"dev-v2.0{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    context = "In France, in the 10th century."
    assert list(files.read_rows(file)) == [
        (
            "question 56ddde6b",
            {
                "id": "56ddde6b",
                "title": "Normans",
                "context": context,
                "question": "Where?",
                "answers": {"text": ["France", "In France"], "answer_start": [3, 0]},
            },
        ),
        (
            "question 5ad39d53",
            {
                "id": "5ad39d53",
                "title": "Normans",
                "context": context,
                "question": "Why?",
                "answers": {"text": [], "answer_start": []},
            },
        ),
        ("question 3", {"id": "3", "title": "Warsaw", "context": "Poland", "question": "What?"}),
        (
            "question 4",
            {
                "id": "4",
                "title": "Warsaw",
                "context": "Poland",
                "question": "Who?",
                "answers": {"text": [], "answer_start": []},
            },
        ),
    ]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d[1].pop("paragraphs"), "article 2: `paragraphs` is missing"),
        (lambda d: d[1].update(paragraphs={}), "article 2: `paragraphs` is not a list"),
        (lambda d: d[0]["paragraphs"].append("text"), "article 1, paragraph 2: `context` is missing"),
        (lambda d: d[0]["paragraphs"][0].pop("context"), "article 1, paragraph 1: `context` is missing"),
        (lambda d: d[0]["paragraphs"][0].update(qas=None), "article 1, paragraph 1: `qas` is not a list"),
        (lambda d: d[1]["paragraphs"][0]["qas"].append(5), "article 2, paragraph 1, question 5: `question` is missing"),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0].update(question=["Where?"]),
            "article 1, paragraph 1, question 56ddde6b: `question` is not text",
        ),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0].update(answers={"text": []}),
            "article 1, paragraph 1, question 56ddde6b: `answers` is not a list",
        ),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0]["answers"][1].pop("text"),
            "article 1, paragraph 1, question 56ddde6b: `text` is missing",
        ),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0]["answers"][1].update(answer_start="three"),
            "article 1, paragraph 1, question 56ddde6b: `answer_start` is not a whole number",
        ),
    ],
)
def test_malformed_squad(tmp_path, change, where):
    broken = json.loads(json.dumps(SQUAD))
    change(broken["data"])
    error = mistake(write(tmp_path / "a.json", json.dumps(broken)))
    assert error.message == f"`{tmp_path / 'a.json'}`, {where}"
    assert error.hint.startswith("SQuAD's format is data > paragraphs > context")


@pytest.mark.parametrize("content", ['["one"]', '{\n"train": {"text": "one"}\n}', '{"data": ["one"]}', "3"])
def test_json_that_is_no_table(tmp_path, content):
    error = mistake(write(tmp_path / "a.json", content))
    assert error.message == f"`{tmp_path / 'a.json'}`: expected a list of objects, or one object per line"
    assert '{"data": [...]}' in error.hint


def test_broken_json(tmp_path):
    error = mistake(write(tmp_path / "a.json", '[{"text": "one"},\n {"text": }]'))
    assert error.message.startswith(f"`{tmp_path / 'a.json'}`: not JSON (Expecting value: line 2 column 11")
    assert error.hint == "fix it there, or write one object per line"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"text": "one"}\n{"text": "two"\n', "line 2: not JSON (Expecting ',' delimiter: column 15"),
        ('{"text": "one"\n{"text": "two"}\n', "line 1: not JSON (Expecting ',' delimiter: column 15"),
        ('{"text": "one"}\n\nnonsense\n', "line 3: not JSON (Expecting value: column 1"),
    ],
)
def test_a_broken_json_line(tmp_path, name, content, where):
    error = mistake(write(tmp_path / name, content))
    assert error.message.startswith(f"`{tmp_path / name}`, {where}")
    assert error.hint == "one object per line is expected"


def test_a_json_line_that_is_no_object(tmp_path):
    error = mistake(write(tmp_path / "a.jsonl", '{"text": "one"}\n["two"]\n'))
    assert error.message == f"`{tmp_path / 'a.jsonl'}`, line 2: expected an object, found list"
    assert error.hint == 'write a row as an object with its columns: {"text": "..."}'


def test_a_bad_line_is_one_bad_row(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": 0\n{"a": 1}\nnonsense\n{"b": 1, "b": 2}\n[]\n{"a": 2}\n')
    found = list(files.read_rows(file, strict=False))
    assert [place for place, _ in found] == [f"line {number}" for number in range(1, 7)]
    kinds = [row.kind if isinstance(row, files.BadRow) else row for _, row in found]
    assert kinds == ["not JSON", {"a": 1}, "not JSON", "a repeated key in one object", "not an object", {"a": 2}]


@pytest.mark.parametrize("content", ["nonsense\n" * 3, "x\n" * 500 + '{"a": 1}\n'])
def test_a_file_that_is_no_json_lines_is_refused(tmp_path, content):
    from llmkit.errors import UserError

    file = write(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError, match="line 1: not JSON"):
        list(files.read_rows(file, strict=False))


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1, "a": 2}',
        '{"a" : 1, "a": 2}',
        '{"a"\t:1, "b": {"c": 1, "c" :1}}',
        '{"a": [[{"x": 1, "x": 2}]]}',
        '{"a": 1, "\\u0061": 2}',
        '{"a": {}, "b": [{"a": ":)", "a": "x"}]}',
    ],
)
def test_a_key_that_occurs_twice_is_found_everywhere(tmp_path, line):
    assert "occurs twice in one object" in mistake(write(tmp_path / "a.jsonl", line)).message


@pytest.mark.parametrize(
    "row",
    [
        {"a": ":)", "b": 'he said "so": yes', "c": '":'},
        {"a": " : ", "b": {"a": {"a": [{"a": 1}, {"a": ": :"}]}}},
        {"": "", ":": ":", '":"': 1},
    ],
)
def test_colons_in_texts_are_no_keys(tmp_path, row):
    assert (
        rows(write(tmp_path / "a.jsonl", json.dumps(row) + "\n" + json.dumps(row, separators=(" ,", " :"))))
        == [row] * 2
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    "content",
    [
        '[\n{"a": 1},\n{"a": [{"b": 2}]}\n]\n',
        '[{"a": 1},\n {"a": [{"b": 2}]}]',
        '[{"a": 1}, {"a": [{"b": 2}]}]',
        '{\n  "a": 1\n}\n{\n  "a": [\n    {"b": 2}\n  ]\n}\n',
        '{\n  "a": 1\n},\n{\n  "a": [{"b": 2}]\n},\n',
        '{"a": 1},\n{"a": [{"b": 2}]},\n',
    ],
)
def test_a_list_and_objects_over_many_lines_are_rows_whatever_the_name(tmp_path, name, content):
    assert rows(write(tmp_path / name, content)) == [{"a": 1}, {"a": [{"b": 2}]}]


def test_a_line_break_inside_a_string_spoils_one_row_of_json_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": "one\ntwo"}\n{"a": 1}\n')
    found = [row for _, row in files.read_rows(file, strict=False)]
    assert [row if isinstance(row, dict) else row.kind for row in found] == ["not JSON", "not JSON", {"a": 1}]


def test_a_list_that_is_cut_off_is_refused_where_it_ends(tmp_path):
    error = mistake(write(tmp_path / "a.jsonl", '[\n{"a": 1},\n{"a": 2}\n'))
    assert error.message.startswith(f"`{tmp_path / 'a.jsonl'}`: not JSON (Expecting ',' delimiter: line 4 column 1")
