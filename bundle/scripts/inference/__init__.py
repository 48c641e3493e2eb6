"""From cases to masks."""

from __future__ import annotations

from .inferer import AdaptiveInferer, AtomicNibabelWriter, CaseDataset, CaseEvaluator

__all__ = [
    "AdaptiveInferer",
    "AtomicNibabelWriter",
    "CaseDataset",
    "CaseEvaluator",
]
