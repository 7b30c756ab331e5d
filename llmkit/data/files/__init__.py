"""Find the local files that a recipe names, and read their rows or their text.

`datasets` does not read local files here. Its readers turn "NA" into None, take a semicolon file for one column, do not
name the file and line of a byte that is not UTF-8, and miss a change that is made within the same second.
"""

from llmkit.data.files.lines import TEXT_SUFFIXES, read_lines, read_text, suffix
from llmkit.data.files.options import BadRow, Note, ReadOptions, unheard
from llmkit.data.files.parquet import parquet_columns
from llmkit.data.files.paths import (
    VALIDATION_NAMES,
    content_hash,
    digest,
    expand,
    is_local,
    nearest,
    nul_bytes,
    of_split,
    splits_by_name,
    without_descriptions,
)
from llmkit.data.files.rows import ROW_SUFFIXES, SUFFIXES, read_rows, text_of

__all__ = [
    "ROW_SUFFIXES",
    "SUFFIXES",
    "TEXT_SUFFIXES",
    "VALIDATION_NAMES",
    "BadRow",
    "Note",
    "ReadOptions",
    "content_hash",
    "digest",
    "expand",
    "is_local",
    "nearest",
    "nul_bytes",
    "of_split",
    "parquet_columns",
    "read_lines",
    "read_rows",
    "read_text",
    "splits_by_name",
    "suffix",
    "text_of",
    "unheard",
    "without_descriptions",
]
