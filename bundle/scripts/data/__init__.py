"""Cases, their files and labels, and what is made of them before they reach the network."""

from __future__ import annotations

from .cache import MappedDataset
from .datalist import inference_cases, load_datalist, patients_in
from .labels import num_classes, recorded_convention, regions
from .loading import LoadImageCased
from .seeded import SeededDataset, SeededSampler
from .transforms import (
    ClassesToRegionsd,
    ClassesToValuesd,
    LargestLogitd,
    NormalizeChannelsd,
    RandModalityDropoutd,
    RegionProbabilitiesd,
    RegionsToClassesd,
    SpacingOfKeysd,
    ValuesToClassesd,
    ZeroMissingd,
    is_nonzero,
    name_by_case,
)

__all__ = [
    "ClassesToRegionsd",
    "ClassesToValuesd",
    "LargestLogitd",
    "LoadImageCased",
    "MappedDataset",
    "NormalizeChannelsd",
    "RandModalityDropoutd",
    "RegionProbabilitiesd",
    "RegionsToClassesd",
    "SeededDataset",
    "SeededSampler",
    "SpacingOfKeysd",
    "ValuesToClassesd",
    "ZeroMissingd",
    "inference_cases",
    "is_nonzero",
    "load_datalist",
    "name_by_case",
    "num_classes",
    "patients_in",
    "recorded_convention",
    "regions",
]
