"""A command seen from outside: how long it took, the most memory it held, what it said. And what the machine can do.

Commands that are started together run by turns, a second each, while the others are stopped: what a machine loses to
its neighbours from one minute to the next, all of them lose that still run.

Nothing heavy is imported here: a child that is started from a large process is charged with that process's memory.
"""

import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

TURN = 1.0  # seconds
SHOWN = 30  # lines of a command that failed
PEAK = """
import time, torch
a, b = torch.rand(2, 2048, 2048)
def seconds():
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start
print(2 * 2048**3 / min(seconds() for _ in range(20)), torch.get_num_threads())
"""


class Failed(Exception):
    """A command did not do what it was started for."""


class Line:
    """Who waits for a turn; the first one has it."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it in here."""
        me = object()
        with self._moved:
            self._waiting.append(me)
            self._moved.wait_for(lambda: self._waiting[0] is me)
        try:
            yield
        finally:
            with self._moved:
                self._waiting.popleft()
                self._moved.notify_all()


LINE = Line()
RUNNING: set[int] = set()  # numbers of processes


@dataclass(frozen=True)
class Ran:
    """A command that has ended. `memory` is the resident size, in bytes, of the largest of its processes."""

    turns: Sequence[tuple[float, float]]  # from when to when it ran, as time.time() has it
    processor: float  # seconds of processor time, of all its processes
    memory: int
    said: str
    samples: Sequence[tuple[float, float]]  # (time.time(), processor time up to then) of the command's first process

    @property
    def began(self) -> float:
        return self.turns[0][0]

    @property
    def seconds(self) -> float:
        return self.between(self.began, self.turns[-1][1])

    def between(self, begin: float, end: float) -> float:
        """Seconds that it ran, from one moment to another."""
        return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self.turns)

    def processor_between(self, begin: float, end: float) -> float | None:
        """Seconds of processor time from one moment to another, to a tenth; None where there is no /proc."""
        used = [next((used for at, used in self.samples if at >= moment), None) for moment in (begin, end)]
        return None if None in used else used[1] - used[0]


def run(words: Sequence[str | Path], folder: Path, wanted: int = 0, **environment: str) -> Ran:
    """Run a command in `folder` to its end. Raises Failed where its exit code is not `wanted`."""
    heard: dict[str, str] = {}

    def listen(name: str, pipe: IO[str]) -> None:
        heard[name] = pipe.read()

    turns: list[tuple[float, float]] = []
    with LINE.turn():
        began = time.time()
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.kill(process.pid, signal.SIGSTOP)
        RUNNING.add(process.pid)
        turns.append((began, time.time()))
    listeners = [
        threading.Thread(target=listen, args=each) for each in (("said", process.stdout), ("warned", process.stderr))
    ]
    samples: list[tuple[float, float]] = []
    ended = threading.Event()

    def take_turns() -> None:
        while not ended.is_set():
            with LINE.turn():
                began = time.time()
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                    if not ended.wait(TURN):
                        os.kill(process.pid, signal.SIGSTOP)
                turns.append((began, time.time()))

    def watch() -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        with suppress(OSError):
            while not ended.wait(0.1):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                samples.append((time.time(), (int(fields[11]) + int(fields[12])) / ticks))

    listeners += [threading.Thread(target=each) for each in (take_turns, watch)]
    for each in listeners:
        each.start()
    _, status, used = os.wait4(process.pid, 0)
    RUNNING.discard(process.pid)
    ended.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    for each in listeners:
        each.join()
    if process.returncode != wanted:
        last = "\n".join([*heard["said"].splitlines()[-SHOWN:], *heard["warned"].splitlines()[-SHOWN:]])
        raise Failed(f"`{' '.join(map(str, words))}` ended with {process.returncode}, not {wanted}:\n{last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Ran(turns, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, heard["said"], samples)


def end_all() -> None:
    """Kill the commands that run."""
    for number in [*RUNNING]:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def peak() -> tuple[float, int]:
    """Floating-point operations a second of the fastest of 20 fp32 products of 2048 x 2048, and torch's threads."""
    flops, threads = run([sys.executable, "-c", PEAK], Path.cwd()).said.split()
    return float(flops), int(threads)


def machine() -> str:
    """What the figures were measured on, and with, in a line."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = ", ".join(f"{each} {version(each)}" for each in ("torch", "transformers"))
    return f"{name}, {os.cpu_count()} cores, {packages}"


def median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of ours over theirs, round by round: a machine that slows down for a while slows both of a round."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))
