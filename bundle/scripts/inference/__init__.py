"""From cases to masks."""

from __future__ import annotations

from .cases import CaseDataset, CaseEvaluator
from .inferer import AdaptiveInferer, Bfloat16Inferer
from .outliers import OutlierWarning
from .record import MaskRecord
from .scan_range import ScanRangeWarning
from .writer import AtomicNibabelWriter, MaskLayout, ProbabilitiesLayout

__all__ = [
    "AdaptiveInferer",
    "AtomicNibabelWriter",
    "Bfloat16Inferer",
    "CaseDataset",
    "CaseEvaluator",
    "MaskLayout",
    "MaskRecord",
    "OutlierWarning",
    "ProbabilitiesLayout",
    "ScanRangeWarning",
]
