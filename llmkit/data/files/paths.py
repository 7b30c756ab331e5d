"""Find the local files that a recipe names, and hash their content."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import xxhash

from llmkit.data.files.lines import is_byte_wise, reading, suffix
from llmkit.data.files.rows import SUFFIXES
from llmkit.errors import UserError
from llmkit.recipe.data_tables import Data, RowData, TextData

VALIDATION_NAMES = ("validation", "valid", "val", "dev")  # the first that is there counts; `datasets` has the same

# The name of a split in that of a file or folder: train.csv, dev-v2.0.json, imdb_test.csv, wiki.train.tokens,
# train-00000-of-00001.parquet; not training.csv.
_SPLIT = re.compile(rf"(?:^|[._-])(train|{'|'.join(VALIDATION_NAMES)}|test)(?=[\d._-]|$)", re.IGNORECASE)
# What comes with data and is none: README_en.md, LICENSE-MIT, dataset_infos.json.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying)([._-].*)?"
    r"|(notice|citation|authors|contributors|change(log|s)|metadata|croissant|dataset_(infos?|dict))(\.\w+)?",
    re.IGNORECASE,
)


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
        paths = expand(data.path, suffixes, data.format is not None)
    if not paths:
        text = ".txt" in suffixes
        others = expand(data.path, suffixes, unknown=True)
        raise UserError(
            f"data.path `{data.path}`: no {'text' if text else 'data'} files there",
            f"files that can be read end in {' '.join(suffixes)} (or the same with .gz)"
            + (f"; of others, such as `{others[0].name}`, data.format says what they are" if others else ""),
        )
    return paths


def splits_by_name(path: str, paths: Iterable[Path]) -> dict[str, list[str]]:
    """Sort the files of a folder by the split that their names tell, or else the folders they are in.

    They are named relative to `path`. "" has those that name none.
    """
    by_split: dict[str, list[str]] = {}
    for file in paths:
        inside = file.relative_to(path)
        found = (match[1].lower() for part in reversed(inside.parts) if (match := _SPLIT.search(part)))
        by_split.setdefault(next(found, ""), []).append(str(inside))
    return by_split


def without_descriptions(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell data from README, LICENSE and metadata files; where there is nothing else, they are the data."""
    described = [file for file in paths if _ABOUT.fullmatch(file.name)]
    if len(described) == len(paths):
        return list(paths), []
    return [file for file in paths if not _ABOUT.fullmatch(file.name)], described


def expand(pattern: str, suffixes: tuple[str, ...] = SUFFIXES, unknown: bool = False) -> list[Path]:
    """List the files of a path, a glob or a folder.

    Of a folder, those that are not hidden and have one of `suffixes`, or with `unknown` one that llmkit does not know.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        visible = (f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts))
        return sorted(
            f for f in visible if (suffix(f) in suffixes or (unknown and suffix(f) not in SUFFIXES)) and _is_file(f)
        )
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


def content_hash(files: Sequence[Path], nuls: "Counter[Path] | None" = None, returns: "set[Path] | None" = None) -> str:
    """Hash the bytes of the files and where each ends, but not their names.

    Count NUL bytes by file in `nuls`, and put the files with a carriage return among their bytes into `returns`.
    """
    content = xxhash.xxh64()
    for file in files:
        with reading(file), file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                content.update(chunk)
                if nuls is not None:
                    nuls[file] += chunk.count(0)
                if returns is not None and b"\r" in chunk:
                    returns.add(file)
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
