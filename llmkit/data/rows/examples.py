"""Hold what is known of tokenized rows, and name those with a mistake."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import xxhash

from llmkit.data.rows.ragged import Column, Ragged
from llmkit.data.rows.reader import Unusable, text_in
from llmkit.data.rows.table import Rows
from llmkit.data.rows.tokenize import Tokenized
from llmkit.errors import UserError

CHUNK = 1000  # rows that are tokenized at once
# Characters that are read of a text that is cut to fewer tokens anyway: a tokenizer needs some 280 bytes for each.
LONGEST_TEXT = 2**20
SHOWN = 5  # mistakes in rows that one message names


@dataclass
class Encoded:
    """Tokenized rows, before their labels are resolved.

    By example: `inputs` of the model, and `row`, the number of the row that the example came from (a long row may give
    several). By row: `targets` as they were read; `lengths` in tokens before anything was cut off (of the `beginning`
    of a text, where no more is read); `cut`, the tokens that were cut off; and `keys`, which are equal for rows with
    the same texts. Numbers of rows: `empty` have no text at all, `unlearned` a target that no example holds,
    `unknown` a class that the model does not have.

    `skipped` and `mended` count the rows that the tokenizer's chat template left out or changed, by kind, and `notes`
    say so; `keep` tells, of each row that was read, whether it is one of `source`, where some were left out.

    `labels` are the targets as the model's numbers, one entry each example, once they are resolved (labels of single
    tokens are in `inputs` instead). `tokenizer` is set where targets are text. `warnings` are what the user should
    know of the labels. `copies` makes the altered copies of all rows of `source`, for training alone.
    """

    source: Rows
    inputs: dict[str, Ragged] = field(default_factory=dict)
    row: Column = field(default_factory=Column)
    targets: Any = field(default_factory=list)  # a sequence; a list while rows are added
    lengths: Column = field(default_factory=Column)
    cut: Column = field(default_factory=Column)
    keys: Column = field(default_factory=lambda: Column("Q"))
    empty: list[int] = field(default_factory=list)
    unlearned: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    labels: np.ndarray | None = None
    tokenizer: Any = None
    warnings: list[str] = field(default_factory=list)
    skipped: Mapping[str, int] = field(default_factory=dict)
    mended: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    keep: bytes | None = None
    copies: "Callable[[], Encoded] | None" = None

    def add(self, name: str, sequence: Sequence[int] | np.ndarray) -> None:
        self.input(name).append(sequence)

    def input(self, name: str) -> Ragged:
        """Return the sequences of one input of the model, none at first."""
        if name not in self.inputs:
            self.inputs[name] = Ragged()
        return self.inputs[name]

    def add_tokenized(self, chunk: Tokenized) -> None:
        """Add the inputs of rows, one of each, and their lengths before and after they were cut."""
        for name, values in chunk.inputs.items():
            self.input(name).extend(values, chunk.lengths)
        self.lengths.extend(chunk.whole)
        self.cut.extend(chunk.whole - chunk.lengths)

    def finish(self) -> "Encoded":
        """Make what was added readable; nothing more is added."""
        for sequences in self.inputs.values():
            sequences.finish()
        return self


def chunks(rows: Iterable[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    """Yield lists of `size` rows."""
    waiting = iter(rows)
    while chunk := list(islice(waiting, size)):
        yield chunk


def beginning(text: str, length: int) -> str:
    """Cut a text to what its first `length` tokens may need; the rest is neither tokenized nor counted."""
    return text[: max(LONGEST_TEXT, 16 * length)]


def kept(text: str, length: int, tokenizer: Any) -> str:
    """Cut a text to what `length` tokens may need at its beginning, or at its end where the tokenizer keeps that."""
    return text[-max(LONGEST_TEXT, 16 * length) :] if tokenizer.truncation_side == "left" else beginning(text, length)


def key_of(*texts: str) -> int:
    """Hash texts: the same key for the same texts."""
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode())


@contextmanager
def located(place: str) -> Iterator[None]:
    """Name the row that cannot be used, where rows were not looked at before."""
    try:
        yield
    except Unusable as fault:
        raise UserError(f"{place}: {fault}", fault.hint) from fault


def column_texts(rows: Iterable[tuple[str, Mapping[str, Any]]], column: str) -> list[str]:
    """Return the text in `column` of each (place, row); raise UserError, with the place, where a row has none."""
    texts = []
    for place, row in rows:
        try:
            texts.append(text_in(row, column))
        except Unusable as fault:
            raise UserError(f"{place}: {fault}", fault.hint) from fault
    return texts


def places(rows: Rows, wanted: Sequence[int]) -> list[str]:
    """List where the rows with these numbers stand, for messages."""
    last, by_number = max(wanted), {}
    for number, (place, _) in enumerate(islice(rows.read(), last + 1)):
        if number in wanted:
            by_number[number] = place
    return [by_number[number] for number in wanted]


def refuse(rows: Rows, mistakes: Mapping[int, str], what: str, hint: str) -> None:
    """Raise a UserError that names the first rows with a mistake; do nothing if there is none.

    `mistakes` are by number of row; `what` follows the count of rows in the message.
    """
    if not mistakes:
        return
    first = sorted(mistakes)[:SHOWN]
    details = [f"{place}: {mistakes[number]}" for place, number in zip(places(rows, first), first, strict=True)]
    if len(mistakes) > SHOWN:
        details.append(f"and {len(mistakes) - SHOWN:,} more")
    count = len(mistakes)
    raise UserError(f"{rows.source}: {count:,} row{'s' * (count > 1)} {what}", hint, tuple(details))
