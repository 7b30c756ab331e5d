"""Read rows from files, folders and Hub data sets, and split them into training and evaluation."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from llmkit import hub
from llmkit.data import files
from llmkit.data.files import digest
from llmkit.errors import UserError, say
from llmkit.recipe.data_tables import Data, RowData
from llmkit.recipe.table import ReadOnly

VALIDATION_NAMES = ("validation", "valid", "val", "dev")  # the first that is there counts; `datasets` has the same

# A file or folder of a split: train.csv, dev-v2.0.json, test_2.csv, train-00000-of-00001.parquet; not training.csv.
_SPLIT = re.compile(rf"(train|{'|'.join(VALIDATION_NAMES)}|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Rows:
    """Rows that can be read again and again, in the same order, in constant memory.

    `read` yields each row with its place, for messages: "`reviews.csv`, line 3" or "`nyu-mll/glue` (sst2, split train),
    row 3". `fingerprint` changes when the content or the choice of rows changes. `source` is for messages. `remarks`
    are notes on the files, for the user.
    """

    read: Callable[[], Iterator[tuple[str, dict[str, Any]]]]
    columns: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]]  # of class columns on the Hub; local files have none
    fingerprint: str
    source: str
    remarks: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return self.read()


def need(rows: Rows, column: str, role: str) -> None:
    """Raise UserError where the rows have no such column; the hint names the key `data.ROLE_column`."""
    if column not in rows.columns:
        raise UserError(
            f"{rows.source} has no column `{column}`",
            f"{files.nearest(column, rows.columns)}set data.{role}_column to one of: {', '.join(rows.columns)}",
        )


@dataclass(frozen=True)
class Tables:
    """The rows to train on, those to evaluate on by split (training watches the first), and notes for the user."""

    train: Rows | None
    validation: Mapping[str, Rows]
    notes: tuple[str, ...] = ()
    revision: str | None = None  # the commit of a Hub data set


def tables(data: RowData, seed: int, train: bool = True) -> Tables:
    """Open `data` and choose the rows for training and those for evaluation.

    A validation split comes first. Else the rows whose hash of seed and index falls below `validation_fraction` are
    held out. Without `train` nothing is trained on: the training split is opened only where there is no validation
    split, to hold rows out of it or, without `validation_fraction`, to evaluate on all of it. Raises UserError if there
    are no rows.
    """
    notes: list[str] = []
    revision, open_split = None, _from_files
    if files.is_local(data):
        data, notes = _splits_by_name(data)
    else:
        revision, open_split = hub.check(data.path, "dataset", data.revision), _from_hub
    names = _names(data.validation_split or default_validation(data))
    training, validation = None, {name: open_split(data, name) for name in names}
    if validation:
        if data.validation_fraction and not data.validation_split:
            notes.append("validation_fraction is ignored: the data has a validation split")
        training = open_split(data, data.split) if train else None
    elif data.validation_fraction:
        training, held = _hold_out(open_split(data, data.split), data.validation_fraction, seed)
        validation = {"validation": held}
    elif train:
        training = open_split(data, data.split)
        notes.append("no validation data: set data.validation_fraction to hold some out")
    else:
        validation = {data.split: open_split(data, data.split)}
    opened = [*([] if training is None else [training]), *validation.values()]
    notes += dict.fromkeys(remark for rows in opened for remark in rows.remarks)
    return Tables(
        _first(training, data.max_train_samples) if training and train else None,
        {name: _first(rows, data.max_eval_samples) for name, rows in validation.items()},
        tuple(notes),
        revision,
    )


def default_validation(data: Data) -> str | None:
    """Find a split to evaluate on, where the recipe names none, by VALIDATION_NAMES in `data_files` or on the Hub."""
    splits: Collection[str] = data.data_files if isinstance(data.data_files, Mapping) else ()
    if data.data_files is None and not files.is_local(data):
        import datasets

        with hub.loading(data.path, "dataset"):
            splits = datasets.get_dataset_split_names(data.path, data.name, revision=_commit(data))
    return next((name for name in VALIDATION_NAMES if name in splits), None)


def held_out(index: int, fraction: float, seed: int) -> bool:
    """Tell whether the row or document of this index is held out; that depends on the seed, not on how much is read."""
    return xxhash.xxh64_intdigest(f"{seed}:{index}".encode()) < fraction * 2**64


def _names(splits: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (splits,) if isinstance(splits, str) else splits or ()


def _hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    def part(wanted: bool) -> Rows:
        chosen = replace(
            rows,
            read=lambda: (row for index, row in enumerate(rows) if held_out(index, fraction, seed) is wanted),
            fingerprint=digest(rows.fingerprint, "by-hash", fraction, seed, wanted),
        )
        if next(iter(chosen), None) is None:
            change, use = ("raise", "evaluate") if wanted else ("lower", "train")
            raise UserError(
                f"{rows.source}: data.validation_fraction = {fraction} leaves no rows to {use} on",
                f"{change} it, or name a data.validation_split",
            )
        return chosen

    return part(False), part(True)


def _first(rows: Rows, number: int | None) -> Rows:
    if number is None:
        return rows
    return replace(
        rows,
        read=lambda: itertools.islice(rows.read(), number),
        fingerprint=digest(rows.fingerprint, "first", number),
    )


# ---- local files ---------------------------------------------------------------------------------------------------


def _splits_by_name(data: RowData) -> tuple[RowData, list[str]]:
    """Read a folder with train.csv and dev.csv as two splits, not as one table: as if `data_files` named them."""
    root = Path(data.path)
    if data.data_files is not None or not root.is_dir():
        return data, []
    by_split: dict[str, list[str]] = {}
    for file in files.expand(data.path, files.ROW_SUFFIXES):
        inside = file.relative_to(root)
        splits = [match[1].lower() for part in reversed(inside.parts) if (match := _SPLIT.match(part))]
        by_split.setdefault(splits[0] if splits else "", []).append(str(inside))
    if "train" not in by_split or len(by_split) == 1:
        return data, []

    def shown(names: list[str]) -> str:
        return ", ".join(names) if len(names) < 4 else f"{len(names)} files"

    others = by_split.pop("", [])
    listed = ", ".join(f"{split} ({shown(names)})" for split, names in by_split.items())
    note = f"`{data.path}`: splits by file name: {listed}" + (f"; not read: {shown(others)}" if others else "")
    return data.model_copy(update={"data_files": ReadOnly(by_split)}), [note]


def _from_files(data: RowData, split: str) -> Rows:
    paths = files.of_split(data, split, files.ROW_SUFFIXES)
    source = f"`{paths[0]}`" if len(paths) == 1 else f"`{data.path}`"
    options = files.ReadOptions.of(data)
    columns: tuple[str, ...] | None = None
    for file in paths:
        _, row = next(files.read_rows(file, options), ("", None))
        if row is None:
            continue
        if columns is None:
            columns, first = tuple(row), file
        elif differing := sorted(set(columns) ^ set(row)):
            raise UserError(
                f"`{file}` has other columns than `{first}`: "
                + ", ".join(f"{'no' if column in columns else 'also'} `{column}`" for column in differing),
                "the files of one split need the same columns; data.data_files names those to read",
            )
    if columns is None:
        raise UserError(f"{source}: there are no rows in it", "is it empty, or a header with no rows?")

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for file in paths:
            for place, row in files.read_rows(file, options):
                yield f"`{file}`, {place}", row

    nuls = Counter[Path]()
    content = digest(files.content_hash(paths, nuls), [files.suffix(file) for file in paths], data.encoding)
    return Rows(read, columns, {}, content, source, files.nul_bytes(nuls, data.encoding))


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
            say(f"the cache of `{data.path}` is damaged ({problem}): making it again")
            dataset = datasets.load_dataset(data.path, download_mode="reuse_cache_if_exists", **how)
    # Offline, `datasets` takes what its cache got last, whatever revision is asked for.
    cached = {Path(file["filename"]).parent.name for file in getattr(dataset, "cache_files", ())}
    wanted = hub.check(data.path, "dataset", data.revision)
    if datasets.config.HF_HUB_OFFLINE and wanted and cached and wanted not in cached:
        raise UserError(
            f"the cache holds `{data.path}` at {', '.join(cached)}, and {wanted} is asked for",
            "data.revision chooses; or let it be downloaded",
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


def _from_hub(data: RowData, split: str) -> Rows:
    dataset = load(data, split)
    columns = tuple(dataset.column_names)
    source = f"`{data.path}` ({f'{data.name}, ' if data.name else ''}split {split})"
    if not len(dataset):
        raise UserError(f"{source}: there are no rows in it", "data.split and data.validation_split choose others")

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        batches = dataset.iter(batch_size=1000)  # row by row is many times slower
        rows = itertools.chain.from_iterable(zip(*(batch[name] for name in columns), strict=True) for batch in batches)
        for number, values in enumerate(rows, 1):
            yield f"{source}, row {number}", dict(zip(columns, values, strict=True))

    return Rows(read, columns, _class_names(dataset.features), digest(dataset._fingerprint, columns), source)


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    import datasets

    kinds = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {
        column: tuple(kind.names)
        for column, kind in kinds.items()
        if isinstance(kind, datasets.ClassLabel) and kind.names
    }
