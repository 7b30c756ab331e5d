"""Take part in a run whose processes another launcher has started: torchrun, a PyTorchJob, srun or mpirun.

This process is itself one of those that train. They meet in torch's store, before the process group is there: process
0 claims the run directory and says where it is, the first of each machine prepares data, and all wait for one another.
"""

import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmkit import devices, last_resort, launch, machines, process, stdout, verified
from llmkit.errors import RunError, UserError, say
from llmkit.recipe import global_batch
from llmkit.recipe.schema import Recipe
from llmkit.runs import directory as runs
from llmkit.speed import cpu
from llmkit.terminal import TERMINAL
from llmkit.worlds import World

VISIBLE = 15.0  # seconds in which a directory that process 0 has made must be seen, as NFS shows it late
AGENT = MappingProxyType({"TORCHELASTIC_USE_AGENT_STORE": "True"})  # torchrun itself serves the store


@dataclass(frozen=True)
class Training:
    """What the command line asks for."""

    recipe: Recipe
    resume: bool
    max_time: int | None
    allowed: Sequence[str]


def train(
    recipe: Recipe, world: World, processes: int | None, resume: bool, max_time: int | None, allowed: Sequence[str]
) -> int:
    """Train `recipe` as one process of `world`; return the exit code, on which all of them agree.

    `processes` is what the user says of their number; the others are those of `launch.start`.
    """
    stdout.without_answer()
    if processes not in (None, world.size):
        raise UserError(
            f"--processes {processes}, but {world.launcher} has started {world.size}",
            "leave --processes out: the launcher says how many there are",
        )
    global_batch.divide(recipe, world.size)
    enter(world, bool(recipe.trainer.get("use_cpu")))
    asked = Training(recipe, resume, max_time, allowed)
    gpu = bound_gpu(world)
    handlers = process.leave_early()
    try:
        store = _store(world)
        with machines.joined(machines.Store(store), world.rank, world.size, talks=world.local_rank == 0) as member:
            if gpu is not None and store.add(f"llmkit/gpu/{platform.node()}/{gpu}", 1) > 1:
                raise UserError(
                    f"process {world.rank} has the same GPU as another process of {platform.node()}",
                    f"let {world.launcher} start one process a GPU",
                )
            train_as = _first if world.rank == 0 else _another
            code = train_as(asked, world, store, member)
            return member.leave(code)
    finally:
        process.handle(handlers)


def enter(world: World, on_cpu: bool) -> None:
    """Set the variables that torch and Accelerate read, for a process that trains on the CPU if `on_cpu`."""
    os.environ.update(world.variables())
    if on_cpu or devices.accelerator() == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("OMP_NUM_THREADS", str(cpu.share(world.local_size)))
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def bound_gpu(world: World) -> str | None:
    """Return the identity of this process's GPU where it sees no other, and let torch take that one.

    Schedulers show each process its own (srun --gpus-per-task=1), or all processes the only one of the machine. None
    where there are as many GPUs as processes here, and on a CPU; UserError where there are fewer, but several.
    """
    import torch

    gpus = torch.cuda.device_count()
    if os.environ.get("ACCELERATE_USE_CPU") == "true" or not 0 < gpus < world.local_size:
        return None
    if gpus > 1:
        devices.one_gpu_each(world.local_size, world.launcher)
    os.environ["LOCAL_RANK"] = "0"
    return str(torch.cuda.get_device_properties(0).uuid)


