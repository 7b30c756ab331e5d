"""What the command says to bad data: exit code 2, one error that names the file and the row, a hint, nothing written.

A bad input is a file in `bad_inputs/`, or one that is made here where it is binary. What is odd and not bad stands at
the end: it is read as it was written, and remarked upon.
"""

import gzip
import io
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import CAUSAL, MASKED, corpus

from llmkit import recipe
from llmkit.data.rows import examples, splits, summary
from llmkit.data.rows.reader import reader_of
from llmkit.data.text.documents import read_corpus
from llmkit.recipe.data_tables import (
    AnsweringData,
    ChatData,
    ChoiceData,
    ClassificationData,
    PairData,
    TaggingData,
    TextData,
)
from llmkit.recipe.table import ReadOnly
from llmkit.training.assemble import assemble

BAD = Path(__file__).parent / "bad_inputs"
ROWS = """[data]
path = "rows.csv"
validation_fraction = 0.2
[trainer]
max_steps = 1
per_device_train_batch_size = 8
"""
T5 = """task = "seq2seq"
[model.config]
model_type = "t5"
d_model = 16
d_kv = 8
d_ff = 32
num_layers = 1
num_heads = 2
[tokenizer]
type = "wordpiece"
vocab_size = 200
"""
ENCODER, DECODER = MASKED.split("[data]")[0], CAUSAL.split("[data]")[0]
TASKS = {
    **{
        task: ENCODER.replace("masked-lm", task) + ROWS
        for task in ("text-classification", "token-classification", "question-answering", "multiple-choice")
    },
    "chat": DECODER.replace("causal-lm", "chat") + ROWS,
    "seq2seq": T5 + ROWS,
}
COLUMNS = "set data.text_column to one of: txt, label"
EMPTY = "is it empty, or a header without rows?"
WINDOWS = "set data.encoding (Windows files are often cp1252, Chinese ones gb18030)"
DAMAGED = "copy or download it again"
WHOLE = "check that it exists, is complete, and that you may read it"


def good(number=12):
    return [{"text": f"the tale {i} of the fox", "label": ("sad", "happy")[i % 2]} for i in range(number)]


def as_csv(rows):
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_parquet(**columns):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def not_utf8():
    """Text that Arrow holds and Python cannot read: the second of three."""
    ends = np.array([0, 3, 7, 10], np.int32)
    values = pyarrow.py_buffer(b"onecaf\xe9two")
    return pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(ends), values)


PARQUET = as_parquet(text=[row["text"] for row in good()] * 20, label=[row["label"] for row in good()] * 20)
MADE = {
    "utf16.txt": corpus(20).encode("utf-16"),
    "utf16.csv": as_csv(good()).encode("utf-16"),
    "utf16.jsonl": as_lines(good()).encode("utf-16"),
    "unmarked.csv": as_csv(good()).encode("utf-16-le"),
    "unmarked.jsonl": as_lines(good()).encode("utf-16-le"),
    "packed.txt": gzip.compress(corpus(20).encode()),
    "packed.csv": gzip.compress(as_csv(good()).encode()),
    "workbook.csv": b"PK\x03\x04\x14\x00\xff\xff",
    "truncated.txt.gz": gzip.compress(corpus(20).encode())[:-9],
    "truncated.csv.gz": gzip.compress(as_csv(good()).encode())[:-9],
    "truncated.jsonl.gz": gzip.compress(as_lines(good()).encode())[:-9],
    "plain.jsonl.gz": as_lines(good()).encode(),
    "truncated.jsonl.zst": b"\x28\xb5\x2f\xfd\x04\x00",
    "nameless": as_csv(good()).encode(),
    "truncated.parquet": PARQUET[:-30],
    "zeros.parquet": b"PAR1" + b"\0" * 200 + PARQUET[204:],
    "empty.parquet": b"",
    "no_rows.parquet": as_parquet(text=pyarrow.array([], pyarrow.string()), label=pyarrow.array([], pyarrow.string())),
    "column.parquet": as_parquet(txt=["one"] * 12, label=["sad", "happy"] * 6),
    "number.parquet": as_parquet(text=[1] * 12, label=["sad", "happy"] * 6),
    "bytes.parquet": as_parquet(text=not_utf8(), label=["sad", "happy", "sad"]),
    "label_null.parquet": as_parquet(text=["one"] * 12, label=["sad", "happy", None, "sad"] * 3),
    "label_float.parquet": as_parquet(text=["one"] * 12, label=[0.5, 1.5] * 6),
    "deep.jsonl": as_lines(good(3)).encode() + b'{"text": "one", "label": ' + b"[" * 100_000 + b"\n",
}

