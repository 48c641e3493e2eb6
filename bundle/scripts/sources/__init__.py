"""What becomes cases: DICOM series, the CHAOS challenge, synthetic brains."""

from __future__ import annotations

from .gliomas import DrawGliomad, synthetic_cases

__all__ = ["DrawGliomad", "synthetic_cases"]
