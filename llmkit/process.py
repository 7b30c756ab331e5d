"""Connect a rank with the process that started it, and handle signals outside training."""

import gc
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import temporary, worlds
from llmkit.errors import say
from llmkit.terminal import TERMINAL

# llmkit's own environment variables, by which a process passes values to its children; one more is in terminal.py.
LAUNCH = "LLMKIT_LAUNCH"  # accelerate_launch.py sets it for ranks, this module reads it: the folder that they share
DIRECTORY = "LLMKIT_DIRECTORY"  # accelerate_launch.py sets it for ranks, launch.py reads it there: the run directory
PARENT = "LLMKIT_PARENT"  # children.py sets it, this module reads it: the number of a pipe that the parent holds open
STOP_AT = "LLMKIT_STOP_AT"  # sweeps/ sets it, this module reads it: the share of its steps after which a run stops
FETCHED = "LLMKIT_FETCHED"  # remote.py sets it for all children and reads it: the copy of each address, as JSON
COMMITS = "LLMKIT_COMMITS"  # hub.py sets it for all children and reads it: the commit of each repository, as JSON

# Other libraries' variables that llmkit sets for them, or for its children: HF_HUB_OFFLINE, HF_DATASETS_OFFLINE and
# DISABLE_SAFETENSORS_CONVERSION (hub.py), CUDA_VISIBLE_DEVICES (devices.py), ACCELERATE_USE_CPU and
# OMP_NUM_THREADS (accelerate_launch.py), PYTHONSAFEPATH and PYTHONPATH (this module); arguments.py removes
# ACCELERATE_MIXED_PRECISION.

# What torchrun, `accelerate launch` and mpirun set for the processes that they start.
_OF_LAUNCHERS = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|FORK_LAUNCHED"
    r"|ACCELERATE_(USE|DEEPSPEED|DYNAMO|GRADIENT|FP8)_.*|ACCELERATE_(MIXED_PRECISION|DEBUG_MODE|CPU_AFFINITY)"
    r"|(TORCHELASTIC|FSDP|MEGATRON_LM|PARALLELISM_CONFIG|PMI|MPI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_.*)"
)

ASKED = "asked.json"  # in the folder that ranks share with their parent: what was asked for

STOPPED = 75  # the exit code of a run that a signal ended, and that --resume continues
SAVING = signal.SIGUSR1  # asks for a checkpoint, after which the run continues


def forget_empty_settings() -> None:
    """Unset the settings of the Hub's libraries that are empty: `HF_HOME=` would put the cache into `./hub`."""
    for name, value in list(os.environ.items()):
        if not value and (name == "XDG_CACHE_HOME" or name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))):
            del os.environ[name]


def stopping() -> list[signal.Signals]:
    """Return the signals that end a run with a checkpoint; one that is ignored, as `nohup` ignores SIGHUP, not."""
    known = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


def leave_early(end_process: Callable[[int], Any] = sys.exit) -> dict[signal.Signals, Any]:
    """Let the signals end the process at once, through `end_process`, as long as there is nothing to save.

    Returns the previous handlers.
    """

    def end(number: int, frame: FrameType | None) -> None:
        end_process(STOPPED)

    def stay(number: int, frame: FrameType | None) -> None:
        say("there is nothing to save yet")

    handlers: dict[signal.Signals, Callable[..., None]] = {SAVING: stay}
    handlers |= {number: end for number in stopping() if number != signal.SIGINT}
    return handle(handlers)


