"""Surface distances by hand, and against DeepMind's surface-distance, which BraTS 2023 uses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from scripts.surfaces import hd95_mm, surface_dice

MISSED = 373.13
SHAPE = (24, 16, 16)


def voxels(*indices: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for index in indices:
        mask[index] = True
    return mask


def cube(start: int) -> np.ndarray:
    """A cube of 10 voxels a side, from ``start`` along the first axis."""
    mask = np.zeros(SHAPE, bool)
    mask[start : start + 10, 3:13, 3:13] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing_mm", "expected"),
    [
        (voxels(), voxels(), (1, 1, 1), 0),
        (voxels(), voxels((3, 3, 3)), (1, 1, 1), MISSED),
        (voxels((3, 3, 3)), voxels(), (1, 1, 1), MISSED),
        (cube(2), cube(2), (1, 1, 1), 0),
        # Each corner of a voxel has an eighth of its surface; the farthest one is 3, 4 and 0 mm off: sqrt(3^2 + 4^2).
        (voxels((1, 2, 3)), voxels((4, 6, 3)), (1, 1, 1), 5),
        # 3 voxels of 2 mm, 4 of 0.5 mm, 1 of 3 mm: sqrt(6^2 + 2^2 + 3^2)
        (voxels((1, 2, 3)), voxels((4, 6, 4)), (2, 0.5, 3), 7),
        # One of six faces is 3 voxels off, more than 5 % of the surface.
        (cube(5), cube(2), (1, 1, 1), 3),
        (cube(5), cube(2), (2.5, 1, 1), 7.5),
        # A stray voxel has less than 5 % of the surface, 8 corners beside more than 400.
        (cube(2) | voxels((20, 8, 8)), cube(2), (1, 1, 1), 0),
        (cube(0), cube(3), (1, 1, 1), 3),
    ],
    ids=["both empty", "missed", "false", "same", "3-4-5", "7 mm", "shifted", "slices", "stray", "at the border"],
)
def test_hd95(prediction, truth, spacing_mm, expected):
    assert hd95_mm(prediction, truth, spacing_mm) == pytest.approx(expected, abs=1e-5)
    assert hd95_mm(truth, prediction, spacing_mm) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing_mm", "expected"),
    [
        (voxels(), voxels(), (1, 1, 1), 1),
        (voxels(), cube(2), (1, 1, 1), 0),
        (cube(2), voxels(), (1, 1, 1), 0),
        (cube(2), cube(2), (1, 1, 1), 1),
        (cube(3), cube(2), (1, 1, 1), 1),  # all of it within 1 mm
        (voxels((1, 8, 8)), voxels((10, 8, 8)), (1, 1, 1), 0),  # nothing
    ],
    ids=["both empty", "missed", "false", "same", "1 mm off", "far off"],
)
def test_surface_dice(prediction, truth, spacing_mm, expected):
    assert surface_dice(prediction, truth, spacing_mm) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the reference, about scipy
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.9, 1.25, 3)], ids=["1 mm", "slices"])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_the_reference(seed, spacing_mm):
    reference = pytest.importorskip("surface_distance")
    generator = np.random.default_rng(seed)
    blobs = [ndimage.gaussian_filter(generator.normal(size=SHAPE), 1.5) for _ in range(2)]
    prediction, truth = (blob > 0.05 * (1 + seed) for blob in blobs)  # some touch the border
    distances = reference.compute_surface_distances(truth, prediction, spacing_mm)
    expected = reference.compute_robust_hausdorff(distances, 95)
    assert hd95_mm(prediction, truth, spacing_mm) == pytest.approx(expected, rel=1e-5)
    expected = reference.compute_surface_dice_at_tolerance(distances, 1.0)
    assert surface_dice(prediction, truth, spacing_mm) == pytest.approx(expected, rel=1e-5)
