"""Run a function for each of many items: in this process, in several, or on the machines of a Ray cluster.

An engine is a map: it takes a function and items, and yields the results in the order of the items. Only a few items
are taken ahead of the results. With several processes the function and the items must be picklable, and what the
function reads and writes must be in folders that all machines share.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llmkit.errors import RunError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items for each worker: one that it works on, and one that waits for it


class Engine(Protocol):
    """A map whose results come in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]: ...


def in_turn(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Work in this process, on one item after the other."""
    return map(function, items)


@dataclass(frozen=True)
class Workers:
    """Who prepares data, and in shards of how many characters text is cleaned: neither changes a byte of the result."""

    engine: Engine = in_turn
    shard_size: int = 2**24


ALONE = Workers()


@contextmanager
def processes(number: int) -> Iterator[Engine]:
    """Yield an engine of so many processes, which end with the block and when this process is killed.

    Raises RunError in the block where one of them is killed.
    """
    before = multiprocessing.active_children()
    pool = ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), _begin)

    def run(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return _ahead(lambda item: pool.submit(function, item), Future.result, items, AHEAD * number)

    try:
        yield run
    except BaseException as problem:
        for worker in multiprocessing.active_children():
            if worker not in before:
                worker.kill()  # it writes under names that are not final: nothing can be half done
        if isinstance(problem, BrokenProcessPool):
            raise RunError(
                "a worker process was killed: was there too little memory?",
                "the same command goes on where it was; give it fewer --workers",
            ) from problem
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Make this process a worker: with one thread, deaf to the terminal's Ctrl-C, and gone with its parent."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def on_ray() -> Iterator[Engine]:
    """Yield an engine of Ray tasks: on the cluster that RAY_ADDRESS names, else on one of this machine alone.

    Raises UserError where Ray is not installed, RunError where the cluster gives up on a task.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs the package ray", "pip install 'llmkit[ray]'") from None
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    number = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    call = ray.remote(_call)

    def run(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return _ahead(lambda item: call.remote(function, item), ray.get, items, AHEAD * number)

    try:
        yield run
    except ray.exceptions.RayError as problem:
        if isinstance(problem, UserError):  # of a function: Ray makes it an error of both kinds
            raise
        raise RunError(f"Ray gave up: {' '.join(str(problem).split())[:300]}", "the same command goes on") from problem
    finally:
        ray.shutdown()


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _ahead(
    submit: Callable[[Item], Any], wait: Callable[[Any], Result], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """Yield the results in their order, with so many items at most submitted ahead of them."""
    submitted: deque[Any] = deque()
    for item in items:
        submitted.append(submit(item))
        if len(submitted) >= most:
            yield wait(submitted.popleft())
    while submitted:
        yield wait(submitted.popleft())