# ---- what both read: (words, the end of the message behind the file's name, the hint) --------------------------------

EVERYWHERE = {
    "column.csv": (["data.text_column=text"], " has no column `text`", f"did you mean `txt`? {COLUMNS}"),
    "column.jsonl": (["data.text_column=text"], " has no column `text`", f"did you mean `txt`? {COLUMNS}"),
    "column.parquet": (["data.text_column=text"], " has no column `text`", f"did you mean `txt`? {COLUMNS}"),
    "empty.csv": ([], ": there ", EMPTY),
    "empty.jsonl": ([], ": there ", EMPTY),
    "empty.parquet": ([], ": not a complete Parquet file (Parquet file size is 0 bytes)", DAMAGED),
    "no_rows.parquet": ([], ": there ", EMPTY),
    "blank.csv": ([], ": there ", EMPTY),
    "blank.jsonl": ([], ": there ", EMPTY),
    "header.csv": ([], ": there ", EMPTY),
    "latin.csv": ([], ", line 4: byte 0xe9 is not utf-8", WINDOWS),
    "latin.jsonl": ([], ", line 4: byte 0xe9 is not utf-8", WINDOWS),
    "utf16.csv": ([], ", line 1: byte 0xff is not utf-8", 'it looks like UTF-16: set data.encoding = "utf-16"'),
    "utf16.jsonl": ([], ", line 1: byte 0xff is not utf-8", 'it looks like UTF-16: set data.encoding = "utf-16"'),
    "unmarked.csv": ([], ", line 1: NUL bytes in the column names", 'data.encoding = "utf-16-le"'),
    "unmarked.jsonl": ([], ", line 1: not JSON", 'data.encoding = "utf-16-le"'),
    "packed.csv": ([], ", line 1: byte 0x8b is not utf-8", "it looks like a gzip file: rename it to end in .gz"),
    "workbook.csv": ([], ", line 1: byte 0xff is not utf-8", "a ZIP archive or an Excel workbook"),
    "carriage_returns.csv": ([], ", line 1: a carriage return inside an unquoted field", "convert them to line feeds"),
    "same_names.csv": ([], ", line 1: 2 columns are called `text`", "give every column a unique name"),
    "number.parquet": ([], ", row 1: column `text` holds int, not text", "data.text_column"),
    "bytes.parquet": ([], ", row 2: 'utf-8' codec can't decode byte 0xe9", "fix the row"),
    "array.jsonl": ([], ", line 1: expected an object, found list", "write a row as an object with its columns"),
    "same_keys.json": ([], ": the key `text` occurs twice in one object", "one object per line"),
    "half_a_list.json": ([], ": not JSON (Expecting ',' delimiter: line 2 column 16", "fix it there"),
    "truncated.csv.gz": ([], " cannot be read: Compressed file ended before the end-of-stream marker", WHOLE),
    "truncated.jsonl.gz": ([], " cannot be read: Compressed file ended before the end-of-stream marker", WHOLE),
    "plain.jsonl.gz": ([], " cannot be read: Not a gzipped file", WHOLE),
    "truncated.jsonl.zst": ([], " cannot be read: Truncated compressed stream", WHOLE),
    "nameless": ([], ": its name does not show its format", "llmkit reads files that end in .txt"),
    "truncated.parquet": ([], ": not a complete Parquet file", DAMAGED),
    "zeros.parquet": ([], ": not a complete Parquet file", DAMAGED),
}
TEXT = {
    "empty.txt": ([], ": there is no text in it", EMPTY),
    "blank.txt": (["data.sample_by=line"], ": there is no text in it", EMPTY),
    "no_text.csv": ([], ": there is no text in it", EMPTY),
    "latin.txt": ([], ", line 2: byte 0xe9 is not utf-8", WINDOWS),
    "utf16.txt": ([], ", line 1: byte 0xff is not utf-8", 'it looks like UTF-16: set data.encoding = "utf-16"'),
    "packed.txt": ([], ", line 1: byte 0x8b is not utf-8", "it looks like a gzip file: rename it to end in .gz"),
    "truncated.txt.gz": ([], " cannot be read: Compressed file ended before the end-of-stream marker", WHOLE),
    "half_a_character.jsonl": ([], ", line 4: `text` holds half a character (\\ud83d)", "fix the row"),
}
CLASSES = {
    "empty.txt": ([], ": a text file has no columns", "rows are read from files that end in .jsonl"),
    "no_text.csv": (
        ["data.validation_fraction="],
        ": no row of the train data has text",
        "is it the right column?",
    ),
    "label_negative.csv": (
        [],
        ": 4 of 12 rows have the label -1: is it a class, or no label?",
        'if a class, data.label_names = ["-1", "0", "1"]; if no label, leave these rows out: data.label_names = '
        '["0", "1"] and data.max_skipped_fraction = 0.34',
    ),
    "label_float.csv": ([], ", line 2: label 0.5 is a float, where a class is expected", "data.problem_type"),
    "label_float.parquet": ([], ", row 1: label 0.5 is a float, where a class is expected", "data.problem_type"),
    "label_one.csv": ([], ": every row has the label sad: there is nothing to learn", "is it the wrong column"),
    "column.csv": (
        ["data.label_column=labels"],
        " has no column `labels`",
        "did you mean `label`? set data.label_column",
    ),
}
LANGUAGES = ["data.source_lang=de", "data.target_lang=en"]
# One row in each is left out (or mended): why, such as line 4.
IN_ROWS = {
    "text-classification": {
        "label_nan.jsonl": ([], "left out: no label"),
        "label_missing.csv": ([], "left out: no label"),
        "label_missing.jsonl": ([], "left out: no label"),
        "label_null.jsonl": ([], "left out: no label"),
        "label_mixed.jsonl": ([], "left out: a number among names"),
    },
    "token-classification": {
        "tags_few.jsonl": ([], "left out: words and tags differ in number"),
        "tags_null.jsonl": ([], "left out: not a list of words or tags"),
        "tags_word.jsonl": ([], "left out: not a list of words or tags"),
        "tags_columns.conll": ([], "left out: a line with more or fewer columns"),
    },
    "question-answering": {
        "answer_elsewhere.jsonl": ([], "mended: `answer_start` was wrong; the answer occurs once elsewhere"),
        "answer_nowhere.jsonl": ([], "left out: answer not in its context"),
        "answer_lengths.jsonl": ([], "left out: answers that cannot be read"),
        "answer_no_context.jsonl": ([], "left out: no `context`"),
    },
    "chat": {
        "chat_turns.jsonl": ([], "left out: roles out of turn"),
        "chat_roles.jsonl": ([], "left out: unknown role"),
        "chat_empty.jsonl": ([], "left out: empty answer"),
        "chat_number.jsonl": ([], "left out: a message is not text"),
    },
    "seq2seq": {
        "pair_empty.jsonl": ([], "left out: empty target"),
        "pair_missing.jsonl": ([], "left out: no `target`"),
        "pair_number.jsonl": ([], "left out: no text in `source`"),
        "pair_no_table.jsonl": (LANGUAGES, "left out: no `translation.de`"),
    },
    "multiple-choice": {
        "choice_range.jsonl": ([], "left out: the answer is not one of the choices"),
        "choice_one.jsonl": ([], "left out: fewer than two choices"),
        "choice_none.jsonl": ([], "left out: no answer"),
    },
}
DATA_OF = {
    "text-classification": ClassificationData,
    "token-classification": TaggingData,
    "question-answering": AnsweringData,
    "chat": ChatData,
    "seq2seq": PairData,
    "multiple-choice": ChoiceData,
}
# Of these files one row cannot be read or is no text, and a run goes on without it: what it says.
LEFT_OUT = {
    "many_fields.csv": "missing or extra fields",
    "few_fields.csv": "missing or extra fields",
    "open_quote.csv": "a quote that is not closed",
    "half_an_object.jsonl": "not JSON",
    "same_keys.jsonl": "a repeated key in one object",
    "text.jsonl": "not an object",
    "item.json": "not an object",
    "deep.jsonl": "nested too deeply",
    "nan.jsonl": "no text in `text`",
    "number.jsonl": "no text in `text`",
    "no_key.jsonl": "no `text`",
    "no_keys.jsonl": "no `text`",
    "half_a_character.jsonl": "half a character",
}
PRETRAINING = {name: case for name, case in {**EVERYWHERE, **TEXT}.items() if name not in LEFT_OUT}
FINETUNING = [
    *(("text-classification", name, *EVERYWHERE[name]) for name in EVERYWHERE),
    *(("text-classification", name, *CLASSES[name]) for name in CLASSES),
]


