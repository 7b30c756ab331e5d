"""Nothing is dropped silently: each mark in a file is learned, or its column, row or file is named in the output."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from marked import (
    PACKED,
    ROWS,
    SHAPES,
    TABLES,
    TEXTS,
    as_csv,
    as_lines,
    assembled,
    good_rows,
    mark,
    marks,
    odd_rows,
    said,
    taught,
    write,
)

NOT_USED = re.compile(r"not used: ((?:`[^`]+`(?:, )?)+)")
LEFT_OUT = re.compile(r"([\d,]+) rows? left out")


def cells(value: Any, path: str = "") -> Iterator[tuple[str, set[tuple[int, str]]]]:
    """The marks of a row with the column in which they stand: `a.b` inside of a table."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from cells(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for each in value:
            yield from cells(each, path)
    else:
        yield path, marks(value)


def not_used(assembly: Any) -> set[str]:
    output = " ".join(said(assembly).split())
    return {name for found in NOT_USED.findall(output) for name in re.findall("`([^`]+)`", found)}


def is_named(path: str, names: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[: n + 1]) in names for n in range(len(parts)))


def left_out(assembly: Any) -> int:
    """How many rows the notes say are left out; the record says the same."""
    count = sum(int(number.replace(",", "")) for number in LEFT_OUT.findall("\n".join(assembly.notes)))
    skipped = assembly.record["data"].get("skipped", {})
    assert count == sum(sum(kinds.values()) for kinds in skipped.values())
    return count


def check(
    task: str,
    assembly: Any,
    rows: Sequence[Any],
    unread: Sequence[str] = (),
    scored: Collection[tuple[int, str]] = (),
) -> None:
    """Show that of `rows`, and of `unread` lines which no reader can read, each mark is learned or named.

    `scored` are marks that only evaluation reads.
    """
    parts = [*([assembly.train] if assembly.train is not None else []), *assembly.validation.values()]
    both = [taught(task, assembly, part) for part in parts]
    learned = set().union(*(marks(text) for each in both for text in (*each.inputs, *each.targets)))
    learned |= set(scored)
    unused = not_used(assembly) | {assembly.record["columns"].get("sentence", "")}  # which only tells sentences apart
    missing: set[int] = set()
    for row in rows:
        for path, found in cells(row):
            if not is_named(path, unused):
                missing |= {number for number, column in found if (number, column) not in learned}
    missing |= {number for number, _ in marks(list(unread))}
    assert not {number for number, _ in learned} & missing, "a part of a row is learned"
    assert left_out(assembly) == len(missing)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["a.jsonl", "a.csv", "records.json", "a.parquet"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_mark_of_every_shape_is_learned_or_named(name, file, place):
    shape = SHAPES[name]
    odd = [] if file == "a.parquet" and name in ("spans",) else odd_rows(shape)
    rows = good_rows(shape) + odd
    if file == "a.parquet" and name == "spans":  # a column of one type
        rows = [{**row, "label": json.dumps(row["label"])} for row in rows]
    assembly = assembled(shape.task, write(place / file, rows), shape.keys)
    scored = set()
    if shape.only_scored:  # what the references of evaluation alone hold is said, and there
        assert f"{ROWS} rows with several targets: the first is learned, and all are scored" in said(assembly)
        evaluated = assembled(shape.task, place / file, shape.keys, assembly.config)
        scored = marks(evaluated.validation["evaluated"].extra.references)
        assert scored >= {(n, column) for n in range(ROWS) for column in shape.only_scored}
    check(shape.task, assembly, rows, scored=scored)
    assert not_used(assembly) == set(shape.unused)
    assert left_out(assembly) == len(odd)
    answers = taught(shape.task, assembly, assembly.train).targets
    assert all({n for n, _ in marks(answer)} == {row} for row, answer in enumerate(answers))


@pytest.mark.parametrize("file", [*TEXTS, *PACKED, *TABLES])
def test_every_mark_of_every_format_is_learned_or_named(file, place):
    shape = SHAPES["single"]
    rows = good_rows(shape) + odd_rows(shape)
    assembly = assembled(shape.task, write(place / file, rows), shape.keys)
    check(shape.task, assembly, rows)
    assert len(assembly.train) == ROWS
    for member in {"data.json": ("version",), "split.json": ("names",)}.get(file, ()):
        assert f"`{member}`" in said(assembly)


def test_lines_of_json_that_cannot_be_read_are_counted(place):
    shape = SHAPES["single"]
    rows = good_rows(shape)
    odd = [
        '{"text": "' + mark(20, "text"),
        json.dumps([mark(21, "text"), mark(21, "label")]),
        json.dumps(mark(22, "text")),
        f'{{"text": "{mark(23, "text")}", "text": "{mark(23, "text")}", "label": "a"}}',
        json.dumps({"text": 24, "label": mark(24, "label")}),
        json.dumps({"label": mark(25, "label")}),
        json.dumps({"text": mark(26, "text")}),
        json.dumps({"text": mark(27, "text"), "label": {"a": mark(27, "label")}}),
        f'{{"text": "{mark(28, "text")} \\ud83d", "label": "a"}}',
    ]
    lines = as_lines(rows).splitlines()
    for number, line in enumerate(odd):
        lines.insert(number + 2, line)
        lines.insert(number + 2, "   ")
    Path("a.jsonl").write_text("\ufeff" + "\r\n".join(lines))
    check(shape.task, assembled(shape.task, Path("a.jsonl"), {}), rows, odd)


@pytest.mark.parametrize(("file", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";")])
def test_lines_of_a_table_that_cannot_be_read_are_counted(file, delimiter, place):
    shape = SHAPES["single"]
    rows = good_rows(shape)
    odd = [
        mark(20, "text"),
        delimiter.join(mark(21, column) for column in ("text", "label", "note", "more")),
        delimiter.join((mark(22, "text"), "", mark(22, "note"))),
        delimiter.join((mark(23, "text"), mark(23, "label"))),
    ]
    header, *lines = as_csv(rows, delimiter).splitlines()
    for number, line in enumerate([*odd, "", header, " "]):
        lines.insert(2 * number + 1, line)
    lines += [lines[0] + delimiter * 2, ""]  # empty fields behind a row that is there already
    Path(file).write_text("\ufeff" + "\n".join(["", header, *lines]) + "\n")
    assembly = assembled(shape.task, Path(file), {})
    check(shape.task, assembly, rows, odd)
    assert "1 line left out: the header again" in said(assembly)
    assert "1 row with empty fields beyond the header's" in said(assembly)


