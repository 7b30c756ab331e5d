"""What was found out about files by reading them holds until they change: nobody reads them again for it.

It holds in this process and in those of a run that it launches on this machine, which would else each read the corpus,
the tokens and the checkpoint to verify them. Files are known by their number on the file system, not by their names.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit import disk

FILE = "verified.json"  # in the folder that ranks share with their parent
TICK, COARSE_TICK = 0.02, 2.0  # seconds between two times that a file system tells apart; of one with whole seconds

_found: dict[str, tuple[list[list[int]], Any]] = {}  # how the files were described, and what was found out


def once(what: str, files: Sequence[Path], find: Callable[[], Any]) -> Any:
    """Return what `find` makes of files, or made of them before they were last changed.

    Args:
        what: Names it, with all that it depends on beside the content of the files.
        files: What it is made of.
        find: Reads them; what it returns can be written as JSON.
    """
    numbers, states = _describe(files)
    key = json.dumps([what, *numbers])
    before = _found.get(key)
    if before is not None and before[0] == states:
        return before[1]
    lasting = _changes_show(states)
    found = find()
    if lasting and _describe(files) == (numbers, states):
        _found[key] = (states, found)
    return found


def checksum(file: Path) -> str:
    """Return the checksum of a file (`disk.checksum`), which is read unless that was computed before."""
    return str(once("checksum", [file], lambda: disk.checksum(file)))


def written(file: Path, checksum: str) -> None:
    """Take note of the checksum of a file that this process has just written, synced and closed."""
    numbers, states = _describe([file])
    _found[json.dumps(["checksum", *numbers])] = (states, checksum)


def save() -> str:
    """Return all that is known, for `restore`."""
    return json.dumps(_found)


def restore(saved: str) -> None:
    """Know what another process of this machine has found out."""
    _found.update({key: (states, found) for key, (states, found) in json.loads(saved).items()})


def _describe(files: Sequence[Path]) -> tuple[list[list[int]], list[list[int]]]:
    """Return of each file its number, and size and times of the last changes; nothing of one that is not there."""
    numbers, states = [], []
    for file in files:
        number, state = [], []
        with suppress(OSError):
            described = file.stat()
            number = [described.st_dev, described.st_ino]
            state = [described.st_size, described.st_mtime_ns, described.st_ctime_ns]
        numbers.append(number)
        states.append(state)
    return numbers, states


def _changes_show(states: Sequence[Sequence[int]]) -> bool:
    """Wait until a further change of files written just now would show in their times; False if that takes long."""
    now = time.time_ns()
    youngest = min((now - state[-1] for state in states if state and state[-1] <= now), default=now) / 1e9
    if all(state[-1] % 10**9 == 0 for state in states if state):
        return youngest >= COARSE_TICK
    time.sleep(max(0.0, TICK - youngest))
    return True
