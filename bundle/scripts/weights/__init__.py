"""Weights on disk, their record, and the same network in the formats of others."""

from __future__ import annotations

from .checkpoints import CheckpointLoader, WeightsSaver, fold_checkpoints
from .compiled import OpenvinoNetwork, computed_by, with_engine
from .engines import OnnxNetwork, TorchExportNetwork, TorchScriptNetwork
from .pretrained import frozen_teacher, intensities_like, load_pretrained, network_like, parent_of
from .record import (
    check_channels,
    check_contract,
    check_unseen,
    convention_to_write,
    network_of_record,
    recorded,
    temperature_of,
)

__all__ = [
    "CheckpointLoader",
    "OnnxNetwork",
    "OpenvinoNetwork",
    "TorchExportNetwork",
    "TorchScriptNetwork",
    "WeightsSaver",
    "check_channels",
    "check_contract",
    "check_unseen",
    "computed_by",
    "convention_to_write",
    "fold_checkpoints",
    "frozen_teacher",
    "intensities_like",
    "load_pretrained",
    "network_like",
    "network_of_record",
    "parent_of",
    "recorded",
    "temperature_of",
    "with_engine",
]
