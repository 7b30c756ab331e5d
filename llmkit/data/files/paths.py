"""Find the local files that a recipe names, and hash their content."""

import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import xxhash

from llmkit import disk
from llmkit.data.files.archives import is_compressed, reading, suffix
from llmkit.data.files.arrow import COLUMNAR_SUFFIXES
from llmkit.data.files.by_lines import advice_beside, advice_by_lines, beside
from llmkit.data.files.lines import TEXT_SUFFIXES, is_byte_wise
from llmkit.data.files.names import is_about, split_among, split_name
from llmkit.data.files.options import ReadOptions
from llmkit.data.files.rows import SNIFFED, SUFFIXES, format_of
from llmkit.errors import UserError
from llmkit.recipe.data_tables import Data, RowData, TextData
from llmkit.recipe.paths import COMPRESSED


def is_local(data: Data) -> bool:
    """Tell whether `data.path` is on this machine; raise UserError for a local path with keys of a Hub data set."""
    if not disk.exists(Path(data.path)) and not glob.has_magic(data.path):
        return False
    for key in ("name", "revision"):
        if getattr(data, key):
            raise UserError(
                f"data.{key} is for data sets on the Hub, but data.path `{data.path}` is on this machine",
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
            f"data.path `{data.path}` is on this machine, and local files define no splits by themselves",
            'name them: data.data_files = { train = "a.jsonl", validation = "b.jsonl" }',
        )
    paths = []
    base = Path(data.path) if disk.is_dir(Path(data.path)) else Path()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        matching = expand(str(base / pattern), suffixes, ReadOptions.of(data))
        if not matching:
            raise UserError(
                f"data.data_files: no file matches `{base / pattern}`",
                "paths in it are relative to data.path if that is a folder, otherwise to the working directory",
            )
        paths += matching
    if patterns is None:
        paths = expand(data.path, suffixes, ReadOptions.of(data))
    if not paths:
        raise UserError(
            f"data.path `{data.path}`: no {'text' if '.txt' in suffixes else 'data'} files there",
            _advice(base, data.encoding)
            or f"llmkit reads files that end in {' '.join(suffixes)} (or the same with {' '.join(COMPRESSED)}); for "
            "other names, set data.format",
        )
    return paths


def _advice(root: Path, encoding: str) -> str:
    """Say how to read a folder in which no name tells that a file holds rows; "" where its lines do not tell either."""
    inside = sorted(file for file in root.rglob("*") if _is_file(file) and not is_about(file.name))
    if together := beside(inside, encoding):
        return advice_beside(together)
    first = sorted(inside, key=lambda file: (split_name(file.relative_to(root)) or ("",))[0] != "train")[:1]
    return f"`{first[0].name}`, {advice}" if first and (advice := advice_by_lines(first[0], encoding)) else ""


def expand(
    pattern: str,
    suffixes: tuple[str, ...] = SUFFIXES,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - it is frozen
) -> list[Path]:
    """List the files of a path, a glob or a folder; of a folder, those that `folder` finds."""
    path = Path(pattern)
    if disk.is_file(path):
        return [path]
    if disk.is_dir(path):
        return folder(path, suffixes, options)[0]
    return sorted(f for f in map(Path, glob.glob(pattern, recursive=True)) if _is_file(f))  # noqa: PTH207


