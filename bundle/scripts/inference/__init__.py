"""From cases to masks."""

from __future__ import annotations

from .cases import CaseDataset, CaseEvaluator
from .inferer import AdaptiveInferer, Bfloat16Inferer
from .writer import AtomicNibabelWriter, MaskLayout, ProbabilitiesLayout

__all__ = [
    "AdaptiveInferer",
    "AtomicNibabelWriter",
    "Bfloat16Inferer",
    "CaseDataset",
    "CaseEvaluator",
    "MaskLayout",
    "ProbabilitiesLayout",
]
