from __future__ import annotations

from .ensemble import Ensemble, Mirrored
from .fusion import MultiScaleFusion
from .missu import MISSU
from .norms import InstanceNorm, Windows
from .self_distillation import ModalityDistillation, SelfDistillation, training_network

__all__ = [
    "MISSU",
    "Ensemble",
    "InstanceNorm",
    "Mirrored",
    "ModalityDistillation",
    "MultiScaleFusion",
    "SelfDistillation",
    "Windows",
    "training_network",
]
