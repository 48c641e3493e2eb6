"""What a predicted region scores against the true one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .lesions import Lesion, find_lesions, lesion_scores
from .surfaces import MISSED_MM, hd95_mm, surface_dice, symmetric_distances_mm

__all__ = ["CHAOS_METRICS", "METRICS", "SHARES", "score_region"]

METRICS = (  # of the BraTS challenge
    "dice",
    "hd95_mm",
    "lesion_dice",
    "lesion_hd95_mm",
    "nsd_1mm",
    "sensitivity",
    "specificity",
    "accuracy",
    "volume_ml",
    "true_volume_ml",
)
SHARES = ("dice", "lesion_dice", "nsd_1mm", "sensitivity", "specificity", "accuracy")  # from 0 to 1; the others from 0
CHAOS_METRICS = ("assd_mm", "mssd_mm", "rvd_percent")


def score_region(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    metrics: Sequence[str] = METRICS,
    missed_mm: float | None = MISSED_MM,
    lesion_dilations: int = 3,
    lesion_min_mm3: float = 50.0,
) -> tuple[dict[str, float], list[Lesion]]:
    """Scores of one region of one case by name, and its lesions where a metric asks for them.

    Args:
        prediction: bool mask (H, W, D).
        truth: likewise.
        spacing_mm: size of a voxel along each axis.
        metrics: those of ``METRICS``, and of the CHAOS challenge ``assd_mm``, ``mssd_mm`` and ``rvd_percent``.
        missed_mm: distance where one of the masks is empty; ``None`` for the diagonal of the volume.
        lesion_dilations: see :func:`scripts.evaluation.find_lesions`.
        lesion_min_mm3: likewise.

    Raises:
        InputError: when a metric is unknown.
        ValueError: when the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"The masks should have one shape, got {prediction.shape} and {truth.shape}.")
    true_positives, true_negatives = int((prediction & truth).sum()), int((~prediction & ~truth).sum())
    false_positives, false_negatives = int((prediction & ~truth).sum()), int((~prediction & truth).sum())
    positives, true_volume = true_positives + false_positives, true_positives + false_negatives
    if missed_mm is None:
        missed_mm = float(np.linalg.norm(np.multiply(truth.shape, spacing_mm)))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    nothing_false = float(false_positives == 0)  # what counts where the truth is empty
    scores = {
        "dice": ratio(2 * true_positives, positives + true_volume, 1.0),
        "sensitivity": ratio(true_positives, true_volume, nothing_false),
        "specificity": ratio(true_negatives, true_negatives + false_positives, 1.0),
        "accuracy": (true_positives + true_negatives) / truth.size,
        "volume_ml": positives * voxel_ml,
        "true_volume_ml": true_volume * voxel_ml,
        "rvd_percent": 100 * ratio(abs(positives - true_volume), true_volume, 1 - nothing_false),
    }
    # Distances and lesions take time.
    wanted = set(metrics)
    if "hd95_mm" in wanted:
        scores["hd95_mm"] = hd95_mm(prediction, truth, spacing_mm, missed_mm)
    if "nsd_1mm" in wanted:
        scores["nsd_1mm"] = surface_dice(prediction, truth, spacing_mm, tolerance_mm=1.0)
    if wanted & {"assd_mm", "mssd_mm"}:
        scores["assd_mm"], scores["mssd_mm"] = symmetric_distances_mm(prediction, truth, spacing_mm, missed_mm)
    lesions: list[Lesion] = []
    if wanted & {"lesion_dice", "lesion_hd95_mm"}:
        lesions = find_lesions(prediction, truth, spacing_mm, lesion_dilations, lesion_min_mm3)
        scores["lesion_dice"], scores["lesion_hd95_mm"] = lesion_scores(lesions)
    for name in metrics:
        if name not in scores:
            raise InputError(f"metrics should be of {', '.join((*METRICS, *CHAOS_METRICS))}, {name} is not.")
    return {name: scores[name] for name in metrics}, lesions


def ratio(numerator: int, denominator: int, otherwise: float) -> float:
    return numerator / denominator if denominator else otherwise
