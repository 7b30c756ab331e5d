"""Summarize the rows before training: their number, lengths, duplicates and balance, with warnings for the user."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from llmkit.data.histogram import histogram
from llmkit.data.rows.cells import JOINED
from llmkit.data.rows.examples import Encoded, places
from llmkit.data.rows.ragged import Column
from llmkit.data.rows.unused import listed, unused_columns
from llmkit.errors import UserError, quantity
from llmkit.terminal import printable

# Above these shares of the rows (of the validation rows, for the overlap) a warning is printed.
DUPLICATES, OVERLAP, TRUNCATED, EMPTY, UNLEARNED = 0.05, 0.01, 0.05, 0.0, 0.0
HUGE = 100_000  # tokens of one row: seldom meant to be one
RARE = 0.1  # a class is rare with fewer rows than this share of an equal part
QUANTILES = (0.05, 0.5, 0.95)


def look(
    train: Encoded | None, held_out: Mapping[str, Encoded], balances: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Summarize each part (`train` and the validation splits); return the record and the warnings.

    `balances` has the label counts of each part. Raises UserError for a part in which no row has text.
    """
    record: dict[str, Any] = {}
    warnings: list[str] = []
    parts = {**({} if train is None else {"train": train}), **held_out}
    keys_of = {name: np.sort(part.keys) for name, part in parts.items()}  # many times as fast as np.unique and np.isin
    for name, part in parts.items():
        rows = len(part.keys)
        lengths, cut = np.asarray(part.lengths), np.asarray(part.cut)
        if rows == len(part.empty):
            raise UserError(f"{part.source.source}: no row of the {name} data has text", "is it the right column?")
        record[name] = {
            "rows": rows,
            "examples": len(part.row),
            "tokens": int(lengths.sum()),
            "lengths": dict(
                zip(
                    ("min", "5%", "50%", "95%", "max"),
                    np.quantile(lengths, [0, *QUANTILES, 1]).round().astype(int).tolist(),
                    strict=True,
                )
            ),
            "length_histogram": histogram(lengths),
            "truncated_rows": int((cut > 0).sum()),
            "truncated_tokens": int(cut.sum()),
            "empty_rows": len(part.empty),
            "duplicate_rows": int((np.diff(keys_of[name]) == 0).sum()),
            "unlearned_rows": len(part.unlearned),
            "balance": balances[name],
        }
        if part.unknown:
            record[name]["unknown_label_rows"] = len(part.unknown)
        warnings += _warnings(name, part, record[name])
    for name, part in held_out.items():
        shared = [] if train is None else np.flatnonzero(_among(part.keys, keys_of["train"])).tolist()
        if train is not None:
            record[name]["rows_also_in_train"] = len(shared)
        if len(shared) > OVERLAP * len(part.keys):
            warnings.append(
                f"{name}: {_share(len(shared), len(part.keys))} are also in the training data, such as "
                f"{places(part.source, shared[:1])[0]}: the metrics will look too good"
            )
    return record, warnings


def _among(keys: Column, others: np.ndarray) -> np.ndarray:
    """Tell of each key whether it is one of the others, which are sorted."""
    wanted = np.asarray(keys)
    return np.searchsorted(others, wanted) != np.searchsorted(others, wanted, "right")


def _warnings(name: str, part: Encoded, summary: dict[str, Any]) -> list[str]:
    rows = summary["rows"]
    warnings = list(part.warnings)
    if summary["empty_rows"] > EMPTY * rows:
        warnings.append(
            f"{_share(summary['empty_rows'], rows)} have no text, such as {places(part.source, part.empty[:1])[0]}"
        )
    if summary["truncated_rows"] > TRUNCATED * rows:
        share = summary["truncated_tokens"] / summary["tokens"]
        warnings.append(
            f"{_share(summary['truncated_rows'], rows)} are longer than data.max_length and cut off, losing "
            f"{share:.1%} of all tokens"
        )
    if summary["lengths"]["max"] > HUGE:
        longest = int(np.argmax(part.lengths))
        warnings.append(
            f"{places(part.source, [longest])[0]} has {part.lengths[longest]:,} tokens or more: is it one row?"
        )
    if (cut := summary["balance"].get("cut", 0)) > TRUNCATED * rows:
        warnings.append(f"{_share(cut, rows)} have targets longer than data.max_target_length, which are cut off")
    if summary["duplicate_rows"] > DUPLICATES * rows:
        warnings.append(f"{_share(summary['duplicate_rows'], rows)} repeat an earlier one")
    if summary["unlearned_rows"] > UNLEARNED * rows:
        warnings.append(
            f"{_share(summary['unlearned_rows'], rows)} are left out: their answer does not fit into data.max_length "
            "tokens, such as "
            f"{places(part.source, part.unlearned[:1])[0]}"
        )
    counts = {} if _is_range(summary["balance"]) else summary["balance"]
    if name == "train":
        rare = [f"{label} ({count:,})" for label, count in counts.items() if 0 < count * len(counts) < RARE * rows]
        never = [label for label, count in counts.items() if not count and label != "unanswerable"]
        if rare:
            warnings.append(f"few of {rows:,} rows are {_shortened(rare)}")
        if never:
            warnings.append(f"no row is {_shortened(never)}")
    return [f"{name}: {warning}" for warning in warnings]


def lines(record: Mapping[str, Any]) -> list[str]:
    """Write the record of the parts in a few lines."""
    written = []
    for name, summary in record.items():
        lengths = summary["lengths"]
        windows = f" in {quantity(summary['examples'], 'window')}" if summary["examples"] != summary["rows"] else ""
        written.append(f"{name}: {quantity(summary['rows'], 'row')}{windows}, {quantity(summary['tokens'], 'token')}")
        cut = summary["truncated_rows"]
        written.append(
            f"  {lengths['min']} to {lengths['max']} tokens, median {lengths['50%']}, 95% up to {lengths['95%']}"
            + (f", {cut:,} row{'s' * (cut > 1)} cut off" if cut else "")
        )
        if _is_range(summary["balance"]):
            written.append(
                "  {of} {min:g} to {max:g}, mean {mean:.3g}".format(**{"of": "values", **summary["balance"]})
            )
        else:
            shown = [f"{label} {count / summary['rows']:.1%}" for label, count in summary["balance"].items()]
            written.append("  " + ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else ""))
    return written


def columns_used(columns: Mapping[str, str], names: Sequence[str], label_roles: Collection[str]) -> str:
    """Say which column is taken for what, and which of `names` are not used."""
    by_role: dict[str, list[str]] = {}
    for role, name in inputs_first(columns, label_roles).items():
        role = "choices" if re.fullmatch(r"choice\d+", role) else role
        by_role.setdefault(role, []).extend(name.split(JOINED))
    parts = [f"{role}: {', '.join(f'`{printable(name)}`' for name in named)}" for role, named in by_role.items()]
    unused = unused_columns(columns, names)
    return ", ".join(parts) + (f"; not used: {listed(unused)}" if unused else "")


def inputs_first(columns: Mapping[str, str], label_roles: Collection[str]) -> dict[str, str]:
    """Order the roles: inputs, then labels."""
    return dict(sorted(columns.items(), key=lambda item: item[0] in label_roles))


def _is_range(balance: Mapping[str, Any]) -> bool:
    """Tell whether `balance` is a range of values, which are floats, and not the counts of classes."""
    return any(isinstance(value, float) for value in balance.values())


def _shortened(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _share(count: int, rows: int) -> str:
    return f"{count:,} of {quantity(rows, 'row')} ({count / rows:.1%})"
