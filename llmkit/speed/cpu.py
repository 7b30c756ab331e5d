"""What suits a CPU: a thread for each core that this process may use, memory that is used again, fewer operations."""

import ctypes
import math
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

# What a container may use of the processor, by cgroups of version 2 and 1.
QUOTA = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
# Of glibc's malloc.h: from which size on a piece of memory is the system's own, and how much is kept at the end.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
LARGE = (2**31 - 1, 2**25)  # bytes: it takes an int, and older ones refuse more than 32 MiB as a threshold
SMALL = (2**16, 2**17)  # bytes: the thresholds of the two, where all that is freed goes back to the system
# What a training took with freed memory kept, as a share of its tensors' peak: 1.13 to 1.56 for twelve models.
KEPT = 1.6


def cores() -> int:
    """Cores of this machine that this process may use: those it is bound to, and no more than its container is given.

    PyTorch counts hyper-threads too, which share a core's units, and all of the machine's where a container is given a
    share of them.
    """
    import psutil

    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return max(1, min(physical, bound, quota() or physical))


def quota() -> int | None:
    """Cores that a container is given, rounded up; None where there is no limit."""
    try:
        if QUOTA[0].is_file():
            limit, period = QUOTA[0].read_text().split()
        else:
            limit, period = QUOTA[1].read_text().strip(), PERIOD.read_text().strip()
        return math.ceil(int(limit) / int(period)) if int(limit) > 0 else None
    except (OSError, ValueError):  # "max", another system
        return None


def share(processes: int) -> int:
    """Threads for each of so many processes."""
    return max(1, cores() // processes)


def reuse_memory() -> bool:
    """Keep what is freed for what is asked for next; False where the C library cannot be told.

    glibc gives large pieces back to the system at once, which clears each page that it gives out again: without this,
    a training of BERT with 4 layers of 256 took 2 % longer.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return any(mallopt(MMAP_THRESHOLD, size) for size in LARGE) and bool(mallopt(TRIM_THRESHOLD, LARGE[0]))


def give_memory_back() -> None:
    """Let freed memory go back to the system at once, so that a process takes what its tensors take.

    Left to itself glibc raises its threshold with each large piece that is freed, and gaps between tensors add up.
    Clearing pages again costs time: a step of SmolLM2 under LoRA took 46 s of processor time and 2.9 GB, with freed
    memory kept 38 s and 3.8 GB (AMD EPYC, one thread).
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, SMALL[0])
        mallopt(TRIM_THRESHOLD, SMALL[1])


def has_room(peak: int) -> bool:
    """Tell whether tensors of `peak` bytes fit into this machine's free memory with freed memory kept."""
    import psutil

    return peak * KEPT < psutil.virtual_memory().available


def fuse_norms(model: Any) -> int:
    """Let torch's one function do what upstream's RMSNorm does in six operations; how many norms it does it for.

    For one token each operation takes about as long as the next, whatever it computes. Only where the numbers are the
    same to the last bit, which is tried (Gemma's norms add 1 to the weights).
    """
    fused = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and (norm := _one_function(module)):
            module.forward = norm
            fused += 1
    return fused


def _one_function(module: Any) -> Any:
    """torch's function in place of a norm's forward; None where they differ, or either is not what it was."""
    import torch

    try:
        weight, eps = module.weight, module.variance_epsilon
        norm = partial(torch.nn.functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps)
        x = torch.linspace(-3, 5, len(weight))[None, None]
        with torch.inference_mode():
            return norm if torch.equal(module(x), norm(x)) else None
    except (AttributeError, TypeError):
        return None
