"""Find the local files that a recipe names, and hash their content."""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import xxhash

from llmkit.data.files.lines import is_byte_wise, reading, suffix
from llmkit.data.files.rows import SUFFIXES
from llmkit.errors import UserError
from llmkit.recipe.data_tables import Data, RowData, TextData


def is_local(data: Data) -> bool:
    """Tell whether `data.path` is on this machine; raise UserError for a local path with keys of a Hub data set."""
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
    """List the local files of a split: those that `data.data_files` names, else all of `data.path`, which is `train`.

    Raises UserError where there is no such split, or no file with one of `suffixes`.
    """
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
    paths = []
    base = Path(data.path) if Path(data.path).is_dir() else Path()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        matching = expand(str(base / pattern), suffixes)
        if not matching:
            raise UserError(
                f"data.data_files: no file matches `{base / pattern}`",
                "the names in it are relative to data.path where that is a folder, else to the working directory",
            )
        paths += matching
    if patterns is None:
        paths = expand(data.path, suffixes)
    if not paths:
        raise UserError(
            f"data.path `{data.path}`: no {'text' if '.txt' in suffixes else 'data'} files there",
            f"files that can be read end in {' '.join(suffixes)} (or the same with .gz)",
        )
    return paths


def expand(pattern: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """List the files of a path, a glob or a folder; of a folder, those with one of `suffixes` that are not hidden."""
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        visible = (f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts))
        return sorted(f for f in visible if suffix(f) in suffixes and _is_file(f))
    return sorted(f for f in map(Path, glob.glob(pattern, recursive=True)) if _is_file(f))  # noqa: PTH207


def _is_file(path: Path) -> bool:
    """Tell whether `path` is a file; raise UserError for a broken link, whose target would be missed in silence."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"`{path}` is a link to `{path.readlink()}`, which is not there", "mend the link or remove it")
    return path.is_file()


def nearest(wanted: str, columns: Sequence[str]) -> str:
    """Suggest the column whose name is closest to `wanted`, as the first words of a hint; "" where none is close."""
    near = get_close_matches(wanted, columns, 1) or [name for name in columns if name.casefold() == wanted.casefold()]
    return f"did you mean `{near[0]}`? " if near else ""


def content_hash(files: Sequence[Path], nuls: "Counter[Path] | None" = None) -> str:
    """Hash the bytes of the files and where each ends, but not their names; count NUL bytes by file in `nuls`."""
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
    """Make a remark on each file with NUL bytes, which are read as they are and seldom meant.

    Parquet and gzip files, and text of UTF-16 and the like, hold them rightly and get no remark.
    """
    text = {file: n for file, n in counts.items() if file.suffix.lower() not in (".gz", ".parquet")}
    return tuple(
        f"`{file}` holds {n:,} NUL bytes, read as they are; if it is UTF-16, set data.encoding"
        for file, n in text.items()
        if n and is_byte_wise(encoding)
    )


def digest(*parts: object) -> str:
    """Make one fingerprint of all the parts, the same in every process."""
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())
