"""Texts out of files, folders and Hub data sets, one document at a time.

Local files are read here and not through `datasets`, whose readers turn "NA" into None, take a semicolon file for one
column, name no file and line for a byte that is not UTF-8, and find the old content of a file that was changed within
the same second.
"""

import csv
import glob
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, cast

import xxhash

from llmkit import hub
from llmkit.errors import UserError
from llmkit.recipe.schema import Data

SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")  # in this order, as `datasets` knows them

csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Documents:
    """Texts that can be read again and again, in the same order, in constant memory.

    `fingerprint` changes when the content or the way of reading it changes; `source` is for messages.
    """

    read: Callable[[], Iterator[str]]
    fingerprint: str
    source: str

    def __iter__(self) -> Iterator[str]:
        return (text for text in self.read() if text)


@dataclass(frozen=True)
class Corpus:
    """The documents to learn from, those held out (if any), and what the user should know about the choice."""

    train: Documents
    validation: Documents | None
    notes: tuple[str, ...] = ()
    revision: str | None = None  # the commit of a Hub data set


def corpus(data: Data, seed: int) -> Corpus:
    """Open `data` and settle what is held out for validation.

    A validation split wins; else `validation_fraction` of the documents (those whose hash of seed and index falls below
    it) or of the text's end. Raises UserError where there is nothing to read.
    """
    if Path(data.path).exists() or glob.has_magic(data.path):
        train, validation, revision = *_local(data), None
    else:
        train, validation, revision = _from_hub(data)
    if next(iter(train), None) is None:
        raise UserError(f"{train.source}: there is no text in it", "is it empty, or a header with no rows?")
    if validation is not None:
        unasked = data.validation_fraction and not data.validation_split
        note = ("validation_fraction is ignored: the data has a validation split",) if unasked else ()
        return Corpus(train, validation, note, revision)
    if not data.validation_fraction:
        return Corpus(train, None, ("no validation data: set data.validation_fraction to hold some out",), revision)
    hold_out = _from_end if data.validation_from == "end" else _by_hash
    return Corpus(*hold_out(train, data.validation_fraction, seed), revision=revision)


def _by_hash(documents: Documents, fraction: float, seed: int) -> tuple[Documents, Documents]:
    def held_out(index: int) -> bool:
        return xxhash.xxh64_intdigest(f"{seed}:{index}".encode()) < fraction * 2**64

    def part(wanted: bool) -> Documents:
        return Documents(
            lambda: (text for index, text in enumerate(documents) if held_out(index) is wanted),
            _digest(documents.fingerprint, "by-hash", fraction, seed, wanted),
            documents.source,
        )

    return part(False), part(True)


def _from_end(documents: Documents, fraction: float, seed: int) -> tuple[Documents, Documents]:
    """The last `fraction` of all characters is held out, the document in which it begins cut in two (nanoGPT's way)."""
    total = sum(len(text) for text in documents)
    cut = int(total * (1 - Fraction(str(fraction))))  # as written in the recipe: 1 - 0.9 is less than 0.1 in floats

    def read(wanted: bool) -> Iterator[str]:
        position = 0
        for text in documents:
            here = min(max(cut - position, 0), len(text))
            position += len(text)
            yield text[here:] if wanted else text[:here]

    def part(wanted: bool) -> Documents:
        return Documents(
            lambda: read(wanted), _digest(documents.fingerprint, "end", fraction, wanted), documents.source
        )

    return part(False), part(True)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def _from_hub(data: Data) -> tuple[Documents, Documents | None, str | None]:
    import datasets

    revision = hub.check(data.path, "dataset", data.revision)
    datasets.disable_progress_bars()

    def load(split: str) -> Any:
        with hub.loading(data.path, "dataset"):
            return datasets.load_dataset(
                data.path,
                name=data.name,
                data_files=_plain_files(data.data_files),
                split=split,
                revision=data.revision,
                streaming=data.streaming,
            )

    def documents(split: str) -> Documents:
        rows = load(split)
        columns = rows.column_names or list(next(iter(rows), {}))
        column = _text_column(columns, data.text_column, f"`{data.path}` (split {split})")
        rows = rows.select_columns([column])

        def read() -> Iterator[str]:
            for index, row in enumerate(rows):
                yield _text(row[column], f"`{data.path}` (split {split})", f"row {index + 1}", column)

        content = getattr(rows, "_fingerprint", None) or _digest(
            data.path, data.name, _plain_files(data.data_files), revision, split
        )
        return Documents(read, _digest(content, column), f"`{data.path}`")

    return documents(data.split), _validation_split(data, documents), revision


