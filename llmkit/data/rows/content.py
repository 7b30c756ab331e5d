"""Look at what the columns of rows hold, where their names do not tell which one is meant."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from llmkit.data.files import BadRow
from llmkit.data.rows.cells import ABSENT, value_at
from llmkit.data.rows.table import HEAD, Rows

MOST_CLASSES = 50  # a column with more different values is not taken for the label
LOOKED_AT = 1000  # rows that show whether a column holds texts
LONG = 20  # characters of a text that needs no blank
LONGEST_LABEL = 60  # characters of a value that is taken for a label
NO_TEXT = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # a UUID
    r"|[0-9a-f]{16,}"  # a hash
    r"|\w+://\S*|www\.\S+|\S+@\S+\.\w+"  # an address
    r"|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ][\d:.+Z -]*)?|\d{1,2}:\d{2}(:\d{2})?"  # a date, a time
    r"|\w+\.(jpe?g|png|gif|wav|mp3|txt|pdf|html?)",  # a file
    re.IGNORECASE,
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*([eE][+-]?\d+)?")


@dataclass
class Column:
    """What a column holds: its different values until they are too many, and of the first rows what kind they are.

    Attributes:
        values: the different values in all rows, folded; no more than MOST_CLASSES + 1.
        rows: how many rows have one, up to there.
        seen: the different values in the first rows, of which `looked_at` have one.
        readable: how many of those are texts of several words.
        odd: how many are what no label is, such as a date, an address or a fraction.
        numbers: how many are numbers, and `fractions` how many of those are no whole ones.
        other: whether there are lists or tables.
    """

    name: str
    values: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    rows: int = 0
    looked_at: int = 0
    readable: int = 0
    odd: int = 0
    numbers: int = 0
    fractions: int = 0
    other: bool = False

    def add(self, value: Any) -> None:
        """Take in the value of a row."""
        if value is None or value is ABSENT or value == "":
            return
        if not isinstance(value, str | int | float):
            self.other = True
            return
        text = str(value).strip()
        self.rows += 1
        if not self.full:
            self.values.add(text.casefold())
        if self.looked_at < LOOKED_AT:
            self.looked_at += 1
            self.seen.add(text)
            no_text = NO_TEXT.fullmatch(text) is not None
            words = any(map(str.isspace, text)) or len(text) > LONG or not text.isascii()
            self.readable += isinstance(value, str) and words and not no_text
            fraction = FRACTION.fullmatch(text) is not None
            self.fractions += fraction
            self.numbers += fraction or NUMBER.fullmatch(text) is not None
            self.odd += no_text or fraction or len(text) > LONGEST_LABEL

    @property
    def full(self) -> bool:
        """Whether it has too many different values for a label."""
        return len(self.values) > MOST_CLASSES

    @property
    def is_text(self) -> bool:
        """Whether it holds texts, most of which are different."""
        return not self.other and 2 * self.readable > self.looked_at and 2 * len(self.seen) > self.looked_at

    @property
    def is_label(self) -> bool:
        """Whether it holds few values, each many times."""
        few = 2 <= len(self.values) <= MOST_CLASSES and 2 * len(self.values) <= self.rows
        return few and not self.other and not self.odd

    @property
    def is_value(self) -> bool:
        """Whether it holds numbers alone, and not only whole ones."""
        return not self.other and self.fractions > 0 and self.numbers == self.looked_at

    @property
    def is_id(self) -> bool:
        """Whether each of the first rows has a value of its own that is no text."""
        return not self.other and len(self.seen) == self.looked_at > 2 and not self.is_text

    def __str__(self) -> str:
        if self.is_label:
            return f"`{self.name}` has {len(self.values)} values: {_listed(sorted(self.values))}"
        if self.is_value:
            return f"`{self.name}` holds numbers from {min(self.seen, key=float)} to {max(self.seen, key=float)}"
        kind = "texts" if self.is_text else "no texts"
        return f"`{self.name}` holds {kind}" + (f", such as {_listed(sorted(self.seen)[:1])}" if self.seen else "")


def look_at(rows: Rows, names: Sequence[str], limit: int | None = None) -> list[Column]:
    """Look at columns in all rows (in the first `limit`), for as long as it can matter.

    Of a column that holds tables, the entries `a.b` are looked at.
    """
    nested = entries(rows, names)
    columns = [Column(name) for name in names if name not in nested]
    columns += [Column(f"{name}.{key}") for name, keys in nested.items() for key in keys]
    for number, (_, row) in enumerate(islice(rows.read(), limit)):
        left = [column for column in columns if number < LOOKED_AT or not (column.full or column.other)]
        if not left:
            break
        for column in left if not isinstance(row, BadRow) else ():
            column.add(row[column.name] if column.name in row else value_at(row, column.name))
    return columns


def entries(rows: Rows, names: Sequence[str]) -> dict[str, list[str]]:
    """List, of each column that holds tables, the keys of those in the first rows; `a.b` of a table in a table."""
    nested: dict[str, dict[str, None]] = {}
    for _, row in islice(rows.read(), HEAD):
        for name in names if not isinstance(row, BadRow) else ():
            if isinstance(table := row.get(name), Mapping):
                nested.setdefault(name, {}).update(dict.fromkeys(_keys(table)))
    return {name: list(keys) for name, keys in nested.items()}


def _keys(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in _keys(value))
        else:
            yield str(key)


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(value if len(value) <= 40 else value[:37] + "..." for value in values[:5])
    return shown + (", ..." if len(values) > 5 else "")
