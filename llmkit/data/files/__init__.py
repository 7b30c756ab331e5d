"""Find the local files that a recipe names, and read their rows or their text.

`datasets` does not read local files here. Its readers turn "NA" into None, take a semicolon file for one column, do not
name the file and line of a byte that is not UTF-8, and miss a change that is made within the same second.
"""

from llmkit.data.files.archives import suffix
from llmkit.data.files.arrow import COLUMNAR_SUFFIXES, class_names
from llmkit.data.files.arrow import column_names as parquet_columns
from llmkit.data.files.by_lines import beside, settings_by_lines
from llmkit.data.files.class_folders import beside_classes, class_folders, is_class_folders, read_class_folders
from llmkit.data.files.header import HEADER_KEY
from llmkit.data.files.json import json_splits
from llmkit.data.files.lines import TEXT_SUFFIXES, check_size, read_lines, read_text
from llmkit.data.files.names import VALIDATION_NAMES, split_name
from llmkit.data.files.options import BadRow, Note, ReadOptions, unheard
from llmkit.data.files.paths import (
    content_hash,
    digest,
    expand,
    folder,
    is_local,
    left_out_note,
    nearest,
    nul_bytes,
    of_split,
    shown,
    splits_by_name,
)
from llmkit.data.files.rows import ROW_SUFFIXES, SUFFIXES, format_of, read_rows
from llmkit.data.files.snapshot import Snapshot

__all__ = [
    "COLUMNAR_SUFFIXES",
    "HEADER_KEY",
    "ROW_SUFFIXES",
    "SUFFIXES",
    "TEXT_SUFFIXES",
    "VALIDATION_NAMES",
    "BadRow",
    "Note",
    "ReadOptions",
    "Snapshot",
    "beside",
    "beside_classes",
    "check_size",
    "class_folders",
    "class_names",
    "content_hash",
    "digest",
    "expand",
    "folder",
    "format_of",
    "is_class_folders",
    "is_local",
    "json_splits",
    "left_out_note",
    "nearest",
    "nul_bytes",
    "of_split",
    "parquet_columns",
    "read_class_folders",
    "read_lines",
    "read_rows",
    "read_text",
    "settings_by_lines",
    "shown",
    "split_name",
    "splits_by_name",
    "suffix",
    "unheard",
]
