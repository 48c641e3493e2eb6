from __future__ import annotations

from .fusion import MultiScaleFusion
from .missu import MISSU
from .self_distillation import SelfDistillation

__all__ = ["MISSU", "MultiScaleFusion", "SelfDistillation"]
