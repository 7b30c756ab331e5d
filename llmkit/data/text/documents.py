"""Read texts from files, folders and Hub data sets, one document at a time."""

import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from llmkit import disk, hub, verified
from llmkit.data import files
from llmkit.data.files import BadRow, digest
from llmkit.data.rows.cells import ABSENT, find_column, value_at
from llmkit.data.rows.faults import Tally, check_share
from llmkit.data.rows.reader import Unusable, text_in
from llmkit.data.rows.table import default_validation, held_out, load, plain_files
from llmkit.data.rows.unused import OtherColumns
from llmkit.data.text.findings import Findings
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.table import ReadOnly

# The version of the readers. Raise it when any of them reads other texts or rows out of the same bytes than before, so
# that nothing is taken from a cache that the earlier one filled.
READING = 2
HEAD = 20  # rows of a file among which one at least shows the column of the text
WRONG_COLUMN = 100  # rows of which not one can be used: there is no need to read on
# A line end that is no line feed. Several returns before one come of a conversion that was done twice.
_RETURNS = re.compile(r"\r+\n|\r")


@dataclass(frozen=True)
class Documents:
    """Texts that can be read again and again, in the same order, in constant memory.

    `fingerprint` changes when the content or the way of reading it changes. `source` is for messages. `remarks` are
    notes on the files, for the user; `findings` are what a reading to the end adds to them. `verify` raises UserError
    where the files are no longer those of the fingerprint, as does a reading to the end.
    """

    read: Callable[[], Iterator[str]]
    fingerprint: str
    source: str
    remarks: tuple[str, ...] = ()
    findings: Findings = field(default_factory=Findings, compare=False)
    verify: Callable[[], None] = field(default=lambda: None, compare=False)

    @property
    def cache_key(self) -> str:
        """The fingerprint for caches: unlike that for a run's record, it is another in each version of the readers."""
        return digest(READING, self.fingerprint)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(filter(None, self.read()), self._end())

    def _end(self) -> Iterator[str]:
        self.verify()
        yield from ()


@dataclass(frozen=True)
class Corpus:
    """The documents to learn from, those held out (if any), and notes for the user on the choice."""

    train: Documents
    validation: Documents | None
    notes: tuple[str, ...] = ()
    revision: str | None = None  # the commit of a Hub data set

    @property
    def findings(self) -> list[Findings]:
        """What reading them has shown so far: once, where both are parts of the same documents."""
        found = self.train.findings
        other = found if self.validation is None else self.validation.findings
        return [found] if other is found else [found, other]


def chained(sources: list[Documents]) -> Documents:
    """Chain the documents of several sources, one source after the other."""
    if len(sources) == 1:
        return sources[0]

    def verify() -> None:
        for documents in sources:
            documents.verify()

    return Documents(
        lambda: itertools.chain.from_iterable(sources),
        digest(*(documents.fingerprint for documents in sources)),
        ", ".join(documents.source for documents in sources),
        verify=verify,
    )


def read_corpus(data: TextData, seed: int) -> Corpus:
    """Open `data` and choose what is held out for validation.

    A validation split comes first. Else `validation_fraction` is held out: of the documents (those whose hash of seed
    and index falls below it), or of the characters, at the end of the text. Raises UserError where there is no text.
    """
    revision: str | None = None
    by_name: tuple[str, ...] = ()
    if files.is_local(data):
        data, by_name = splits_of_folder(data)
        train, validation = _local(data)
    else:
        train, validation, revision = _from_hub(data)
    if all(text.isspace() for text in train):  # the first that is not ends the search
        raise UserError(f"{train.source}: there is no text in it", "is it empty, or a header without rows?")
    remarks = (*by_name, *dict.fromkeys([*train.remarks, *(() if validation is None else validation.remarks)]))
    if validation is not None:
        ignored = data.validation_fraction and not data.validation_split
        note = ("validation_fraction is ignored: the data has a validation split",) if ignored else ()
        return Corpus(train, validation, (*remarks, *note), revision)
    if not data.validation_fraction:
        none = "no validation data: set data.validation_fraction to hold some out"
        return Corpus(train, None, (*remarks, none), revision)
    if data.validation_from == "end":
        return Corpus(*_from_end(train, data.validation_fraction), remarks, revision)
    if not data.streaming and (count := _none_held_out(train, data.validation_fraction, seed)) > 1:
        none = f"no validation data: validation_fraction = {data.validation_fraction:g} holds out none of {count:,} "
        return Corpus(
            train, None, (*remarks, f"{none}documents; raise it, or set data.validation_from = end"), revision
        )
    return Corpus(*_by_hash(train, data.validation_fraction, seed), remarks, revision)


