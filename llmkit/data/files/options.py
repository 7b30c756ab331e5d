"""What a recipe says of how its files are to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkit.recipe.data_tables import Origin

Note = Callable[[str], None]
"""Takes a remark on a file, such as a rule that was taken or lines that were left out, for the user to read."""


@dataclass(frozen=True)
class ReadOptions:
    """How files are read, where it is not left to them: the keys of [data] with these names."""

    encoding: str = "utf-8"
    format: str | None = None
    delimiter: str | None = None
    quoting: str | None = None
    header: bool | None = None
    column_names: tuple[str, ...] | None = None
    member: str | None = None  # no key: the split to read of a JSON file that holds several
    max_document_bytes: int | None = None

    @classmethod
    def of(cls, data: Origin) -> ReadOptions:
        """Take the options from a [data] table or from one of its sources."""
        return cls(
            data.encoding,
            data.format,
            data.delimiter,
            data.quoting,
            data.header,
            data.column_names,
            max_document_bytes=data.max_document_bytes,
        )

    def beyond_encoding(self) -> tuple[tuple[str, object], ...]:
        """List the other options that are set, for a fingerprint: none of them existed in earlier versions.

        A bound is none of them: it changes nothing of what is read.
        """
        names = (field.name for field in fields(self) if field.name not in ("encoding", "max_document_bytes"))
        options = ((name, getattr(self, name)) for name in names)
        return tuple((name, value) for name, value in options if value is not None)


def unheard(remark: str) -> None:
    """Take a remark that nobody reads."""


@dataclass(frozen=True)
class BadRow:
    """Stands in place of a row that cannot be read: what is wrong with it, what to do, and in short, its kind.

    The kind is the same for all rows with this fault, such as "too few or too many fields".
    """

    message: str
    hint: str = ""
    kind: str = "cannot be read"
    details: tuple[str, ...] = ()
