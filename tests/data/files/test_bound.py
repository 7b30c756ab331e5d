"""A document, or a line of rows, that memory has no room for is refused in words before it is read."""

import bz2
import gzip
import json
import lzma
import re
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from llmkit.data import files
from llmkit.data.files import lines
from llmkit.data.rows import table
from llmkit.data.text.documents import read_corpus
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData, TextData

BOUND = 2**16
LONG = "a" * (3 * BOUND)


def read(file, **settings):
    return list(read_corpus(TextData(path=str(file), **{"max_document_bytes": BOUND, **settings}), 1).train)


def write(file, text):
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", text)
        return file
    with openers.get(file.suffix, open)(file, "wt", encoding="utf-8") as stream:
        stream.write(text)
    return file


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.zip"])
@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
def test_one_line_that_is_too_long_is_refused_in_words(sample_by, name, tmp_path):
    file = write(tmp_path / name, f"short\n{LONG}\nshort\n")
    with pytest.raises(UserError) as refused:
        read(file, sample_by=sample_by)
    where = "" if sample_by == "document" else ", line 2"
    assert refused.value.message == f"`{file}`{where}: more than 0.1 MB (data.max_document_bytes) in one piece"
    assert 'data.sample_by = "line"' in refused.value.hint
    assert sum(map(len, read(file, sample_by=sample_by, max_document_bytes=4 * BOUND))) >= len(LONG)  # as it says


def test_what_the_hint_says_works(tmp_path):
    file = write(tmp_path / "a.txt.gz", f"{'word ' * 1000}\n" * 100)
    with pytest.raises(UserError, match="in one piece"):
        read(file)
    assert len(read(file, sample_by="line")) == 100


def test_a_paragraph_of_many_lines_is_bounded_too(tmp_path):
    text = "a few words\n" * 10_000
    with pytest.raises(UserError, match="a paragraph: more than"):
        read(write(tmp_path / "a.txt", text), sample_by="paragraph")
    assert len(read(write(tmp_path / "b.txt", text.replace("\n", "\n\n")), sample_by="paragraph")) == 10_000


@pytest.mark.parametrize("size", [BOUND, BOUND + 1])
def test_the_bound_is_exact(size, tmp_path):
    file = write(tmp_path / "a.txt.gz", f"{'b' * size}\n{'c' * size}\n")
    if size > BOUND:
        with pytest.raises(UserError, match="line 1"):
            read(file, sample_by="line")
    else:
        assert [len(text) for text in read(file, sample_by="line")] == [size, size]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", json.dumps({"text": LONG, "label": "a"}) + '\n{"text": "b", "label": "b"}\n'),
        ("a.json", json.dumps([{"text": LONG, "label": "a"}, {"text": "b", "label": "b"}])),
        ("a.csv", f"text,label\n{LONG},a\nb,b\n"),
        ("a.csv.gz", f"text,label\nb,b\n{LONG},a\n"),
        ("a.tsv", f"text\tlabel\n{LONG}\ta\nb\tb\n"),
        ("a.fasttext", f"__label__a {LONG}\n__label__b b\n"),
    ],
)
def test_rows_of_every_format_are_bounded_and_the_bound_can_be_raised(name, text, tmp_path):
    file = write(tmp_path / name, text)
    with pytest.raises(UserError, match="in one piece") as refused:
        list(table.open_files(ClassificationData(path=str(file), max_document_bytes=BOUND), "train"))
    assert "raise data.max_document_bytes" in refused.value.hint
    rows = table.open_files(ClassificationData(path=str(file), max_document_bytes=4 * BOUND), "train")
    assert len(list(rows)) == 2
    assert rows.fingerprint == table.open_files(ClassificationData(path=str(file)), "train").fingerprint


def test_without_a_bound_it_is_a_quarter_of_the_free_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_quarter_of_memory", lambda: BOUND)
    for file in (write(tmp_path / "a.txt", LONG), write(tmp_path / "a.txt.gz", LONG)):
        with pytest.raises(UserError, match=r"0\.1 MB \(a quarter of the memory that was free\)"):
            read(file, max_document_bytes=None)


def test_a_quarter_of_memory_is_less_than_there_is():
    total = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1])
    assert BOUND <= lines._quarter_of_memory() <= total * 256


def test_a_file_that_is_refused_is_not_held_in_memory(tmp_path):
    file = tmp_path / "a.txt.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(100):
            stream.write(b"a" * 10**6)
    tracemalloc.start()
    with pytest.raises(UserError, match="in one piece"):
        read(file, max_document_bytes=10**6)
    assert tracemalloc.get_traced_memory()[1] < 8 * 10**6
    tracemalloc.stop()


def test_a_bound_does_not_make_it_other_data(tmp_path):
    file = write(tmp_path / "a.txt", "some words\n" * 10)
    one, other = (
        read_corpus(TextData(path=str(file), max_document_bytes=bound), 1).train.fingerprint for bound in (None, BOUND)
    )
    assert one == other
    options = (files.ReadOptions(), files.ReadOptions(max_document_bytes=BOUND))
    assert options[0].beyond_encoding() == options[1].beyond_encoding()
