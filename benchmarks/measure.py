"""What every measured process does: it prints one line of JSON, with its peak memory in it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_gb() -> float:
    """Peak memory of this process, its libraries among it, in 10^9 bytes; that of its children is not in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(**values: Any) -> None:
    print(json.dumps(values | {"peak_gb": peak_gb()}))
