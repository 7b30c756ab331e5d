"""What training reads of a file, `predict` and `evaluate` read too: the same texts of the same rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from marked import (
    ROWS,
    SHAPES,
    Shape,
    as_csv,
    as_lines,
    assembled,
    good_rows,
    load,
    marks,
    odd_rows,
    taught,
    write,
)
from transformers import set_seed

from llmkit import tasks
from llmkit.data.output import Output
from llmkit.data.rows.cells import value_at
from llmkit.inference.predict import predict
from llmkit.runs import directory as runs

PREDICTED = [name for name, shape in SHAPES.items() if shape.task != "chat"]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels_of(task: str, assembly: Any) -> set[str]:
    """The columns that only training and evaluation read."""
    roles = tasks.row_task(task).reader.LABEL_ROLES
    return {each for role, name in assembly.record["columns"].items() if role in roles for each in name.split(" + ")}


def by_row(texts: Sequence[str]) -> dict[int, list[str]]:
    """What a model reads of each row: the only one whose marks stand in it."""
    found: dict[int, list[str]] = {}
    for text in texts:
        (number,) = {number for number, _ in marks(text)}
        found.setdefault(number, []).append(text)
    return found


def finished(task: str, path: Path, keys: Mapping[str, Any], assembly: Any) -> Path:
    """A run directory with a model that has learned nothing, of data at `path`."""
    run = path.parent / "run"
    set_seed(0)
    tasks.model_class(task).from_config(assembly.config).save_pretrained(run)
    assembly.tokenizer.save_pretrained(run)
    (run / runs.RECIPE_FILE).write_text(load(task, path, keys).to_toml())
    runs.write_json(run / runs.RECORD_FILE, {"status": "finished", "task": task, **assembly.record})
    return run


def predicted(
    run: Path, task: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[int, list[str]], list[dict]]:
    """What the model reads of each row of a file that is to be predicted, and the predictions."""
    module, read = tasks.row_task(task), list[str]()
    encode = module.encode

    def heard(rows: Any, columns: Any, tokenizer: Any, data: Any, length: int) -> Any:
        encoded = encode(rows, columns, tokenizer, data, length)
        ids = encoded.inputs["input_ids"]
        read.extend(tokenizer.decode(ids[number].tolist()) for number in range(len(ids)))
        return encoded

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", heard)
        predict(str(run), [], file, Output(Path("out.jsonl"), overwrite=True))
    return by_row(read), [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def check(
    shape: Shape, file: Path, monkeypatch: pytest.MonkeyPatch, expected: Sequence[int | None], **keys: Any
) -> list[dict]:
    """Compare what training, `evaluate` and `predict` read of a file; return the predictions.

    `expected` are the numbers of the rows in their order, None for one that cannot be read.
    """
    keys = {**shape.keys, **keys}
    training = assembled(shape.task, file, keys)
    learned = by_row(taught(shape.task, training, training.train).inputs)
    assert len(learned) == ROWS
    evaluation = assembled(shape.task, file, keys, training.config)
    measured = taught(shape.task, evaluation, evaluation.validation["evaluated"])
    assert {n: texts for n, texts in by_row(measured.inputs).items() if n in learned} == learned
    if shape.task == "chat":
        return []
    read, answers = predicted(finished(shape.task, file, keys, training), shape.task, file, monkeypatch)
    assert {n: texts for n, texts in read.items() if n in learned} == learned
    assert list(read) == [n for n in expected if n is not None]
    assert ["error" in answer for answer in answers] == [n is None for n in expected]
    inputs = [name for name in training.record["columns"].values() if name not in labels_of(shape.task, training)]
    for answer, n in zip(answers, expected, strict=True):
        assert {number for number, _ in marks([value_at(answer, name) for name in inputs])} == {n} - {None}
    return answers


@pytest.mark.parametrize("file", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_rows_of_every_reader(name, file, place, monkeypatch):
    shape = SHAPES[name]
    odd = [] if file == "a.parquet" and name == "spans" else odd_rows(shape)
    rows = good_rows(shape)
    if file == "a.parquet" and name == "spans":
        rows = [{**row, "label": json.dumps(row["label"])} for row in rows]
    rows[2:2] = odd if name != "word a row" else []
    order: list[int | None] = list(dict.fromkeys(min(n for n, _ in marks(row)) for row in rows))
    write(place / file, rows)
    if file != "a.parquet" and name != "word a row":
        broken = '{"text": "' if file == "a.jsonl" else "one,two,three,four,five,six,seven"
        lines = (place / file).read_text().splitlines()
        for line in (len(lines), 6):
            lines.insert(line, broken)
            order.insert(line - (file == "a.csv"), None)
        (place / file).write_text("\n".join(lines) + "\n")
    check(shape, place / file, monkeypatch, order)


def _quoted(rows: list[dict[str, Any]]) -> str:
    return "".join(f'"{row["text"]}\t{row["label"]}\n' for row in rows)


KEYS = {
    "delimiter": ("a.csv", lambda rows: as_csv(rows, "~"), {"delimiter": "~"}),
    "quoting": (
        "a.csv",
        lambda rows: "text,label\n" + "".join(f'"{r["text"]}" he,{r["label"]}\n' for r in rows),
        {"quoting": "none"},
    ),
    "no header": (
        "a.csv",
        lambda rows: as_csv(rows).partition("\n")[2],
        {"header": False, "text_column": "1", "label_column": "2"},
    ),
    "names": (
        "a.csv",
        lambda rows: as_csv(rows).partition("\n")[2],
        {"header": False, "column_names": ["text", "label", "note"]},
    ),
    "other names": (
        "a.csv",
        as_csv,
        {"column_names": ["says", "is", "why"], "text_column": "says", "label_column": "is"},
    ),
    "format": ("a.dat", as_lines, {"format": "jsonl"}),
    "format of a table": ("a", lambda rows: as_csv(rows, "\t"), {"format": "tsv"}),
    "case": ("a.csv", lambda rows: as_csv(rows).replace("text,label", " Text ,LABEL"), {}),
    "marks of a table": ("a.csv", lambda rows: "sep=;\n" + as_csv(rows, ";"), {}),
    "quoted": ("a.tsv", lambda rows: "text\tlabel\n" + _quoted(rows), {}),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_file_is_predicted_as_the_recipe_says_that_files_are_read(name, place, monkeypatch):
    file, text, keys = KEYS[name]
    (place / file).write_text(text(good_rows(SHAPES["single"])))
    check(SHAPES["single"], place / file, monkeypatch, list(range(ROWS)), **keys)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_file_is_predicted_in_its_encoding(encoding, place, monkeypatch):
    rows = [{**row, "note": "é"} for row in good_rows(SHAPES["single"])]
    (place / "a.csv").write_text(as_csv(rows), encoding=encoding)
    check(SHAPES["single"], place / "a.csv", monkeypatch, list(range(ROWS)), encoding=encoding)


@pytest.mark.parametrize("file", ["nested.json", "a.conll"])
def test_files_that_are_no_tables(file, place, monkeypatch):
    if file == "a.conll":
        shape = SHAPES["words"]
        words = [zip(row["tokens"], row["pos"], row["ner_tags"], strict=True) for row in good_rows(shape)]
        (place / file).write_text("\n".join("".join("\t".join(word) + "\n" for word in each) for each in words))
    else:
        shape = SHAPES["questions"]
        entries = [
            (row["context"], {"id": row["id"], "question": row["question"], "answers": _listed(row)})
            for row in good_rows(shape)
        ]
        articles = [{"title": "a", "paragraphs": [{"context": context, "qas": [entry]}]} for context, entry in entries]
        (place / file).write_text(json.dumps({"version": "1", "data": articles}))
    check(shape, place / file, monkeypatch, list(range(ROWS)))


def _listed(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}]


@pytest.mark.parametrize("name", PREDICTED)
def test_a_file_without_labels_is_predicted(name, place, monkeypatch):
    shape = SHAPES[name]
    training = assembled(shape.task, write(place / "a.jsonl", good_rows(shape)), shape.keys)
    run = finished(shape.task, place / "a.jsonl", shape.keys, training)
    labels = labels_of(shape.task, training) - {training.record["columns"].get("sentence")}
    rows = [{column: cell for column, cell in row.items() if column not in labels} for row in good_rows(shape)]
    read, answers = predicted(run, shape.task, write(place / "a.ndjson", rows), monkeypatch)
    assert read == by_row(taught(shape.task, training, training.train).inputs)
    assert len(answers) == ROWS
    assert not any("error" in answer for answer in answers)
