"""Refuse an answer that stdout does not take: it is closed, or the disk behind it is full."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit.errors import UserError


class ClosedStdout(io.TextIOBase):
    """Stdout that was closed before llmkit began: an answer that is written there is lost, and so it is refused."""

    def write(self, text: str) -> int:
        raise UserError("stdout is closed, and the answer goes there", "send it somewhere: > FILE")


class _Checked(io.FileIO):
    """The file behind stdout. Once it takes no more, what is still to be written is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as problem:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # else the same again at the end
            if isinstance(problem, BrokenPipeError):  # its reader has seen enough
                raise
            raise UserError(
                f"the answer could not be written to stdout: {problem.strerror}", "send it to a disk with room: > FILE"
            ) from problem


def open_standard_streams() -> None:
    """Open a closed stdin, stdout or stderr again: the next file would get its number, and what is written to it.

    Let stdout be checked; what its encoding does not have is escaped, such as a file name that is not UTF-8.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    found: Any = sys.stdout
    if found is None:  # as Python finds it
        found = ClosedStdout()
    else:
        found = io.TextIOWrapper(
            io.BufferedWriter(_Checked(found.fileno(), "w", closefd=False)),
            encoding=found.encoding,
            errors="backslashreplace",
            line_buffering=found.line_buffering,
            write_through=found.write_through,
        )
    sys.stdout = found


def without_answer() -> None:
    """Let what libraries write to a stdout that is closed be lost: training itself writes nothing there."""
    if isinstance(sys.stdout, ClosedStdout):
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
