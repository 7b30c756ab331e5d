"""A process of a run: what it leaves for the one that started it, and the signals that it answers to."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit.errors import say

LAUNCH = "LLMKIT_LAUNCH"  # in the environment of a rank: the folder in which it meets its parent
STOPPED = 75  # the exit code of a run that a signal ended, and that goes on with --resume
SAVING = signal.SIGUSR1  # asks for a checkpoint, after which the run goes on


def stopping() -> list[signal.Signals]:
    """Signals that end a run with a checkpoint; SIGHUP, a closed connection, unless `nohup` says otherwise."""
    known = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


def leave_early(leave: Callable[[int], Any] = sys.exit) -> dict[int, Any]:
    """Before training there is nothing to save: end at once, as a run that can be started again.

    Returns what the signals did before.
    """

    def end(number: int, frame: FrameType | None) -> None:
        leave(STOPPED)

    def stay(number: int, frame: FrameType | None) -> None:
        say("there is nothing to save yet")

    handlers: dict[signal.Signals, Callable[..., None]] = {SAVING: stay}
    handlers |= {number: end for number in stopping() if number != signal.SIGINT}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def join() -> None:
    """Called first in every process: a rank of a launch leaves its process id, and rank 0 speaks through the parent."""
    if LAUNCH not in os.environ:
        return
    meeting = Path(os.environ[LAUNCH])
    leave_early(os._exit)  # what others of this run have left waiting cannot be ended in order
    (meeting / f"rank-{os.getpid()}").touch()
    if os.environ.get("RANK", "0") == "0":
        try:  # without waiting for a reader: a parent that is gone will never be one
            said = os.open(meeting / "stderr", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            os._exit(STOPPED)
        os.set_blocking(said, True)
        os.dup2(said, 2)
    threading.Thread(target=_watch_parent, args=(meeting / "alive",), daemon=True).start()


def _watch_parent(pipe: Path) -> None:
    """End as after SIGTERM when the parent is gone: nobody would know of this process."""
    with suppress(OSError):  # it has gone already, and its folder with it
        alive = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # one that is gone would be waited for for ever
        os.set_blocking(alive, True)
        os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def is_rank() -> bool:
    """This process was started by a parent that is llmkit."""
    return LAUNCH in os.environ


def leave(code: int) -> int:
    """Leave the exit code for the parent, from rank 0; what this process itself should exit with.

    A rank that was stopped leaves with 0: the launcher would kill the others, which are saving.
    """
    if LAUNCH not in os.environ:
        return code
    if os.environ.get("RANK", "0") == "0":
        (Path(os.environ[LAUNCH]) / "status").write_text(str(code))
    return 0 if code in (STOPPED, 130) else code


def collect_from_here() -> None:
    """Switch the garbage collector on, if `llmkit` was started without, for what is made from now on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
