"""What every measured process does: it prints one line of JSON, with its peak memory in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_gb() -> float:
    """Peak memory of this process, its libraries among it, in 10^9 bytes; that of its children is not in it.

    Linux's VmHWM: ``resource.getrusage`` begins at the memory of the process that started this one.
    """
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


def report(**values: Any) -> None:
    print(json.dumps(values | {"peak_gb": peak_gb()}))