def _by_hash(documents: Documents, fraction: float, seed: int) -> tuple[Documents, Documents]:
    def part(wanted: bool) -> Documents:
        return Documents(
            lambda: (text for index, text in enumerate(documents) if held_out(index, fraction, seed) is wanted),
            digest(documents.fingerprint, "by-hash", fraction, seed, wanted),
            documents.source,
            findings=documents.findings,
            verify=documents.verify,
        )

    return part(False), part(True)


def _none_held_out(documents: Documents, fraction: float, seed: int) -> int:
    """Count the documents where none of them is held out; else 0, which shows after 1 / fraction of them or so."""
    count = 0
    for count, _ in enumerate(documents, 1):
        if held_out(count - 1, fraction, seed):
            return 0
    return count


def _from_end(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
    """Hold out the last `fraction` of all characters; the document in which it begins is split (as nanoGPT does)."""
    total = verified.once(f"characters of {documents.cache_key}", [], lambda: sum(len(text) for text in documents))
    cut = int(total * (1 - Fraction(str(fraction))))  # as written in the recipe: 1 - 0.9 is less than 0.1 in floats

    def read(wanted: bool) -> Iterator[str]:
        position = 0
        for text in documents:
            here = min(max(cut - position, 0), len(text))
            position += len(text)
            yield text[here:] if wanted else text[:here]

    def part(wanted: bool) -> Documents:
        return Documents(
            lambda: read(wanted),
            digest(documents.fingerprint, "end", fraction, wanted),
            documents.source,
            findings=documents.findings,
            verify=documents.verify,
        )

    return part(False), part(True)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def _from_hub(data: TextData) -> tuple[Documents, Documents | None, str | None]:
    revision = hub.check(data.path, "dataset", data.revision)

    def documents(split: str) -> Documents:
        rows = load(data, split, data.streaming)
        where, findings = f"`{data.path}` (split {split})", Findings()
        nested = "." in (data.text_column or "")
        first: dict[str, Any] = {} if rows.column_names and not nested else next(iter(rows), {})
        columns = rows.column_names or list(first)
        column = _text_column(columns, first, data.text_column, where)
        findings.columns[column, _unused(columns, column)] = None
        rows = rows.select_columns([_outermost(columns, column) or column])

        def read() -> Iterator[str]:
            screen = _Screen(where, data, findings)
            for index, row in enumerate(rows):
                yield screen.text(row, column, f"{where}, row {index + 1}")
            screen.close()

        content = getattr(rows, "_fingerprint", None) or digest(
            data.path, data.name, plain_files(data), revision, split
        )
        return Documents(read, digest(content, column), f"`{data.path}`", findings=findings)

    train = documents(data.split)
    validation = data.validation_split or default_validation(data)
    return train, documents(validation) if validation else None, revision


# ---- local files ---------------------------------------------------------------------------------------------------


def splits_of_folder(data: TextData) -> tuple[TextData, tuple[str, ...]]:
    """Read a folder with train.txt and valid.txt as two splits, as if `data_files` named them; return notes on it.

    README, LICENSE and metadata files are left out. Without a file that is called train, all files are trained on.
    """
    if data.data_files is not None:
        return data, ()
    root, options = Path(data.path), files.ReadOptions.of(data)
    if not disk.is_dir(root):  # what a glob matches is what was asked for
        return data, _also_trained_on(data, files.expand(data.path))
    by_split, left_out = files.splits_by_name(root, files.SUFFIXES, options)
    if not by_split:
        notes = _also_trained_on(data, files.expand(data.path, options=options))
        return data, (*((files.left_out_note(root, left_out),) if left_out else ()), *notes)
    others = [str(file.relative_to(root)) for file in left_out]
    data = data.model_copy(update={"data_files": ReadOnly(by_split)})
    used = [split for split in (data.split, data.validation_split or default_validation(data)) if split]
    for split in used:
        if split not in by_split:
            raise UserError(
                f"`{data.path}` has no files of a split `{split}`",
                f"the file names give {', '.join(by_split)}; to assign the files yourself, set data.data_files",
            )
    unused = [f"{split} ({files.shown(names)})" for split, names in by_split.items() if split not in used]
    unused += [files.shown(others)] if others else []
    listed = ", ".join(f"{split} ({files.shown(by_split[split])})" for split in used)
    note = f"`{data.path}`: splits by file name: {listed}" + (f"; not read: {', '.join(unused)}" if unused else "")
    return data, (note,)


def _also_trained_on(data: TextData, texts: list[Path]) -> tuple[str, ...]:
    """Note that files which are called like a split to evaluate on are trained on, beside others."""
    if len(texts) < 2:
        return ()
    base = data.path if disk.is_dir(Path(data.path)) else os.path.commonpath([file.parent for file in texts])
    splits = ((file, files.split_name(file.relative_to(base))) for file in texts)
    names = [str(file.relative_to(base)) for file, split in splits if split is not None and split[0] != "train"]
    if not names:
        return ()
    return (
        f"`{data.path}`: {files.shown(names)} {'is' if len(names) == 1 else 'are'} trained on too, though named as an "
        "evaluation split; to keep them apart, set data.data_files = { train = ..., validation = ... }",
    )


def _local(data: TextData) -> tuple[Documents, Documents | None]:
    validation = data.validation_split or default_validation(data)
    return _documents(data, data.split), _documents(data, validation) if validation else None


def _documents(data: TextData, split: str) -> Documents:
    paths = files.of_split(data, split)
    findings = Findings([str(file) for file in paths])
    source, snapshot = f"`{data.path}`", files.Snapshot.of(paths)

    def read() -> Iterator[str]:
        screen = _Screen(f"`{paths[0]}`" if len(paths) == 1 else source, data, findings)
        for file in paths:
            yield from _plain(file, data) if _is_text(file, data) else _cells(file, data, screen)
        screen.close()

    suffixes = [files.suffix(file) for file in paths]
    read_as = [data.sample_by, data.text_column, data.encoding]
    what = digest(READING, suffixes, read_as, asdict(files.ReadOptions.of(data)))
    content, nuls, has_returns = verified.once(f"content {what}", paths, partial(_content, paths, data))
    parts: list[Any] = [content, suffixes, *read_as]
    # What follows is there only where it changes the texts: the fingerprint of a run that was begun earlier holds.
    options = {**asdict(files.ReadOptions.of(data)), "max_skipped_fraction": data.max_skipped_fraction}
    del options["encoding"], options["max_document_bytes"]
    parts += [(key, value) for key, value in options.items() if value is not None]
    if has_returns:
        parts.append("line ends")
    snapshot.verify()
    remarks = files.nul_bytes(dict(zip(paths, nuls, strict=True)), data.encoding)
    return Documents(read, digest(*parts), source, remarks, findings, snapshot.verify)


def _content(paths: Sequence[Path], data: TextData) -> tuple[str, list[int], bool]:
    """Hash the files; return that, the NUL bytes of each, and whether line ends make texts others than they were."""
    nuls, returns = Counter[Path](), set[Path]()
    content = files.content_hash(paths, nuls, returns)
    has_returns = any(_is_text(file, data) and _has_returns(file, data, file in returns) for file in paths)
    return content, [nuls[file] for file in paths], has_returns


def _is_text(file: Path, data: TextData) -> bool:
    return files.format_of(file, files.ReadOptions.of(data)) in files.TEXT_SUFFIXES


# ---- rows ----------------------------------------------------------------------------------------------------------


class _Screen:
    """Tells in one reading which rows are documents; those that are none are counted, and said at its end."""

    def __init__(self, source: str, data: TextData, findings: Findings) -> None:
        self.source, self.allowed, self.findings = source, data.max_skipped_fraction, findings
        self.faults, self.empty, self.num_rows = Tally(), Tally(), 0

    def text(self, row: Mapping[str, Any] | BadRow, column: str, place: str) -> str:
        """Return the text of a row, "" for one that is left out; raise UserError where not one row has a text."""
        self.num_rows += 1
        try:
            if isinstance(row, BadRow):
                raise Unusable(row.kind, row.message, row.hint)
            text = text_in(row, column)
        except Unusable as fault:
            mistaken = fault.kind.startswith(("no text", f"no `{column}`"))
            hint = "set data.text_column to the column with the text" if mistaken else fault.hint
            self.faults.add(fault.kind, place, str(fault), hint)
            if self.faults.total == self.num_rows == WRONG_COLUMN:
                self.close()
            return ""
        if not text:
            self.empty.add("empty text", place)
        return text

    def close(self) -> None:
        """Say what was left out; raise UserError where it is more than `data.max_skipped_fraction` allows."""
        check_share(self.source, self.faults, self.num_rows, self.allowed)
        for tally in (self.faults, self.empty):
            self.findings.left_out |= tally.counts
            for note in tally.notes("left out"):
                self.findings.note(note)


def _cells(file: Path, data: TextData, screen: _Screen) -> Iterator[str]:
    """Yield the text of each row of a file, "" for one that is left out."""
    columns: list[str] = []
    needed: list[str] | None = None
    if files.format_of(file, files.ReadOptions.of(data)) in files.COLUMNAR_SUFFIXES:
        columns = files.parquet_columns(file)
        inside = "." in (data.text_column or "") and _outermost(columns, data.text_column or "")
        needed = [inside or _text_column(columns, {}, data.text_column, f"`{file}`")]
    rows = files.read_rows(file, files.ReadOptions.of(data), needed, screen.findings.note, strict=False)
    head: list[tuple[str, Any]] = []
    column, problem = data.text_column or "text", None
    for place, row in itertools.islice(rows, HEAD):
        head.append((place, row))
        if isinstance(row, BadRow):
            continue
        columns += [name for name in row if name not in columns]
        try:
            column, problem = _text_column(columns, row, data.text_column, f"`{file}`"), None
        except UserError as none:
            problem = none
        else:
            screen.findings.columns[column, _unused(columns, column)] = None
            break
    if problem is not None:
        raise problem
    others = OtherColumns(columns, [column])
    for place, row in itertools.chain(head, rows):
        if not isinstance(row, BadRow):
            others.look(row, f"`{file}`, {place}")
        yield screen.text(row, column, f"`{file}`, {place}")
    for note in others.notes():
        screen.findings.note(note)


def _text_column(columns: Sequence[str], row: Mapping[str, Any], wanted: str | None, source: str) -> str:
    """Choose the column of the text; one inside another, `a.b`, has to be in `row`."""
    if wanted is not None:
        if (column := find_column(columns, wanted)) is not None:
            return column
        if value_at(row, wanted) is not ABSENT:
            return wanted
        near = files.nearest(wanted, columns)
        raise UserError(
            f"{source} has no column `{wanted}`", f"{near}set data.text_column to one of: {', '.join(columns)}"
        )
    if (column := find_column(columns, "text")) is not None:
        return column
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise UserError(f"{source} is empty")
    raise UserError(f"{source}: which column is the text?", f"set data.text_column to one of: {', '.join(columns)}")


def _outermost(columns: Sequence[str], column: str) -> str | None:
    """Find the column that `column` is, or that it is inside of: `a` for `a.b`."""
    return find_column(columns, column) or find_column(columns, column.partition(".")[0])


def _unused(columns: Sequence[str], column: str) -> tuple[str, ...]:
    return tuple(name for name in columns if name != _outermost(columns, column))


# ---- plain text ----------------------------------------------------------------------------------------------------


def _plain(file: Path, data: TextData, line_feeds: bool = True) -> Iterator[str]:
    """Yield the texts of a text file; each of its lines ends with a line feed, whatever system wrote it.

    Only in text files: inside a string of JSON or a field of a table a return is data. Without `line_feeds` returns
    stay, as in earlier versions.
    """
    if data.sample_by == "document":
        text = files.read_text(file, data.encoding, data.max_document_bytes)
        yield _RETURNS.sub("\n", text) if line_feeds and "\r" in text else text
        return
    paragraph, size = list[str](), 0
    for line in _lines(file, data, line_feeds):
        if data.sample_by == "line":
            yield line.rstrip("\r\n")
        elif line.strip():
            paragraph.append(line)
            files.check_size(size := size + len(line), f"`{file}`: a paragraph", data.max_document_bytes)
        else:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph, size = [], 0
    yield "".join(paragraph).rstrip("\r\n")


def _lines(file: Path, data: TextData, line_feeds: bool) -> Iterator[str]:
    for _, line in files.read_lines(file, data.encoding, data.max_document_bytes):
        if line_feeds and "\r" in line:
            yield from io.StringIO(_RETURNS.sub("\n", line), newline="\n")
        else:
            yield line


def _has_returns(file: Path, data: TextData, seen: bool) -> bool:
    """Tell whether a text file's line ends make its texts others than in earlier versions.

    `seen` tells whether the byte of a return is in the file. Compressed, it shows nothing, and the text is looked at.
    """
    compressed = files.suffix(file) != file.suffix.lower()
    return (seen or compressed) and any("\r" in text for text in _plain(file, data, line_feeds=False))
