"""Find out whether another launcher started this process as one of several: torchrun, a PyTorchJob, srun, mpirun."""

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from llmkit.errors import UserError

LAUNCHED = "--launched"
LOWEST_PORT, PORTS = 20000, 10000  # below those that Linux gives to clients, which begin at 32768
LOCAL = "127.0.0.1"
# Of each launcher: the variables for rank, size, rank on the machine and size there, and for a name of the job.
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
MPI = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_KVSNAME", "HYDRA_JOBID")
NOT_STEPS = ("4294967290", "4294967291")  # SLURM_STEP_ID of the interactive and the batch step: -6 and -5


@dataclass(frozen=True)
class World:
    """The processes that a launcher started, and this one's place among them."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int

    def variables(self) -> dict[str, str]:
        """Return what torch and Accelerate read."""
        numbers = (self.rank, self.size, self.local_rank, self.local_size)
        names = dict(zip(TORCH, map(str, numbers), strict=True))
        return {**names, "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}


def find(told: bool, environment: Mapping[str, str] = os.environ) -> World | None:
    """Return the world that this process is part of; None where it is alone, or in a world of one.

    torchrun's variables suffice, those of srun and mpirun count where the user has `told` of it (--launched): a shell
    inside an allocation has some of them too.
    Raises UserError for a world that is not whole, for several tasks of srun or mpirun without --launched, and where
    --launched is given and nothing has started this process.
    """
    found = _torch(environment)
    if found is not None:
        return found
    mpi = next((name for name, names in MPI.items() if _number(environment, names[1]) > 1), None)
    tasks = 0 if environment.get("SLURM_STEP_ID") in NOT_STEPS else _number(environment, SRUN[1])
    if not told:
        if tasks > 1 or mpi is not None:
            by = f"srun started {tasks}" if mpi is None else f"mpirun started {_number(environment, MPI[mpi][1])}"
            raise UserError(
                f"{by} processes, and each would train a run of its own",
                f"one run of them all: {LAUNCHED}; or start llmkit once, and let it start its processes: --processes N",
            )
        return None
    if tasks > 1:
        return _srun(environment)
    if mpi is not None:
        return _mpi(mpi, environment)
    known = (TORCH[1], SRUN[1], *(names[1] for names in MPI.values()))
    if not any(_number(environment, name) == 1 for name in known):
        raise UserError(
            f"{LAUNCHED}: no launcher has started this process as one of several",
            f"start it with torchrun, srun or mpirun, or leave {LAUNCHED} out; these variables were looked for: "
            f"{', '.join(known)}",
        )
    return None


def started_by(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the launcher that has started this process as one of several; None where none has."""
    try:
        found = find(told=False, environment=environment)
    except UserError:
        return "srun" if _number(environment, SRUN[1]) > 1 else "mpirun"
    return None if found is None else found.launcher


def is_one(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a launcher other than srun has started this process as one of several, and says so whole."""
    ranks = [(_number(environment, names[0]), _number(environment, names[1])) for names in MPI.values()]
    return _torch(environment) is not None or any(0 <= rank < size > 1 for rank, size in ranks)


def _torch(environment: Mapping[str, str]) -> World | None:
    rank, size, local_rank, local_size = (_number(environment, name) for name in TORCH)
    address, port = environment.get("MASTER_ADDR"), _number(environment, "MASTER_PORT")
    if not (0 <= rank < size and size > 1 and address and port > 0):
        return None
    if local_rank < 0 or local_size < 1:  # a PyTorchJob starts one process a pod
        local_rank, local_size = 0, 1
    return World("torchrun", rank, size, local_rank, local_size, address, port)


def _srun(environment: Mapping[str, str]) -> World:
    rank, size, local_rank = (_number(environment, name) for name in SRUN[:3])
    here = tasks_per_node(environment.get(SRUN[3], ""))
    node = max(0, _number(environment, "SLURM_NODEID"))
    if not 0 <= rank < size or local_rank < 0 or node >= len(here):
        raise UserError(
            f"{LAUNCHED}: srun's variables are not whole: {_shown(environment, (*SRUN, 'SLURM_NODEID'))}",
            "start it with srun itself, without a launcher in between",
        )
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    address = environment.get("MASTER_ADDR") or (LOCAL if len(here) == 1 else first_node(nodes))
    job = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return World("srun", rank, size, local_rank, here[node], address, _port(environment, job))


def _mpi(launcher: str, environment: Mapping[str, str]) -> World:
    names = MPI[launcher]
    rank, size, local_rank, local_size = (_number(environment, name) for name in names)
    if not (0 <= rank < size and 0 <= local_rank < local_size):
        raise UserError(
            f"{LAUNCHED}: mpirun's variables are not whole: {_shown(environment, names)}",
            "torchrun --no-python llmkit ... starts the same processes",
        )
    if local_size < size and not environment.get("MASTER_ADDR"):
        raise UserError(
            f"{LAUNCHED}: mpirun does not say where its first process is",
            "mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ..., with the name of the first host",
        )
    job = next((environment[name] for name in JOBS if name in environment), "")
    address = environment.get("MASTER_ADDR") or LOCAL
    return World("mpirun", rank, size, local_rank, local_size, address, _port(environment, job))


def tasks_per_node(text: str) -> list[int]:
    """Read Slurm's `2(x3),1`: the number of tasks on each node."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts if part is not None for _ in range(int(part[2] or 1))]


def first_node(nodes: str) -> str:
    """Return the first name of a Slurm node list such as `gpu[07-09,12],cpu1`."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if found is None:
        raise UserError(f"{LAUNCHED}: SLURM_STEP_NODELIST is `{nodes}`, which names no node", "set MASTER_ADDR")
    return "".join(part or "" for part in found.groups())


def _port(environment: Mapping[str, str], job: str) -> int:
    """Return MASTER_PORT, or one that all processes of a job agree on."""
    given = _number(environment, "MASTER_PORT")
    return given if given > 0 else LOWEST_PORT + zlib.crc32(job.encode()) % PORTS


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else -1


def _shown(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={environment.get(name, '')}" for name in names)
