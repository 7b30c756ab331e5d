"""Notice that a file changes between the hashing of its content and the end of its reading."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import UserError

TICK, COARSE_TICK = 0.02, 2.0  # seconds between two times that a file system tells apart; of one with whole seconds


@dataclass(frozen=True)
class Snapshot:
    """Files as the file system describes them before they are first opened: size, and times of the last changes.

    Nothing can be written to a file, or put in its place, that leaves all three as they were.
    """

    states: Mapping[Path, tuple[int, ...]]

    @classmethod
    def of(cls, files: Sequence[Path]) -> "Snapshot":
        """Describe `files`; of one that was written just now, wait until a further change would show in its times."""
        states = {file: _state(file) for file in files}
        now = time.time_ns()
        ages = (now - state[-1] for state in states.values() if state)
        youngest = min((age for age in ages if age >= 0), default=now)
        coarse = all(state[-1] % 10**9 == 0 for state in states.values() if state)
        time.sleep(max(0.0, (COARSE_TICK if coarse else TICK) - youngest / 1e9))
        return cls(states)

    def verify(self) -> None:
        """Raise UserError for a file that is no longer as it was."""
        for file, state in self.states.items():
            if _state(file) != state:
                raise UserError(
                    f"`{file}` changed while it was being read",
                    "wait until nothing writes to it, and repeat the command",
                )


def _state(file: Path) -> tuple[int, ...]:
    with suppress(OSError):
        described = file.stat()
        return described.st_size, described.st_mtime_ns, described.st_ctime_ns
    return ()
