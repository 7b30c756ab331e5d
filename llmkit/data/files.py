"""Local files: which ones a recipe means, and the rows or the text in them.

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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, cast

import xxhash

from llmkit.errors import UserError
from llmkit.recipe.data_tables import Data, RowData, TextData

TEXT_SUFFIXES = (".txt", ".text", ".md")
CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".bmes")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *CONLL_SUFFIXES)
SUFFIXES = TEXT_SUFFIXES + ROW_SUFFIXES

# What the first bytes of a file say that it is, where it is not the text that its name promises, and what to do.
_BEGINNINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32", 'set data.encoding = "utf-32"'),
    (b"\xff\xfe", "UTF-16", 'set data.encoding = "utf-16"'),
    (b"\xfe\xff", "UTF-16", 'set data.encoding = "utf-16"'),
    (b"\x1f\x8b", "a gzip file", "let its name end in .gz"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it, or pack it with gzip"),
    (b"BZh", "a bzip2 file", "unpack it, or pack it with gzip"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it, or pack it with gzip"),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (b"%PDF", "a PDF", "take the text out of it"),
)

_UTF_16 = 'if it is UTF-16 without a mark at its begin, set data.encoding = "utf-16-le"'
_NO_WORD = ("#", "-DOCSTART-")  # a line of a CoNLL file that begins so tells nothing of its columns

SHOWN = 80  # characters of a row, in a message

csv.field_size_limit(1 << 30)

# ---- which files ---------------------------------------------------------------------------------------------------


def is_local(data: Data) -> bool:
    """Whether `data.path` is on this machine; raises UserError for a local path with keys of a Hub data set."""
    if not Path(data.path).exists() and not glob.has_magic(data.path):
        return False
    for key in ("name", "revision"):
        if getattr(data, key):
            raise UserError(
                f"data.{key} belongs to a Hub data set, and data.path `{data.path}` is on this machine",
                f"unset it: data.{key}=",
            )
    return True


def of_split(data: TextData | RowData, split: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The local files of a split: what `data.data_files` names for it, else all of `data.path`, which is `train`."""
    patterns: str | Sequence[str] | None
    if isinstance(data.data_files, Mapping):
        if split not in data.data_files:
            raise UserError(f"data.data_files has no `{split}`; it names {', '.join(data.data_files)}")
        patterns = data.data_files[split]
    elif split == "train" and not data.validation_split:
        patterns = data.data_files
    else:
        raise UserError(
            f"data.path `{data.path}` is on this machine, where files make no splits by themselves",
            'name them: data.data_files = { train = "a.jsonl", validation = "b.jsonl" }',
        )
    found = []
    base = Path(data.path) if Path(data.path).is_dir() else Path()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        matching = expand(str(base / pattern), suffixes)
        if not matching:
            raise UserError(
                f"data.data_files: no file matches `{base / pattern}`",
                "the names in it are relative to data.path where that is a folder, else to the working directory",
            )
        found += matching
    if patterns is None:
        found = expand(data.path, suffixes)
    if not found:
        raise UserError(
            f"data.path `{data.path}`: no {'text' if '.txt' in suffixes else 'data'} files there",
            f"files that can be read end in {' '.join(suffixes)} (or the same with .gz)",
        )
    return found


