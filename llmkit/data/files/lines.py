"""Read the text of a file, line by line or whole, compressed or not, and say where a byte is not text."""

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TextIO

from llmkit.data.files.archives import is_compressed, open_bytes, reading, suffix
from llmkit.errors import UserError

__all__ = [
    "TEXT_SUFFIXES",
    "check_size",
    "decode",
    "is_byte_wise",
    "open_text",
    "read_lines",
    "read_text",
    "reading",
    "suffix",
]

TEXT_SUFFIXES = (".txt", ".text", ".md")

# The first bytes of files that are not the text that their names promise: what such a file is, and what to do.
_BEGINNINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32", 'set data.encoding = "utf-32"'),
    (b"\xff\xfe", "UTF-16", 'set data.encoding = "utf-16"'),
    (b"\xfe\xff", "UTF-16", 'set data.encoding = "utf-16"'),
    (b"\x1f\x8b", "a gzip file", "rename it to end in .gz"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "rename it to end in .zip, or save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "rename it to end in .zst"),
    (b"BZh", "a bzip2 file", "rename it to end in .bz2"),
    (b"\xfd7zXZ\x00", "an xz file", "rename it to end in .xz"),
    (b"PAR1", "a Parquet file", "rename it to end in .parquet"),
    (b"ARROW1", "an Arrow file", "rename it to end in .arrow"),
    (b"%PDF", "a PDF", "extract the text from it first"),
)

_CHUNK = 2**16  # bytes that are read at once: no bound may be smaller

UTF_16_HINT = 'if it is UTF-16 without a byte order mark, set data.encoding = "utf-16-le"'


def read_text(file: Path, encoding: str, bound: int | None = None) -> str:
    """Read all the text of a file; raise UserError where it has more than `bound` bytes (see `_Bounded`)."""
    with reading(file), _opened(file, bound, whole=True) as stream:
        return decode(stream.read(), file, 1, encoding)


def read_lines(file: Path, encoding: str, bound: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers from 1, in constant memory; line breaks are kept.

    Raises UserError for a line of more than `bound` bytes (see `_Bounded`).
    """
    with reading(file), _opened(file, bound, whole=not is_byte_wise(encoding)) as stream:
        if not is_byte_wise(encoding):
            yield from enumerate(io.StringIO(decode(stream.read(), file, 1, encoding), newline="\n"), 1)
            return
        for number, raw in enumerate(stream, 1):
            yield number, decode(raw, file, number, encoding)


@contextmanager
def open_text(file: Path, encoding: str, newline: str = "\n", bound: int | None = None) -> Iterator[TextIO]:
    """Open a file for its text in constant memory, much faster than `read_lines`; line breaks and a mark are kept.

    Raises UserError for a byte that is not of the encoding, with its line, and for a line of more than `bound` bytes.
    """
    try:
        with (
            reading(file),
            _opened(file, bound, whole=False) as stream,
            io.TextIOWrapper(stream, encoding, newline=newline) as text,
        ):
            yield text
    except UnicodeDecodeError as problem:
        for _ in read_lines(file, encoding, bound):  # raises it with the line
            pass
        raise UserError(f"`{file}` is not {encoding}: {problem.reason}", "set data.encoding") from problem


def _opened(file: Path, bound: int | None, whole: bool) -> Any:
    """Open a file for its bytes; one that may be longer than the bound, through `_Bounded`."""
    stream, limit = open_bytes(file), bound or _quarter_of_memory()
    if not is_compressed(file) and file.stat().st_size <= limit:
        return stream
    return io.BufferedReader(_Bounded(stream, file, bound, whole), _CHUNK)


class _Bounded(io.RawIOBase):
    """The bytes of a file of which no line, or with `whole` not all of them, are more than a bound.

    By default that is a quarter of the memory that is free: a text takes twice its size while it is read. Raises
    UserError.
    """

    def __init__(self, stream: IO[bytes], file: Path, bound: int | None, whole: bool) -> None:
        self._stream, self._file, self._bound, self._whole = stream, file, bound, whole
        self._line, self._size = 1, 0  # of the line so far

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(min(len(buffer), _CHUNK))
        buffer[: len(chunk)] = chunk
        end = -1 if self._whole else chunk.find(b"\n")
        self._size += len(chunk) if end < 0 else end
        where = "" if self._whole else f", line {self._line:,}"
        check_size(self._size, f"`{self._file}`{where}", self._bound)
        if end >= 0:
            self._line += chunk.count(b"\n")
            self._size = len(chunk) - 1 - chunk.rfind(b"\n")
        return len(chunk)

    def close(self) -> None:
        self._stream.close()
        super().close()


def check_size(size: int, where: str, bound: int | None) -> None:
    """Raise UserError where what is at `where` is too long to be held in memory."""
    limit = bound or _quarter_of_memory()
    if size <= limit:
        return
    most = f"{limit / 1e6:,.1f} MB"
    why = "data.max_document_bytes" if bound else "a quarter of the memory that was free"
    raise UserError(
        f"{where}: more than {most} ({why}) in one piece",
        'put each text on a line of its own; of running text, set data.sample_by = "line" then; or, where there is '
        "memory for it, raise data.max_document_bytes",
    )


@cache
def _quarter_of_memory() -> int:
    """Return a quarter of the bytes of memory that are free, for this process's control group too."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):  # "max" is no bound
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(found) // 4, _CHUNK)


def is_byte_wise(encoding: str) -> bool:
    """Tell whether bytes can be split into lines before they are decoded; those of UTF-16 and the like cannot."""
    return "\n\n".encode(encoding).endswith(b"\n\n")


def decode(raw: bytes, file: Path, first_line: int, encoding: str) -> str:
    """Decode bytes of a file, without a byte order mark; raise UserError with the line, counted from `first_line`."""
    try:
        decoded = raw.decode(encoding)
    except UnicodeDecodeError as problem:
        line = first_line + raw.count(b"\n", 0, problem.start)
        raise UserError(
            f"`{file}`, line {line}: byte 0x{raw[problem.start]:02x} is not {encoding}",
            _hint_from_first_bytes(file)
            or ("" if encoding.lower() not in ("utf-8", "utf-8-sig") else _hint_from_other_lines(file))
            or "convert the file to UTF-8, or set data.encoding (Windows files are often cp1252, Chinese ones gb18030)",
        ) from problem
    return decoded.removeprefix("\ufeff") if first_line == 1 else decoded


def _hint_from_other_lines(file: Path) -> str:
    """Say so where other lines show that a file is UTF-8 in spite of a bad byte; "" where none does."""
    with reading(file), open_bytes(file) as stream:
        for raw in itertools.islice(stream, 1_000_000):
            with suppress(UnicodeDecodeError):
                if not raw.isascii() and raw.decode():
                    return (
                        "fix that line: other lines show that the file is UTF-8, and another data.encoding would "
                        "garble them"
                    )
    return ""


def _hint_from_first_bytes(file: Path) -> str:
    """Say what the first bytes of a file show it to be; "" where they show nothing."""
    with reading(file), open_bytes(file) as stream:
        begin = stream.read(8)
    return next((f"it looks like {kind}: {remedy}" for mark, kind, remedy in _BEGINNINGS if begin.startswith(mark)), "")
