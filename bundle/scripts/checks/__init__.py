"""What is wrong with cases, before a run finds out."""

from __future__ import annotations

from .preflight import check_before_run

__all__ = [
    "check_before_run",
]
