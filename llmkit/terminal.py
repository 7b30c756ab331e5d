"""Write lines for people: wrapped at a terminal's width, coloured where it has colours, control characters shown.

In a file or a pipe each line stays whole and without colour, so that it can be searched.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from itertools import pairwise
from typing import Any, TextIO

# accelerate_launch.py sets it for rank 0, whose pipe ends in a terminal: that one's width in columns.
TERMINAL = "LLMKIT_TERMINAL"
USUAL = 80  # columns of a terminal that does not tell them, and of a table in a file
NARROW = 40  # columns below which no room is given to an indent
LEAST = 20  # columns that are taken for there at least
TOGETHER = "\xa0"  # a blank at which no line is broken, written as any other
HANG = 2  # columns by which a line without a label goes on further in

# What a terminal would obey: control characters, marks that turn the direction of text, separators that it takes for
# line ends, halves of characters.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MOVES = re.compile("(?:\r|\n|\x1b\\[A)*")  # what a progress bar begins with: back to its line
# What begins a line: a word in nine columns, or nothing there, or one of a few words with a colon.
_LABEL = re.compile(r"[a-z]+ +(?<=^.{9})(?=\S)| {9}|(?:error|hint|model|note|warning|go on|try it): +")
_COMMAND = (
    r"(?:llmkit (?:pretrain|prepare|finetune|generate|predict|evaluate|merge|export|push|serve"
    r"|data|plan|check|runs|compare|explain|recipes|report|doctor|completion)"
    r"|pip install|hf auth|accelerate config|iconv)\b"
)
# What is not broken: a command with its arguments, up to a comma, a colon or a semicolon; what stands in backticks.
_COMMAND_LINE = rf"{_COMMAND}(?:(?<![,;:]) (?:'[^']*'|\"[^\"]*\"|[^ '\"])+)*"
_UNIT = re.compile(rf"( *)({_COMMAND_LINE}|(?:`[^`]*`|[^ ])+)")
_STYLES = {"error": "1;31", "warning": "33", "stopping": "33", "hint": "36"} | dict.fromkeys(
    ("finished", "result", "best"), "32"
)
_QUIET, _TYPED = "2", "36"  # other labels; what can be typed
_BARS = "▁▂▃▄▅▆▇█"


def is_terminal(stream: TextIO) -> bool:
    """Return whether `stream` (or the launcher's, which passes our bytes on) goes to a terminal."""
    with suppress(ValueError):  # it is closed
        return TERMINAL in os.environ or stream.isatty()
    return False


def columns(stream: TextIO) -> int | None:
    """Return how many columns the terminal of `stream` has at this moment; None where it has none."""
    if not is_terminal(stream):
        return None
    told = os.environ.get(TERMINAL, "")
    with suppress(OSError, ValueError):
        return max(LEAST, int(told) if told else os.get_terminal_size(stream.fileno()).columns or USUAL)
    return USUAL


def colours(stream: TextIO) -> bool:
    """Return whether to colour what is written to `stream` (no-color.org, force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (is_terminal(stream) and os.environ.get("TERM") != "dumb")


def printable(text: str) -> str:
    """Escape what a terminal would obey, and line ends with it."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Guarded:
    """A terminal's stream as libraries and commands see it: what the terminal would obey is shown, not sent.

    Line ends and tabs are sent. With `bars` a write may begin by moving to the line that it replaces. What is laid out
    here, with colours of its own, goes to `as_is`.
    """

    def __init__(self, stream: TextIO, bars: bool) -> None:
        self.as_is, self._bars = stream, bars

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        moves = _MOVES.match(text)[0] if self._bars else ""  # type: ignore[index]
        rest = re.sub(r"[^\n\t]+", lambda run: printable(run[0]), text[len(moves) :])
        self.as_is.write(moves + rest)
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write several texts."""
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.as_is, name)


def guard() -> None:
    """Let nothing that goes to a terminal be obeyed by it: names, rows, templates and what a model writes."""
    for name in ("stdout", "stderr"):
        if is_terminal(stream := getattr(sys, name)):
            setattr(sys, name, Guarded(stream, bars=name == "stderr"))


def as_is(stream: TextIO) -> TextIO:
    """Return what takes lines that are laid out, or a prompt with colours of ours."""
    return stream.as_is if isinstance(stream, Guarded) else stream


def columns_of(text: str) -> int:
    """Count the columns that a printable text takes; a wide character takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def painted(text: str, style: str) -> str:
    """Put a text between the codes that switch a style on and off."""
    return f"\x1b[{style}m{text}\x1b[0m"


def laid_out(line: str, stream: TextIO, left: int = 0) -> str:
    """Escape a line, wrap it at words and colour it, as far as `stream` goes to a terminal.

    It goes on below where its text begins, behind its label: a word in the first `left` columns or, where `left` is
    0, one of those that `_LABEL` finds. Without a label it goes on a little further in. Commands, and what stands in
    backticks, are not broken; a command that is longer than a line begins one, so that it can be copied.
    """
    line, width, colour = printable(line), columns(stream), colours(stream)
    label = line[:left]
    if not left and (found := _LABEL.match(line)):
        label = found[0]
    text = line[len(label) :]
    own = len(text) - len(text.lstrip(" "))
    room, start = math.inf if width is None else width, columns_of(label)
    indent = (start + own if label else own + HANG) if room >= NARROW else HANG
    written = painted(label, _STYLES.get(label.rstrip(": "), _QUIET)) if colour and label.strip() else label
    used, begun = start, bool(label.strip())
    for blanks, unit in _UNIT.findall(text):
        taken = columns_of(unit)
        if begun and used + len(blanks) + taken > room and (blanks or used == start):
            used = indent if indent + taken <= room else HANG
            blanks = "\n" + " " * used
        else:
            used += len(blanks)
        used, begun = used + taken, True
        typed = colour and re.match(f"`?{_COMMAND}", unit)
        written += blanks + (painted(unit, _TYPED) if typed else unit)
    return written.rstrip(" ").replace(TOGETHER, " ")


def show(*lines: str) -> None:
    """Write lines that are laid out to stdout."""
    print("\n".join(lines), file=as_is(sys.stdout))


def put(*lines: str) -> None:
    """Write lines that are laid out to stderr, above the bars that are there; do nothing if it is closed."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # there are none before it is imported
    with suppress(OSError), bars.external_write_mode(sys.stderr) if bars is not None else nullcontext():
        print("\n".join(lines), file=as_is(sys.stderr), flush=True)


def put_at_once(text: str) -> None:
    """Write a line to stderr in the place of a bar, from a signal handler: with no lock that might be held."""
    away = "\r\x1b[K" if is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb" else ""
    with suppress(OSError):
        os.write(2, f"{away}{laid_out(text, sys.stderr)}\n".encode())


def draws(stream: TextIO) -> bool:
    """Return whether the encoding of `stream` has the characters of a `sparkline`."""
    try:
        return bool(_BARS.encode(stream.encoding or "ascii"))
    except (LookupError, UnicodeError):
        return False


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the course of `values`, one at least, in `width` characters at most: the mean of each share.

    A share with a value that is not finite is an `x`.
    """
    size = max(1, min(width, len(values)))
    ends = [number * len(values) // size for number in range(size + 1)]
    means = [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(ends)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if math.isfinite(mean) else "x" for mean in means)
