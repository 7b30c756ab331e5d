"""Open files as they are or compressed: gzip, bzip2, xz, Zstandard, and ZIP archives of one file."""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from llmkit import disk
from llmkit.data.files.names import is_about
from llmkit.errors import UserError
from llmkit.recipe.paths import COMPRESSED, DATA_SUFFIXES

# What a damaged file raises when it is read: OSError is that of a damaged .gz, .bz2 or .zst too.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
SHOWN = 5  # names of files in a message


def suffix(file: Path) -> str:
    """Return the suffix that decides the format, in lower case: `.csv` for `A.CSV.gz` and for a ZIP with one CSV file.

    That of a ZIP archive is `.zip` where it does not hold exactly one file that can be read.
    """
    last = file.suffix.lower()
    if last == ".zip":
        inside = _readable(file)
        return PurePosixPath(inside[0].filename).suffix.lower() if len(inside) == 1 else last
    return Path(file.stem).suffix.lower() if last in COMPRESSED else last


def is_compressed(file: Path) -> bool:
    """Tell by its name whether the bytes of a file are compressed."""
    return file.suffix.lower() in COMPRESSED


def open_bytes(file: Path) -> IO[bytes]:
    """Open a file for its bytes, decompressed in constant memory; raise UserError for a ZIP without one file to read.

    A damaged file raises one of DAMAGED, here or when it is read.
    """
    return cast(IO[bytes], _OPENERS.get(file.suffix.lower(), partial(open, mode="rb"))(file))


@contextmanager
def seekable(file: Path) -> Iterator[Any]:
    """Give the path of a file, or if it is compressed a temporary file of its content, for readers that jump in it."""
    if not is_compressed(file):
        yield file
        return
    with tempfile.TemporaryFile() as plain:
        with reading(file), open_bytes(file) as stream:
            shutil.copyfileobj(stream, plain)
        plain.seek(0)
        yield plain


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn the errors of a missing or damaged file into a UserError that names it."""
    try:
        yield
    except DAMAGED as problem:
        raise UserError(
            f"`{file}` cannot be read: {getattr(problem, 'strerror', None) or problem}",
            "check that it exists, is complete, and that you may read it",
        ) from problem


def _open_zstandard(file: Path) -> IO[bytes]:
    import pyarrow  # it comes with `datasets`; Python has no reader before 3.14

    compressed = file.open("rb")
    return cast(IO[bytes], io.BufferedReader(pyarrow.CompressedInputStream(compressed, "zstd"), 1 << 16))


def _open_zip(file: Path) -> IO[bytes]:
    inside = _readable(file)
    names = [each.filename for each in inside]
    if len(names) != 1:
        listed = ", ".join(f"`{name}`" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        raise UserError(
            f"`{file}`: {f'{len(names)} files in it: {listed}' if names else 'no file in it that can be read'}",
            "unpack it into a folder and name the folder: a ZIP archive is read only if it holds a single file",
        )
    with zipfile.ZipFile(file) as archive:
        try:
            return archive.open(names[0])
        except (RuntimeError, NotImplementedError) as problem:  # a password, or a method of packing
            raise UserError(f"`{file}` cannot be read: {problem}", "unpack it") from problem


def _readable(file: Path) -> list[zipfile.ZipInfo]:
    """List the files of an archive that may be its data: those of a known suffix, or without such all the others."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except DAMAGED:
        if disk.is_file(file):
            with reading(file):
                raise
        return []
    plain = []
    for entry in entries:
        path = PurePosixPath(entry.filename)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if not entry.is_dir() and not hidden and not is_about(path.name) and path.suffix.lower() not in COMPRESSED:
            plain.append(entry)
    return [each for each in plain if each.filename.lower().endswith(DATA_SUFFIXES)] or plain


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
    ".zip": _open_zip,
}
