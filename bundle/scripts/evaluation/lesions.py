"""Lesion-wise scores, as the segmentation tasks of BraTS 2023 define them.

Definition: https://github.com/rachitsaluja/BraTS-2023-Metrics (README.md and its metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .surfaces import MISSED_MM, hd95_mm

__all__ = ["Lesion", "find_lesions", "lesion_scores"]

DILATION = ndimage.generate_binary_structure(3, 2)  # 18 neighbors
TOUCHING = ndimage.generate_binary_structure(3, 3)  # 26 neighbors
# An affine of 32 bits gives a voxel of 1 mm^3 as 1.0000001 or 0.9999999.
TOLERANCE = 1e-4


@dataclass
class Lesion:
    """One lesion of the truth, or one of the prediction where the truth has none.

    ``kind`` is ``found``, ``missed`` or ``false``. Lesions that do not count are too small to be asked for.
    """

    kind: str
    true_mm3: float
    predicted_mm3: float
    dice: float
    hd95_mm: float
    counts: bool


def find_lesions(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    dilations: int = 3,
    min_mm3: float = 50.0,
) -> list[Lesion]:
    """The lesions of one region, each compared with all that was predicted at it.

    Pieces of the truth whose dilations touch are one lesion. A predicted component (26 neighbors) that meets the
    dilation of a lesion belongs to it, with all its voxels; one that meets none is a false lesion.

    Args:
        prediction: bool mask (H, W, D) of a region.
        truth: likewise.
        spacing_mm: size of a voxel along each axis.
        dilations: by 18 neighbors; BraTS 2023: 3 for gliomas (GLI, SSA, PED), 1 for meningiomas and metastases.
        min_mm3: lesions of the truth up to this volume do not count, and what is predicted there is not false; BraTS
            2023: 50, and 2 for metastases.
    """
    both = prediction | truth
    if not both.any():
        return []
    # Nothing changes outside of this box.
    box = tuple(slice(max(axis.min() - dilations, 0), axis.max() + dilations + 1) for axis in np.nonzero(both))
    prediction, truth = prediction[box], truth[box]
    voxel_mm3 = float(np.prod(spacing_mm))
    dilated = ndimage.binary_dilation(truth, DILATION, iterations=dilations) if dilations else truth
    reach, _ = ndimage.label(dilated, TOUCHING)
    components, num_components = ndimage.label(prediction, TOUCHING)
    sizes = np.bincount(components.ravel(), minlength=num_components + 1)
    boxes = ndimage.find_objects(components)

    lesions = []
    is_matched = np.zeros(num_components + 1, bool)
    for number, box in enumerate(ndimage.find_objects(reach), start=1):
        matched = np.unique(components[box][reach[box] == number])
        matched = matched[matched > 0]
        is_matched[matched] = True
        box = enclosing([box, *(boxes[component - 1] for component in matched)])
        lesion, predicted = truth[box] & (reach[box] == number), np.isin(components[box], matched)
        lesions.append(
            Lesion(
                kind="found" if matched.size else "missed",
                true_mm3=float(lesion.sum() * voxel_mm3),
                predicted_mm3=float(sizes[matched].sum() * voxel_mm3),
                dice=float(2.0 * (lesion & predicted).sum() / (lesion.sum() + predicted.sum())),
                hd95_mm=hd95_mm(predicted, lesion, spacing_mm, MISSED_MM),
                counts=bool(lesion.sum() * voxel_mm3 > min_mm3 * (1 + TOLERANCE)),
            )
        )
    for size in sizes[1:][~is_matched[1:]]:
        lesions.append(Lesion("false", 0.0, float(size * voxel_mm3), dice=0.0, hd95_mm=MISSED_MM, counts=True))
    return lesions


def enclosing(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box around some."""
    return tuple(slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*boxes))


def lesion_scores(lesions: Sequence[Lesion]) -> tuple[float, float]:
    """Mean Dice and mean HD95 in mm over the lesions that count; 1 and 0 mm where none does."""
    counted = [lesion for lesion in lesions if lesion.counts]
    if not counted:
        return 1.0, 0.0
    return (
        sum(lesion.dice for lesion in counted) / len(counted),
        sum(lesion.hd95_mm for lesion in counted) / len(counted),
    )
