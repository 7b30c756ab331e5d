"""Write text into a terminal: cut or wrapped at its width, with control characters escaped."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping

# Control characters, marks that turn the direction of text, separators that a terminal takes for line ends, halves of
# characters.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
LEAST, USUAL = 40, 80  # columns of a terminal
CLASSES = 12  # labels that are listed with their counts


def terminal_width() -> int:
    """Return how many columns the terminal has, 80 where there is none."""
    return max(LEAST, shutil.get_terminal_size((USUAL, 24)).columns)


def printable(text: str) -> str:
    """Escape what a terminal would obey, and line ends with it."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def cut(text: str, width: int) -> str:
    """Cut a text to `width` columns, escaped; a wide character takes two."""
    from rich.cells import cell_len, set_cell_size

    shown = printable(text[: 4 * width])
    if len(text) <= 4 * width and cell_len(shown) <= width:
        return shown
    return set_cell_size(shown, width - 3).rstrip() + "..."


def columns_of(text: str) -> int:
    """Count the columns that a printable text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Break a printable text between words into lines of `width` columns, those after the first behind `indent`."""
    lines, line = list[str](), ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line.strip() and columns_of(longer) > width:
            lines.append(line)
            longer = indent + word
        line = longer
    return [*lines, line]


class Report:
    """Lines of a report behind their names, written as they come; each is wrapped or cut at the terminal's width.

    Attributes:
        left: columns of the names.
        width: columns beside them.
        as_given: paths as the user wrote them, by their resolved form.
    """

    def __init__(self, left: int, write: Callable[[str], object], as_given: Mapping[str, str] | None = None) -> None:
        self.left, self.write, self.as_given = left, write, as_given or {}
        self.width = terminal_width() - left

    def add(self, name: str, text: str) -> None:
        """Write a text behind its name, wrapped at words."""
        text = printable(text)
        for resolved, given in self.as_given.items():
            text = text.replace(resolved, given)
        self.lines(name, wrapped(text, self.width, "  "))

    def fit(self, name: str, text: str) -> None:
        """Write a text behind its name, cut at the width."""
        self.lines(name, [cut(text, self.width)])

    def lines(self, name: str, lines: Iterable[str]) -> None:
        """Write lines that fit, the first behind the name."""
        for line in lines:
            self.write(f"{name:<{self.left}}{line}".rstrip())
            name = ""


def counted(counts: Mapping[str, int], rows: int) -> str:
    """List labels with their counts and shares of `rows`, the frequent first; of many the middle is left out."""
    listed = sorted(counts.items(), key=lambda item: -item[1])
    parts = [f"{printable(str(label))} {number:,} ({number / max(rows, 1):.1%})" for label, number in listed]
    if len(parts) > CLASSES:
        parts[CLASSES - 3 : -2] = [f"... {len(parts) - CLASSES + 1:,} more ..."]
    return ", ".join(parts)
