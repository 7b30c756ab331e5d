"""Rows as tests of files write and read them."""

import csv

import pyarrow
import pyarrow.parquet
import pytest

from llmkit.data import files
from llmkit.errors import UserError

ODD = ["NA", "null", "None", "", "nan", "1e5", "  two  spaces ", 'a "quote"', "a, b; c\td | e", "line\nbreak", "é日😀"]
ROWS = [{"n": str(n), "text": text} for n, text in enumerate(ODD)]


def rows(file, encoding="utf-8", columns=None, **options):
    return [row for _, row in files.read_rows(file, files.ReadOptions(encoding, **options), columns)]


def places(file, **options):
    return [place for place, _ in files.read_rows(file, files.ReadOptions(**options))]


def mistake(file, *options):
    with pytest.raises(UserError) as caught:
        rows(file, *options)
    return caught.value


def write_csv(file, lines, delimiter=","):
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(lines)
    return file


def write(file, text):
    file.write_text(text, encoding="utf-8")
    return file


def write_parquet(file, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file
