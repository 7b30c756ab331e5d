"""Describe local rows: columns, splits, labels, lengths, and what a run would leave out or refuse."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmkit import disk
from llmkit.data import files
from llmkit.data.describe.measure import label_counts, strings, word_counts
from llmkit.data.describe.sample import Sample, take
from llmkit.data.describe.sizes import kinds_and_size
from llmkit.data.display import Report, cut
from llmkit.data.rows.reader import reader_of
from llmkit.data.rows.samples import row_lines
from llmkit.data.rows.screening import Screened
from llmkit.data.rows.splits import screened_by_split
from llmkit.data.rows.summary import columns_used, inputs_first
from llmkit.data.rows.table import Rows, default_validation, open_files, splits_of_folder
from llmkit.data.rows.unused import unused_columns
from llmkit.data.suggest import Suggestion
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.schema import Recipe
from llmkit.recipe.tasks import TASKS

HASHED = 50_000_000  # bytes: in larger files NUL bytes are not looked for
EXAMPLES = 3  # rows that are shown
VALUES = 12  # of a column, at most
NAMED = 12  # columns whose values are shown


def describe_rows(report: Report, recipe: Recipe, found: Suggestion, path: str, suggested: bool) -> UserError | None:
    """Describe the rows that `path` holds; return what a run would refuse."""
    assert isinstance(recipe.data, RowData)
    data, notes = splits_of_folder(recipe.data)
    named = list(dict.fromkeys([data.split, *(data.data_files if isinstance(data.data_files, Mapping) else ())]))
    paths = {split: _paths(data, split) for split in named}
    listed = [file for one in paths.values() for file in one]
    hashed = sum(file.stat().st_size for file in listed) <= HASHED
    samples = {split: take(open_files(data, split, hashed), paths[split]) for split in named}
    first = samples[data.split].rows
    report.add("data", kinds_and_size(path, listed))
    reader = reader_of(recipe.task)
    columns: dict[str, str] = {}
    screened: dict[str, Screened] = {}
    fault: UserError | None = None
    validation = data.validation_split or default_validation(data) or ()
    validation = (validation,) if isinstance(validation, str) else validation
    try:
        columns = reader.resolve_columns(data, first)
        opened = {split: samples[split].rows for split in (data.split, *validation)}
        columns, _, screened = screened_by_split(data, reader, opened, validation)
    except UserError as refused:
        fault = refused
    read_notes = (note for one in samples.values() for note in (*one.rows.remarks, *one.rows.notes))
    for note in dict.fromkeys([*notes, *read_notes]):
        report.add("note", note)
    report.add("task", _why(found, first, data.path) if suggested else recipe.task)
    if columns:
        report.add("columns", columns_used(columns, first.columns, reader.LABEL_ROLES))
    _values(report, first, columns)
    for split, one in samples.items():
        use = "" if split == data.split or split in validation else ", not read in training"
        report.add("" if split != data.split else "splits", f"{split}: {one.counted}{use}")
    if fault is None:
        fault = _screened(report, recipe.task, data, samples, columns, screened)
    if screened:
        _examples(report, screened[data.split].rows, inputs_first(columns, reader.LABEL_ROLES))
    return fault


def _paths(data: RowData, split: str) -> list[Path]:
    """List the files of a split; in class folders, the texts."""
    root = Path(data.path)
    classes = files.class_folders(root) if disk.is_dir(root) else {}
    if split in classes:
        return [file for texts in classes[split].values() for file in texts]
    return files.of_split(data, split, files.ROW_SUFFIXES)


def _why(found: Suggestion, rows: Rows, path: str) -> str:
    """Say why a task is suggested, and which others the rows would fit."""
    others = [name for name in _fitting(rows, path) if name != found.task]
    because = f", because it has {found.because}" if found.because else ", since no column suggests another task"
    return f"{found.task}{because}" + (f"; --task {' or '.join(others)} would fit too" if others else "")


def _fitting(rows: Rows, path: str) -> list[str]:
    """List the tasks whose columns are there, and which can read the first rows."""
    fitting = []
    for name, record in TASKS.items():
        if record.reads != "rows":
            continue
        reader, data = reader_of(name), record.data(path=path)
        few = [row for _, row in itertools.islice(rows, EXAMPLES) if isinstance(row, Mapping)]
        try:
            columns = reader.resolve_columns(data, rows)
            for row in few:
                reader.examine(row, columns, data, False)
        except (UserError, ValueError):
            continue
        fitting.append(name)
    return fitting


def _values(report: Report, rows: Rows, columns: Mapping[str, str]) -> None:
    """Show the first values of each column; of those that are not used, of the first few."""
    names = list(rows.columns)
    used = [name for name in names if name not in unused_columns(columns, names)] if columns else []
    shown = used + [name for name in names if name not in used][: max(5, NAMED - len(used))]
    held = [row for _, row in rows if isinstance(row, Mapping)]
    for name in shown:
        cells = dict.fromkeys(_written(row.get(name)) for row in held)
        values = ", ".join(cut(cell, 30) for cell in itertools.islice(cells, VALUES))
        kinds = "all different" if len(cells) == len(held) > 1 else f"{len(cells):,} value{'s' * (len(cells) != 1)}"
        report.fit("", f"`{name}` ({kinds}): {values}")
    if len(shown) < len(names):
        report.fit("", f"and {len(names) - len(shown):,} more columns")


def _written(value: Any) -> str:
    return (value or "(empty)") if isinstance(value, str) else repr(value)


def _screened(
    report: Report,
    task: str,
    data: RowData,
    samples: Mapping[str, Sample],
    columns: Mapping[str, str],
    screened: Mapping[str, Screened],
) -> UserError | None:
    """Say what screening showed; return what a run would refuse."""
    fault: UserError | None = None
    several = len(screened) > 1
    train = screened[data.split]
    for split, one in screened.items():
        for note in one.notes:
            name = next((word for word in ("left out", "mended") if f" {word}: " in note), "note")
            report.add(name, f"{split}: {note}" if several else note)
    for split in screened if task != "text-classification" else [data.split]:
        try:
            counts = label_counts(data, columns, screened[split])
        except UserError as refused:
            fault = refused
            counts = ""
        if counts:
            report.add("labels", f"{split}: {counts}" if several else counts)
    inputs = [name for role, name in columns.items() if role not in reader_of(task).LABEL_ROLES]
    if lengths := word_counts(strings([row.get(name) for name in inputs]) for _, row in train.rows):
        report.add("lengths", lengths)
    for split, one in screened.items():
        repeated = len(one.keys) - len(np.unique(one.keys))
        shared = 0 if one is train else int(np.isin(one.keys, train.keys).sum())
        if repeated:
            report.add(
                "repeated", f"{split}: {repeated:,} of {len(one.keys):,} rows repeat the inputs of an earlier row"
            )
        if shared:
            report.add("repeated", f"{split}: {shared:,} of {len(one.keys):,} rows are also in {data.split}")
    if fault is not None and samples[data.split].partial:
        return UserError(
            f"in the first {samples[data.split].number:,} rows: {fault.message}", fault.hint, fault.details
        )
    return fault


def _examples(report: Report, rows: Rows, columns: Mapping[str, str]) -> None:
    for number, (place, row) in enumerate(itertools.islice(rows, EXAMPLES)):
        report.fit("" if number else "rows", re.sub(r"^`.*`, ", "", place))
        report.lines("", (f"  {line}" for line in row_lines(row, columns, rows, report.width - 2)))
