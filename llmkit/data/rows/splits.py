"""Open the rows of a recipe: screen them, and choose those to train on and those to evaluate on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmkit import hub
from llmkit.data import files
from llmkit.data.files import HEADER_KEY, digest
from llmkit.data.rows.draw import hold_out, sample
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.screening import Screened, part, screen, screen_once
from llmkit.data.rows.table import Rows, default_validation, held_out, open_files, open_hub, splits_of_folder
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData

TENTH, LARGEST = 0.1, 2_000  # the share and the number of rows that are held out where the recipe says nothing
WHOLE = "evaluated"  # the part that holds all of the user's own rows: they are no split, and not "train"


@dataclass(frozen=True)
class Tables:
    """The rows to train on, those to evaluate on by split (training watches the first), and notes for the user.

    Attributes:
        columns: the column of each role.
        first: the first rows that were opened, all of them: `columns` are theirs.
        revision: the commit of a Hub data set.
        record: `skipped` and `mended`, where there are any: how many rows of each split, by kind.
        validation_fraction: the share that is held out where that was to be chosen by the rows; of how many, `rows`.
    """

    train: Rows | None
    validation: Mapping[str, Rows]
    columns: dict[str, str]
    first: Rows
    notes: tuple[str, ...] = ()
    revision: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    validation_fraction: float | None = None
    rows: int = 0


def tables(
    data: RowData,
    seed: int,
    reader: RowReader,
    train: bool = True,
    from_hub: Callable[[RowData, str], Rows] = open_hub,
    fits_rows: bool = False,
) -> Tables:
    """Open `data`, leave out the rows that cannot be used, and choose those for training and those for evaluation.

    A validation split comes first. Else `validation_fraction` of the rows is held out, as `data.hold_out` says. Without
    `train` nothing is trained on: the training split is opened only where there is no validation split, to hold rows
    out of it or, without `validation_fraction`, to evaluate on all of it. `from_hub` opens a split of a Hub data set.
    With `fits_rows` a share is held out even where `validation_fraction` is unset. Raises UserError if there are no
    rows.
    """
    seed = seed if data.seed is None else data.seed
    notes: list[str] = []
    revision: str | None = None
    open_split: Callable[[RowData, str], Rows] = open_files
    if files.is_local(data):
        data, notes = splits_of_folder(data)
    else:
        revision, open_split = hub.check(data.path, "dataset", data.revision), from_hub
    splits = data.validation_split or default_validation(data)
    names = (splits,) if isinstance(splits, str) else splits or ()
    opened = {name: open_split(data, name) for name in names}
    if not opened or train:
        opened = {data.split: open_split(data, data.split), **opened}
    first = next(iter(opened.values()))
    columns, opened, screened = screened_by_split(
        data, reader, opened, opened if not (train or data.validation_fraction) else names, screen_once
    )
    notes += dict.fromkeys(remark for rows in opened.values() for remark in (*rows.remarks, *rows.notes))
    notes += [note for one in screened.values() for note in one.notes]
    training = screened.get(data.split) if train or not names else None
    validation = {name: screened[name] for name in names}
    fraction, chosen = data.validation_fraction, None
    if fits_rows and train and not names and fraction is None:
        assert training is not None
        fraction = chosen = default_fraction(training.strata)
    if names:
        if fraction and not data.validation_split:
            notes.append("validation_fraction is ignored: the data has a validation split")
    elif fraction:
        assert training is not None
        total, held = len(training.keys), None
        try:
            training, held = _hold_out(training, fraction, seed, data.hold_out)
        except UserError as problem:
            if not chosen:
                raise
            chosen = None
            notes.append(f"no validation data: no rows can be held out ({problem.hint})")
        if chosen and held is not None:
            notes.append(
                f"{len(held.keys):,} of {total:,} rows are held out for evaluation; "
                "data.validation_fraction = 0 trains on all"
            )
        validation = {} if held is None else {"validation": held}
    elif train:
        notes.append("no validation data: set data.validation_fraction to hold some out")
    else:
        assert training is not None
        by_split = isinstance(data.data_files, Mapping) or not files.is_local(data)
        validation = {data.split if by_split else WHOLE: training}

    def sampled(rows: Screened, key: str) -> Rows:
        number = getattr(data, key)
        if number is None or number >= len(rows.keys):
            return rows.rows
        if data.hold_out == "hash":
            return _first(rows.rows, number)
        notes.append(f"{key}: {number:,} of {len(rows.keys):,} rows are sampled, keeping the share of each class")
        return part(rows.rows, sample(rows.strata, rows.keys, number, seed))

    return Tables(
        sampled(training, "max_train_samples") if training is not None and train else None,
        {name: sampled(rows, "max_eval_samples") for name, rows in validation.items()},
        columns,
        first,
        tuple(notes),
        revision,
        {
            key: counts
            for key in ("skipped", "mended")
            if (counts := {name: dict(kinds) for name, one in screened.items() if (kinds := getattr(one, key))})
        },
        chosen,
        len(screened[data.split].keys) if data.split in screened else 0,
    )


def default_fraction(strata: np.ndarray) -> float | None:
    """Choose the share of rows to hold out by their classes: a tenth, a row of each class, LARGEST rows at most.

    None where nothing can be held out: every row is of a class of its own.
    """
    total, rows_of = len(strata), np.bincount(strata)
    classes = int((rows_of > 1).sum())
    if not classes:
        return None
    number = min(max(round(TENTH * total), min(classes, total // 4), 1), LARGEST)
    return TENTH if number == max(1, round(TENTH * total)) else float(f"{number / total:.6g}")


def screened_by_split(
    data: RowData,
    reader: RowReader,
    opened: Mapping[str, Rows],
    evaluated: Collection[str],
    screening: Callable[..., Screened] = screen,
) -> tuple[dict[str, str], dict[str, Rows], dict[str, Screened]]:
    """Choose the columns of opened splits, by the first of them; reshape and screen the rows of each.

    `evaluated` names the splits that are for evaluation alone; `screening` is `screen_once` where the fingerprints
    stand for what the files hold. Return the columns, the reshaped rows and the screened.
    """
    first = next(iter(opened.values()))
    columns = _columns(data, reader, first)
    if reader.reshape is not None:
        opened = {name: reader.reshape(rows, columns, data) for name, rows in opened.items()}
    screened = {
        name: screening(rows, columns, reader, data, evaluation=name in evaluated, known=first.columns)
        for name, rows in opened.items()
    }
    return columns, dict(opened), screened


def _columns(data: RowData, reader: RowReader, rows: Rows) -> dict[str, str]:
    """Choose the columns; where that is not clear, also say how the files were read, which may be the reason."""
    try:
        return reader.resolve_columns(data, rows)
    except UserError as mistake:
        first = [note for note in rows.notes if HEADER_KEY in note]  # followed, the hint alone would lose a row
        others = [note for note in rows.notes if note not in first]
        hint = "; if not, ".join([*first[:1], mistake.hint])
        raise UserError(mistake.message, hint, (*mistake.details, *others)) from mistake


def _hold_out(screened: Screened, fraction: float, seed: int, rule: str) -> tuple[Screened, Screened]:
    """Divide rows into those to train on and those held out."""
    rows, total = screened.rows, len(screened.keys)
    if rule == "hash":
        out = np.fromiter((held_out(index, fraction, seed) for index in range(total)), bool, total)
    else:
        keys = screened.keys
        if total and (keys == keys[0]).all():  # all rows hold the same, as training then warns of its validation rows
            keys = np.arange(total, dtype=np.uint64)
        out = hold_out(screened.strata, keys, fraction, seed)
    for wanted, change, use in ((True, "raise", "evaluate"), (False, "lower", "train")):
        if not (out == wanted).any():
            alike = wanted and rule == "stratified"  # one row is always drawn where the classes allow it
            if alike and 2 < total == len(np.unique(screened.strata)):
                raise UserError(
                    f"{rows.source}: each of the {total:,} rows has a class of its own: nothing can be held out",
                    'is it the right column? for values, set data.problem_type = "regression"',
                )
            raise UserError(
                f"{rows.source}: data.validation_fraction = {fraction} leaves no rows to {use} on",
                "identical rows stay on one side, and the only row of a class is trained on; set data.validation_split"
                if alike
                else f"{change} it, or set data.validation_split",
            )

    def side(wanted: bool) -> Screened:
        chosen = part(rows, out == wanted)
        if rule == "hash":  # the fingerprint that runs of earlier versions have
            chosen = replace(chosen, fingerprint=digest(rows.fingerprint, "by-hash", fraction, seed, wanted))
        mask = out == wanted
        return replace(screened, rows=chosen, strata=screened.strata[mask], keys=screened.keys[mask])

    return side(False), side(True)


def _first(rows: Rows, number: int) -> Rows:
    def read() -> Iterator[tuple[str, Any]]:
        yield from itertools.islice(rows.read(), number)
        rows.verify()

    return replace(rows, read=read, fingerprint=digest(rows.fingerprint, "first", number))