def test_a_quote_that_is_not_closed_swallows_no_row(place):
    shape = SHAPES["single"]
    rows = good_rows(shape)
    header, *lines = as_csv(rows).splitlines()
    lines[3] = f'"{lines[3]}'
    lines[6] = lines[6].replace(" it", ' "it')
    Path("a.csv").write_text("\n".join([header, *lines]) + "\n")
    assembly = assembled(shape.task, Path("a.csv"), {})
    check(shape.task, assembly, rows)
    assert len(assembly.train) == ROWS


def test_a_column_that_only_later_rows_have_is_named(place):
    shape = SHAPES["single"]
    rows = [*good_rows(shape), *({"text": "a", "label": "b"} for _ in range(150))]
    rows[120]["late"] = mark(40, "late")
    assembly = assembled(shape.task, write(place / "a.jsonl", rows), {})
    check(shape.task, assembly, rows)
    assert "`late`" in said(assembly)
    assert "line 121" in said(assembly)


def test_columns_that_only_the_second_file_has_are_named(place):
    shape = SHAPES["single"]
    one, two = (
        good_rows(shape),
        [{**row, "extra": mark(n + ROWS, "extra")} for n, row in enumerate(good_rows(shape, 3, ROWS))],
    )
    (place / "in").mkdir()
    write(place / "in" / "a.csv", one)
    write(place / "in" / "a.jsonl", two)
    assembly = assembled(shape.task, place / "in", {})
    check(shape.task, assembly, [*one, *two])
    assert not_used(assembly) == {"note", "extra"}
    assert len(assembly.train) == ROWS + 3