@pytest.fixture
def place(workplace):
    """A recipe for each task, and the files that are made."""
    for task, text in TASKS.items():
        (workplace / f"{task}.toml").write_text(text)
    for name, content in MADE.items():
        (workplace / name).write_bytes(content)
    return workplace


def contents(*folders):
    return {file: file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def refused(place, llmkit):
    """Run a command that must be refused, in words and with nothing written; its error and its hint."""

    def run(*words):
        before = contents(place, BAD)
        done = llmkit(*words)
        assert done.exit_code == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr
        assert contents(place, BAD) == before
        assert not (place / "runs").exists()
        error, _, hint = done.stderr.partition("\nhint: ")
        return error, hint

    return run


def where(name, place):
    return place / name if name in MADE else BAD / name


@pytest.mark.parametrize("name", PRETRAINING)
def test_bad_text_is_refused_where_it_stands(name, place, refused):
    words, said, remedy = PRETRAINING[name]
    file = where(name, place)
    error, hint = refused("pretrain", "causal.toml", f"data.path={file}", *words)
    assert f"`{file}`{said}" in error
    assert remedy in hint


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_row_that_cannot_be_read_is_left_out_aloud(name, place):
    file = where(name, place)
    last = "item 13" if name == "item.json" else "line 4"
    said = f"1 row left out: {LEFT_OUT[name]}, such as `{file}`, {last}"
    read = read_corpus(TextData(path=str(file), text_column="text"), 0).train
    assert len(list(read)) > 1
    assert list(read.findings.notes) == [said]
    if name != "half_a_character.jsonl":  # its rows have no labels
        assert said in splits.tables(ClassificationData(path=str(file)), 0, reader_of("text-classification")).notes


@pytest.mark.parametrize(
    ("task", "name", "words", "said", "remedy"), FINETUNING, ids=[f"{task}-{name}" for task, name, *_ in FINETUNING]
)
def test_a_bad_row_is_refused_where_it_stands(task, name, words, said, remedy, place, refused):
    file = where(name, place)
    error, hint = refused("finetune", f"{task}.toml", f"data.path={file}", *words)
    assert f"`{file}`{said}" in error
    assert remedy in hint


@pytest.mark.parametrize(
    ("task", "name", "words", "said"),
    [(task, name, *each) for task, of in IN_ROWS.items() for name, each in of.items()],
)
def test_a_row_that_cannot_be_used_is_left_out_aloud(task, name, words, said):
    keys = dict(word.removeprefix("data.").split("=") for word in words)
    data = DATA_OF[task](path=str(BAD / name), **keys)
    found = splits.tables(data, 0, reader_of(task))
    assert f"1 row {said}, such as `{BAD / name}`, line {5 if name.endswith('.conll') else 4}" in found.notes


# Files that are read whole: what is said of them.
ODD = {
    "label_gap.csv": (ClassificationData, ()),  # 0, 1 and 3 are classes
    "label_column.csv": (
        ClassificationData,
        ("column `mood` is taken for the label; data.label_column names another",),
    ),
    "label_null.parquet": (ClassificationData, ("3 rows left out: no label, such as `{}`, row 3",)),
    "tags_ignored.jsonl": (TaggingData, ()),  # -100 is no tag, as in transformers
}


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_is_odd_and_not_bad_is_read(name, place):
    file, (table_of, said) = where(name, place), ODD[name]
    task = "token-classification" if table_of is TaggingData else "text-classification"
    found = splits.tables(table_of(path=str(file)), 0, reader_of(task))
    assert found.train is not None
    assert len(list(found.train)) == (9 if name.endswith(".parquet") else 13 if table_of is TaggingData else 12)
    assert [note for note in found.notes if "validation data" not in note] == [line.format(file) for line in said]


def test_every_bad_file_is_used():
    left_out = (name for of in IN_ROWS.values() for name in of)
    used = {
        *ODD,
        *PRETRAINING,
        *LEFT_OUT,
        *left_out,
        *(name for _, name, *_ in FINETUNING),
        "missing_words.csv",
        "semicolons.csv",
    }
    assert used == {*MADE, *(file.name for file in BAD.iterdir())}


# ---- which files -----------------------------------------------------------------------------------------------------

VERBS = (("pretrain", "causal.toml"), ("finetune", "text-classification.toml"))


@pytest.mark.parametrize("verb", VERBS, ids=["pretrain", "finetune"])
def test_a_path_that_is_not_there(verb, place, refused):
    error, _ = refused(*verb, "data.path=none.csv")
    assert f"data.path: there is no file or folder {place / 'none.csv'}, taken relative to the working dir" in error


@pytest.mark.parametrize("verb", VERBS, ids=["pretrain", "finetune"])
def test_a_link_to_nothing(verb, place, refused):
    (place / "folder").mkdir()
    (place / "folder/good.csv").write_text(as_csv(good()))
    (place / "folder/link.csv").symlink_to("gone.csv")
    for path in ("folder", "folder/*.csv"):  # the others are not taken for all there is
        error, hint = refused(*verb, f"data.path={path}")
        assert f"`{place / 'folder/link.csv'}` is a link to `gone.csv`, which does not exist" in error
        assert hint.startswith("fix or remove the link")
    error, _ = refused(*verb, "data.path=folder/link.csv")
    assert f"there is no file or folder {place / 'folder/link.csv'}" in error


@pytest.mark.parametrize("verb", VERBS, ids=["pretrain", "finetune"])
def test_a_folder_where_a_file_is_meant(verb, place, refused):
    (place / "rows.csv").mkdir()
    error, hint = refused(*verb, "data.path=rows.csv")
    assert f"data.path `{place / 'rows.csv'}`: no {'text' if verb[0] == 'pretrain' else 'data'} files there" in error
    assert "llmkit reads files that end in" in hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("verb", VERBS, ids=["pretrain", "finetune"])
def test_a_file_that_one_may_not_read(verb, place, llmkit):
    (place / "mine.csv").write_text(as_csv(good()))
    (place / "mine.csv").chmod(0)
    done = llmkit(*verb, "data.path=mine.csv")
    assert done.exit_code == 2, done.stderr
    assert f"error: `{place / 'mine.csv'}` cannot be read: Permission denied\nhint: {WHOLE}" in done.stderr
    assert not (place / "runs").exists()


# ---- labels and tokens that the model cannot have --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said", "remedy"),
    [
        (
            ["model.config.vocab_size=100"],
            "has 300 tokens, but the model has embeddings for only 100",
            "model.config.vocab_size",
        ),
        (["data.block_size=64"], "data.block_size = 64 is more than the 32 positions", "make the block smaller"),
    ],
)
def test_tokens_that_the_model_has_no_room_for(words, said, remedy, refused):
    error, hint = refused("pretrain", "causal.toml", *words)
    assert said in error
    assert remedy in hint


