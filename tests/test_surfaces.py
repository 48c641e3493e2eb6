"""Surface distances by hand, and against DeepMind's surface-distance, which BraTS 2023 uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from scripts.data.labels import LABEL_CONVENTIONS
from scripts.evaluation.surfaces import hd95_mm, missed_mm_of, surface_dice, symmetric_distances_mm

MISSED = 374
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


def test_the_example_in_which_monai_differs():
    """A rod that has 2.4 % of the outermost voxels and 5.5 % of the area; it stands in the document of the metrics."""
    truth = np.zeros((34, 12, 16), bool)
    truth[1:11, 1:11, 3:13] = True
    prediction = truth.copy()
    prediction[29, 5, 2:14] = True  # 18 voxels, from 11 to 28, lie between
    assert hd95_mm(prediction, truth, (1, 1, 1)) == 18
    tensors = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    assert compute_hausdorff_distance(*tensors, include_background=True, percentile=95).item() == 0


@pytest.mark.parametrize("convention", LABEL_CONVENTIONS)
def test_a_missed_region_counts_what_the_challenge_of_its_year_has(convention):
    diagonal = (240**2 + 240**2 + 155**2) ** 0.5  # of a BraTS volume in mm
    before_2023 = {name: pytest.approx(diagonal, abs=1e-4) for name in ("brats2018", "decathlon", "nnunet")}
    expected = before_2023 | dict.fromkeys(("brats2023", "brats2024_gli", "brats_ped"), 374)
    assert missed_mm_of(convention) == expected.get(convention)


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


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing_mm", "expected"),
    [
        (voxels(), voxels(), (1, 1, 1), (0, 0)),
        (voxels(), voxels((3, 3, 3)), (1, 1, 1), (MISSED, MISSED)),
        (cube(2), cube(2), (1, 1, 1), (0, 0)),
        # 4 voxels of 0.5 mm, 3 of 1 mm, 1 of 12 mm, there and back: sqrt(2^2 + 3^2 + 12^2) = 12.5 mm nearly
        (voxels((1, 2, 3)), voxels((5, 5, 4)), (0.5, 1, 12), (157**0.5, 157**0.5)),
        # from the two voxels 0 and 5 mm, from the one 0 mm: mean 5 / 3, not the mean of 2.5 and 0
        (voxels((1, 2, 3), (4, 6, 3)), voxels((1, 2, 3)), (1, 1, 1), (5 / 3, 5)),
    ],
    ids=["both empty", "missed", "same", "slices", "one side"],
)
def test_symmetric_distances(prediction, truth, spacing_mm, expected):
    assert symmetric_distances_mm(prediction, truth, spacing_mm) == pytest.approx(expected)
    assert symmetric_distances_mm(truth, prediction, spacing_mm) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_distances_of_every_pair_of_border_voxels(seed):
    """Each border voxel (eroded by six neighbors) against each of the other mask, without a distance transform."""
    generator, spacing_mm = np.random.default_rng(seed), (0.9, 1.25, 3)
    masks = [ndimage.gaussian_filter(generator.normal(size=SHAPE), 2) > 0 for _ in range(2)]
    # The border of the volume is a border of the mask, too.
    borders = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing_mm for mask in masks]
    between = np.linalg.norm(borders[0][:, None] - borders[1][None], axis=2)
    each = np.concatenate([between.min(axis=0), between.min(axis=1)])
    assert symmetric_distances_mm(*masks, spacing_mm) == pytest.approx((each.mean(), each.max()), rel=1e-5)
