"""Parquet: no more columns than are wanted, and a broken file."""

import os

import pyarrow
import pyarrow.parquet
from files_read import mistake, rows, write_parquet

from llmkit.data import files


def test_of_a_parquet_file_only_the_wanted_columns_are_read(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", big=[os.urandom(500).hex() for _ in range(2000)], n=list(range(2000)))
    raw = bytearray(file.read_bytes())
    at = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    raw[at : at + 1000] = b"\xff" * 1000  # this column cannot be read any more
    file.write_bytes(raw)
    assert rows(file, columns=["n"]) == [{"n": n} for n in range(2000)]
    assert files.parquet_columns(file) == ["big", "n"]
    assert "not a complete Parquet file" in mistake(file).message


def test_a_broken_parquet_file(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", text=["one"] * 100)
    whole = file.read_bytes()
    for broken in (whole[:-20], b"\0" * 30 + whole[30:]):
        file.write_bytes(broken)
        error = mistake(file)
        assert error.message.startswith(f"`{file}`: not a complete Parquet file")
        assert error.hint == "copy or download it again"
