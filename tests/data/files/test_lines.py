"""What is no text of its encoding, and what is no gzip."""

import gzip

import pytest
from files_read import mistake

from llmkit.data import files
from llmkit.errors import UserError


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.csv.gz"])
def test_files_that_are_not_utf8(tmp_path, name):
    content = b'["\n\xe9"]' if name == "a.json" else b'{"text": "a"}\n{"text": "\xe9"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    error = mistake(tmp_path / name)
    assert error.message == f"`{tmp_path / name}`, line 2: byte 0xe9 is not utf-8"
    assert "data.encoding" in error.hint


def test_a_broken_gzip_file(tmp_path):
    file = tmp_path / "a.csv.gz"
    file.write_bytes(gzip.compress(b"one\n" * 1000)[:-9])
    assert mistake(file).message == (
        f"`{file}` cannot be read: Compressed file ended before the end-of-stream marker was reached"
    )
    file.write_bytes(b"not gzip")
    assert mistake(file).message.startswith(f"`{file}` cannot be read: Not a gzipped file")
    assert mistake(tmp_path / "b.csv").message == f"`{tmp_path / 'b.csv'}` cannot be read: No such file or directory"
    assert mistake(tmp_path / "b.csv").hint == "check that it exists, is complete, and that you may read it"


def test_a_bad_byte_in_a_file_of_utf_8_is_to_be_mended_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("café\n".encode() + b"caf\xe9\n")
    with pytest.raises(UserError, match="line 2: byte 0xe9 is not utf-8") as caught:
        list(files.read_lines(file, "utf-8"))
    assert caught.value.hint.startswith("fix that line: other lines show that the file is UTF-8")
    file.write_bytes(b"plain\ncaf\xe9\n")
    with pytest.raises(UserError) as caught:
        list(files.read_lines(file, "utf-8"))
    assert "cp1252" in caught.value.hint
