"""Cases, their files and labels, and what is made of them before they reach the network."""

from __future__ import annotations

from .cache import MappedDataset
from .datalist import inference_cases, load_datalist, patients_in
from .labels import num_classes, recorded_convention, regions
from .loading import LoadImageCased
from .seeded import CheckedDataset, SeededDataset, SeededSampler
from .transforms import (
    ClassesToRegionsd,
    ClassesToValuesd,
    InvertRestd,
    LargestLogitd,
    NormalizeChannelsd,
    RandModalityDropoutd,
    RegionProbabilitiesd,
    RegionsToClassesd,
    RemoveSmallPiecesd,
    SpacingOfKeysd,
    ValuesToClassesd,
    ZeroMissingd,
    flip_axes,
    is_nonzero,
    name_by_case,
)
from .workers import init_worker

__all__ = [
    "CheckedDataset",
    "ClassesToRegionsd",
    "ClassesToValuesd",
    "InvertRestd",
    "LargestLogitd",
    "LoadImageCased",
    "MappedDataset",
    "NormalizeChannelsd",
    "RandModalityDropoutd",
    "RegionProbabilitiesd",
    "RegionsToClassesd",
    "RemoveSmallPiecesd",
    "SeededDataset",
    "SeededSampler",
    "SpacingOfKeysd",
    "ValuesToClassesd",
    "ZeroMissingd",
    "flip_axes",
    "inference_cases",
    "init_worker",
    "is_nonzero",
    "load_datalist",
    "name_by_case",
    "num_classes",
    "patients_in",
    "recorded_convention",
    "regions",
]
