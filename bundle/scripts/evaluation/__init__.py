"""What a mask scores against the truth."""

from __future__ import annotations

from .report import EvaluationReport
from .small_et import SmallEnhancingToCored, chosen_mm3
from .surfaces import missed_mm_of

__all__ = [
    "EvaluationReport",
    "SmallEnhancingToCored",
    "chosen_mm3",
    "missed_mm_of",
]
