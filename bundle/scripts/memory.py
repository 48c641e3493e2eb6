"""Memory: how much a process can still get, how much a case takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["free_memory", "gib", "size_of"]

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes of memory that a process can still get: the machine's, or those of its container or cluster job if less.

    ``None`` where the system does not tell.
    """
    try:
        lines = MEMINFO.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def size_of(item: Any) -> int:
    """Bytes of the tensors and arrays in the items of a data set, nested as they may be."""
    if isinstance(item, torch.Tensor | np.ndarray):
        return item.nbytes
    if isinstance(item, Mapping):
        return sum(map(size_of, item.values()))
    if isinstance(item, list | tuple):
        return sum(map(size_of, item))
    return 0
