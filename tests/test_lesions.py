"""Lesion-wise scores as BraTS 2023 defines them, by hand; components against cc3d, Dice against panoptica."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.evaluation.lesions import find_lesions, lesion_scores

SHAPE = (48, 24, 24)
MISSED = 374
MM = (1.0, 1.0, 1.0)


def box(start: tuple[int, int, int], sides: tuple[int, int, int] = (4, 4, 4)) -> np.ndarray:
    """A box of voxels, by default 64 of them: more than the 50 mm^3 that a lesion needs to count."""
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(first, first + side) for first, side in zip(start, sides))] = True
    return mask


NOTHING = np.zeros(SHAPE, bool)
FIRST, SECOND = box((2, 8, 8)), box((30, 8, 8))


@pytest.mark.parametrize(
    ("prediction", "truth", "kinds", "dice", "hd95_mm"),
    [
        (NOTHING, NOTHING, [], 1, 0),
        (FIRST, FIRST, ["found"], 1, 0),
        (NOTHING, FIRST, ["missed"], 0, MISSED),
        (FIRST, NOTHING, ["false"], 0, MISSED),
        # The mean Dice of the region would be 2 * 64 / (64 + 128) = 0.667.
        (FIRST, FIRST | SECOND, ["found", "missed"], 0.5, MISSED / 2),
        (FIRST | box((40, 2, 2), (1, 1, 1)), FIRST, ["found", "false"], 0.5, MISSED / 2),
        # Half of the first: 2 * 32 / (32 + 64). The face that is off, 2 mm, has more than 5 % of the surface.
        (box((2, 8, 8), (2, 4, 4)) | SECOND, FIRST | SECOND, ["found", "found"], (2 / 3 + 1) / 2, 1),
        # 50 voxels of 1 mm^3 do not count, missed or found, nor is it false what was found there.
        (FIRST, FIRST | box((30, 8, 8), (5, 5, 2)), ["found", "missed"], 1, 0),
        (FIRST | SECOND, FIRST | box((30, 8, 8), (5, 5, 2)), ["found", "found"], 1, 0),
        (FIRST, FIRST | box((30, 8, 8), (17, 3, 1)), ["found", "missed"], 0.5, MISSED / 2),  # 51 do
    ],
    ids=[
        "both empty",
        "perfect",
        "missed",
        "false",
        "one perfect, one missed",
        "one perfect, one false",
        "one half, one perfect",
        "a small one missed",
        "a small one found",
        "just not small",
    ],
)
def test_scores(prediction, truth, kinds, dice, hd95_mm):
    lesions = find_lesions(prediction, truth, MM)
    assert [lesion.kind for lesion in lesions] == kinds
    assert lesion_scores(lesions) == pytest.approx((dice, hd95_mm))


def test_small_is_a_volume_not_a_number_of_voxels():
    small = box((30, 8, 8), (5, 5, 2))  # 50 voxels of 2 mm^3
    assert [lesion.counts for lesion in find_lesions(NOTHING, small, (1, 1, 2))] == [True]
    assert [lesion.counts for lesion in find_lesions(NOTHING, small, MM, min_mm3=49)] == [True]
    assert [lesion.counts for lesion in find_lesions(NOTHING, small, MM)] == [False]


@pytest.mark.parametrize("seed", range(10))
def test_a_lesion_of_just_the_volume_is_small_on_any_oblique_grid(seed):
    """Voxels of 1 mm^3 turned at random: their volume by a NIfTI header is 1 but for rounding."""
    small, counted = box((30, 8, 8), (5, 5, 2)), box((30, 8, 8), (17, 3, 1))  # 50 and 51 voxels
    for turn in Rotation.random(10, rng=np.random.default_rng(seed)):
        affine = np.eye(4)
        affine[:3, :3] = turn.as_matrix()
        image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine)
        spacing_mm = MetaTensor(
            torch.zeros(1, 2, 2, 2), affine=nib.Nifti1Image.from_bytes(image.to_bytes()).affine
        ).pixdim
        assert not find_lesions(NOTHING, small, spacing_mm.tolist())[0].counts
        assert find_lesions(NOTHING, counted, spacing_mm.tolist())[0].counts


@pytest.mark.parametrize(("gap", "expected"), [(6, 1), (7, 2)], ids=["dilations meet", "they do not"])
def test_pieces_whose_dilations_meet_are_one_lesion(gap, expected):
    truth = FIRST | box((6 + gap, 8, 8))
    assert len(find_lesions(truth, truth, MM)) == expected
    assert len(find_lesions(truth, truth, MM, dilations=1)) == 2


@pytest.mark.parametrize(
    ("offset", "kinds"),
    [
        ((3, 0, 0), ["found"]),
        ((4, 0, 0), ["missed", "false"]),
        ((3, 3, 0), ["found"]),
        ((3, 3, 3), ["missed", "false"]),  # 18 neighbors: two axes a step, 6 of these 9 in three steps
    ],
    ids=["beside", "too far", "diagonal", "corner"],
)
def test_what_lies_within_the_dilation_belongs_to_the_lesion(offset, kinds):
    prediction = np.zeros(SHAPE, bool)
    prediction[5 + offset[0], 11 + offset[1], 11 + offset[2]] = True  # from the last corner of FIRST
    lesions = find_lesions(prediction, FIRST, MM)
    assert [lesion.kind for lesion in lesions] == kinds
    assert lesions[0].dice == 0


def test_one_prediction_over_two_lesions_belongs_to_both():
    prediction = box((2, 8, 8), (32, 4, 4))  # from the first to the second, 512 voxels
    lesions = find_lesions(prediction, FIRST | SECOND, MM)
    assert [lesion.kind for lesion in lesions] == ["found", "found"]
    assert [lesion.predicted_mm3 for lesion in lesions] == [512, 512]
    assert [lesion.dice for lesion in lesions] == pytest.approx([2 * 64 / (64 + 512)] * 2)


def blobs(seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5) > 0.15


@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_cc3d(seed):
    cc3d = pytest.importorskip("cc3d")
    mask = blobs(seed)
    sizes = sorted(lesion.predicted_mm3 for lesion in find_lesions(mask, NOTHING, MM))
    expected = np.bincount(cc3d.connected_components(mask, connectivity=26).ravel())[1:]
    assert sizes == sorted(expected.tolist())
    assert len(sizes) > 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of surface-distance, about scipy
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 1.5, 3)], ids=["1 mm", "slices"])
@pytest.mark.parametrize("seed", range(3))
def test_step_by_step_on_the_whole_volume(seed, spacing_mm):
    """The definition written down without any shortcut, with the libraries that the challenge uses."""
    cc3d, surface_distance = pytest.importorskip("cc3d"), pytest.importorskip("surface_distance")
    truth, prediction = blobs(seed), blobs(seed) & ~blobs(10 + seed) | (blobs(20 + seed) & blobs(30 + seed))
    neighbors = ndimage.generate_binary_structure(3, 2)
    components = cc3d.connected_components(prediction, connectivity=26)
    reach = cc3d.connected_components(ndimage.binary_dilation(truth, neighbors, iterations=1), connectivity=26)
    dices, distances, belonging = [], [], set()
    for number in range(1, reach.max() + 1):
        lesion = truth & (reach == number)
        matched = set(np.unique(components[ndimage.binary_dilation(lesion, neighbors)])) - {0}
        belonging |= matched
        if lesion.sum() * np.prod(spacing_mm) <= 50:
            continue
        predicted = np.isin(components, list(matched))
        dices.append(2 * (lesion & predicted).sum() / (lesion.sum() + predicted.sum()))
        distance = MISSED
        if matched:
            surfaces = surface_distance.compute_surface_distances(lesion, predicted, spacing_mm)
            distance = surface_distance.compute_robust_hausdorff(surfaces, 95)
        distances.append(distance)
    num_false = components.max() - len(belonging)
    assert min(len(dices), num_false) > 0  # the case is worth it
    expected = sum(dices) / (len(dices) + num_false), (sum(distances) + num_false * MISSED) / (len(dices) + num_false)
    lesions = find_lesions(prediction, truth, spacing_mm, dilations=1)
    assert lesion_scores(lesions) == pytest.approx(expected, rel=1e-5)


def test_dice_of_lesions_apart_is_that_of_panoptica():
    panoptica = pytest.importorskip("panoptica", reason="panoptica needs an older numpy than the bundle")
    truth, prediction = FIRST | SECOND, box((3, 8, 8)) | box((30, 9, 8))  # both overlap by three quarters
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(),
    )
    result = evaluator.evaluate(prediction.astype(np.uint8), truth.astype(np.uint8), verbose=False)["ungrouped"]
    assert result.sq_dsc == pytest.approx(0.75)
    assert lesion_scores(find_lesions(prediction, truth, MM))[0] == pytest.approx(result.sq_dsc)