def folder(
    path: Path,
    suffixes: tuple[str, ...] = SUFFIXES,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - it is frozen
) -> tuple[list[Path], list[Path]]:
    """List the files of a folder that are data, with a format of `suffixes`, and those that are not.

    A README, a licence and the like are no data where there are other files; hidden files are not looked at. With
    data.format a file may have any suffix. Where `Dataset.save_to_disk` wrote, its state.json names the files and
    gives their order.
    """
    visible = [f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    files = sorted(filter(_is_file, visible))
    saved = {f.parent: _saved(f) for f in files if f.name == "state.json"}
    data: list[Path] = []
    for file in files:
        known = suffix(file) in suffixes or options.format or suffix(file) in SNIFFED
        of_saved = file.suffix == ".arrow" and saved.get(file.parent) is not None
        if known and not is_about(file.name) and not of_saved and format_of(file, options) in suffixes:
            data.append(file)
    for order in filter(None, saved.values()):
        data += [file for file in order if ".arrow" in suffixes]
    if not data:  # a README alone is what was meant
        data = [file for file in files if suffix(file) in TEXT_SUFFIXES and suffix(file) in suffixes]
    return data, [file for file in files if file not in set(data)]


def _saved(state: Path) -> list[Path] | None:
    """List the Arrow files that a state.json of `Dataset.save_to_disk` names, in its order; None for another file."""
    try:
        named = json.loads(state.read_text(encoding="utf-8"))
        listed = [state.parent / each["filename"] for each in named["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return None
    if missing := [file for file in listed if not disk.is_file(file)]:
        raise UserError(f"`{missing[0]}` is missing, but `{state}` names it", "copy the whole folder again")
    if named.get("_indices_data_files"):
        raise UserError(
            f"`{state.parent}`: its row order is stored in a separate file, as by `datasets` before 2.0",
            "open it with `datasets` and save it again",
        )
    return listed


def splits_by_name(
    path: Path,
    suffixes: tuple[str, ...],
    options: ReadOptions = ReadOptions(),  # noqa: B008 - it is frozen
) -> tuple[dict[str, list[str]], list[Path]]:
    """Sort the files of a folder into splits by their names, as paths in it; also list those that are not read.

    There are no splits, {}, unless there are files that say `train`, and others. Where no file says `train`, and some
    are called `test`, `dev` or the like and no more, the others are `train`. The folders in one that
    `DatasetDict.save_to_disk` wrote are its splits, whatever they are called.
    """
    data, left_out = folder(path, suffixes, options)
    saved = _saved_splits(path)
    by_split: dict[str, list[Path]] = {}
    sure: dict[str, list[Path]] = {}
    inside_of = {file: file.relative_to(path) for file in data}
    everything = set(inside_of.values())
    for file, inside in inside_of.items():
        named = (inside.parts[0], True) if inside.parts[0] in saved else split_among(inside, everything)
        split, whole = named or ("", False)
        by_split.setdefault(split, []).append(file)
        sure.setdefault(split if whole else "train", []).append(file)
    if "train" not in by_split and not saved:
        by_split = sure
    others = by_split.pop("", [])
    if ("train" not in by_split and not saved) or (len(by_split) < 2 and not others):
        return {}, left_out
    return {split: [str(file.relative_to(path)) for file in files] for split, files in by_split.items()}, sorted(
        [*left_out, *others]
    )


def _saved_splits(path: Path) -> list[str]:
    """List the splits that a dataset_dict.json of `DatasetDict.save_to_disk` names."""
    try:
        return [str(name) for name in json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def shown(paths: Sequence[Path | str]) -> str:
    """Name the first five files, and say how many more there are."""
    return ", ".join(map(str, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def left_out_note(path: Path, left_out: Sequence[Path]) -> str:
    """Say which files of a folder are not read; those that are no data by their names are named first."""
    about = sorted((file for file in left_out), key=lambda file: not is_about(file.name))
    names = [str(file.relative_to(path)) for file in about]
    return f"`{path}`: not read: {shown(names)}"


def _is_file(path: Path) -> bool:
    """Tell whether `path` is a file; raise UserError for a broken link, whose target would be missed in silence."""
    if path.is_symlink() and not disk.exists(path):
        raise UserError(f"`{path}` is a link to `{path.readlink()}`, which does not exist", "fix or remove the link")
    return disk.is_file(path)


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

    Parquet, Arrow and compressed files, and text of UTF-16 and the like, hold them rightly and get no remark.
    """
    text = {f: n for f, n in counts.items() if not is_compressed(f) and f.suffix.lower() not in COLUMNAR_SUFFIXES}
    return tuple(
        f"`{file}` holds {n:,} NUL bytes, read as they are; if it is UTF-16, set data.encoding"
        for file, n in text.items()
        if n and is_byte_wise(encoding)
    )


def digest(*parts: object) -> str:
    """Make one fingerprint of all the parts, the same in every process."""
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())