def _plain_files(files: str | Sequence[str] | Mapping[str, Any] | None) -> Any:
    """As upstream wants them: a list and not a tuple, a dict and no other mapping."""
    if files is None or isinstance(files, str):
        return files
    return dict(files) if isinstance(files, Mapping) else list(files)


def _validation_split(data: Data, documents: Callable[[str], Documents]) -> Documents | None:
    import datasets

    if data.validation_split:
        return documents(data.validation_split)
    if data.data_files is None:
        with hub.loading(data.path, "dataset"):
            names = datasets.get_dataset_split_names(data.path, data.name, revision=data.revision)
    else:
        names = list(data.data_files) if isinstance(data.data_files, Mapping) else []
    wanted = [name for name in VALIDATION_NAMES if name in names]
    return documents(wanted[0]) if wanted else None


# ---- local files ---------------------------------------------------------------------------------------------------


def _local(data: Data) -> tuple[Documents, Documents | None]:
    for key in ("name", "revision"):
        if getattr(data, key):
            raise UserError(f"data.{key} belongs to a Hub data set, and data.path `{data.path}` is on this machine")
    if isinstance(data.data_files, Mapping):
        validation = data.validation_split or next((n for n in VALIDATION_NAMES if n in data.data_files), None)
        train = _files_of(data, data.data_files.get(data.split), data.split)
        held_out = _files_of(data, data.data_files.get(validation), validation) if validation else None
        return train, held_out
    if data.split != "train" or data.validation_split:
        raise UserError(
            f"data.path `{data.path}` is on this machine, where files make no splits by themselves",
            'name them: data.data_files = { train = "a.jsonl", validation = "b.jsonl" }',
        )
    return _files_of(data, data.data_files, "train"), None


def _files_of(data: Data, patterns: str | Sequence[str] | None, split: str | None) -> Documents:
    root = Path(data.path)
    if patterns is None:
        if isinstance(data.data_files, Mapping):
            raise UserError(f"data.data_files has no `{split}`; it names {', '.join(data.data_files)}")
        files = _expand(data.path)
    else:
        base = root if root.is_dir() else Path()
        files = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = _expand(str(base / pattern))
            if not found:
                raise UserError(f"data.data_files: no file matches `{base / pattern}`")
            files += found
    if not files:
        raise UserError(
            f"data.path `{data.path}`: no text files there",
            f"files that can be read end in {' '.join(SUFFIXES)} (or the same with .gz)",
        )
    content = xxhash.xxh64()
    for file in files:
        with _reading(file), file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                content.update(chunk)
        content.update(b"\0")
    names = [_suffix(file) for file in files]
    return Documents(
        lambda: itertools.chain.from_iterable(_texts(file, data) for file in files),
        _digest(content.hexdigest(), names, data.sample_by, data.text_column, data.encoding),
        f"`{data.path}`",
    )


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        visible = (f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts))
        return sorted(f for f in visible if f.is_file() and _suffix(f) in SUFFIXES)
    return sorted(Path(f) for f in glob.glob(pattern, recursive=True) if Path(f).is_file())  # noqa: PTH207


def _suffix(file: Path) -> str:
    return Path(file.stem).suffix.lower() if file.suffix.lower() == ".gz" else file.suffix.lower()


def _texts(file: Path, data: Data) -> Iterator[str]:
    suffix = _suffix(file)
    if suffix in (".txt", ".text", ".md"):
        return _plain(file, data)
    if suffix in (".jsonl", ".ndjson"):
        rows = _json_lines(file, data.encoding)
    elif suffix == ".json":
        rows = _json(file, data.encoding)
    elif suffix in (".csv", ".tsv"):
        rows = _csv(file, data.encoding)
    elif suffix == ".parquet":
        rows = _parquet(file, data.text_column)
    else:
        raise UserError(f"`{file}`: llmkit does not read `{suffix}` files", f"it reads {' '.join(SUFFIXES)}")
    return _column(rows, file, data.text_column)


def _column(rows: Iterable[tuple[str, dict[str, Any]]], file: Path, wanted: str | None) -> Iterator[str]:
    """The text column of rows that come with their place ("line 3")."""
    column = None
    for place, row in rows:
        if column is None:
            column = _text_column(list(row), wanted, f"`{file}`")
        if column not in row:
            raise UserError(f"`{file}`, {place}: no `{column}`; the row has {', '.join(row)}")
        yield _text(row[column], f"`{file}`", place, column)


def _text_column(columns: list[str], wanted: str | None, source: str) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UserError(f"{source} has no column `{wanted}`", f"set data.text_column to one of: {', '.join(columns)}")
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise UserError(f"{source} is empty")
    raise UserError(f"{source}: which column is the text?", f"set data.text_column to one of: {', '.join(columns)}")


