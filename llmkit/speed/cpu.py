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
