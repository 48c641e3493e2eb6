"""What exists while weights are made: losses, the state of a training, its folds."""

from __future__ import annotations

from .federated import BothNames
from .losses import FiniteLoss, MISSULoss, ModalityDistillationLoss
from .state import TrainingState

__all__ = [
    "BothNames",
    "FiniteLoss",
    "MISSULoss",
    "ModalityDistillationLoss",
    "TrainingState",
]