def handle(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Set handlers of signals and return the previous ones; outside the main thread, which may not, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def world(told: bool) -> worlds.World | None:
    """Return the processes that another launcher started, and that this one trains with; `told` is --launched.

    Where it is alone after all, what the launcher left in the environment is removed.
    """
    if LAUNCH in os.environ:
        return None
    found = worlds.find(told)
    if found is None:
        for name in _left():
            del os.environ[name]
    return found


def ignore_launchers(told: bool = False) -> None:
    """Remove what another launcher left in the environment, and say so, before torch reads it; it can wait for ever.

    Of a process that a launcher did start it stays, for the command to take part (which it may have been `told`) or to
    refuse.
    """
    if LAUNCH in os.environ or told or worlds.is_one():
        return
    left = _left()
    for name in left:
        del os.environ[name]
    if left:
        names = ", ".join(left[:3]) + f" and {len(left) - 3} more" * (len(left) > 3)
        say(f"note     not used: {names}, of another launcher; llmkit starts its processes itself (--processes)")


def _left() -> list[str]:
    return sorted(name for name in os.environ if _OF_LAUNCHERS.fullmatch(name))


def join() -> None:
    """Register this process with its parent if it is a rank; connect rank 0's stderr to the parent's. Call it first.

    Also let a child that `children.run` started end with its parent.
    """
    if (parent := os.environ.pop(PARENT, None)) is not None:
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()
    if LAUNCH not in os.environ:
        return
    meeting = Path(os.environ[LAUNCH])
    if not meeting.is_dir():
        say(f"error: the process that started this one is gone; or unset {LAUNCH}, if none did")
        os._exit(STOPPED)
    leave_early(os._exit)  # an orderly exit could wait for other ranks
    temporary.hold(meeting)
    (meeting / f"rank-{os.getpid()}").touch()
    if os.environ.get("RANK", "0") == "0":
        try:  # without waiting for a reader: the parent may be gone
            pipe = os.open(meeting / "stderr", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            os._exit(STOPPED)
        os.set_blocking(pipe, True)
        os.dup2(pipe, 2)
    else:  # it writes into launch.log
        os.environ.pop(TERMINAL, None)
        os.environ["NO_COLOR"] = "1"
    threading.Thread(target=_watch_parent, args=(meeting / "alive",), daemon=True).start()


def _watch_parent(pipe: Path | int) -> None:
    """Send SIGTERM to this process when its parent is gone; `pipe` is one that it holds open, or its path."""
    with suppress(OSError):  # the parent is gone already, and its folder with it
        if isinstance(pipe, Path):
            pipe = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a blocking open would wait for ever for a dead parent
            os.set_blocking(pipe, True)
        os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


is_guest = False  # whether a Python program that called llmkit owns this process: it is not to be ended


def leave_at_once(number: int) -> None:
    """End the process on a second signal, without waiting for what the first one asked for."""
    if is_guest:
        raise KeyboardInterrupt
    sys.stderr.flush()
    os._exit(128 + number)


def asked() -> dict[str, Any]:
    """Return what the process that launched this rank was asked for: processes, strategy, device; else nothing."""
    file = Path(os.environ[LAUNCH]) / ASKED if LAUNCH in os.environ else None
    return json.loads(file.read_text()) if file is not None and file.is_file() else {}


def stop_at() -> Fraction | None:
    """Return the share of its steps after which this run stops, as a sweep asks; None where it is left alone."""
    share = os.environ.get(STOP_AT)
    return None if share is None else Fraction(share)


def child_environment() -> dict[str, str]:
    """Return the environment of a child that runs `python -m`: a file of the working directory is no module to it.

    What PYTHONPATH names stays importable, and llmkit is the one that this process has.
    """
    root, here = str(Path(__file__).parents[1]), str(Path.cwd())
    own = [] if root in (entry for entry in sys.path if entry != here) else [root]
    search = [*filter(None, [os.environ.get("PYTHONPATH")]), *own]
    return {**os.environ, "PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(search)} if search else {})}


def leave(code: int) -> int:
    """Pass rank 0's exit code to the parent; return the code that this process itself should exit with.

    A rank that was stopped exits with 0: otherwise the launcher would kill the others, which are saving.
    """
    if LAUNCH not in os.environ:
        return code
    if os.environ.get("RANK", "0") == "0":
        (Path(os.environ[LAUNCH]) / "status").write_text(str(code))
    return 0 if code in (STOPPED, 130) else code


def collect_from_here() -> None:
    """Enable the garbage collector, which `llmkit` disables at its start, for objects created from now on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
