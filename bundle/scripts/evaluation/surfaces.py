"""Distances between the surfaces of two masks, as BraTS 2023 measures them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance

from ..data.labels import Convention

__all__ = ["MISSED_MM", "hd95_mm", "missed_mm_of", "surface_dice", "symmetric_distances_mm"]

MISSED_MM = 374.0  # BraTS from 2023 on writes it for an infinite distance: rachitsaluja/BraTS-2023-Metrics
# The portal of BraTS 2018 to 2021 gave the diagonal of a volume of 240 x 240 x 155 mm: 373.1287 in its tables.
MISSED_MM_BEFORE_2023 = 373.1287
CONVENTIONS_BEFORE_2023 = ("brats2018", "decathlon", "nnunet")  # the last two hold cases of BraTS 2016 and 2017
CONVENTIONS_FROM_2023 = ("brats2023", "brats2024_gli", "brats_ped")


def missed_mm_of(label_convention: Convention) -> float | None:
    """The distance in mm that a missed or a false region counts, as the challenge of a convention has it.

    ``None``, which is the diagonal of each volume, where the convention is of no BraTS challenge.
    """
    if label_convention in CONVENTIONS_FROM_2023:
        return MISSED_MM
    return MISSED_MM_BEFORE_2023 if label_convention in CONVENTIONS_BEFORE_2023 else None


def surface_distances_mm(
    first: np.ndarray, second: np.ndarray, spacing_mm: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """From each surface element of one mask the distance to the other's surface, and the element's area in mm^2.

    Elements lie between voxels, as in DeepMind's surface-distance, which BraTS 2023 uses; sorted by distance, for the
    first mask and for the second. Neither mask (H, W, D) may be empty.
    """
    masks = torch.from_numpy(first), torch.from_numpy(second)
    edges_first, edges_second, areas_first, areas_second = get_mask_edges(*masks, spacing=tuple(spacing_mm))
    result = []
    for edges, others, areas in ((edges_first, edges_second, areas_first), (edges_second, edges_first, areas_second)):
        distance_mm = np.asarray(get_surface_distance(edges, others, spacing=tuple(spacing_mm)))
        order = distance_mm.argsort()
        result.append((distance_mm[order], np.asarray(areas[edges], np.float64)[order]))
    return result


def hd95_mm(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], missed_mm: float = MISSED_MM
) -> float:
    """95th percentile of the Hausdorff distance: 95 % of either surface lie at most this far from the other.

    Both masks empty: 0 mm. One of them: ``missed_mm``, so that missing a tumor never improves a mean.
    """
    if not prediction.any() or not truth.any():
        return missed_mm if prediction.any() or truth.any() else 0.0
    percentiles = []
    for distance_mm, area in surface_distances_mm(prediction, truth, spacing_mm):
        within = area.cumsum() / area.sum()
        percentiles.append(distance_mm[min(int(np.searchsorted(within, 0.95)), len(distance_mm) - 1)])
    return float(max(percentiles))


def symmetric_distances_mm(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], missed_mm: float = MISSED_MM
) -> tuple[float, float]:
    """Average and maximum symmetric surface distance, ASSD and MSSD, between the outermost voxels, as CHAOS has them.

    ASSD is the mean over both surfaces together; MSSD is the Hausdorff distance. Both masks empty: 0 mm. One of them:
    ``missed_mm``.
    """
    if not prediction.any() or not truth.any():
        distance_mm = missed_mm if prediction.any() or truth.any() else 0.0
        return distance_mm, distance_mm
    first, second = get_mask_edges(prediction, truth)[:2]
    distances_mm = np.concatenate(
        [
            np.asarray(get_surface_distance(edges, others, spacing=tuple(spacing_mm)))
            for edges, others in ((first, second), (second, first))
        ]
    )
    return float(distances_mm.mean()), float(distances_mm.max())


def surface_dice(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = 1.0
) -> float:
    """Normalized surface Dice: the share of both surfaces that lies within the tolerance of the other.

    Both masks empty: 1. One of them: 0.
    """
    if not prediction.any() or not truth.any():
        return float(not prediction.any() and not truth.any())
    both = surface_distances_mm(prediction, truth, spacing_mm)
    near = sum(area[distance_mm <= tolerance_mm].sum() for distance_mm, area in both)
    return float(near / sum(area.sum() for _, area in both))