def test_a_row_longer_than_the_model_has_positions(place, refused):
    (place / "rows.csv").write_text(as_csv(good()))
    error, hint = refused("finetune", "text-classification.toml", "data.max_length=64")
    assert "data.max_length = 64 is more than the 32 positions" in error
    assert hint.startswith("lower data.max_length")


def test_a_tokenizer_that_is_not_the_models(base, place, llmkit):
    words = ["tokenizer.vocab_size=400", "trainer.max_steps=1", "--output-dir", "other"]
    assert llmkit("pretrain", "causal.toml", *words).exit_code == 0
    (place / "rows.csv").write_text(as_csv(good()))
    words = ["model.config=", "tokenizer=", f"model.name={base}", "tokenizer.name=other"]
    done = llmkit("finetune", "text-classification.toml", *words)
    assert done.exit_code == 2, done.stderr
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    assert re.match(
        rf"error: the tokenizer has \d+ tokens, but the model has embeddings for only {size}\n", done.stderr
    )
    assert "use the tokenizer that belongs to the model" in done.stderr
    assert not (place / "runs").exists()


@pytest.mark.parametrize("split", ["training", "validation"])
def test_no_supervised_tokens_in_a_split(split, place, refused):
    short = [{"prompt": f"who {i}?", "completion": f"the fox {i}"} for i in range(8)]
    long = [{"prompt": f"who {i}? " * 50, "completion": f"the fox {i}"} for i in range(8)]
    (place / "a.jsonl").write_text(as_lines(long if split == "training" else short))
    (place / "b.jsonl").write_text(as_lines(long if split == "validation" else short))
    files = 'data.data_files={train="a.jsonl", validation="b.jsonl"}'
    error, hint = refused("finetune", "chat.toml", "data.path=.", files)
    file = "a.jsonl" if split == "training" else "b.jsonl"
    assert f"{file}`: no supervised tokens in the {split} data: in all 8 rows, the answers begin after" in error
    assert hint.startswith("raise data.max_length")