def expand(pattern: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files that a path, a glob or a folder means: those in it with one of `suffixes` that are not hidden."""
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        visible = (f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts))
        return sorted(f for f in visible if suffix(f) in suffixes and _is_file(f))
    return sorted(f for f in map(Path, glob.glob(pattern, recursive=True)) if _is_file(f))  # noqa: PTH207


def _is_file(path: Path) -> bool:
    """Whether it is a file; a link to nothing is refused, for what it stood for would be missed in silence."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"`{path}` is a link to `{path.readlink()}`, which is not there", "mend the link or remove it")
    return path.is_file()


def suffix(file: Path) -> str:
    """What decides the format of a file, in lower case: `.csv` of `A.CSV.gz`."""
    return Path(file.stem).suffix.lower() if file.suffix.lower() == ".gz" else file.suffix.lower()


def nearest(wanted: str, columns: Sequence[str]) -> str:
    """The first words of a hint: the column whose name is closest to one that is not there; "" where none is."""
    near = get_close_matches(wanted, columns, 1) or [name for name in columns if name.casefold() == wanted.casefold()]
    return f"did you mean `{near[0]}`? " if near else ""


def content_hash(files: Sequence[Path], nuls: "Counter[Path] | None" = None) -> str:
    """A hash of the bytes in the files and of where each ends, not of their names; `nuls` counts NULs by file."""
    content = xxhash.xxh64()
    for file in files:
        with reading(file), file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                content.update(chunk)
                if nuls is not None:
                    nuls[file] += chunk.count(0)
        content.update(b"\0")
    return content.hexdigest()


def nul_bytes(counts: Mapping[Path, int], encoding: str) -> tuple[str, ...]:
    """A remark on each file with NUL bytes, which are read as they are and seldom meant.

    Not where they belong: in Parquet and gzip files, and in text of UTF-16 and the like.
    """
    text = {file: n for file, n in counts.items() if file.suffix.lower() not in (".gz", ".parquet")}
    return tuple(
        f"`{file}` holds {n:,} NUL bytes, read as they are; if it is UTF-16, set data.encoding"
        for file, n in text.items()
        if n and _is_byte_wise(encoding)
    )


def digest(*parts: object) -> str:
    """One fingerprint of all the parts, the same in every process."""
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())


# ---- rows ----------------------------------------------------------------------------------------------------------


