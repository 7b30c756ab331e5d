"""Read texts from files, folders and Hub data sets, one document at a time."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from llmkit import hub
from llmkit.data import files
from llmkit.data.files import digest
from llmkit.data.rows.table import default_validation, held_out, load, plain_files
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TextData


@dataclass(frozen=True)
class Documents:
    """Texts that can be read again and again, in the same order, in constant memory.

    `fingerprint` changes when the content or the way of reading it changes. `source` is for messages. `remarks` are
    notes on the files, for the user.
    """

    read: Callable[[], Iterator[str]]
    fingerprint: str
    source: str
    remarks: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        return (text for text in self.read() if text)


@dataclass(frozen=True)
class Corpus:
    """The documents to learn from, those held out (if any), and notes for the user on the choice."""

    train: Documents
    validation: Documents | None
    notes: tuple[str, ...] = ()
    revision: str | None = None  # the commit of a Hub data set


def chained(sources: list[Documents]) -> Documents:
    """Chain the documents of several sources, one source after the other."""
    if len(sources) == 1:
        return sources[0]
    return Documents(
        lambda: itertools.chain.from_iterable(sources),
        digest(*(documents.fingerprint for documents in sources)),
        ", ".join(documents.source for documents in sources),
    )


def read_corpus(data: TextData, seed: int) -> Corpus:
    """Open `data` and choose what is held out for validation.

    A validation split comes first. Else `validation_fraction` is held out: of the documents (those whose hash of seed
    and index falls below it), or of the characters, at the end of the text. Raises UserError where there is no text.
    """
    if files.is_local(data):
        train, validation, revision = *_local(data), None
    else:
        train, validation, revision = _from_hub(data)
    if all(text.isspace() for text in train):  # the first that is not ends the search
        raise UserError(f"{train.source}: there is no text in it", "is it empty, or a header with no rows?")
    remarks = tuple(dict.fromkeys([*train.remarks, *(() if validation is None else validation.remarks)]))
    if validation is not None:
        ignored = data.validation_fraction and not data.validation_split
        note = ("validation_fraction is ignored: the data has a validation split",) if ignored else ()
        return Corpus(train, validation, (*remarks, *note), revision)
    if not data.validation_fraction:
        none = "no validation data: set data.validation_fraction to hold some out"
        return Corpus(train, None, (*remarks, none), revision)
    hold_out = _from_end if data.validation_from == "end" else _by_hash
    return Corpus(*hold_out(train, data.validation_fraction, seed), remarks, revision)


def _by_hash(documents: Documents, fraction: float, seed: int) -> tuple[Documents, Documents]:
    def part(wanted: bool) -> Documents:
        return Documents(
            lambda: (text for index, text in enumerate(documents) if held_out(index, fraction, seed) is wanted),
            digest(documents.fingerprint, "by-hash", fraction, seed, wanted),
            documents.source,
        )

    return part(False), part(True)


def _from_end(documents: Documents, fraction: float, seed: int) -> tuple[Documents, Documents]:
    """Hold out the last `fraction` of all characters; the document in which it begins is split (as nanoGPT does)."""
    total = sum(len(text) for text in documents)
    cut = int(total * (1 - Fraction(str(fraction))))  # as written in the recipe: 1 - 0.9 is less than 0.1 in floats

    def read(wanted: bool) -> Iterator[str]:
        position = 0
        for text in documents:
            here = min(max(cut - position, 0), len(text))
            position += len(text)
            yield text[here:] if wanted else text[:here]

    def part(wanted: bool) -> Documents:
        return Documents(lambda: read(wanted), digest(documents.fingerprint, "end", fraction, wanted), documents.source)

    return part(False), part(True)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def _from_hub(data: TextData) -> tuple[Documents, Documents | None, str | None]:
    revision = hub.check(data.path, "dataset", data.revision)

    def documents(split: str) -> Documents:
        rows = load(data, split, data.streaming)
        columns = rows.column_names or list(next(iter(rows), {}))
        where = f"`{data.path}` (split {split})"
        column = _text_column(columns, data.text_column, where)
        rows = rows.select_columns([column])

        def read() -> Iterator[str]:
            for index, row in enumerate(rows):
                yield files.text_of(row, column, f"{where}, row {index + 1}", "data.text_column")

        content = getattr(rows, "_fingerprint", None) or digest(
            data.path, data.name, plain_files(data), revision, split
        )
        return Documents(read, digest(content, column), f"`{data.path}`")

    train = documents(data.split)
    validation = data.validation_split or default_validation(data)
    return train, documents(validation) if validation else None, revision


# ---- local files ---------------------------------------------------------------------------------------------------


def _local(data: TextData) -> tuple[Documents, Documents | None]:
    validation = data.validation_split or default_validation(data)
    return _documents(data, data.split), _documents(data, validation) if validation else None


def _documents(data: TextData, split: str) -> Documents:
    paths, nuls = files.of_split(data, split), Counter[Path]()
    return Documents(
        lambda: itertools.chain.from_iterable(_texts(file, data) for file in paths),
        digest(
            *(files.content_hash(paths, nuls), [files.suffix(file) for file in paths]),
            *(data.sample_by, data.text_column, data.encoding),
        ),
        f"`{data.path}`",
        files.nul_bytes(nuls, data.encoding),
    )


def _texts(file: Path, data: TextData) -> Iterator[str]:
    if files.suffix(file) in files.TEXT_SUFFIXES:
        yield from _plain(file, data)
        return
    columns = None
    if files.suffix(file) == ".parquet":
        columns = [_text_column(files.parquet_columns(file), data.text_column, f"`{file}`")]
    column = None
    for place, row in files.read_rows(file, files.ReadOptions.of(data), columns):
        if column is None:
            column = _text_column(list(row), data.text_column, f"`{file}`")
        yield files.text_of(row, column, f"`{file}`, {place}", "data.text_column")


def _text_column(columns: list[str], wanted: str | None, source: str) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        near = files.nearest(wanted, columns)
        raise UserError(
            f"{source} has no column `{wanted}`", f"{near}set data.text_column to one of: {', '.join(columns)}"
        )
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise UserError(f"{source} is empty")
    raise UserError(f"{source}: which column is the text?", f"set data.text_column to one of: {', '.join(columns)}")


def _plain(file: Path, data: TextData) -> Iterator[str]:
    if data.sample_by == "document":
        yield files.read_text(file, data.encoding)
        return
    paragraph: list[str] = []
    for _, line in files.read_lines(file, data.encoding):
        if data.sample_by == "line":
            yield line.rstrip("\r\n")
        elif line.strip():
            paragraph.append(line)
        else:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph = []
    yield "".join(paragraph).rstrip("\r\n")
