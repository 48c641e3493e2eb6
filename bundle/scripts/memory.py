"""Memory: how much a process can still get, how much a case takes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

__all__ = ["free_memory", "gib", "keep_freed_memory", "size_of"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = (
    160 << 20
)  # a case of BraTS in float32; with larger tensors, gaps between them would cost more than is gained
MEMINFO = Path("/proc/meminfo")
CGROUP_OF_SELF = Path("/proc/self/cgroup")
CGROUP = Path("/sys/fs/cgroup")
# Of a control group: its limit, what is used, and which of its statistics are page cache. Version 2, then version 1.
FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def keep_freed_memory() -> None:
    """Lets this process keep the memory of a tensor that is gone for the next one, where glibc manages it.

    glibc gives blocks back to the system at once, which has to clear each page of the next one: a fifth of the time of
    a case at 2 mm. Blocks of more than :data:`KEPT_BYTES` still go back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, -1)


def free_memory() -> int | None:
    """Bytes of memory that a process can still get: the machine's, or those of its container or cluster job if less.

    Page cache counts as free, since the system gives it back before it refuses memory. ``None`` where the system does
    not tell.
    """
    try:
        lines = MEMINFO.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([free, *map(max, free_of_groups(), repeat(0))])


def free_of_groups() -> Iterator[int]:
    """What the limit of each control group around this process leaves, from the innermost to the root."""
    try:
        lines = [line.split(":", 2) for line in CGROUP_OF_SELF.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers not in FILES:
            continue
        # A container may see the path of its host here, and its own group as the root.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = CGROUP / controllers / group.relative_to("/")
            limit_name, used_name, cache_names = FILES[controllers]
            try:
                limit, used = int((folder / limit_name).read_text()), int((folder / used_name).read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # none here; "max" is no limit
                continue
            yield limit - used + sum(int(statistics.get(name, 0)) for name in cache_names)


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