def test_more_classes_than_the_model_has(place, llmkit):
    (place / "rows.csv").write_text(as_csv(good()))
    assert llmkit("finetune", "text-classification.toml", "--output-dir", "run").exit_code == 0
    (place / "odd.csv").write_text(as_csv([*good(), {"text": "one", "label": "odd"}]))
    before = contents(place)
    done = llmkit("evaluate", "run", "text-classification.toml", "data.path=odd.csv", "data.validation_fraction=")
    assert done.exit_code == 0, done.stderr
    said = "1 row has a label that the model does not know (odd (1)) and counts as wrong, such as"
    assert f"{said} `{place / 'odd.csv'}`, line 14; the classes are happy, sad" in done.stderr
    assert contents(place) == before


def test_half_precision_is_not_used_where_it_is_slow(place, llmkit, monkeypatch):
    from llmkit.training import arguments

    monkeypatch.setattr(arguments, "has_fast_bf16", lambda: False)
    done = llmkit("pretrain", "causal.toml", "trainer.bf16=true", "trainer.use_cpu=true", "trainer.max_steps=1")
    assert done.exit_code == 0, done.stderr
    assert "trainer.bf16 is set, but this hardware is not fast at it" in done.stderr
    assert json.loads((place / "runs/causal/run.json").read_text())["precision"] == "fp32"


