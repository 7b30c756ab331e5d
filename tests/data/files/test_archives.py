"""Compressed files and ZIP archives of one file: what is read, and what a damaged one says."""

import bz2
import gzip
import lzma
import zipfile
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from files_read import mistake, places, rows, write

from llmkit.data import files


def zstandard(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}
CONTENT = {
    "a.csv": "text\none\n",
    "a.tsv": "text\tn\none\t1\n",
    "a.jsonl": '{"text": "one"}\n',
    "a.json": '[{"text": "one"}]',
    "a.conll": "one O\n",
}


def pack(file, **members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("packed", [*PACKED, ".zip", ".ZST"])
def test_every_format_is_read_from_every_compression(tmp_path, name, packed):
    file = tmp_path / (name + packed)
    content = CONTENT[name].encode()
    if packed == ".zip":
        pack(file, **{name: content})
    else:
        file.write_bytes(PACKED[packed.lower()](content))
    assert files.suffix(file) == f".{name.partition('.')[2]}"
    (row,) = rows(file)
    assert row.get("text", row.get("tokens")) in ("one", ["one"])
    assert files.expand(str(tmp_path), files.ROW_SUFFIXES) == [file]


@pytest.mark.parametrize("packed", PACKED)
def test_files_of_several_parts_are_read_to_the_end(tmp_path, packed):
    file = tmp_path / f"a.txt{packed}"
    file.write_bytes(PACKED[packed](b"one\n") + PACKED[packed](b"two\r\nthree"))
    assert [line for _, line in files.read_lines(file, "utf-8")] == ["one\n", "two\r\n", "three"]
    assert files.read_text(file, "utf-8") == "one\ntwo\r\nthree"


@pytest.mark.parametrize("packed", PACKED)
def test_a_damaged_file_is_named(tmp_path, packed):
    file = tmp_path / f"a.jsonl{packed}"
    whole = PACKED[packed](b'{"a": 1}\n' * 5000)
    for broken in (whole[: len(whole) // 2], b"no such thing" * 10):
        file.write_bytes(broken)
        error = mistake(file)
        assert error.message.startswith(f"`{file}` cannot be read: ")
        assert error.hint == "check that it exists, is complete, and that you may read it"


def test_a_damaged_archive_is_named(tmp_path):
    file = write(tmp_path / "a.csv.zip", "not a ZIP")
    assert mistake(file).message == f"`{file}` cannot be read: File is not a zip file"
    pack(file, **{"a.csv": "text\n" + "one\n" * 1000})
    whole = bytearray(file.read_bytes())
    whole[50] ^= 255
    file.write_bytes(whole)
    assert mistake(file).message.startswith(f"`{file}` cannot be read: ")


def test_an_archive_with_one_file_that_can_be_read(tmp_path):
    others = {"__MACOSX/._a.csv": "x", ".DS_Store": "x", "README.md": "x", "LICENSE": "x", "d/picture.png": "x"}
    file = pack(tmp_path / "download.zip", **others, **{"d/a.csv": "text\none\n"})
    assert files.suffix(file) == ".csv"
    assert rows(file) == [{"text": "one"}]
    assert places(file) == ["line 2"]


def test_an_archive_with_several_files_is_to_be_unpacked(tmp_path):
    file = pack(tmp_path / "a.zip", **{"a.csv": "text\none\n", "b.csv": "text\ntwo\n"})
    error = mistake(file)
    assert error.message == f"`{file}`: 2 files in it: `a.csv`, `b.csv`"
    assert error.hint.startswith("unpack it into a folder and name the folder")
    assert files.folder(tmp_path, files.ROW_SUFFIXES) == ([], [file])
    error = mistake(pack(file, **{"README.md": "x"}))
    assert error.message == f"`{file}`: no file in it that can be read"


def test_an_archive_with_a_password(tmp_path):
    file = pack(tmp_path / "a.zip", **{"a.csv": "text\none\n"})
    content = bytearray(file.read_bytes())
    for begin, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(begin) + flags] |= 1  # it says that it is encrypted
    file.write_bytes(content)
    error = mistake(file)
    assert error.message.startswith(f"`{file}` cannot be read: File 'a.csv' is encrypted")
    assert error.hint == "unpack it"


@pytest.mark.parametrize(("packed", "kind"), [(".bz2", "bzip2"), (".xz", "xz"), (".zst", "Zstandard"), (".gz", "gzip")])
def test_a_compressed_file_whose_name_does_not_say_so(tmp_path, packed, kind):
    file = tmp_path / "a.jsonl"
    file.write_bytes(PACKED[packed](b'{"a": "\xc3\xa9"}\n' * 30))
    error = mistake(file)
    assert f"it looks like a{'n' if kind == 'xz' else ''} {kind} file: rename it to end in {packed}" in error.hint


def test_a_parquet_file_in_an_archive(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2]}), tmp_path / "a.parquet")
    file = pack(tmp_path / "b.zip", **{"a.parquet": (tmp_path / "a.parquet").read_bytes()})
    assert rows(file, columns=["n"]) == [{"n": 1}, {"n": 2}]
    assert files.parquet_columns(file) == ["n"]


def test_bytes_are_hashed_as_they_are_on_disk_and_their_nul_bytes_are_no_remark(tmp_path):
    file = tmp_path / "a.csv.zst"
    file.write_bytes(zstandard(b"text\none\n"))
    other = tmp_path / "same"
    other.write_bytes(file.read_bytes())
    nuls = Counter()
    assert files.content_hash([file], nuls) == files.content_hash([other])
    assert files.nul_bytes(Counter({file: 3}), "utf-8") == ()
