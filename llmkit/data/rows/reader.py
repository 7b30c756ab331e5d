"""The contract of a row reader: which columns a task reads, and what can be wrong with a row of it.

A reader is a module, one for each kind of rows. It needs neither torch nor a tokenizer: `llmkit data` and a dry run
read with it what training reads.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

from llmkit.data.rows.cells import ABSENT, value_at
from llmkit.data.rows.table import Rows
from llmkit.recipe.tasks import TASKS


class Unusable(ValueError):
    """Raised for a row that cannot be learned from: `kind` is the same for all rows with this fault ("empty answer").

    The message says what is wrong with this row, and `hint` what to do about rows of this kind.
    """

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.hint = kind, hint


class Examined(NamedTuple):
    """What a row holds to be learned, before labels are resolved, and what had to be mended to read it, if anything.

    `mended` is the same for all rows mended in this way ("an answer was found elsewhere in its context").
    """

    target: Any = None
    mended: str | None = None


class RowReader(Protocol):
    """How the rows of a task are read. `data` is the task's [data] table."""

    @property
    def LABEL_ROLES(self) -> tuple[str, ...]:
        """The roles of columns that training and evaluation read and prediction does not."""

    def resolve_columns(self, data: Any, rows: Rows, labelled: bool = True, /) -> dict[str, str]:
        """Choose the column of each role, by the recipe, by usual names or by what the columns hold.

        Without `labelled`, of the inputs alone. Raises UserError where it is not clear which column is meant.
        """

    @property
    def reshape(self) -> Callable[[Rows, Mapping[str, str], Any], Rows] | None:
        """(rows, columns, data) -> rows as `examine` and `encode` read them, under the same names of columns.

        Called once for every file or split, before its rows are looked at. None: they are read as they come.
        """

    def examine(self, row: Mapping[str, Any], columns: Mapping[str, str], data: Any, evaluation: bool, /) -> Examined:
        """Read a row; raise Unusable where it cannot be learned from.

        For `evaluation` only where there is nothing to compare an answer with. Without the columns of labels, as in
        prediction, only where its inputs cannot be read.
        """

    def strata(
        self, targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: Any, /
    ) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
        """Return the class of each row, by which rows are drawn, and the rows that prove unusable in the whole column.

        `targets` are those of the rows that `examine` accepted, by their order; so are the numbers of the unusable.
        """

    @property
    def texts(self) -> Callable[[Mapping[str, Any], Mapping[str, str]], Iterator[str]] | None:
        """(row, columns) -> the texts that a tokenizer of the run's own is trained on; None: those of its inputs."""


def reader_of(task: str) -> RowReader:
    """Return the reader of a task's rows."""
    return cast(RowReader, import_module(f"llmkit.data.rows.{TASKS[task].rows}"))


def text_in(row: Mapping[str, Any], column: str) -> str:
    """Return the text in a column of a row, "" for None; raise Unusable where it holds no text."""
    value = value_at(row, column)
    if value is ABSENT:
        raise Unusable(f"no `{column}`", f"no `{column}`; the row has {', '.join(row) or 'nothing'}")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unusable(
            f"no text in `{column}`",
            f"column `{column}` holds {type(value).__name__}, not text",
            "is it the right column? to use another, set a key such as data.text_column",
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as problem:  # JSON can write it, and nothing can tokenize it
            raise Unusable(
                "half a character",
                f"`{column}` holds half a character (\\u{ord(value[problem.start]):04x})",
                "in JSON, a character beyond U+FFFF takes two \\u escapes",
            ) from problem
    return value


def by_rarest(sets: Sequence[Iterable[Hashable]]) -> list[Hashable]:
    """Return the stratum of rows that have several labels each: the one of its labels that the fewest rows have."""
    rows_with = Counter(label for labels in sets for label in set(labels))
    return [min(set(labels), key=lambda label: (rows_with[label], str(label)), default=None) for labels in sets]