# ---- what is odd, and read as it was written -------------------------------------------------------------------------


def test_no_word_is_taken_for_a_gap_or_a_number(place):
    data = ["validation_fraction=", f"path={BAD / 'missing_words.csv'}", "text_column=text"]
    made = assemble(recipe.load("causal.toml", [f"data.{word}" for word in data]), 42)
    text = made.tokenizer.decode(made.train.tokens.ids)
    for word in ("NA", "null", "None", "007", "1e5", "1.0"):
        assert text.split("<|endoftext|>").count(word) == 4
    made = assemble(recipe.load("text-classification.toml", [f"data.{word}" for word in data]), 42)
    assert made.record["data"]["train"]["balance"] == {"NA": 8, "None": 8, "null": 8}
    assert made.record["data"]["train"]["empty_rows"] == 0


def test_a_semicolon_sets_fields_apart(place):
    words = [f"data.path={BAD / 'semicolons.csv'}", "data.validation_fraction="]
    made = assemble(recipe.load("causal.toml", [*words, "data.text_column=text"]), 42)
    assert made.tokenizer.decode(made.train.tokens.ids).startswith("the tale 0 of the fox<|endoftext|>the tale 1")
    made = assemble(recipe.load("text-classification.toml", words), 42)
    assert made.record["data"]["train"]["balance"] == {"happy": 6, "sad": 6}


