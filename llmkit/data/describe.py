"""Describe a local file or folder without a recipe: what is in it, as a task reads it, and the command to train on it.

It needs neither torch nor a network, and reads no more of a large file than a sample.
"""

from __future__ import annotations

import glob
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmkit.data import files
from llmkit.data.display import cut, printable, terminal_width, wrapped
from llmkit.data.rows import labels
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.reader import reader_of
from llmkit.data.rows.samples import row_lines
from llmkit.data.rows.screening import Screened
from llmkit.data.rows.splits import screened_by_split
from llmkit.data.rows.summary import column_lines, inputs_first
from llmkit.data.rows.table import Rows, default_validation, open_files, splits_of_folder
from llmkit.data.rows.unused import unused_columns
from llmkit.data.suggest import PRETRAINING, Suggestion, suggest
from llmkit.data.text.documents import Documents, read_corpus
from llmkit.data.words import without_blanks, words
from llmkit.errors import UserError
from llmkit.recipe import load
from llmkit.recipe.data_tables import ClassificationData, RowData, TextData
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import PRETRAINING as TEXT_TASKS
from llmkit.recipe.schema import Recipe
from llmkit.recipe.shortcuts import LARGER, SMALL
from llmkit.recipe.tasks import TASKS

ROWS, CHARACTERS = 20_000, 10_000_000  # of each split, as much is read as reaches one of them
HASHED = 50_000_000  # bytes: in larger files NUL bytes are not looked for
EXAMPLES = 3  # rows that are shown, and values of a column
CLASSES = 12  # labels that are shown with their counts
BEFORE = 11  # columns of what stands before a line
FORMATS = {".csv": "CSV", ".tsv": "TSV", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON"}
FORMATS |= {".parquet": "Parquet", ".arrow": "Arrow", **dict.fromkeys(files.TEXT_SUFFIXES, "text")}
_ASKED = re.compile(r"data\.(\w+_column|source_lang|target_lang)\b")  # keys that a hint asks for


def describe(path: str, task: str | None, overrides: Sequence[str]) -> list[str]:
    """Describe what a local path holds, as `task` reads it, or else the task that its columns suggest.

    `overrides` are settings of [data], which the command to train with repeats. Raises UserError where there is nothing
    to describe.
    """
    _check_path(path)
    found = Suggestion(task) if task is not None else suggest(path)
    settings = [f"data.path={path}", *overrides]
    settings += [each for each in found.settings if each.partition("=")[0] not in _keys(overrides)]
    recipe = load(SMALL, settings) if found.task == PRETRAINING else load(None, settings, task=found.task)
    if recipe.task == "multi-task":
        raise UserError(f"--task {task}: each of its tasks has data of its own", "name one of them")
    assert recipe.data is not None
    wide = Wide(terminal_width(), recipe.data.path, path)
    if recipe.task in TEXT_TASKS:
        _texts(wide, recipe, found, settings, given=task is not None)
    else:
        _rows(wide, recipe, found, settings, given=task is not None)
    return wide.lines


class Wide:
    """Lines of a report, each cut or wrapped at the width of the terminal; paths in them are as the user wrote them."""

    def __init__(self, width: int, resolved: str, given: str) -> None:
        self.width, self.lines = width, list[str]()
        self.resolved, self.given = resolved, given

    def add(self, name: str, text: str) -> None:
        """Add a text behind its name, wrapped at words."""
        text = printable(text).replace(self.resolved, self.given)
        for line in wrapped(text, self.width - BEFORE, "  "):
            self.lines.append(f"{name:<{BEFORE}}{line}")
            name = ""

    def fit(self, name: str, text: str) -> None:
        """Add a text behind its name, cut at the width."""
        self.lines.append(f"{name:<{BEFORE}}{cut(text, self.width - BEFORE)}")

    def problem(self, fault: UserError) -> None:
        """Add what a run would refuse."""
        self.add("refused", fault.message)
        for detail in fault.details:
            self.add("", detail)
        if fault.hint:
            self.add("hint", fault.hint)


def _check_path(path: str) -> None:
    local = at_home(path)
    if local.suffix == ".toml" and local.is_file():
        raise UserError(f"`{path}` is a recipe", f"llmkit finetune {shlex.quote(path)} --dry-run shows its data")
    if local.exists() or (glob.has_magic(path) and glob.glob(str(local))):  # noqa: PTH207
        return
    near = files.nearest(local.name, _names_beside(local))
    if path.count("/") == 1 and not local.parent.exists():
        near = "of a data set on the Hub, `--dry-run` of a recipe shows the first rows"
    raise UserError(f"there is no file or folder `{path}`", near.strip())


def _names_beside(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.iterdir()]
    except OSError:
        return []


def _keys(settings: Sequence[str]) -> set[str]:
    return {setting.partition("=")[0] for setting in settings}


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The first rows of a split: all of them, unless it is `partial`; `about` is the estimate of how many there are."""

    rows: Rows
    number: int
    partial: bool
    about: int | None

    @property
    def counted(self) -> str:
        if not self.partial:
            return f"{self.number:,} rows"
        return (f"about {self.about:,} rows" if self.about else "more rows") + f"; the first {self.number:,} are read"


def take(rows: Rows, paths: Sequence[Path]) -> Sample:
    """Read the first rows of a split once, and hold them."""
    held, characters, partial = list[tuple[str, Any]](), 0, False
    for place, row in rows.read():
        if partial := len(held) == ROWS or characters > CHARACTERS:
            break
        held.append((place, row))
        if isinstance(row, Mapping):
            characters += sum(len(cell if isinstance(cell, str) else str(cell)) for cell in row.values())
    about = _estimate(paths, len(held), held[-1][0]) if partial else None
    return Sample(replace(rows, read=lambda: iter(held)), len(held), partial, about)


def _estimate(paths: Sequence[Path], number: int, last: str) -> int | None:
    """Estimate how many rows files have, of which the last that was read stands at `last`; None where nothing tells."""
    if all(files.suffix(file) == ".parquet" for file in paths):
        import pyarrow.parquet

        return sum(int(pyarrow.parquet.ParquetFile(file).metadata.num_rows) for file in paths)
    place = re.fullmatch(r"`(.*)`, line (\d+)", last)
    if place is None or any(files.suffix(file) != file.suffix.lower() for file in paths):
        return None
    read = 0
    for file in paths:
        if str(file) == place[1]:
            with file.open("rb") as stream:
                read += sum(map(len, itertools.islice(stream, int(place[2]))))
            break
        read += file.stat().st_size
    exact = number * sum(file.stat().st_size for file in paths) / max(read, 1)
    return int(float(f"{exact:.2g}"))


def _rows(wide: Wide, recipe: Recipe, found: Suggestion, settings: list[str], given: bool) -> None:
    assert isinstance(recipe.data, RowData)
    data, notes = splits_of_folder(recipe.data)
    named = list(dict.fromkeys([data.split, *(data.data_files if isinstance(data.data_files, Mapping) else ())]))
    paths = {split: files.of_split(data, split, files.ROW_SUFFIXES) for split in named}
    size = sum(file.stat().st_size for listed in paths.values() for file in listed)
    samples = {split: take(open_files(data, split, size <= HASHED), paths[split]) for split in named}
    first = samples[data.split].rows
    wide.add(*_files(wide.given, [file for listed in paths.values() for file in listed]))
    for note in dict.fromkeys([*notes, *(note for one in samples.values() for note in _read_notes(one.rows))]):
        wide.add("note", note)
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
    _task(wide, recipe.task, data, found, first, given)
    if columns:
        for number, line in enumerate(column_lines(columns, first.columns, reader.LABEL_ROLES, wide.width - BEFORE)):
            wide.lines.append(f"{'' if number else 'columns':<{BEFORE}}{line}")
    _values(wide, first, columns)
    for split, one in samples.items():
        use = "" if split == data.split or split in validation else ", not read in training"
        wide.add("" if split != data.split else "splits", f"{split}: {one.counted}{use}")
    if fault is None:
        fault = _screened(wide, recipe.task, data, samples, columns, screened)
    if screened:
        _examples(wide, screened[data.split].rows, inputs_first(columns, reader.LABEL_ROLES))
    if fault is not None:
        wide.problem(fault)
    extra = [] if validation or "data.validation_fraction" in _keys(settings) else ["data.validation_fraction=0.1"]
    _command(wide, ["finetune", "--task", found.task], [*settings, *extra], fault)


def _files(path: str, paths: Sequence[Path]) -> tuple[str, str]:
    kinds = dict.fromkeys(FORMATS.get(files.suffix(file), files.suffix(file).lstrip(".") or "text") for file in paths)
    size = sum(file.stat().st_size for file in paths)
    shown = next((f"{size / 10**n:.1f} {unit}" for n, unit in ((9, "GB"), (6, "MB"), (3, "kB")) if size >= 10**n), "")
    many = "" if len(paths) == 1 else f", {len(paths):,} files"
    return "data", f"{path}{many}: {', '.join(kinds)}, {shown or f'{size} bytes'}"


def _read_notes(rows: Rows) -> list[str]:
    return [*rows.remarks, *rows.notes]


def _task(wide: Wide, task: str, data: RowData, found: Suggestion, rows: Rows, given: bool) -> None:
    if given:
        wide.add("task", task)
        return
    others = [name for name in _fitting(rows, data.path) if name != task]
    because = f", for it has {found.because}" if found.because else ", as no column speaks for another task"
    wide.add("task", f"{found.task}{because}" + (f"; --task {' or '.join(others)} would fit too" if others else ""))


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


def _values(wide: Wide, rows: Rows, columns: Mapping[str, str]) -> None:
    """Show the first values of each column; of those that are not used, of the first few."""
    names = list(rows.columns)
    used = [name for name in names if name not in unused_columns(columns, names)] if columns else []
    shown = used + [name for name in names if name not in used][: max(5, CLASSES - len(used))]
    held = [row for _, row in rows if isinstance(row, Mapping)]
    for name in shown:
        cells = [_written(row.get(name)) for row in held]
        distinct = len(set(cells))
        values = ", ".join(dict.fromkeys(cut(cell, 30) for cell in cells[: 4 * EXAMPLES]))
        kinds = "all different" if distinct == len(cells) > 1 else f"{distinct:,} value{'s' * (distinct != 1)}"
        wide.fit("", f"`{name}` ({kinds}): {values}")
    if len(shown) < len(names):
        wide.fit("", f"and {len(names) - len(shown):,} more columns")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _screened(
    wide: Wide,
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
            wide.add(name, f"{split}: {note}" if several else note)
    for split in screened if task != "text-classification" else [data.split]:
        try:
            counts = _label_counts(data, columns, screened[split])
        except UserError as refused:
            fault = refused
            counts = ""
        if counts:
            wide.add("labels", f"{split}: {counts}" if several else counts)
    inputs = [name for role, name in columns.items() if role not in reader_of(task).LABEL_ROLES]
    if lengths := _lengths(_strings([row.get(name) for name in inputs]) for _, row in train.rows):
        wide.add("lengths", lengths)
    for split, one in screened.items():
        repeated = len(one.keys) - len(np.unique(one.keys))
        shared = 0 if one is train else int(np.isin(one.keys, train.keys).sum())
        if repeated:
            wide.add("repeated", f"{split}: {repeated:,} of {len(one.keys):,} rows have the inputs of an earlier one")
        if shared:
            wide.add("repeated", f"{split}: {shared:,} of {len(one.keys):,} rows are in {data.split} too")
    if fault is not None and samples[data.split].partial:
        return UserError(
            f"of the first {samples[data.split].number:,} rows: {fault.message}", fault.hint, fault.details
        )
    return fault


def _label_counts(data: RowData, columns: Mapping[str, str], screened: Screened) -> str:
    """Count the labels, as a run names them; raise UserError as it would for a label that cannot be used."""
    targets, rows = screened.targets, len(screened.targets)
    if isinstance(data, ClassificationData):
        encoded = Encoded(screened.rows, targets=list(targets))
        spec = labels.resolve_labels(data, columns, encoded, {}, SimpleNamespace(id2label=None, num_labels=2), False)
        assert encoded.labels is not None
        if spec.problem_type == labels.REGRESSION:
            least, most = encoded.labels.min(), encoded.labels.max()
            return f"values {least:g} to {most:g}, mean {encoded.labels.mean():.3g}"
        counted = zip(spec.names, labels.counts_of(encoded.labels, spec).tolist(), strict=True)
        counts = Counter({name: int(number) for name, number in counted})
    elif any(isinstance(target, bool) for target in targets):
        counts = Counter("answered" if target else "without an answer" for target in targets)
    else:
        names = next((screened.rows.class_names[c] for c in columns.values() if c in screened.rows.class_names), ())
        each = (target if isinstance(target, list | tuple) else [target] for target in targets if target is not None)
        counts = Counter(
            str(names[one]) if isinstance(one, int) and one < len(names) else str(one)
            for many in each
            for one in set(map(_hashable, many))
        )
        if len(counts) > max(50, rows / 10):
            return ""
    most = counts.most_common()
    shown = most if len(most) <= CLASSES else [*most[: CLASSES - 3], *most[-2:]]
    parts = [f"{name} {number:,} ({number / rows:.1%})" for name, number in shown]
    if len(most) > CLASSES:
        parts.insert(CLASSES - 3, f"... {len(most) - len(shown):,} more ...")
    return ", ".join(parts)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else str(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _lengths(texts_of_rows: Iterator[Iterator[str]]) -> str:
    """Say how many words texts have; of scripts without blanks, how many characters."""
    numbers, alone = list[int](), 0
    for texts in texts_of_rows:
        text = " ".join(texts)
        number = len(words(text))
        alone += without_blanks(text, number)
        numbers.append(number)
    if not numbers:
        return ""
    least, half, most, longest = np.quantile(numbers, [0, 0.5, 0.95, 1]).round().astype(int).tolist()
    unit = "characters" if 2 * alone > len(numbers) else "words"
    if least == longest:
        return f"{longest:,} {unit} each"
    return f"{least:,} to {longest:,} {unit}, half up to {half:,}, 95% up to {most:,}"


def _examples(wide: Wide, rows: Rows, columns: Mapping[str, str]) -> None:
    for number, (place, row) in enumerate(itertools.islice(rows, EXAMPLES)):
        wide.fit("" if number else "rows", re.sub(r"^`.*`, ", "", place))
        wide.lines += [f"{'':{BEFORE}}  {line}" for line in row_lines(row, columns, rows, wide.width - BEFORE - 2)]


# ---- running text ----------------------------------------------------------------------------------------------------


def _texts(wide: Wide, recipe: Recipe, found: Suggestion, settings: list[str], given: bool) -> None:
    data = recipe.data
    assert isinstance(data, TextData)
    whole = data.model_copy(update={"validation_fraction": None})
    corpus = read_corpus(whole, 0)
    paths = files.of_split(data, data.split) if default_validation(data) is None else []
    wide.add(*_files(wide.given, paths or files.expand(data.path)))
    because = f", for it has {found.because}" if found.because and not given else ""
    wide.add("task", f"{recipe.task}, which is pretraining{because}" if not given else recipe.task)
    for note in corpus.notes:
        if not note.startswith("no validation data"):
            wide.add("note", note)
    unit = {"document": "a file or row", "line": "a line or row", "paragraph": "a paragraph or row"}[data.sample_by]
    parts = {"train": corpus.train, **({} if corpus.validation is None else {"validation": corpus.validation})}
    for name, documents in parts.items():
        texts, partial = _first_texts(documents)
        characters = sum(map(len, texts))
        count = f"{name}: {len(texts):,} document{'s' * (len(texts) != 1)}, {characters:,} characters"
        wide.add(
            "" if name != "train" else "splits",
            f"{name}: the first {count.partition(': ')[2]} are read" if partial else count,
        )
        if name == "train":
            first = texts
    if corpus.validation is None:
        share = f"data.validation_fraction = {data.validation_fraction:g}" if data.validation_fraction else ""
        wide.add("", f"validation: {share}, of these documents" if share else "validation: none")
    wide.add("document", f"{unit} (data.sample_by = {data.sample_by})")
    if lengths := _lengths(iter([text]) for text in first):
        wide.add("lengths", lengths)
    if repeated := len(first) - len(set(first)):
        wide.add("repeated", f"{repeated:,} of {len(first):,} documents repeat an earlier one")
    for number, text in enumerate(first[:EXAMPLES], 1):
        wide.fit("" if number > 1 else "documents", text)
    name = found.task if given and found.task != PRETRAINING else SMALL
    _command(wide, ["pretrain", SMALL if name in ("causal-lm", "masked-lm") else name], settings, None)
    if name == SMALL:
        wide.add("", f"a larger model: {LARGER} in place of {SMALL}")


def _first_texts(documents: Documents) -> tuple[list[str], bool]:
    texts, characters = list[str](), 0
    for text in documents:
        if len(texts) == ROWS or characters > CHARACTERS:
            return texts, True
        texts.append(text)
        characters += len(text)
    return texts, False


def _command(wide: Wide, words_of: list[str], settings: list[str], fault: UserError | None) -> None:
    asked = dict.fromkeys(_ASKED.findall(fault.hint) if fault is not None else [])
    unset = [f"data.{key}=COLUMN" for key in asked if f"data.{key}" not in _keys(settings)]
    then = ", with the name of a column in place of COLUMN" if unset else ", once that is mended" if fault else ""
    wide.lines += [f"train with{then}", f"  {shlex.join(['llmkit', *words_of, *settings, *unset])}"]
