"""Texts come out of files as they went in, and what is wrong with a file is said with its name and line."""

import csv
import gzip
import itertools
import json
import os
import subprocess
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from llmkit.data.text import documents, findings
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.table import ReadOnly

ODD = ["NA", "null", "", "nan", "1e5", "  two  spaces ", 'a "quote"', "a, b; c\td | e", "line\nbreak", "é日😀"]


def corpus(path, seed=1, **keys):
    return documents.read_corpus(TextData(path=str(path), **keys), seed)


def texts(path, **keys):
    return list(corpus(path, **keys).train)


def mistake(path, **keys):
    with pytest.raises(UserError) as caught:
        texts(path, **keys)
    return caught.value


def write_csv(file, rows, delimiter=","):
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return file


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_parquet(file, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


# --- formats ----------------------------------------------------------------------------------------------------------


def test_plain_text_as_document_paragraphs_or_lines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\n two\n\n \nthree\r\n\r\n\nfour".encode())
    assert texts(file) == ["one\n two\n\n \nthree\n\n\nfour"]
    assert texts(file, sample_by="paragraph") == ["one\n two", "three", "four"]
    assert texts(file, sample_by="line") == ["one", " two", " ", "three", "four"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_a_text_is_what_was_written(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write_parquet(file, n=list(range(len(ODD))), text=ODD)
    elif suffix in (".csv", ".tsv"):
        write_csv(file, [("n", "text"), *enumerate(ODD)], "," if suffix == ".csv" else "\t")
    elif suffix == ".json":
        file.write_text(json.dumps([{"n": n, "text": text} for n, text in enumerate(ODD)]))
    else:
        write_lines(file, [{"n": n, "text": text} for n, text in enumerate(ODD)])
    quoting = {"quoting": "minimal"} if suffix == ".tsv" else {}  # else a field of a TSV file spans no lines
    assert texts(file, **quoting) == [text for text in ODD if text]


def test_a_null_and_a_blank_line_are_no_documents(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": null}\n\n{"text": "a"}\n   \n{"text": ""}\n')
    assert texts(file) == ["a"]
    assert texts(write_parquet(tmp_path / "a.parquet", text=[None, "a", ""])) == ["a"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_other_encodings(tmp_path, encoding, name):
    (tmp_path / name).write_bytes("text\nné\nzwei".encode(encoding))
    found = texts(tmp_path / name, encoding=encoding, sample_by="line")
    assert found == (["text"] if name == "a.txt" else []) + ["né", "zwei"]


# --- which files, which column ----------------------------------------------------------------------------------------


def test_a_folder_is_all_its_text_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "a.TXT").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / ".cache" / "a.txt").write_text("an editor's copy")
    assert texts(tmp_path) == ["one", "two", "three"]


def test_globs(tmp_path):
    for name in ("x2.txt", "x1.txt", "y.txt", "x.md"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "x*.txt") == ["x1.txt", "x2.txt"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "z.txt").write_text("z")
    assert texts(tmp_path / "**" / "*.txt") == ["z", "x1.txt", "x2.txt", "y.txt"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("bracketed")
    assert texts(tmp_path / "a[1].txt") == ["bracketed"]


def test_the_text_column_is_found_or_named(tmp_path):
    assert texts(write_csv(tmp_path / "a.csv", [("story",), ("one",)])) == ["one"]
    assert texts(write_csv(tmp_path / "b.csv", [("a", "text"), ("1", "one")])) == ["one"]
    assert texts(write_csv(tmp_path / "c.csv", [("a", "b"), ("1", "one")]), text_column="b") == ["one"]
    assert texts(write_csv(tmp_path / "d.csv", [("text", "b"), ("1", "one")]), text_column="b") == ["one"]
    assert texts(write_parquet(tmp_path / "e.parquet", a=[1], b=["one"]), text_column="b") == ["one"]


def test_of_a_parquet_file_only_the_text_is_read(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", big=[os.urandom(1000).hex() for _ in range(2000)], text=["one"] * 2000)
    raw = bytearray(file.read_bytes())
    at = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    raw[at : at + 1000] = b"\xff" * 1000  # the other column cannot be read any more
    file.write_bytes(raw)
    assert texts(file) == ["one"] * 2000


def test_data_files_name_the_splits(tmp_path):
    for name in ("a", "b", "v"):
        (tmp_path / f"{name}.txt").write_text(name)
    files = ReadOnly({"train": ["b.txt", "a.txt"], "validation": "v.txt"})
    found = corpus(tmp_path, data_files=files, validation_fraction=0.5)
    assert (list(found.train), list(found.validation)) == (["b", "a"], ["v"])
    assert found.notes == ("validation_fraction is ignored: the data has a validation split",)
    files = ReadOnly({"train": "a.txt", "mine": "v.txt"})
    assert list(corpus(tmp_path, data_files=files, validation_split="mine").validation) == ["v"]
    assert corpus(tmp_path, data_files=files).validation is None
    assert texts(tmp_path, data_files="?.txt") == ["a", "b", "v"]
    assert texts(tmp_path, data_files=["v.txt", "a.txt"]) == ["v", "a"]


def test_data_files_that_are_not_there(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert mistake(tmp_path, data_files=["a.txt", "b.txt"]).message == (
        f"data.data_files: no file matches `{tmp_path / 'b.txt'}`"
    )
    only = ReadOnly({"train": "a.txt"})
    assert mistake(tmp_path, data_files=only, split="test").message == "data.data_files has no `test`; it names train"
    assert "no `dev`" in mistake(tmp_path, data_files=only, validation_split="dev").message


def test_splits_and_names_belong_to_the_hub(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert "local files define no splits" in mistake(tmp_path / "a.txt", split="test").message
    assert "data.name is for data sets on the Hub" in mistake(tmp_path / "a.txt", name="x").message


# --- the splits of a folder -------------------------------------------------------------------------------------------


def write_files(folder, *names):
    """Files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("names", "train", "validation", "unread"),
    [
        (
            ["train.txt", "valid.txt", "test.txt", "README.md", "LICENSE.txt", "LICENCE", "dataset_infos.json"],
            ["train.txt"],
            ["valid.txt"],
            "test (test.txt), LICENCE, LICENSE.txt, README.md, dataset_infos.json",
        ),
        (
            ["Train-1.txt", "Train-2.txt", "dev.txt", "val.txt"],
            ["Train-1.txt", "Train-2.txt"],
            ["val.txt"],
            "dev (dev.txt)",
        ),
        (["train/a.txt", "train/b.txt", "validation/a.txt"], ["train/a.txt", "train/b.txt"], ["validation/a.txt"], ""),
        (["stories_train.txt", "stories_test.txt"], ["stories_train.txt"], None, "test (stories_test.txt)"),
        (["train.txt", "other.txt"], ["train.txt"], None, "other.txt"),
        (["train.txt", "README.md"], ["train.txt"], None, "README.md"),
    ],
)
def test_files_of_a_folder_are_splits_by_their_names(tmp_path, names, train, validation, unread):
    write_files(tmp_path, *names)
    found = corpus(tmp_path)
    assert list(found.train) == train
    assert (None if found.validation is None else list(found.validation)) == validation
    assert found.notes[0].startswith(f"`{tmp_path}`: ")
    assert found.notes[0].endswith(f"not read: {unread}") or not unread
    assert ("train (" in found.notes[0]) == (len(names) > 2 or "README.md" not in names)


def test_test_files_are_trained_on_by_nobody_who_does_not_ask(tmp_path):
    write_files(tmp_path, "train.txt", "test.txt")
    found = corpus(tmp_path, validation_split="test")
    assert (list(found.train), list(found.validation)) == (["train.txt"], ["test.txt"])
    assert found.notes[0] == f"`{tmp_path}`: splits by file name: train (train.txt), test (test.txt)"
    assert texts(tmp_path, split="test") == ["test.txt"]
    problem = mistake(tmp_path, validation_split="validation")
    assert problem.message == f"`{tmp_path}` has no files of a split `validation`"
    assert problem.hint.startswith("the file names give test, train")


def test_a_test_file_beside_others_that_are_no_train_file_is_not_trained_on(tmp_path):
    write_files(tmp_path, "a.txt", "test.txt")
    found = corpus(tmp_path)
    assert list(found.train) == ["a.txt"]
    assert found.notes[0].endswith("splits by file name: train (a.txt); not read: test (test.txt)")


def test_a_test_file_that_a_pattern_matches_beside_others_is_said(tmp_path):
    write_files(tmp_path, "a.txt", "test.txt")
    found = corpus(tmp_path / "*.txt")
    assert list(found.train) == ["a.txt", "test.txt"]
    assert found.notes[0].startswith(
        f"`{tmp_path / '*.txt'}`: test.txt is trained on too, though named as an evaluation"
    )
    assert corpus(tmp_path / "test.txt").notes == corpus(tmp_path / "a.txt").notes  # a file named alone is meant


def test_a_folder_of_notes_is_a_corpus(tmp_path):
    write_files(tmp_path, "a.md", "b.md")
    assert texts(tmp_path) == ["a.md", "b.md"]
    write_files(tmp_path, "README.md")
    found = corpus(tmp_path)
    assert list(found.train) == ["a.md", "b.md"]
    assert found.notes[0] == f"`{tmp_path}`: not read: README.md"
    write_files(tmp_path / "only", "README.md", "LICENSE.md")
    assert texts(tmp_path / "only") == ["LICENSE.md", "README.md"]


def test_files_of_unknown_suffixes_are_text_where_the_recipe_says_so(tmp_path):
    write_files(tmp_path, "wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens", "LICENSE")
    problem = mistake(tmp_path)
    assert problem.message == f"data.path `{tmp_path}`: no text files there"
    assert problem.hint.endswith("; for other names, set data.format")
    found = corpus(tmp_path, format="text")
    assert (list(found.train), list(found.validation)) == (["wiki.train.tokens"], ["wiki.valid.tokens"])
    assert found.notes[0].endswith("not read: test (wiki.test.tokens), LICENSE")
    assert texts(tmp_path / "wiki.test.tokens", format="text") == ["wiki.test.tokens"]


# --- line ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_end_alike_whatever_system_wrote_them(tmp_path, end, encoding, name):
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack("one\ntwo\n\nthree\n".replace("\n", end).encode(encoding)))
    expected = {
        "document": ["one\ntwo\n\nthree\n"],
        "paragraph": ["one\ntwo", "three"],
        "line": ["one", "two", "three"],
    }
    for sample_by, found in expected.items():
        assert texts(tmp_path / name, sample_by=sample_by, encoding=encoding) == found


def test_a_return_inside_a_string_is_data(tmp_path):
    assert texts(write_lines(tmp_path / "a.jsonl", [{"text": "one\r\ntwo"}])) == ["one\r\ntwo"]


# As the code of commit c1f8dd5 computed them, for "one\ntwo\n\nthree\n" with line feeds, and with \r\n.
EARLIER = {
    "document": ("4e4d024e48cf5355aa77e8ee0a05ad85", "763c63e82fc5b97a56f9a2017e92d4a7"),
    "paragraph": ("c6e420a9b5e0a013fd6a16999291dc9f", "18c020a2609c507b8050711aa92be499"),
    "line": ("59b695982a1aa7490ac4a4850968e27e", "182b653c3e3f6a7e71c7723e0e63fbd0"),
}


@pytest.mark.parametrize("sample_by", EARLIER)
def test_a_run_begun_earlier_knows_its_text_again_unless_it_is_read_otherwise(tmp_path, sample_by):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\nthree\n")
    (tmp_path / "w.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree\r\n")
    plain, returns = EARLIER[sample_by]
    assert corpus(tmp_path / "a.txt", sample_by=sample_by).train.fingerprint == plain
    found = corpus(tmp_path / "w.txt", sample_by=sample_by).train.fingerprint
    assert (found == returns) == (sample_by == "line")  # whose texts were without the line's end before, too


def test_rows_read_as_before_keep_their_fingerprint(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one\\r\\ntwo"}\n{"text": ""}\n{"text": "three"}\n')
    (tmp_path / "c.csv").write_bytes(b"id,text\r\n1,one\r\n")
    found = corpus(tmp_path / "a.jsonl", validation_fraction=0.5)
    assert found.train.fingerprint == "e132cbac7d9efa8a112fdd1836df893c"
    assert found.validation.fingerprint == "c24b03008611eb536c9755d03258294d"
    assert corpus(tmp_path / "c.csv").train.fingerprint == "79f1167b7d2af610e736b295270b06d9"


# --- again and again --------------------------------------------------------------------------------------------------


def test_documents_can_be_read_again_even_at_the_same_time(tmp_path):
    train = corpus(write_lines(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(9)])).train
    assert list(train) == list(train) == [str(n) for n in range(9)]
    assert list(zip(train, train, strict=True)) == [(str(n), str(n)) for n in range(9)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.csv.gz"])
def test_files_of_lines_are_read_in_constant_memory(tmp_path, name):
    line = "all work and no play " * 20
    row = {"a.txt": line, "a.jsonl": json.dumps({"text": line})}.get(name, line)
    content = ("text\n" if "csv" in name else "") + f"{row}\n" * 20_000
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    tracemalloc.start()
    number = sum(1 for _ in corpus(tmp_path / name, sample_by="line", validation_fraction=0.5).train)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 9_500 < number < 10_500
    assert peak < 3_000_000  # of a file of 8 MB; two pieces of 1 MB are held while it is hashed


def test_the_fingerprint_follows_the_content_and_the_way_of_reading(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo")
    before, when = corpus(file).train.fingerprint, file.stat().st_mtime_ns
    assert corpus(file).train.fingerprint == before
    assert corpus(file, sample_by="line").train.fingerprint != before
    (tmp_path / "same.txt").write_text("one\ntwo")
    assert corpus(tmp_path / "same.txt").train.fingerprint == before
    file.write_text("one\nTWO")
    os.utime(file, ns=(when, when))
    assert corpus(file).train.fingerprint != before


def test_the_fingerprint_knows_where_one_file_ends(tmp_path):
    found = set()
    for name, parts in (("x", ("ab", "c")), ("y", ("a", "bc")), ("z", ("abc",))):
        (tmp_path / name).mkdir()
        for number, part in enumerate(parts):
            (tmp_path / name / f"{number}.txt").write_text(part)
        found.add(corpus(tmp_path / name).train.fingerprint)
    assert len(found) == 3


# --- what is held out -------------------------------------------------------------------------------------------------


def lines_file(tmp_path, number=5000):
    return write_lines(tmp_path / "lines.jsonl", [{"text": str(n)} for n in range(number)])


def test_documents_are_held_out_by_seed_and_index(tmp_path):
    file = lines_file(tmp_path)
    one = corpus(file, validation_fraction=0.1)
    train, held_out = list(one.train), list(one.validation)
    assert sorted(train + held_out, key=int) == [str(n) for n in range(5000)]
    assert len(held_out) == pytest.approx(500, abs=4 * 21.3)  # four standard deviations
    assert list(corpus(file, validation_fraction=0.1).validation) == held_out
    assert list(corpus(file, seed=2, validation_fraction=0.1).validation) != held_out
    assert set(held_out) < set(corpus(file, validation_fraction=0.2).validation)
    parts = {one.train.fingerprint, one.validation.fingerprint}
    assert len(parts | {corpus(file, seed=2, validation_fraction=0.1).train.fingerprint}) == 3


def test_what_is_held_out_hangs_on_no_order_of_reading_and_no_process(tmp_path):
    file = lines_file(tmp_path, 500)
    backwards = corpus(file, validation_fraction=0.1)
    held_out = list(backwards.validation)  # before the training part is read
    train = backwards.train
    half_read = iter(train)
    next(half_read)
    assert not set(train) & set(held_out)
    code = (
        "import sys; from llmkit.data.text.documents import read_corpus;"
        "from llmkit.recipe.data_tables import TextData;"
        "print(*read_corpus(TextData(path=sys.argv[1], validation_fraction=0.1), 1).validation)"
    )
    other = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert other.stdout.split() == held_out


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.05, 0.9, 1 / 3])
@pytest.mark.parametrize("lengths", [(1000,), (10,), (3, 0, 400, 500, 7), (1,) * 90, (900, 100), (901, 99)])
def test_the_texts_end_is_held_out_to_the_character(tmp_path, fraction, lengths):
    letters = itertools.cycle("abcdefghijklmnopqrstuvwxyzé\n")
    parts = ["".join(itertools.islice(letters, length)) for length in lengths]
    file = write_lines(tmp_path / "a.jsonl", [{"text": part} for part in parts])
    found = corpus(file, validation_fraction=fraction, validation_from="end")
    train, held_out = "".join(found.train), "".join(found.validation)
    assert train + held_out == "".join(parts)
    assert "" not in [*found.train, *found.validation]
    exact = sum(lengths) * fraction
    assert exact - 1e-9 <= len(held_out) < exact + 1 - 1e-9


def test_the_last_tenth_is_nanogpts(tmp_path):
    text = "x" * 1_115_394  # as many characters as nanoGPT's Shakespeare has
    (tmp_path / "a.txt").write_text(text)
    found = corpus(tmp_path / "a.txt", validation_fraction=0.1, validation_from="end")
    assert (len("".join(found.train)), len("".join(found.validation))) == (1_003_854, 111_540)


def test_a_fraction_that_holds_out_none_is_said(tmp_path):
    found = corpus(lines_file(tmp_path, 5), validation_fraction=0.001)
    assert found.validation is None
    assert len(list(found.train)) == 5
    assert found.notes == (
        "no validation data: validation_fraction = 0.001 holds out none of 5 documents; raise it, or set "
        "data.validation_from = end",
    )


def test_no_validation_data_is_said(tmp_path):
    found = corpus(lines_file(tmp_path, 3))
    assert found.validation is None
    assert found.notes == ("no validation data: set data.validation_fraction to hold some out",)


# --- what is wrong, and where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
def test_text_that_is_not_utf8(tmp_path, sample_by):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\ncaf" + b"\xe9\nlast")
    found = mistake(tmp_path / "a.txt", sample_by=sample_by)
    assert found.message == f"`{tmp_path / 'a.txt'}`, line 4: byte 0xe9 is not utf-8"
    assert "data.encoding" in found.hint


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_is_not_there(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        write_csv(file, [("id", "story"), ("1", "one")])
    elif suffix == ".jsonl":
        write_lines(file, [{"id": 1, "story": "one"}])
    else:
        write_parquet(file, id=[1], story=["one"])
    found = mistake(file, text_column="txt")
    assert found.message == f"`{file}` has no column `txt`"
    assert found.hint == "set data.text_column to one of: id, story"
    assert mistake(file).message == f"`{file}`: which column is the text?"
    assert mistake(file).hint == "set data.text_column to one of: id, story"


def said(path, **keys):
    """The texts, and the notes on the way they were read, which a reading to the end completes."""
    train = corpus(path, **keys).train
    return list(train), list(train.findings.notes)


def test_a_row_without_the_column_is_left_out_and_said(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"id": 1, "txt": "two"}, {"text": "three"}])
    left_out = [
        f"not used: `id`, `txt`, such as in `{file}`, line 2",
        f"1 row left out: no `text`, such as `{file}`, line 2",
    ]
    assert said(file) == (["one", "three"], left_out)


def test_half_a_character_is_left_out_and_said(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    assert said(file) == (["😀"], [f"1 row left out: half a character, such as `{file}`, line 2"])


def test_what_is_no_text_is_left_out_up_to_a_share(tmp_path):
    rows = [{"text": 5 if n % 10 == 3 else f"text {n}"} for n in range(100)]
    file = write_lines(tmp_path / "a.jsonl", rows)
    problem = mistake(file)
    assert problem.message == f"`{file}`: 10 of 100 rows cannot be used: no text in `text`"
    assert problem.hint.endswith("to leave them out: data.max_skipped_fraction = 0.1")
    assert problem.details[0] == f"`{file}`, line 4: column `text` holds int, not text"
    found, notes = said(file, max_skipped_fraction=0.1)
    assert len(found) == 90
    assert notes == [f"10 rows left out: no text in `text`, such as `{file}`, line 4"]


def test_a_column_of_numbers_is_not_read_to_its_end(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": n} for n in range(5000)])
    assert mistake(file).message == f"`{file}`: 100 of 100 rows cannot be used: no text in `text`"


def test_rows_without_a_text_are_counted_and_no_limit_is_set_to_them(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}, *[{"text": ""}, {"text": None}] * 10])
    assert said(file) == (["one"], [f"20 rows left out: empty text, such as `{file}`, line 2"])


def test_the_column_may_be_written_in_another_case_or_stand_inside_another(tmp_path):
    assert texts(write_csv(tmp_path / "a.csv", [("id", " Text "), ("1", "one")])) == ["one"]
    assert texts(write_csv(tmp_path / "b.csv", [("ID", "Story"), ("1", "one")]), text_column="story") == ["one"]
    nested = [{"id": 1, "data": {"text": "one", "date": "today"}}]
    assert texts(write_lines(tmp_path / "c.jsonl", nested), text_column="data.text") == ["one"]
    assert texts(write_parquet(tmp_path / "d.parquet", id=[1], data=[nested[0]["data"]]), text_column="data.text") == [
        "one"
    ]
    own = [{"data.text": "its own", "data": {"text": "one"}}]
    assert texts(write_lines(tmp_path / "e.jsonl", own), text_column="data.text") == ["its own"]


def test_the_columns_that_are_not_used_are_known(tmp_path):
    write_csv(tmp_path / "a.csv", [("id", "text", "label"), ("1", "one", "x")])
    write_parquet(tmp_path / "b.parquet", id=[1], text=["two"], label=["x"])
    train = corpus(tmp_path).train
    assert list(train) == ["one", "two"]
    assert findings.lines([train.findings]) == ["column `text` is the text, not used: `id`, `label`"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", ""), ("a.txt", "\ufeff"), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "id,text\n")],
)
def test_nothing_to_read(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content)
    found = mistake(file)
    assert found.message == f"`{file}`: there is no text in it"
    assert found.hint == "is it empty, or a header without rows?"


def test_an_empty_parquet_file(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", text=pyarrow.array([], pyarrow.string()))
    assert mistake(file).message == f"`{file}`: there is no text in it"


def test_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    found = mistake(tmp_path)
    assert found.message == f"data.path `{tmp_path}`: no text files there"
    assert ".parquet" in found.hint
    assert mistake(tmp_path / "*.txt").message == f"data.path `{tmp_path / '*.txt'}`: no text files there"
    assert mistake(tmp_path / "a.png").message == f"`{tmp_path / 'a.png'}`: llmkit does not read `.png` files"


def test_a_column_of_something_else_than_text(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", text=[b"one"])
    found = mistake(file)
    assert found.message == f"`{file}`: 1 of 1 rows cannot be used: no text in `text`"
    assert found.details == (f"`{file}`, row 1: column `text` holds bytes, not text",)
    assert found.hint == "set data.text_column to the column with the text"


# --- data sets through the Hub's client -------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets(tmp_path, monkeypatch, streaming):
    """The road of a Hub data set, as far as it can be gone without the Hub: upstream's own Parquet builder."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    train = str(write_parquet(tmp_path / "t.parquet", id=[1, 2, 3], text=["one", "", "three"]))
    held_out = str(write_parquet(tmp_path / "v.parquet", id=[1], text=["two"]))
    files = ReadOnly({"train": train, "validation": held_out})
    found = corpus("parquet", data_files=files, streaming=streaming)
    assert list(found.train) == list(found.train) == ["one", "three"]
    assert list(found.validation) == ["two"]
    assert found.train.fingerprint == corpus("parquet", data_files=files, streaming=streaming).train.fingerprint
    swapped = ReadOnly({"train": held_out, "validation": train})
    other = corpus("parquet", data_files=swapped, streaming=streaming)
    assert list(other.train) == ["two"]
    assert other.train.fingerprint != found.train.fingerprint
    found = mistake("parquet", data_files=files, streaming=streaming, text_column="txt")
    assert found.message == "`parquet` (split train) has no column `txt`"
    assert found.hint == "did you mean `text`? set data.text_column to one of: id, text"
    found = mistake("parquet", data_files=files, streaming=streaming, text_column="id")
    assert found.message == "`parquet` (split train): 3 of 3 rows cannot be used: no text in `id`"
    assert found.details[0] == "`parquet` (split train), row 1: column `id` holds int, not text"
