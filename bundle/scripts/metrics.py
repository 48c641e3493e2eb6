"""What a predicted region scores against the true one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .lesions import Lesion, find_lesions, lesion_scores
from .surfaces import hd95_mm, surface_dice

__all__ = ["score_region"]


def score_region(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    lesion_dilations: int = 3,
    lesion_min_mm3: float = 50.0,
) -> tuple[dict[str, float], list[Lesion]]:
    """All scores of one region of one case by name, and its lesions.

    Args:
        prediction: bool mask (H, W, D).
        truth: likewise.
        spacing_mm: size of a voxel along each axis.
        lesion_dilations: see :func:`scripts.lesions.find_lesions`.
        lesion_min_mm3: likewise.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"The masks should have one shape, got {prediction.shape} and {truth.shape}.")
    true_positives, true_negatives = int((prediction & truth).sum()), int((~prediction & ~truth).sum())
    false_positives, false_negatives = int((prediction & ~truth).sum()), int((~prediction & truth).sum())
    lesions = find_lesions(prediction, truth, spacing_mm, lesion_dilations, lesion_min_mm3)
    lesion_dice, lesion_hd95_mm = lesion_scores(lesions)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    nothing_false = float(false_positives == 0)  # what counts where the truth is empty
    scores = {
        "dice": ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives, 1.0),
        "hd95_mm": hd95_mm(prediction, truth, spacing_mm),
        "lesion_dice": lesion_dice,
        "lesion_hd95_mm": lesion_hd95_mm,
        "nsd_1mm": surface_dice(prediction, truth, spacing_mm, tolerance_mm=1.0),
        "sensitivity": ratio(true_positives, true_positives + false_negatives, nothing_false),
        "specificity": ratio(true_negatives, true_negatives + false_positives, 1.0),
        "accuracy": (true_positives + true_negatives) / truth.size,
        "volume_ml": (true_positives + false_positives) * voxel_ml,
        "true_volume_ml": (true_positives + false_negatives) * voxel_ml,
    }
    return scores, lesions


def ratio(numerator: int, denominator: int, otherwise: float) -> float:
    return numerator / denominator if denominator else otherwise
