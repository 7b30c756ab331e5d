"""How many threads suit a CPU: one for each core that this process may use, whose hyper-threads share its units."""

import math
import os
from pathlib import Path

# What a container may use of the processor, by cgroups of version 2 and 1.
QUOTA = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available() -> int:
    """Cores of this machine that this process may use: those it is bound to, and no more than its container is given.

    PyTorch counts hyper-threads too, and all of the machine's where a container is given a share of them.
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
    return max(1, available() // processes)