def _store(world: World) -> Any:
    """Connect to the store that torch's process group will use too."""
    from torch.distributed import PrefixStore, TCPStore

    serves = world.rank == 0 and not AGENT.items() <= os.environ.items()
    place, begun = f"{world.address}:{world.port}", time.monotonic()
    while True:
        try:
            store = TCPStore(
                world.address,
                world.port,
                world.size,
                is_master=serves,
                timeout=timedelta(seconds=machines.LINE),
                wait_for_workers=False,
                multi_tenant=not AGENT.items() <= os.environ.items(),
            )
            return PrefixStore(f"llmkit-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        except (RuntimeError, ValueError) as problem:
            said = " ".join(str(problem).split())[:200]
            if serves:
                raise UserError(
                    f"process 0 cannot listen on {place}: {said}", "set MASTER_PORT to one that is free"
                ) from problem
            minutes = (time.monotonic() - begun) / 60
            if minutes * 60 > machines.ARRIVAL:
                raise RunError(
                    f"process {world.rank} cannot reach process 0 at {place} for {minutes:.0f} minutes: {said}",
                    "is process 0 running, and the address right?",
                ) from problem
            if world.local_rank == 0:
                say(f"waiting  for process 0 at {place}: it cannot be reached ({minutes:.0f} min)")
            time.sleep(1)


def _first(asked: Training, world: World, store: Any, member: machines.Member) -> int:
    """Train as process 0, which claims and holds the run directory."""
    directory = launch.find_directory(asked.recipe, asked.resume, asked.allowed)
    if directory is None:
        return 0
    with launch.held(asked.recipe, directory):
        place = {"directory": str(directory.absolute()), "id": runs.read_record(directory)["id"]}
        member.tell(**place)
        if asked.resume:
            launch.verify_checkpoint(directory)
        _prepare(asked, world, store, member)
        return _train(asked, directory, member)


def _another(asked: Training, world: World, store: Any, member: machines.Member) -> int:
    """Train as another process, in the directory of process 0; the first of each machine prepares the data."""
    try:
        found = member.wait_for(0, lambda sign: "directory" in sign)
    except machines.Ended as first:
        if first.code and world.local_rank == 0:  # on another machine than process 0, which says why on its own
            raise
        return first.code
    directory = Path(found["directory"])
    _must_be_shared(directory, found["id"])
    last_resort.belongs_to(directory)
    with _into_log(directory):
        _prepare(asked, world, store, member)
        return _train(asked, directory, member)


def _prepare(asked: Training, world: World, store: Any, member: machines.Member) -> None:
    """Prepare the data, as the first process of a machine; the others of that machine believe what it has verified."""
    key = f"llmkit/verified/{platform.node()}"
    if world.local_rank == 0:
        member.tell(stage=launch.PREPARING)
        launch.prepare(asked.recipe)
        store.set(key, verified.save())
    member.meet()
    if world.local_rank != 0 and store.check([key]):
        verified.restore(store.get(key).decode())


def _must_be_shared(directory: Path, identity: str) -> None:
    """Raise UserError where this machine does not see the directory that process 0 has claimed."""
    until = time.monotonic() + VISIBLE
    while runs.read_record(directory).get("id") != identity:
        if time.monotonic() > until:
            raise UserError(
                f"process 0 has made the run directory `{directory}`, and this machine does not see it",
                "set --output-dir to a folder on storage that all machines share",
            )
        if directory.parent.is_dir():
            next(directory.parent.iterdir(), None)  # NFS looks again for a new folder when its parent is opened
        time.sleep(0.5)


@contextmanager
def _into_log(directory: Path) -> Iterator[None]:
    """Write what this process says into launch.log, as process 0 says the same; not the error that ends it."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with (directory / runs.LAUNCH_LOG).open("ab") as log:
        os.dup2(log.fileno(), 2)
    os.environ.pop(TERMINAL, None)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _train(asked: Training, directory: Path, member: machines.Member) -> int:
    """Train; a signal that comes before there is anything to save ends the process, and then the others."""

    def end(code: int) -> None:
        os._exit(member.leave(code))  # an orderly exit could wait for other processes

    handlers = process.leave_early(end)
    from llmkit.training import train

    try:
        with launch.mirrored(asked.recipe, directory) as copy:
            code = train.run(asked.recipe, directory, asked.resume, asked.max_time, asked.allowed, mirror=copy)
            if member.number == 0:
                launch.write_report(asked.recipe, directory, code)
        return code
    finally:
        process.handle(handlers)