def test_columns_that_only_the_validation_split_has_are_named(place):
    shape = SHAPES["single"]
    one, two = (
        good_rows(shape),
        [{**row, "extra": mark(n + ROWS, "extra")} for n, row in enumerate(good_rows(shape, 3, ROWS))],
    )
    two = [{**row, "label": one[0]["label"]} for row in two]
    (place / "in").mkdir()
    (place / "in" / "train.csv").write_text(as_csv(one))
    (place / "in" / "dev.jsonl").write_text(as_lines(two))
    assembly = assembled(shape.task, place / "in", {})
    check(shape.task, assembly, [*one, *two])
    assert not_used(assembly) == {"note", "extra"}


def test_files_that_are_not_read_are_named(place):
    shape = SHAPES["single"]
    (place / "in" / "old").mkdir(parents=True)
    files = {
        "train.csv": as_csv(good_rows(shape)),
        "dev.csv": as_csv(good_rows(shape)[:3]),
        "test.csv": as_csv(good_rows(shape, 3, 20)),
        "other.csv": as_csv(good_rows(shape, 3, 30)),
        "README.md": mark(40, "readme"),
        "LICENSE": mark(41, "licence"),
        "notes.docx": mark(42, "notes"),
        "old/train.bak": mark(43, "old"),
    }
    for name, text in files.items():
        (place / "in" / name).write_text(text)
    assembly = assembled(shape.task, place / "in", {})
    check(shape.task, assembly, good_rows(shape))
    for name in ("test", "other.csv", "README.md", "LICENSE", "notes.docx", "old/train.bak"):
        assert name in said(assembly)
    for name in ("train.csv", "dev.csv", "test.csv"):  # without splits, all tables of the folder are read
        (place / "in" / name).rename(place / "in" / f"{name[:2]}.csv")
    assembly = assembled(shape.task, place / "in", {})
    check(shape.task, assembly, [*good_rows(shape), *good_rows(shape, 3, 20), *good_rows(shape, 3, 30)])
    for name in ("README.md", "LICENSE", "notes.docx", "old/train.bak"):
        assert name in said(assembly)


def test_texts_in_a_folder_for_each_class(place):
    rows = []
    for n in range(6):
        label = ("zqaax", "zqbbx")[n % 2]
        rows.append({"text": mark(n, "text"), "label": label})
        file = place / "in" / label / f"{n}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(mark(n, "text"))
    (place / "in" / "unsup").mkdir()
    (place / "in" / "unsup" / "0.txt").write_text(mark(10, "text"))
    (place / "in" / "zqaax" / "picture.png").write_text(mark(11, "text"))
    (place / "in" / "README.md").write_text(mark(12, "text"))
    (place / "in" / "zqaax" / "README").write_text(mark(13, "text"))
    assembly = assembled("text-classification", place / "in", {})
    check("text-classification", assembly, rows)
    assert set(taught("text-classification", assembly, assembly.train).targets) == {"zqaax", "zqbbx"}
    for name in ("unsup", "picture.png", "in/README.md", "zqaax/README"):
        assert name.removeprefix("in/") in said(assembly)


