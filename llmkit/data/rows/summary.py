"""A look at the rows before training: how many, how long, how alike, how balanced; and what the user should know."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmkit.data.rows.examples import Encoded, places
from llmkit.errors import UserError

# Above these shares of the rows (of the validation rows, for the overlap) a warning is printed.
DUPLICATES, OVERLAP, TRUNCATED, EMPTY, UNLEARNED = 0.05, 0.01, 0.05, 0.0, 0.0
HUGE = 100_000  # tokens of one row: seldom meant to be one
RARE = 0.1  # a class with fewer rows than this share of what it would have if all had as many
QUANTILES = (0.05, 0.5, 0.95)


def look(
    train: Encoded | None, held_out: Mapping[str, Encoded], balances: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """What the record says of each part (`train` and the validation splits), and the warnings.

    Raises UserError where there is nothing to learn from: not one row with text.
    """
    record: dict[str, Any] = {}
    warnings: list[str] = []
    for name, part in {**({} if train is None else {"train": train}), **held_out}.items():
        rows = len(part.keys)
        lengths = np.array(part.lengths)
        if rows == len(part.empty):
            raise UserError(f"{part.source.source}: not one row of the {name} data has text", "is it the right column?")
        seen = Counter(part.keys)
        found = {
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
            "truncated_rows": sum(cut > 0 for cut in part.cut),
            "truncated_tokens": sum(part.cut),
            "empty_rows": len(part.empty),
            "duplicate_rows": rows - len(seen),
            "unlearned_rows": len(part.unlearned),
            "balance": balances[name],
        }
        record[name] = found
        warnings += _warnings(name, part, found)
    known = set() if train is None else set(train.keys)
    for name, part in held_out.items():
        shared = [row for row, key in enumerate(part.keys) if key in known]
        if train is not None:
            record[name]["rows_also_in_train"] = len(shared)
        if len(shared) > OVERLAP * len(part.keys):
            warnings.append(
                f"{name}: {_share(len(shared), len(part.keys))} are in the training data too, such as "
                f"{places(part.source, shared[:1])[0]}: the figures will flatter"
            )
    return record, warnings


def _warnings(name: str, part: Encoded, found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    said = []
    if found["empty_rows"] > EMPTY * rows:
        said.append(
            f"{_share(found['empty_rows'], rows)} have no text, such as {places(part.source, part.empty[:1])[0]}"
        )
    if found["truncated_rows"] > TRUNCATED * rows:
        share = found["truncated_tokens"] / found["tokens"]
        said.append(
            f"{_share(found['truncated_rows'], rows)} are longer than data.max_length and cut off, "
            f"{share:.1%} of all tokens"
        )
    if found["lengths"]["max"] > HUGE:
        longest = max(range(rows), key=part.lengths.__getitem__)
        said.append(f"{places(part.source, [longest])[0]} has {part.lengths[longest]:,} tokens or more: is it one row?")
    if (cut := found["balance"].get("cut", 0)) > TRUNCATED * rows:
        said.append(f"{_share(cut, rows)} have targets longer than data.max_target_length, which are cut off")
    if found["duplicate_rows"] > DUPLICATES * rows:
        said.append(f"{_share(found['duplicate_rows'], rows)} repeat an earlier one")
    if found["unlearned_rows"] > UNLEARNED * rows:
        said.append(
            f"{_share(found['unlearned_rows'], rows)} teach nothing and are left out: no input of data.max_length "
            "tokens holds their answer, such as "
            f"{places(part.source, part.unlearned[:1])[0]}"
        )
    counts = {} if _is_range(found["balance"]) else found["balance"]
    if name == "train":
        rare = [f"{label} ({count:,})" for label, count in counts.items() if 0 < count * len(counts) < RARE * rows]
        never = [label for label, count in counts.items() if not count and label != "unanswerable"]
        if rare:
            said.append(f"few of {rows:,} rows are {_shortened(rare)}")
        if never:
            said.append(f"no row is {_shortened(never)}")
    return [f"{name}: {each}" for each in said]


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record of the parts in a few lines, each at most 80 columns wide where the labels allow it."""
    said = []
    for name, found in record.items():
        lengths = found["lengths"]
        windows = f" in {found['examples']:,} windows" if found["examples"] != found["rows"] else ""
        said.append(f"{name}: {found['rows']:,} rows{windows}, {found['tokens']:,} tokens")
        said.append(
            f"  {lengths['min']} to {lengths['max']} tokens, half up to {lengths['50%']}, 95% up to {lengths['95%']}"
        )
        if _is_range(found["balance"]):
            said.append("  {of} {min:g} to {max:g}, mean {mean:.3g}".format(**{"of": "values", **found["balance"]}))
        else:
            shown = [f"{label} {count / found['rows']:.1%}" for label, count in found["balance"].items()]
            said.append("  " + ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else ""))
    return said


def _is_range(balance: Mapping[str, Any]) -> bool:
    """Whether this is the range of values, which are floats, and not how many rows each class has."""
    return any(isinstance(value, float) for value in balance.values())


def _shortened(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _share(count: int, rows: int) -> str:
    return f"{count:,} of {rows:,} rows ({count / rows:.1%})"