def _text(value: Any, source: str, place: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{source}, {place}: column `{column}` holds {type(value).__name__}, not text",
            "set data.text_column to the column with the text",
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as problem:  # JSON can write it, and nothing can tokenize it
            raise UserError(
                f"{source}, {place}: `{column}` holds half a character (\\u{ord(value[problem.start]):04x})",
                "characters beyond U+FFFF are two \\u escapes in JSON; mend the row or take it out",
            ) from problem
    return value


def _plain(file: Path, data: Data) -> Iterator[str]:
    if data.sample_by == "document":
        with _reading(file), _open(file) as stream:
            yield _decode(stream.read(), file, 1, data.encoding)
        return
    paragraph: list[str] = []
    for _, line in _lines(file, data.encoding):
        if data.sample_by == "line":
            yield line.rstrip("\r\n")
        elif line.strip():
            paragraph.append(line)
        else:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph = []
    yield "".join(paragraph).rstrip("\r\n")


def _json_lines(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(file, encoding):
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip())
        except ValueError as problem:
            what = str(problem).replace("line 1 column", "column")  # of this line, whose number in the file we know
            raise UserError(f"`{file}`, line {number}: not JSON ({what})", "one object a line is expected") from problem
        if not isinstance(row, dict):
            raise UserError(f"`{file}`, line {number}: an object is expected, this is a {type(row).__name__}")
        yield f"line {number}", row


def _json(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of objects; a file of JSON lines that is called .json is read as such."""
    with _reading(file), _open(file) as stream:
        text = _decode(stream.read(), file, 1, encoding)
    if text.lstrip().startswith("{"):
        yield from _json_lines(file, encoding)
        return
    try:
        rows = json.loads(text)
    except ValueError as problem:
        raise UserError(f"`{file}`: not JSON ({problem})") from problem
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"`{file}`: a list of objects is expected, or one object a line")
    yield from ((f"item {index + 1}", row) for index, row in enumerate(rows))


def _csv(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = _lines(file, encoding)
    first = next(lines, (0, ""))[1]
    # The comma where none of these occurs: one column.
    unquoted = re.sub('"[^"]*"', "", first)
    delimiter = "\t" if _suffix(file) == ".tsv" else max(",;\t|", key=unquoted.count)
    reader = csv.reader(
        itertools.chain([first], (line for _, line in lines)),
        delimiter=delimiter,
        strict=True,
    )
    begins = 1  # the line on which a row begins; quoted line breaks let it go on for many
    try:
        header = next(reader, [])
        begins = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"`{file}`, line {begins}: {len(row)} fields where the header has {len(header)}",
                    f"the delimiter read from the header is {delimiter!r}; quote fields that contain it",
                )
            if row:
                yield f"line {begins}", dict(zip(header, row, strict=True))
            begins = reader.line_num + 1
    except csv.Error as problem:
        raise UserError(
            f"`{file}`, line {begins}: {problem}",
            'a field that begins with a quote ends with one, and a quote inside it is doubled ("")',
        ) from problem


def _parquet(file: Path, wanted: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            column = _text_column(table.schema_arrow.names, wanted, f"`{file}`")
            batches = table.iter_batches(1000, columns=[column])
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"row {index + 1}", row) for index, row in enumerate(rows))
    except (pyarrow.ArrowException, OSError) as problem:
        raise UserError(f"`{file}`: not a whole Parquet file ({str(problem).splitlines()[0]})") from problem


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as problem:  # the last two, and an OSError, from a damaged .gz
        raise UserError(f"`{file}` cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


def _open(file: Path) -> IO[bytes]:
    if file.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    return file.open("rb")


def _lines(file: Path, encoding: str) -> Iterator[tuple[int, str]]:
    with _reading(file), _open(file) as stream:
        if not "\n\n".encode(encoding).endswith(b"\n\n"):  # UTF-16 and the like: bytes cannot be cut into lines
            yield from enumerate(io.StringIO(_decode(stream.read(), file, 1, encoding), newline="\n"), 1)
            return
        for number, raw in enumerate(stream, 1):
            yield number, _decode(raw, file, number, encoding)


def _decode(raw: bytes, file: Path, first_line: int, encoding: str) -> str:
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as problem:
        line = first_line + raw.count(b"\n", 0, problem.start)
        raise UserError(
            f"`{file}`, line {line}: byte 0x{raw[problem.start]:02x} is not {encoding}",
            "convert the file to UTF-8, or set data.encoding (Windows files are often cp1252)",
        ) from problem
    return text.removeprefix("\ufeff") if first_line == 1 else text


def _digest(*parts: object) -> str:
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())
