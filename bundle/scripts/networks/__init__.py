from __future__ import annotations

from .ensemble import Ensemble, Mirrored
from .fusion import MultiScaleFusion
from .missu import MISSU
from .self_distillation import SelfDistillation

__all__ = ["MISSU", "Ensemble", "Mirrored", "MultiScaleFusion", "SelfDistillation"]
