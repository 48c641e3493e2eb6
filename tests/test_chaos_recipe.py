"""The CHAOS overlays as users run them: two modalities, thick slices, the liver against other organs."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from test_workflows import SMALL, configs, run

SHAPE = (40, 36, 10)
AFFINE = np.diag([-1.5, 1.5, 7.7, 1.0])
FEW_SLICES = ["--spacing_mm", "[3,3,-1]", *SMALL]


@pytest.fixture(scope="module")
def abdomens(tmp_path_factory) -> Path:
    """Four cases: a bright liver, a dark right kidney and spleen, noise, air around."""
    folder = tmp_path_factory.mktemp("abdomens")
    for number in range(4):
        generator = np.random.default_rng(number)
        label = np.zeros(SHAPE, np.uint8)
        label[8:20, 10:24, 2:8], label[24:28, 12:16, 3:6], label[30:34, 20:26, 4:8] = 1, 2, 4
        for modality, contrast in (("t1in", 200), ("t2spir", 60)):
            image = generator.normal(100, 5, SHAPE) + contrast * (label == 1) - 40 * (label > 1)
            image[:4], image[-4:] = 0, 0
            save(folder, f"chaos_mr_{number}_{modality}", image.astype(np.int16))
        save(folder, f"chaos_mr_{number}_seg", label)
    return folder


def save(folder: Path, name: str, volume: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(volume, AFFINE), folder / f"{name}.nii.gz")


def test_from_training_to_scored_livers(abdomens, tmp_path):
    recipe = configs("train", "chaos", "chaos_cpu")
    paths = ["--dataset_dir", str(abdomens), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    result = run("training", "--config_file", recipe, *paths, *FEW_SLICES, "--max_epochs", "1", "--val_interval", "1")
    assert result.returncode == 0, result.stderr

    scored = configs("train", "evaluate", "chaos", "chaos_cpu")
    result = run("evaluating", "--config_file", scored, *paths, *FEW_SLICES)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    metrics = ["dice", "accuracy", "hd95_mm", "assd_mm", "mssd_mm", "rvd_percent"]
    assert list(rows[0]) == ["case", *(f"{metric}_liver" for metric in metrics)]

    masks = tmp_path / "masks"
    inference = configs("inference", "chaos_inference", "chaos_cpu")
    weights = ["--checkpoint", str(tmp_path / "model.pt"), "--output_dir", str(masks)]
    result = run("--config_file", inference, "--dataset_dir", str(abdomens), *weights, *FEW_SLICES)
    assert result.returncode == 0, result.stderr
    assert len(list(masks.glob("*_seg.nii.gz"))) == 4
    for path in masks.glob("*_seg.nii.gz"):
        mask = nib.load(path)
        assert mask.shape == SHAPE
        assert np.allclose(mask.affine, AFFINE)
        assert set(np.unique(mask.dataobj)) <= {0, 1}
        assert ndimage.label(np.asarray(mask.dataobj), np.ones((3, 3, 3)))[1] <= 1  # an organ is in one piece


def test_a_modality_that_is_not_there(abdomens, tmp_path):
    paths = ["--dataset_dir", str(abdomens), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    result = run("training", "--config_file", configs("train", "chaos"), *paths, "--modalities", "['t1out']")
    assert result.returncode != 0
    assert "chaos_mr_0: t1out is missing" in result.stderr.strip().splitlines()[-1]
