"""Synthetic gliomas: the same whatever surrounds the call, labels where the contrasts show them, BraTS on disk."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

pytest.importorskip("nilearn", reason="nilearn, which carries the template brain, is not installed")

from scripts.errors import InputError
from scripts.sources.gliomas import MODALITIES, SyntheticGliomas, draw_glioma, main, write_cases

NCR, ED, ET = 1, 2, 3


@pytest.fixture(scope="module")
def cases() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [draw_glioma(seed) for seed in range(24)]


def test_shapes_types_and_air(cases):
    for image, classes in cases:
        assert (image.dtype, tuple(image.shape)) == (torch.float32, (4, 80, 96, 80))
        assert (classes.dtype, tuple(classes.shape)) == (torch.uint8, (80, 96, 80))
        assert torch.isfinite(image).all()
        assert image.min() == 0
        brain = (image > 0).all(0)
        assert torch.equal(brain, (image > 0).any(0)), "one mask for the four modalities"
        assert 0.2 < brain.float().mean() < 0.6
        assert brain[classes > 0].all(), "labels lie inside the brain"
        assert classes.max() <= ET


def test_same_seed_same_bytes_whatever_the_global_state():
    torch.manual_seed(1)
    image, classes = draw_glioma(3)
    torch.manual_seed(2)
    again, classes_again = draw_glioma(3)
    drawn = torch.rand(())
    torch.manual_seed(2)
    assert drawn == torch.rand(())
    assert image.numpy().tobytes() == again.numpy().tobytes()
    assert classes.numpy().tobytes() == classes_again.numpy().tobytes()
    assert not torch.equal(image, draw_glioma(4)[0])


def test_some_without_tumor_some_without_enhancement(cases):
    without_tumor = sum(not classes.any() for _, classes in cases)
    without_et = sum(not (classes == ET).any() for _, classes in cases)
    assert 1 <= without_tumor <= 6  # 2.2 expected of 24
    assert without_tumor < without_et <= 11  # 5 expected of 24


def test_labels_show_in_the_contrasts_they_are_defined_by(cases):
    """ET is brighter after contrast than before, edema brighter than white matter on FLAIR: in nearly every case."""
    brighter_after, brighter_flair = [], []
    for image, classes in cases:
        z = [(channel - channel[channel > 0].mean()) / channel[channel > 0].std() for channel in image]
        t1, t1ce, _, flair = z
        if (classes == ET).sum() > 30:
            brighter_after.append(bool((t1ce - t1)[classes == ET].mean() > 0.3))
        if (classes == ED).sum() > 100:
            healthy = (classes == 0) & (image[0] > 0)
            brighter_flair.append(bool(flair[classes == ED].mean() > flair[healthy].mean()))
    assert len(brighter_after) > 10
    assert np.mean(brighter_after) > 0.9
    assert len(brighter_flair) > 10
    assert np.mean(brighter_flair) > 0.9


def test_a_core_has_no_far_crumbs_of_its_own_class_alone(cases):
    """Tumor comes in few pieces: the largest holds most of it."""
    shares = []
    for _, classes in cases:
        pieces, count = ndimage.label(classes.numpy() > 0)
        if count:
            sizes = np.bincount(pieces.ravel())[1:]
            shares.append(sizes.max() / sizes.sum())
    assert np.median(shares) > 0.9


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 56, 41)], ids=str)
def test_other_shapes(shape):
    for seed in range(3):
        image, classes = draw_glioma(seed, shape)
        assert tuple(image.shape[1:]) == tuple(classes.shape) == shape
        assert torch.isfinite(image).all()


@pytest.mark.parametrize(
    ("seed", "shape", "value"), [(-1, (32, 32, 32), "-1"), (0, (32, 31, 32), "31"), (0, (32, 32), "(32, 32)")]
)
def test_refuses(seed, shape, value):
    with pytest.raises(InputError, match=value.replace("(", r"\(").replace(")", r"\)")):
        draw_glioma(seed, shape)


def test_data_set_draws_by_number_and_seed():
    cases = SyntheticGliomas(num_cases=3, seed=7, shape=(32, 40, 32))
    longer = SyntheticGliomas(num_cases=5, seed=7, transform=lambda case: case["image"], shape=(32, 40, 32))
    assert len(cases) == 3
    assert torch.equal(cases[2]["image"], longer[2])
    assert cases[2]["label"].shape == (1, 32, 40, 32)
    assert not torch.equal(cases[1]["image"], cases[2]["image"])
    assert not torch.equal(cases[1]["image"], SyntheticGliomas(3, seed=8, shape=(32, 40, 32))[1]["image"])
    assert len(list(cases)) == 3


def test_files_are_the_cases_of_the_data_set(tmp_path):
    shape = (32, 40, 32)
    folders = write_cases(tmp_path / "cases", num_cases=2, seed=5, shape=shape)
    assert [folder.name for folder in folders] == ["glioma_000", "glioma_001"]
    case = SyntheticGliomas(2, seed=5, shape=shape)[1]
    for name, channel in zip(MODALITIES, case["image"], strict=True):
        file = nib.load(folders[1] / f"glioma_001_{name}.nii.gz")
        assert nib.aff2axcodes(file.affine) == ("R", "A", "S")
        assert file.header.get_zooms() == (2.0, 2.0, 2.0)
        volume = np.asarray(file.dataobj)
        assert volume.dtype == np.int16
        assert np.array_equal(volume > 0, channel.numpy() > 0)
        assert np.abs(volume / 1000 - channel.numpy()).max() <= 1e-3 + 1e-6
    seg = np.asarray(nib.load(folders[1] / "glioma_001_seg.nii.gz").dataobj)
    classes = case["label"][0].numpy()
    assert np.array_equal(seg, np.where(classes == ET, 4, classes))
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == ["glioma_000", "glioma_001"]


def test_overwrites_nothing_and_says_which(tmp_path):
    (tmp_path / "glioma_001").mkdir()
    with pytest.raises(InputError, match="glioma_001 exists already"):
        write_cases(tmp_path, num_cases=2)
    assert [path.name for path in tmp_path.iterdir()] == ["glioma_001"]
    assert "num_cases should be 1 or more, got 0" in str(main(["--output_dir", str(tmp_path), "--num_cases", "0"]))
