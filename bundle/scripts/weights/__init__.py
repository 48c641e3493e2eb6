"""Weights on disk, their record, and the same network in the formats of others."""

from __future__ import annotations

from .checkpoints import CheckpointLoader, WeightsSaver, fold_checkpoints
from .engines import OnnxNetwork, TorchExportNetwork, TorchScriptNetwork

__all__ = [
    "CheckpointLoader",
    "OnnxNetwork",
    "TorchExportNetwork",
    "TorchScriptNetwork",
    "WeightsSaver",
    "fold_checkpoints",
]