def _squad(n: int) -> dict[str, Any]:
    row = SHAPES["questions"].row(n)
    answers = [{"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}]
    entry = {"id": row["id"], "question": row["question"], "answers": answers, "plausible": mark(n, "plausible")}
    return {"context": row["context"], "qas": [entry], "about": mark(n, "about")}


def test_nested_questions(place):
    articles = [
        {"title": mark(n, "title"), "paragraphs": [_squad(n)], "source": mark(n, "source")} for n in range(ROWS)
    ]
    articles[3]["paragraphs"][0]["qas"].append({"id": mark(20, "id"), "question": mark(20, "question"), "answers": 3})
    articles[4]["paragraphs"].append({"context": mark(21, "context")})
    articles.append({"title": mark(22, "title")})
    articles[5]["paragraphs"][0]["qas"].append({"id": mark(23, "id"), "answers": []})
    Path("a.json").write_text(json.dumps({"version": mark(50, "version"), "data": articles}))
    assembly = assembled("question-answering", Path("a.json"), {})
    assert not_used(assembly) == {"id", "title", "source", "about", "plausible"}
    assert left_out(assembly) == 4
    assert "`version`" in said(assembly)
    learned = taught("question-answering", assembly, assembly.train)
    assert [marks(answer) for answer in learned.targets] == [{(n, "answer")} for n in range(ROWS)]


def test_paragraphs_of_questions(place):
    rows = [{**_squad(n), "title": mark(n, "title")} for n in range(ROWS)]
    Path("a.json").write_text(json.dumps(rows))
    assembly = assembled("question-answering", Path("a.json"), {})
    assert not_used(assembly) == {"id", "title", "about", "plausible"}
    assert len(assembly.train) == ROWS


def test_nested_choices(place):
    c3 = [
        [
            [mark(n, "linea"), mark(n, "lineb")],
            [
                {
                    "question": mark(n, "question"),
                    "choice": [mark(n, "wrong"), mark(n, "right")],
                    "answer": mark(n, "right"),
                    "more": "x",
                }
            ],
            mark(n, "id"),
            *([mark(n, "extra")] if n == 3 else []),
        ]
        for n in range(ROWS)
    ]
    Path("c3.json").write_text(json.dumps(c3))
    assembly = assembled("multiple-choice", Path("c3.json"), {})
    learned = set().union(*map(marks, taught("multiple-choice", assembly, assembly.train).inputs))
    assert learned == {(n, column) for n in range(ROWS) for column in ("linea", "lineb", "question", "wrong", "right")}
    race = {
        "article": mark(0, "article"),
        "questions": [mark(n, "question") for n in range(ROWS)],
        "options": [[mark(n, "wrong"), mark(n, "right")] for n in range(ROWS)],
        "answers": ["B"] * ROWS,
        "id": mark(0, "id"),
        "level": mark(0, "level"),
    }
    Path("race.json").write_text(json.dumps(race, indent=1))
    assembly = assembled("multiple-choice", Path("race.json"), {})
    assert not_used(assembly) == {"id", "level"}
    assert len(assembly.train) == ROWS


def test_words_with_several_columns_and_comments(place):
    sentences = []
    for n in range(ROWS):
        words = [(mark(n, "tokena"), mark(n, "posa"), f"B-{mark(n, 'tag')}"), (mark(n, "tokenb"), "X", "O")]
        sentences.append(f"# sent_id = {mark(n, 'comment')}\n" + "".join("\t".join(word) + "\n" for word in words))
    sentences.insert(3, "\t".join([mark(20, "token"), "O"]) + "\n")
    sentences.insert(5, f"-DOCSTART- {mark(21, 'document')}\n")
    sentences.insert(7, f"{mark(22, 'token')}\tX\t \n")
    Path("a.conll").write_text("\ufeff" + "\n".join(sentences))
    assembly = assembled("token-classification", Path("a.conll"), {})
    assert not_used(assembly) == {"column_2"}
    assert left_out(assembly) == 2
    assert f"{ROWS} lines" in said(assembly)  # the comments
    assert "-DOCSTART-" in said(assembly)
    learned = taught("token-classification", assembly, assembly.train)
    assert [marks(text) for text in learned.inputs] == [{(n, "tokena"), (n, "tokenb")} for n in range(ROWS)]


def test_a_sentence_with_a_word_that_cannot_be_read_is_left_out_as_a_whole(place):
    shape = SHAPES["word a row"]
    rows = good_rows(shape)
    lines = as_csv(rows).splitlines()
    lines[8] += "," + mark(3, "more")
    Path("a.csv").write_text("\n".join(lines) + "\n")
    assembly = assembled(shape.task, Path("a.csv"), {})
    check(shape.task, assembly, rows)
    assert len(assembly.train) == ROWS - 2  # it may as well have begun the next one


def test_what_a_model_has_no_room_for_is_counted(place):
    for name in ("single", "choices", "summaries", "messages"):
        shape = SHAPES[name]
        rows = good_rows(shape, 99)
        long = {"single": "text", "choices": "context", "summaries": "document"}.get(name)
        if long:
            rows[50][long] += " far" * 50 + mark(50, "end")
        else:
            rows[50]["messages"][-1]["content"] += " far" * 50 + mark(50, "end")
        assembly = assembled(shape.task, write(place / "a.jsonl", rows), {"max_length": 90})
        assert assembly.record["data"]["train"]["truncated_rows"] == 1
        assert "1 row cut off" in said(assembly)


# ---- running text ----------------------------------------------------------------------------------------------------


def texts_of(assembly: Any) -> set[tuple[int, str]]:
    """The marks in the blocks, of which each begins with the last token of the one before."""
    found: set[tuple[int, str]] = set()
    for part in (assembly.train, *assembly.validation.values()):
        ids = [*part[0].ids, *(each for i in range(1, len(part)) for each in part[i].ids[1:])]
        found |= marks(assembly.tokenizer.decode(ids))
    return found


def pretraining(path: Path, **keys: Any) -> Any:
    return assembled("causal-lm", path, {"block_size": 2, **keys})


@pytest.mark.parametrize("file", ["a.csv", "a.jsonl", "records.json", "a.parquet", "a.jsonl.xz", "data.json"])
def test_every_mark_of_a_column_of_texts_is_learned_or_named(file, place):
    rows = [{"text": mark(n, "text"), "note": mark(n, "note")} for n in range(ROWS)]
    rows += [{"text": None, "note": mark(20, "note")}, {"text": "", "note": mark(21, "note")}]
    assembly = pretraining(write(place / file, rows))
    assert texts_of(assembly) == {(n, "text") for n in range(ROWS)}
    assert not_used(assembly) == {"note"}
    assert sum(map(int, LEFT_OUT.findall("\n".join(assembly.notes)))) == 2


def test_rows_of_texts_that_cannot_be_read_are_counted(place):
    rows = [{"text": mark(n, "text")} for n in range(ROWS)]
    lines = as_lines(rows).splitlines()
    lines.insert(3, '{"text": "' + mark(20, "text"))
    lines.insert(5, json.dumps({"other": mark(21, "text")}))
    lines.insert(7, json.dumps({"text": [mark(22, "text")]}))
    lines[9] = lines[9][:-1] + ', "late": "' + mark(9, "late") + '"}'
    Path("a.jsonl").write_text("\n".join(lines))
    assembly = pretraining(Path("a.jsonl"))
    assert texts_of(assembly) == {(n, "text") for n in range(ROWS)}
    assert sum(map(int, LEFT_OUT.findall("\n".join(assembly.notes)))) == 3
    assert "`late`" in said(assembly)
    assert "`other`" in said(assembly)


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
def test_a_folder_of_texts(sample_by, place):
    (place / "in").mkdir()
    files = {
        "train.txt": "\r\n\r\n".join(mark(n, "train") for n in range(3)),
        "train-2.jsonl": as_lines([{"text": mark(3, "train"), "note": mark(3, "note")}]),
        "valid.txt": "\n".join(mark(n, "valid") for n in range(3)),
        "test.txt": mark(1, "test"),
        "other.txt": mark(1, "other"),
        "README.md": mark(1, "readme"),
        "LICENSE": mark(1, "licence"),
        "metadata.json": json.dumps({"a": mark(1, "metadata")}),
        "picture.png": mark(1, "picture"),
    }
    for name, text in files.items():
        (place / "in" / name).write_text(text, newline="")
    assembly = pretraining(place / "in", sample_by=sample_by)
    assert texts_of(assembly) == {*((n, "train") for n in range(4)), *((n, "valid") for n in range(3))}
    assert not_used(assembly) == {"note"}
    assert "not read: test (test.txt)" in said(assembly)
    for name in ("other.txt", "README.md", "LICENSE", "metadata.json", "picture.png"):
        assert name in said(assembly)
