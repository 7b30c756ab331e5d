"""Read rows from files, folders and Hub data sets."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from llmkit import disk, hub
from llmkit.data import files
from llmkit.data.files import VALIDATION_NAMES, BadRow, digest
from llmkit.data.rows.cells import ABSENT, find_column, value_at
from llmkit.errors import UserError, say
from llmkit.recipe.data_tables import Data, RowData
from llmkit.recipe.table import ReadOnly

HEAD = 100  # rows of a file that show which columns it has


@dataclass(frozen=True)
class Rows:
    """Rows that can be read again and again, in the same order, in constant memory.

    `read` yields each row with its place, for messages: "`reviews.csv`, line 3" or "`nyu-mll/glue` (sst2, split train),
    row 3". `fingerprint` changes when the content or the choice of rows changes. `source` is for messages. `remarks`
    are remarks on the files, for the user; `notes` those on how they were read, which a whole reading completes, each
    with the same text without the path, or "" where it names what is not read. `heads` has, for each file, a value of
    each of its columns. A row that cannot be read is a BadRow. `verify` raises UserError where the files are no longer
    those of the fingerprint, as does a reading to the end. `looked_at` is the number
    of rows that a reading goes through, those that it leaves out too; None before they have been counted.
    """

    read: Callable[[], Iterator[tuple[str, Any]]]
    columns: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]]  # of class columns on the Hub; local files have none
    fingerprint: str
    source: str
    remarks: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verify: Callable[[], None] = lambda: None
    looked_at: int | None = None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self.read()


def need(rows: Rows, column: str, role: str) -> str:
    """Return the name of `column` as the rows have it; raise UserError where they have none that is called so.

    Case and surrounding blanks do not count, and `a.b` is the entry `b` of column `a`. The hint names the key
    `data.ROLE_column`.
    """
    if (name := find_column(rows.columns, column)) is not None:
        return name
    if has_column(rows, column):
        return column
    raise UserError(
        f"{rows.source} has no column `{column}`",
        f"{files.nearest(column, rows.columns)}set data.{role}_column to one of: {', '.join(rows.columns)}",
    )


def has_column(rows: Rows, column: str) -> bool:
    """Tell whether one of the first rows has a value in `column`, a name as `cells.value_at` takes it."""
    head = (row for _, row in itertools.islice(rows, HEAD) if not isinstance(row, BadRow))
    return find_column(rows.columns, column) is not None or any(value_at(row, column) is not ABSENT for row in head)


def first_values(rows: Rows, column: str) -> list[Any]:
    """List the values that the first rows have in a column."""
    head = (row for _, row in itertools.islice(rows, HEAD) if not isinstance(row, BadRow))
    return [value for row in head if (value := value_at(row, column)) is not ABSENT]


def usual(rows: Rows, names: Iterable[str]) -> list[str]:
    """List the columns of the rows that have one of the usual names, in the order of `names`."""
    found = (find_column(rows.columns, name) for name in names)
    return list(dict.fromkeys(name for name in found if name is not None))


def default_validation(data: Data) -> str | None:
    """Find a split to evaluate on, where the recipe names none, by VALIDATION_NAMES in `data_files` or on the Hub."""
    splits = split_names(data)
    return next((name for name in VALIDATION_NAMES if name in splits), None)


def split_names(data: Data) -> Collection[str]:
    """Return the names of the splits in `data_files` or on the Hub; none of other data."""
    if data.data_files is not None or files.is_local(data):
        return data.data_files if isinstance(data.data_files, Mapping) else ()
    import datasets

    with hub.loading(data.path, "dataset"):
        names: list[str] = datasets.get_dataset_split_names(data.path, data.name, revision=_commit(data))
    return names


def held_out(index: int, fraction: float, seed: int) -> bool:
    """Tell whether the row or document of this index is held out; that depends on the seed, not on how much is read."""
    return xxhash.xxh64_intdigest(f"{seed}:{index}".encode()) < fraction * 2**64


# ---- local files ---------------------------------------------------------------------------------------------------


def splits_of_folder(data: RowData) -> tuple[RowData, list[str]]:
    """Read a folder with train.csv and dev.csv as two splits, not as one table: as if `data_files` named them.

    So are a folder of texts with a folder for each split, and a JSON file whose members are splits. Return the data
    and notes on what is read.
    """
    root, options = Path(data.path), files.ReadOptions.of(data)
    if data.data_files is not None:
        return data, []
    if disk.is_file(root) and (members := files.json_splits(root, options)):
        return data.model_copy(update={"data_files": ReadOnly({split: str(root.absolute()) for split in members})}), [
            f"`{data.path}`: its splits are {', '.join(members)}"
        ]
    if not disk.is_dir(root):
        return data, []
    if classes := files.class_folders(root):
        listed = "; ".join(f"{split}: {', '.join(list(names)[:10])}" for split, names in classes.items())
        notes = [f"`{data.path}`: one folder of texts per class ({listed})"]
        if left_out := files.beside_classes(root, classes):
            notes.append(files.left_out_note(root, left_out))
        splits = ReadOnly(dict.fromkeys(classes, "*")) if len(classes) > 1 else None
        return data.model_copy(update={"data_files": splits}), notes
    by_split, left_out = files.splits_by_name(root, files.ROW_SUFFIXES, options)
    if not by_split:
        return data, [files.left_out_note(root, left_out)] if left_out else []
    listed = ", ".join(f"{split} ({files.shown(names)})" for split, names in by_split.items())
    others = [str(file.relative_to(root)) for file in left_out]
    note = f"`{data.path}`: splits by file name: {listed}" + (f"; not read: {files.shown(others)}" if others else "")
    return data.model_copy(update={"data_files": ReadOnly(by_split)}), [note]


def open_files(data: RowData, split: str, hashed: bool = True) -> Rows:
    """Open the local files of a split; unless `hashed` they have no fingerprint, and NUL bytes are not looked for."""
    options, root = files.ReadOptions.of(data), Path(data.path)
    classes = files.class_folders(root) if disk.is_dir(root) else {}
    if classes and (data.data_files is None or set(data.data_files) == set(classes)):
        return _open_class_folders(data, split, classes, hashed)
    paths = files.of_split(data, split, files.ROW_SUFFIXES)
    source = f"`{paths[0]}`" if len(paths) == 1 else f"`{data.path}`"
    snapshot = files.Snapshot.of(paths if hashed else ())
    options_of = {
        file: replace(options, member=split) if split in files.json_splits(file, options) else options for file in paths
    }
    notes: dict[str, str] = {}
    heads: dict[str, dict[str, Any]] = {}
    class_names: dict[str, tuple[str, ...]] = {}
    bad: list[tuple[str, BadRow]] = []  # the first row that cannot be read

    def read_file(file: Path) -> Iterator[tuple[str, Any]]:
        def note(text: str) -> None:
            notes[text] = "" if text.startswith(f"`{file}`: not read: ") else text.replace(str(file), "")

        for place, row in files.read_rows(file, options_of[file], note=note, strict=False):
            yield f"`{file}`, {place}", row

    for file in paths:
        values: dict[str, Any] = {}
        for place, row in itertools.islice(read_file(file), HEAD):
            if not isinstance(row, BadRow):
                values |= {name: value for name, value in row.items() if value is not None or name not in values}
            elif not bad:
                bad.append((place, row))
        if values:
            heads[str(file)] = values
        class_names = {**files.class_names(file, options), **class_names}
    columns = dict.fromkeys(name for values in heads.values() for name in values)
    for place, row in bad if not columns else ():
        raise UserError(f"{place}: {row.message}; none of the first {HEAD} rows can be read", row.hint, row.details)
    if not columns:
        raise UserError(f"{source}: there are no rows in it", "is it empty, or a header without rows?")

    def read() -> Iterator[tuple[str, Any]]:
        yield from itertools.chain.from_iterable(map(read_file, paths))
        snapshot.verify()

    nuls = Counter[Path]()
    members = [options.member for options in options_of.values() if options.member]
    content = digest(
        files.content_hash(paths, nuls) if hashed else "",
        [files.suffix(file) for file in paths],
        data.encoding,
        *options.beyond_encoding(),
        *members,
    )
    snapshot.verify()
    remarks = files.nul_bytes(nuls, data.encoding)
    return Rows(read, tuple(columns), class_names, content, source, remarks, notes, heads, snapshot.verify)


def _open_class_folders(
    data: RowData, split: str, classes: Mapping[str, Mapping[str, list[Path]]], hashed: bool
) -> Rows:
    """Open texts that stand in one folder a class as rows of `text` and `label`."""
    if split not in classes:
        raise UserError(f"data.path `{data.path}` has no split `{split}`", f"its folders are {', '.join(classes)}")
    root, options, notes = Path(data.path), files.ReadOptions.of(data), dict[str, str]()

    def note(text: str) -> None:
        notes[text] = text.replace(str(root), "")

    def read() -> Iterator[tuple[str, Any]]:
        for place, row in files.read_class_folders(root, options, note, classes[split]):
            yield f"`{root / place}`", row
        snapshot.verify()

    paths = [file for named in classes[split].values() for file in named]
    snapshot = files.Snapshot.of(paths if hashed else ())
    labels = [(label, len(named)) for label, named in classes[split].items()]
    content = digest(files.content_hash(paths) if hashed else "", labels, *options.beyond_encoding(), data.encoding)
    snapshot.verify()
    return Rows(read, ("text", "label"), {}, content, f"`{data.path}`", notes=notes, verify=snapshot.verify)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def load(data: Data, split: str, streaming: bool = False) -> Any:
    """Load one split of a Hub data set, as `datasets` gives it."""
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    how = {"name": data.name, "data_files": plain_files(data), "split": split, "streaming": streaming}
    with hub.loading(data.path, "dataset"):
        how["revision"] = _commit(data)
        try:
            dataset = datasets.load_dataset(data.path, **how)
        except (pyarrow.ArrowInvalid, OSError) as problem:
            # For a truncated table Arrow raises an OSError without a number; the Hub's errors have their own classes.
            if not isinstance(problem, pyarrow.ArrowInvalid) and (type(problem) is not OSError or problem.errno):
                raise
            say(f"the cache of `{data.path}` is damaged ({problem}): building it again")
            dataset = datasets.load_dataset(data.path, download_mode="reuse_cache_if_exists", **how)
    # Offline, `datasets` takes what its cache got last, whatever revision is asked for.
    cached = {Path(file["filename"]).parent.name for file in getattr(dataset, "cache_files", ())}
    wanted = hub.check(data.path, "dataset", data.revision)
    if datasets.config.HF_HUB_OFFLINE and wanted and cached and wanted not in cached:
        raise UserError(
            f"the cache has `{data.path}` at {', '.join(cached)}, but not at {wanted}",
            "set data.revision to a cached one, or go online to download it",
        )
    return dataset


def _commit(data: Data) -> str | None:
    """Resolve the commit to read at; given a plain hash, upstream ignores what the Hub knows of the data set."""
    from huggingface_hub import ResolvedRevision

    commit = hub.check(data.path, "dataset", data.revision)
    return data.revision if commit is None else ResolvedRevision(commit, data.revision, data.path, "dataset")


def plain_files(data: Data) -> Any:
    """Convert `data_files` to what upstream takes: lists instead of tuples, and a dict instead of another mapping."""
    if data.data_files is None or isinstance(data.data_files, str):
        return data.data_files
    return dict(data.data_files) if isinstance(data.data_files, Mapping) else list(data.data_files)


def source_of(data: Data, split: str) -> str:
    """Name a split of a Hub data set, for messages."""
    return f"`{data.path}` ({f'{data.name}, ' if data.name else ''}split {split})"


def open_hub(data: RowData, split: str) -> Rows:
    dataset = load(data, split)
    columns = tuple(dataset.column_names)
    source = source_of(data, split)
    if not len(dataset):
        raise UserError(
            f"{source}: there are no rows in it", "choose another split with data.split or data.validation_split"
        )

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        batches = dataset.iter(batch_size=1000)  # row by row is many times slower
        rows = itertools.chain.from_iterable(zip(*(batch[name] for name in columns), strict=True) for batch in batches)
        for number, values in enumerate(rows, 1):
            yield f"{source}, row {number}", dict(zip(columns, values, strict=True))

    return Rows(read, columns, class_names(dataset.features), digest(dataset._fingerprint, columns), source)


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    import datasets

    kinds = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {
        column: tuple(kind.names)
        for column, kind in kinds.items()
        if isinstance(kind, datasets.ClassLabel) and kind.names
    }