def rows(file: Path, encoding: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place in it: "line 3", "row 7", "item 2".

    The suffix decides the format. Of a Parquet file nothing but `columns` is read, where they are given.
    """
    kind = suffix(file)
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(file, encoding)
    if kind == ".json":
        return _json(file, encoding)
    if kind in (".csv", ".tsv"):
        return _csv(file, encoding)
    if kind == ".parquet":
        return _parquet(file, columns)
    if kind in CONLL_SUFFIXES:
        return _conll(file, encoding)
    if kind in TEXT_SUFFIXES:
        raise UserError(
            f"`{file}`: a text file has no columns", f"rows come from files that end in {' '.join(ROW_SUFFIXES)}"
        )
    raise UserError(
        f"`{file}`: llmkit does not read `{kind}` files" if kind else f"`{file}`: its name does not say what it is",
        f"it reads files that end in {' '.join(SUFFIXES)} (or the same with .gz)",
    )


def parquet_columns(file: Path) -> list[str]:
    """The names of a Parquet file's columns; no row is read."""
    import pyarrow.parquet

    with _reading_parquet(file):
        return pyarrow.parquet.read_schema(file).names


def text_of(row: Mapping[str, Any], column: str, where: str, key: str = "its key in [data]") -> str:
    """The text in a column of a row, "" for None; raises UserError where it is missing or is no text that has tokens.

    `where` says in which file and row it stands; `key` is the recipe's key that chose the column.
    """
    if column not in row:
        raise UserError(
            f"{where}: no `{column}`; the row has {', '.join(row) or 'nothing'}", "every row needs that column"
        )
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: column `{column}` holds {type(value).__name__}, not text",
            f"set {key} to the column with the text",
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as problem:  # JSON can write it, and nothing can tokenize it
            raise UserError(
                f"{where}: `{column}` holds half a character (\\u{ord(value[problem.start]):04x})",
                "characters beyond U+FFFF are two \\u escapes in JSON; mend the row or take it out",
            ) from problem
    return value


def _json_lines(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    first = ""
    for number, line in lines(file, encoding):
        if not line.strip():
            continue
        first = first or line.lstrip()[0]
        array = "a list of rows over many lines is read from a file that ends in .json" if first == "[" else ""
        try:
            row = _from_json(line.strip())
        except ValueError as problem:
            what = str(problem).replace("line 1 column", "column")  # of this line, whose number in the file we know
            raise UserError(
                f"`{file}`, line {number}: {what if isinstance(problem, _UnfitError) else f'not JSON ({what})'}",
                _UTF_16 if "\0" in line else array or "one object a line is expected",
            ) from problem
        if not isinstance(row, dict):
            raise UserError(
                f"`{file}`, line {number}: an object is expected, this is a {type(row).__name__}",
                array or 'write a row as an object with its columns: {"text": "..."}',
            )
        yield f"line {number}", row


class _UnfitError(ValueError):
    """What is JSON, and no row that could be meant."""


def _from_json(text: str) -> Any:
    """The value that JSON says; ValueError also where an object has a key twice, or it is nested too deep."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise _UnfitError("lists or objects inside one another, too many to read") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python's own reader takes the last of two values of one key, and nobody is told."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _UnfitError(f"the key `{twice}` stands in one object twice")
    return found


def _json(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of rows, an object whose `data` is one or holds SQuAD's articles, or JSON lines that are called .json."""
    filled = (line.strip() for _, line in lines(file, encoding) if line.strip())
    first, second = next(filled, ""), next(filled, "")
    filled.close()
    if not first:
        return
    if second and first.startswith("{") and _is_json(first):
        yield from _json_lines(file, encoding)
        return
    try:
        content = _from_json(whole(file, encoding))
    except _UnfitError as problem:
        raise UserError(f"`{file}`: {problem}", "mend it, or write one object a line") from problem
    except ValueError as problem:
        # JSON lines of which the first is broken: where one object goes on over many lines, another can open on the
        # second line only after a bracket.
        if first.startswith("{") and second.startswith("{") and not first.endswith("["):
            yield from _json_lines(file, encoding)
            return
        raise UserError(f"`{file}`: not JSON ({problem})", "mend it there, or write one object a line") from problem
    items = content.get("data") if isinstance(content, dict) else content
    if isinstance(content, dict) and not isinstance(items, list) and not second:
        yield from _json_lines(file, encoding)  # of one line
        return
    rows = items if isinstance(items, list) else []
    odd = [number for number, item in enumerate(rows, 1) if not isinstance(item, dict)]
    if 0 < len(odd) < len(rows):
        kind = type(rows[odd[0] - 1]).__name__
        raise UserError(
            f"`{file}`, item {odd[0]}: an object is expected, this is a {kind}",
            'write a row as an object with its columns: {"text": "..."}',
        )
    if not isinstance(items, list) or odd:
        raise UserError(
            f"`{file}`: a list of objects is expected, or one object a line",
            'such as [{"text": "..."}, ...], the same as {"data": [...]}, or SQuAD\'s format',
        )
    if isinstance(content, dict) and any("paragraphs" in item for item in items):
        yield from _squad(items, file)
    else:
        yield from ((f"item {index + 1}", row) for index, row in enumerate(items))


def _is_json(line: str) -> bool:
    try:
        _from_json(line)
    except _UnfitError:
        return True
    except ValueError:
        return False
    return True


def _squad(articles: list[dict[str, Any]], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row a question, in the shape that the Hub gives SQuAD; a question that has no `answers` has none in its row.

    The format is that of https://rajpurkar.github.io/SQuAD-explorer/ in its versions 1.1 and 2.0.
    """

    def member(of: Any, key: str, kind: type, words: str, place: str) -> Any:
        if not isinstance(of, dict) or type(of.get(key)) is not kind:
            raise UserError(
                f"`{file}`, {place}: `{key}` is {'not ' + words if isinstance(of, dict) and key in of else 'missing'}",
                "SQuAD's format is data > paragraphs > context, qas > id, question, answers > text, answer_start",
            )
        return of[key]

    number = 0
    for article_number, article in enumerate(articles, 1):
        place = f"article {article_number}"
        for paragraph_number, paragraph in enumerate(member(article, "paragraphs", list, "a list", place), 1):
            place = f"article {article_number}, paragraph {paragraph_number}"
            context = member(paragraph, "context", str, "text", place)
            for asked in member(paragraph, "qas", list, "a list", place):
                number += 1
                name = str((isinstance(asked, dict) and asked.get("id")) or number)
                here = f"{place}, question {name}"
                question = member(asked, "question", str, "text", here)
                row = {"id": name, "title": article.get("title", ""), "context": context, "question": question}
                if "answers" in asked or asked.get("is_impossible"):
                    found = [] if asked.get("is_impossible") else member(asked, "answers", list, "a list", here)
                    row["answers"] = {
                        "text": [member(answer, "text", str, "text", here) for answer in found],
                        "answer_start": [
                            member(answer, "answer_start", int, "a whole number", here) for answer in found
                        ],
                    }
                yield f"question {name}", row


def _csv(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    numbered = lines(file, encoding)
    above, first = next(((number - 1, line) for number, line in numbered if line.strip()), (0, ""))  # blank lines
    if "\0" in first:
        raise UserError(f"`{file}`, line {above + 1}: NUL bytes among the names of the columns", _UTF_16)
    # The comma where none of these occurs: one column.
    unquoted = re.sub('"[^"]*"', "", first)
    delimiter = "\t" if suffix(file) == ".tsv" else max(",;\t|", key=unquoted.count)
    reader = csv.reader(
        itertools.chain([first], (line for _, line in numbered)),
        delimiter=delimiter,
        strict=True,
    )
    begins = above + 1  # the line on which a row begins; quoted line breaks let it go on for many
    try:
        header = next(reader, [])
        numbered_by_pandas = len(header) > 1 and not header[0]  # its index: no column of the data
        for number, name in enumerate(header, 1):
            if not name.strip() and not (numbered_by_pandas and number == 1):
                raise UserError(f"`{file}`, line {begins}: column {number} has no name", "name it or take it out")
            if Counter(header)[name] > 1:
                raise UserError(
                    f"`{file}`, line {begins}: {Counter(header)[name]} columns are called `{name}`",
                    "give every column a name of its own",
                )
        begins = above + reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"`{file}`, line {begins}: {len(row)} fields where the header has {len(header)}",
                    f"the delimiter read from the header is {delimiter!r}; quote fields that contain it",
                    (" ".join(delimiter.join(row).split())[:SHOWN],),
                )
            if row:
                named = zip(header, row, strict=True)
                yield f"line {begins}", dict(itertools.islice(named, int(numbered_by_pandas), None))
            begins = above + reader.line_num + 1
    except csv.Error as problem:
        if str(problem).startswith("new-line character"):
            raise UserError(
                f"`{file}`, line {begins}: a carriage return inside a field that is not quoted",
                "quote the field; if every line ends so (as on an old Mac), write line feeds instead",
            ) from problem
        raise UserError(
            f"`{file}`, line {begins}: {problem}",
            'a field that begins with a quote ends with one, and a quote inside it is doubled ("")',
        ) from problem


def _conll(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row a sentence: `tokens` from the first column, `tags` from the last, `column_2` and so on between them.

    One word a line, its columns set apart by tabs if the first word has any, else by blanks; sentences end at blank
    lines and at `-DOCSTART-`. A line that heads a sentence with a `#` is a comment unless it has all the columns.
    """
    begin = next((line for _, line in lines(file, encoding) if line.strip() and not line.startswith(_NO_WORD)), "")
    tabs = "\t" in begin

    def cut(line: str) -> list[str]:
        """No other space sets columns apart: a word may hold one that does not break."""
        line = line.rstrip("\r\n")
        return line.split("\t") if tabs else [field for field in line.split(" ") if field]

    width = len(cut(begin))
    names = ["tokens", *(f"column_{number}" for number in range(2, width)), "tags"][:width]
    words: list[list[str]] = []
    begins = 0
    for number, line in itertools.chain(lines(file, encoding), [(0, "")]):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                yield f"line {begins}", dict(zip(names, map(list, zip(*words, strict=True)), strict=True))
            words = []
            continue
        fields = cut(line)
        # "# sent_id = 1" may have as many columns as a word.
        if line.startswith("#") and not words and (len(fields) != width or fields[2:3] == ["="]):
            continue
        if len(fields) != width:
            raise UserError(
                f"`{file}`, line {number}: {len(fields)} columns where the first word has {width}",
                f"one word a line; columns are set apart by {'tabs' if tabs else 'blanks'}, as those of the first word",
            )
        begins = begins if words else number
        words.append(fields)


def _parquet(file: Path, columns: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    with _reading_parquet(file), pyarrow.parquet.ParquetFile(file) as table:
        batches = table.iter_batches(1000, columns=None if columns is None else list(columns))
        every = itertools.chain.from_iterable(map(_values, batches))
        number = 0
        try:
            for number, row in enumerate(every, 1):
                yield f"row {number}", row
        except (ValueError, OverflowError) as problem:  # UnicodeDecodeError, or a time that Python has no words for
            if isinstance(problem, pyarrow.ArrowException):
                raise
            raise UserError(
                f"`{file}`, row {number + 1}: {problem}", "mend the row, or take out the column if it is not needed"
            ) from problem


def _values(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch; one by one only where they cannot be had at once, so that those before the bad one count."""
    try:
        found = batch.to_pylist()
    except (ValueError, OverflowError):
        found = (batch.slice(row, 1).to_pylist()[0] for row in range(batch.num_rows))
    yield from found


@contextmanager
def _reading_parquet(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as problem:
        raise UserError(
            f"`{file}`: not a whole Parquet file ({str(problem).splitlines()[0]})", "copy or download it again"
        ) from problem


# ---- bytes and lines -----------------------------------------------------------------------------------------------


def whole(file: Path, encoding: str) -> str:
    """All the text of a file."""
    with reading(file), _open(file) as stream:
        return decode(stream.read(), file, 1, encoding)


def lines(file: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file, with their line breaks and their numbers from 1, in constant memory."""
    with reading(file), _open(file) as stream:
        if not _is_byte_wise(encoding):
            yield from enumerate(io.StringIO(decode(stream.read(), file, 1, encoding), newline="\n"), 1)
            return
        for number, raw in enumerate(stream, 1):
            yield number, decode(raw, file, number, encoding)


def _is_byte_wise(encoding: str) -> bool:
    """Whether bytes can be cut into lines before they are decoded: not those of UTF-16 and the like."""
    return "\n\n".encode(encoding).endswith(b"\n\n")


def decode(raw: bytes, file: Path, first_line: int, encoding: str) -> str:
    """Bytes of a file as text, without a byte order mark; an error counts its lines from `first_line`."""
    try:
        decoded = raw.decode(encoding)
    except UnicodeDecodeError as problem:
        line = first_line + raw.count(b"\n", 0, problem.start)
        raise UserError(
            f"`{file}`, line {line}: byte 0x{raw[problem.start]:02x} is not {encoding}",
            _meant(file) or "convert the file to UTF-8, or set data.encoding (Windows files are often cp1252)",
        ) from problem
    return decoded.removeprefix("\ufeff") if first_line == 1 else decoded


def _meant(file: Path) -> str:
    """A hint where the first bytes of a file say what it is."""
    with reading(file), _open(file) as stream:
        begin = stream.read(8)
    return next(
        (f"it begins like {what}: {remedy}" for known, what, remedy in _BEGINNINGS if begin.startswith(known)), ""
    )


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what a file that is not there, or is damaged, raises into a UserError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as problem:  # the last two, and an OSError, from a damaged .gz
        raise UserError(
            f"`{file}` cannot be read: {getattr(problem, 'strerror', None) or problem}",
            "is it there, whole, and yours to read?",
        ) from problem


def _open(file: Path) -> IO[bytes]:
    if file.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    return file.open("rb")
