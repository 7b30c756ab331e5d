"""Write data into a report for a terminal: lines behind their names, texts cut at its width."""

from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from llmkit.terminal import LEAST, USUAL, columns, columns_of, laid_out, printable

CLASSES = 12  # labels that are listed with their counts


def cut(text: str, width: int) -> str:
    """Cut a text to `width` columns, escaped; a wide character takes two."""
    from rich.cells import set_cell_size

    shown = printable(text[: 4 * width])
    if len(text) <= 4 * width and columns_of(shown) <= width:
        return shown
    return set_cell_size(shown, width - 3).rstrip() + "..."


class Report:
    """Lines of a report behind their names, written as they come; each is wrapped or cut at the terminal's width.

    Attributes:
        left: columns of the names.
        width: columns beside them.
        as_given: paths as the user wrote them, by their resolved form.
    """

    def __init__(
        self,
        left: int,
        write: Callable[[str], object],
        stream: TextIO,
        as_given: Mapping[str, str] | None = None,
    ) -> None:
        """`write` is given lines that are laid out for `stream`."""
        self.left, self.write, self.as_given = left, write, as_given or {}
        self.width = max(LEAST, (columns(stream) or USUAL) - left)
        self._stream = stream

    def add(self, name: str, text: str) -> None:
        """Write a text behind its name, wrapped at words."""
        text = printable(text)
        for resolved, given in self.as_given.items():
            text = text.replace(resolved, given)
        self.lines(name, [text])

    def fit(self, name: str, text: str) -> None:
        """Write a text behind its name, cut at the width."""
        self.lines(name, [cut(text, self.width)])

    def lines(self, name: str, lines: Iterable[str]) -> None:
        """Write lines, the first behind the name."""
        for line in lines:
            self.write(laid_out(f"{name:<{self.left}}{line}", self._stream, self.left))
            name = ""


def counted(counts: Mapping[str, int], rows: int) -> str:
    """List labels with their counts and shares of `rows`, the frequent first; of many the middle is left out."""
    listed = sorted(counts.items(), key=lambda item: -item[1])
    parts = [f"{printable(str(label))} {number:,} ({number / max(rows, 1):.1%})" for label, number in listed]
    if len(parts) > CLASSES:
        parts[CLASSES - 3 : -2] = [f"... {len(parts) - CLASSES + 1:,} more ..."]
    return ", ".join(parts)
