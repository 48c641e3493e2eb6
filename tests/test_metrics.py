"""Scores of a region by hand, and against MONAI's where it has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import ConfusionMatrixMetric, DiceMetric

from scripts.evaluation.metrics import score_region


def line(text: str) -> np.ndarray:
    """A mask of one row of voxels: ``"##.."``."""
    return np.array([letter == "#" for letter in text]).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        # 2 true positives, 1 false positive, 2 false negatives, 5 true negatives
        (
            "..###.....",
            "####......",
            {
                "dice": 4 / 7,
                "sensitivity": 2 / 4,
                "specificity": 5 / 6,
                "accuracy": 7 / 10,
                "volume_ml": 3 * 6 / 1000,
                "true_volume_ml": 4 * 6 / 1000,
            },
        ),
        ("###.", "###.", {"dice": 1, "sensitivity": 1, "specificity": 1, "accuracy": 1, "hd95_mm": 0, "nsd_1mm": 1}),
        ("....", "....", {"dice": 1, "sensitivity": 1, "specificity": 1, "accuracy": 1, "hd95_mm": 0, "nsd_1mm": 1}),
        (
            "....",
            "##..",
            {"dice": 0, "sensitivity": 0, "specificity": 1, "accuracy": 0.5, "hd95_mm": 374, "nsd_1mm": 0},
        ),
        (
            "#...",
            "....",
            {"dice": 0, "sensitivity": 0, "specificity": 0.75, "accuracy": 0.75, "hd95_mm": 374, "nsd_1mm": 0},
        ),
    ],
    ids=["by hand", "perfect", "both empty", "missed", "false alarm"],
)
def test_scores(prediction, truth, expected):
    scores, _ = score_region(line(prediction), line(truth), spacing_mm=(1, 2, 3))
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_a_missed_case_beside_a_perfect_one_counts_in_each_mean():
    tumor, nothing = line("..####.."), line("........")
    perfect, missed = (score_region(mask, tumor, (5, 5, 5))[0] for mask in (tumor, nothing))
    means = {name: (perfect[name] + missed[name]) / 2 for name in perfect}
    assert means["dice"] == 0.5
    assert means["hd95_mm"] == pytest.approx(374 / 2)
    assert (means["lesion_dice"], means["lesion_hd95_mm"]) == (0.5, 374 / 2)
    assert (means["nsd_1mm"], means["sensitivity"], means["specificity"]) == (0.5, 0.5, 1)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [("######..", "####....", 50), ("##......", "####....", 50), ("....", "....", 0), ("#...", "....", 100)],
    ids=["too much", "too little", "both empty", "false alarm"],
)
def test_relative_volume_difference(prediction, truth, expected):
    scores, lesions = score_region(line(prediction), line(truth), (1, 1, 1), metrics=["rvd_percent"])
    assert scores == {"rvd_percent": expected}
    assert not lesions


def test_a_missed_organ_counts_the_diagonal_of_its_volume():
    # 4 x 1 x 1 voxels of 3 x 4 x 0.1 mm: sqrt(12^2 + 4^2 + 0.1^2)
    scores, _ = score_region(
        line("...."), line("##.."), (3, 4, 0.1), metrics=["mssd_mm", "assd_mm", "hd95_mm"], missed_mm=None
    )
    assert scores == pytest.approx(dict.fromkeys(("mssd_mm", "assd_mm", "hd95_mm"), 160.01**0.5))


def test_an_unknown_metric():
    with pytest.raises(ValueError, match=r"metrics should be of dice, .*, rvd_percent, hausdorff is not\."):
        score_region(line("#"), line("#"), (1, 1, 1), metrics=["dice", "hausdorff"])


def test_masks_of_two_shapes():
    with pytest.raises(ValueError, match=r"The masks should have one shape, got \(4, 1, 1\) and \(3, 1, 1\)"):
        score_region(line("...."), line("..."), (1, 1, 1))


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_monai(seed):
    generator = np.random.default_rng(seed)
    prediction, truth = generator.random((2, 6, 7, 8)) < 0.4
    scores, _ = score_region(prediction, truth, (1, 1, 1))
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    names = ["sensitivity", "specificity", "accuracy"]
    confusion = ConfusionMatrixMetric(metric_name=names)
    confusion(*tensors)
    expected = {name: value.item() for name, value in zip(names, confusion.aggregate())}
    expected["dice"] = DiceMetric()(*tensors).item()
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