@pytest.mark.parametrize(("task", "name"), [("causal", "a.txt"), ("causal", "a.csv"), ("text-classification", "a.csv")])
def test_nul_bytes_are_read_and_remarked_upon(task, name, place):
    plain = corpus() if name == "a.txt" else as_csv(good(60))
    (place / name).write_text(plain.replace("fox", "f\0x"))
    words = [f"data.path={name}", *(["data.text_column=text"] if name == "a.csv" else [])]
    made = assemble(recipe.load(f"{task}.toml", words), 42)
    (remark,) = [note for note in made.notes if "NUL" in note]
    count = plain.count("fox")
    assert remark.startswith(f"`{place / name}` holds {count} NUL bytes, read as they are; if it is UTF-16, set data.")
    if task == "causal":
        assert "f\0x" in made.tokenizer.decode(made.train.tokens.ids)
    assert not any("NUL" in note for note in assemble(recipe.load("masked.toml", []), 42).notes)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_line_of_25_megabytes_is_a_text(name, tmp_path):
    long = "the fox met " * (25_000_000 // 12)
    rows = [{"text": long, "label": "sad"}, *good()]
    made = {".txt": lambda rows: "".join(f"{row['text']}\n" for row in rows), ".csv": as_csv, ".jsonl": as_lines}
    (tmp_path / name).write_text(made[Path(name).suffix](rows))
    read = read_corpus(TextData(path=str(tmp_path / name), sample_by="line", text_column="text"), 0)
    lengths = [len(text) for text in read.train]
    assert lengths == [len(row["text"]) for row in rows]


def test_of_a_row_of_25_megabytes_the_beginning_is_read(base, place, llmkit, monkeypatch):
    monkeypatch.setattr(examples, "LONGEST_TEXT", 2**16)
    monkeypatch.setattr(summary, "HUGE", 10_000)
    rows = [*good(30), {"text": "the fox met " * (25_000_000 // 12), "label": "sad"}]
    (place / "rows.csv").write_text(as_csv(rows))
    words = [f"model.name={base}", "model.config=", "tokenizer=", "data.validation_fraction="]
    done = llmkit("finetune", "text-classification.toml", *words)
    assert done.exit_code == 0, done.stderr
    found = json.loads((place / "runs/text-classification/run.json").read_text())["data"]["train"]
    assert found["rows"] == 31
    assert found["truncated_rows"] == 1
    assert 10_000 < found["lengths"]["max"] < 2**16
    assert f"`{place / 'rows.csv'}`, line 32 has {found['lengths']['max']:,} tokens or more: is it" in done.stderr


def test_the_beginning_of_a_text_holds_the_tokens_that_are_kept(monkeypatch):
    monkeypatch.setattr(examples, "LONGEST_TEXT", 10)
    assert examples.beginning("a" * 100, 0) == "a" * 10
    assert examples.beginning("a" * 100, 2) == "a" * 32
    assert examples.beginning("abc", 2) == "abc"


# ---- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_changed_rows_are_noticed_though_their_time_stamp_is_not(name, place):
    def write(label):
        rows = [{**row, "label": label if row["label"] == "sad" else "fine"} for row in good()]
        columns = {key: [row[key] for row in rows] for key in ("text", "label")}
        made = {"csv": as_csv, "jsonl": as_lines, "parquet": lambda rows: as_parquet(**columns)}[name.split(".")[1]]
        content = made(rows)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return (place / name).stat()

    begin = partial(recipe.load, "text-classification.toml", [f"data.path={name}", "data.validation_fraction="])
    before = write("grim")
    first = assemble(begin(), 42)
    write("dull")
    os.utime(place / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (place / name).stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    second = assemble(begin(), 42)
    assert first.record["data"]["train"]["balance"] == {"fine": 6, "grim": 6}
    assert second.record["data"]["train"]["balance"] == {"dull": 6, "fine": 6}
    assert first.record["data"]["fingerprint"] != second.record["data"]["fingerprint"]


def test_a_damaged_cache_of_upstreams_is_made_again(place, monkeypatch, capsys):
    """Through upstream's own Parquet builder, the part of a Hub data set's road that needs no Hub."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    (place / "rows.parquet").write_bytes(PARQUET)
    data = ClassificationData(path="parquet", data_files=ReadOnly({"train": str(place / "rows.parquet")}))
    rows = list(splits.tables(data, 0, reader_of("text-classification")).train)
    assert len(rows) == 240
    (cached,) = (place / "cache").rglob("*.arrow")
    whole = cached.read_bytes()
    cached.unlink()  # a new file: the first is still in this process's memory
    cached.write_bytes(whole[: len(whole) // 2])
    assert list(splits.tables(data, 0, reader_of("text-classification")).train) == rows
    assert "the cache of `parquet` is damaged" in capsys.readouterr().err
    assert list(splits.tables(data, 0, reader_of("text-classification")).train) == rows
    assert capsys.readouterr().err == ""
