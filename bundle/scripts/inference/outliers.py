"""A few voxels far from all others leave nothing of the rest once a scan is normalized; that is said."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..data.cases import cases_of_batch
from .cases import FAULT

__all__ = ["OutlierWarning", "middle_of"]

logger = logging.getLogger(__name__)

# Of a normal distribution, 90 % lie within 3.3 standard deviations; of real scans of heads, brains and abdomens within
# 2.9 to 3.9. One voxel of 1e30 leaves less than a hundredth; below a tenth it is said.
LEAST = 0.3
SAMPLE = 100_000  # voxels are enough to tell


def middle_of(channel: torch.Tensor) -> float | None:
    """How wide the values of the middle 90 % of the voxels of a channel (H, W, D) are that are not zero, its air."""
    voxels = channel.flatten()
    voxels = voxels[:: voxels.numel() // SAMPLE | 1]
    voxels = voxels[voxels != 0]
    if not len(voxels):
        return None
    low, high = torch.quantile(voxels, voxels.new_tensor([0.05, 0.95])).tolist()
    return high - low


class OutlierWarning:
    """Handler that warns of a case with a channel whose outliers are all that its normalization left.

    Args:
        modalities: names of the network's channels.
        intensities: of the channels that have units, and are clipped.
    """

    def __init__(self, modalities: Sequence[str], intensities: Mapping[str, Any]) -> None:
        self.modalities = modalities
        self.intensities = intensities

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.iteration_started)

    def iteration_started(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        if FAULT in batch:
            return
        for case_id, image in zip(cases_of_batch(batch), batch["image"], strict=True):
            for name, channel in zip(self.modalities, image.as_tensor(), strict=True):
                middle = None if name in self.intensities else middle_of(channel)
                if middle is not None and middle < LEAST:
                    logger.warning(
                        f"Case {case_id}: {name} has voxels far from all others: the middle 90 % of it lie within "
                        f"{middle:.2g} standard deviations, about 3.3 are usual. The network sees little of it, the "
                        "mask is likely to be wrong."
                    )
