"""Synthetic gliomas: the same whatever surrounds the call, labels where the contrasts show them, BraTS on disk."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

pytest.importorskip("nilearn", reason="nilearn, which carries the template brain, is not installed")

from scripts.data import SeededDataset
from scripts.data.seeded import Sample
from scripts.errors import InputError
from scripts.sources import DrawGliomad, synthetic_cases
from scripts.sources.drawn import case_seed
from scripts.sources.gliomas import MODALITIES, PARTS, draw_glioma, write_cases
from scripts.sources.gliomas.cases import main

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


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_be_left_out(part, cases):
    image, classes = draw_glioma(1, without=[part])
    assert not torch.equal(image, cases[1][0])
    same_place = torch.equal(classes > 0, cases[1][1] > 0)
    assert same_place == (part not in ("deformation", "mass_effect"))


def test_a_part_that_there_is_not():
    with pytest.raises(InputError, match=r"without should name some of deformation, .*, got noise"):
        draw_glioma(0, without=["noise"])


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


def test_most_of_a_tumor_is_one_piece(cases):
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


def test_each_sample_of_a_training_is_another_brain_by_its_seed():
    dataset = SeededDataset(synthetic_cases(2), transform=Compose([DrawGliomad()]), cache_rate=1.0, progress=False)
    first, again, other = dataset[Sample(0, 11)], dataset[Sample(0, 11)], dataset[Sample(0, 12)]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == (4, 80, 96, 80)
    assert first["label"].shape == (1, 80, 96, 80)
    assert first["image"].pixdim.tolist() == [2, 2, 2]
    assert first["image"].meta["case_id"] == "glioma_0000"


def test_files_hold_what_is_drawn(tmp_path):
    shape = (32, 40, 32)
    folders = write_cases(tmp_path / "cases", num_cases=2, seed=5, shape=shape)
    assert [folder.name for folder in folders] == ["glioma_000", "glioma_001"]
    drawn, classes = draw_glioma(case_seed(5, 1), shape)
    for name, channel in zip(MODALITIES, drawn, strict=True):
        file = nib.load(folders[1] / f"glioma_001_{name}.nii.gz")
        assert nib.aff2axcodes(file.affine) == ("R", "A", "S")
        assert file.header.get_zooms() == (2.0, 2.0, 2.0)
        volume = np.asarray(file.dataobj)
        assert volume.dtype == np.int16
        assert np.array_equal(volume > 0, channel.numpy() > 0)
        assert np.abs(volume / 1000 - channel.numpy()).max() <= 1e-3 + 1e-6
    seg = np.asarray(nib.load(folders[1] / "glioma_001_seg.nii.gz").dataobj)
    assert np.array_equal(seg, np.where(classes == ET, 4, classes))
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == ["glioma_000", "glioma_001"]


def test_overwrites_nothing_and_says_which(tmp_path):
    (tmp_path / "glioma_001").mkdir()
    with pytest.raises(InputError, match="glioma_001 exists already"):
        write_cases(tmp_path, num_cases=2)
    assert [path.name for path in tmp_path.iterdir()] == ["glioma_001"]
    with pytest.raises(InputError, match="num_cases should be 1 or more, got 0"):
        main(["--output_dir", str(tmp_path), "--num_cases", "0"])
