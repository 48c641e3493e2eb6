"""Phantoms: the same whatever surrounds the call, anatomically sensible, and laid out on disk as BraTS is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.__main__ import main
from scripts.errors import InputError
from scripts.sources.phantom import lps_affine, make_phantom, write_phantoms

SMALL = (32, 40, 36)
MODALITIES = ["t1", "t1ce", "t2", "flair"]
NCR, ED, ET = 1, 2, 4


def median(image: np.ndarray, mask: np.ndarray) -> float:
    return float(np.median(image[mask]))


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    return [make_phantom(seed, (56, 64, 56)) for seed in range(6)]


def test_types_and_labels(phantoms):
    for images, label in phantoms:
        assert list(images) == MODALITIES
        assert {image.dtype for image in images.values()} == {np.dtype(np.int16)}
        assert {volume.shape for volume in (*images.values(), label)} == {(56, 64, 56)}
        assert label.dtype == np.uint8
        assert np.unique(label).tolist() == [0, NCR, ED, ET]


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 64, 40), (33, 37, 45)], ids=str)
def test_every_class_at_the_smallest_sizes(shape):
    for seed in range(15):
        images, label = make_phantom(seed, shape)
        assert label.shape == shape
        assert set(np.unique(label)) == {0, NCR, ED, ET}, f"seed {seed}"
        assert (images["t1"][label > 0] > 0).all(), f"seed {seed}"


def test_same_seed_same_bytes_whatever_the_global_state():
    np.random.seed(1)  # noqa: NPY002 - the legacy global state is what the phantom must not touch
    images, label = make_phantom(3, SMALL)
    np.random.seed(2)  # noqa: NPY002
    images_again, label_again = make_phantom(3, list(SMALL))
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    assert label.tobytes() == label_again.tobytes()
    assert all(images[name].tobytes() == images_again[name].tobytes() for name in MODALITIES)
    assert label.tobytes() != make_phantom(4, SMALL)[1].tobytes()


def test_skull_stripped_with_a_margin_of_exact_zeros(phantoms):
    for images, _ in phantoms:
        brain = images["t1"] > 0
        assert all(((image > 0) == brain).all() and image.min() == 0 for image in images.values())
        assert ndimage.label(brain)[1] == 1
        assert 0.12 < brain.mean() < 0.4  # a ball as wide as its box would fill pi / 6 = 0.52 of it
        for axis in range(3):
            assert not brain.take([0, -1], axis=axis).any()


def test_tumor_is_one_piece_inside_the_brain_with_a_rim_around_the_necrosis(phantoms):
    for images, label in phantoms:
        brain, tumor, core = images["t1"] > 0, label > 0, np.isin(label, (NCR, ET))
        assert ndimage.label(tumor, structure=np.ones((3, 3, 3)))[1] == 1
        assert brain[ndimage.binary_dilation(tumor)].all()
        around_necrosis = ndimage.binary_dilation(label == NCR) & (label != NCR)
        assert (label[around_necrosis] == ET).mean() > 0.97
        assert np.count_nonzero(label == ED) > np.count_nonzero(core) * 0.5
        assert 0.005 < tumor.sum() / brain.sum() < 0.3


def test_contrast_of_each_modality(phantoms):
    for images, label in phantoms:
        # White matter is the brightest healthy tissue in T1, so the brighter half there is mostly white matter.
        healthy = (images["t1"] > 0) & ~ndimage.binary_dilation(label > 0, iterations=2)
        white = healthy & (images["t1"] > median(images["t1"], healthy))
        t1, t1ce, t2, flair = ({"white": median(images[m], white)} for m in MODALITIES)
        for table, name in zip((t1, t1ce, t2, flair), MODALITIES, strict=True):
            table |= {tissue: median(images[name], label == tissue) for tissue in (NCR, ED, ET)}
        assert max(t1[NCR], t1[ED], t1[ET]) < t1["white"]
        assert t1ce[ET] > 1.2 * t1ce["white"]
        assert t1ce[ET] > 1.5 * t1ce[NCR]
        assert min(t2[NCR], t2[ED]) > 1.3 * t2["white"]
        assert flair[ED] > 1.3 * flair["white"]
        assert flair[ED] > flair[NCR]


def test_cases_vary_in_size_place_and_scale(phantoms):
    volumes = [np.count_nonzero(label) for _, label in phantoms]
    centers = np.array([ndimage.center_of_mass(label > 0) for _, label in phantoms])
    levels = [images["t1"].mean() for images, _ in phantoms]
    assert max(volumes) > 1.5 * min(volumes)
    assert (np.ptp(centers, axis=0) > 5).all()
    assert centers[:, 0].min() < 28 < centers[:, 0].max()  # both hemispheres
    assert max(levels) > 1.3 * min(levels)


def test_no_threshold_of_flair_finds_the_tumor(phantoms):
    """Else the demo would show nothing that needs a network."""
    scores = []
    for images, label in phantoms:
        brain, tumor = images["flair"] > 0, label > 0
        flair = (images["flair"] - images["flair"][brain].mean()) / images["flair"][brain].std()
        found = [brain & (flair > threshold) for threshold in np.arange(0, 3, 0.1)]
        scores.append([2 * np.count_nonzero(mask & tumor) / (mask.sum() + tumor.sum()) for mask in found])
    assert np.mean(scores, axis=0).max() < 0.85


def test_layout_on_disk(tmp_path):
    folders = write_phantoms(tmp_path / "new" / "data", 2, SMALL, seed=5)
    assert [folder.name for folder in folders] == ["phantom_000", "phantom_001"]
    assert sorted(path.name for path in (tmp_path / "new" / "data").iterdir()) == ["phantom_000", "phantom_001"]
    expected = {f"phantom_001_{suffix}.nii.gz" for suffix in (*MODALITIES, "seg")}
    assert {path.name for path in folders[1].iterdir()} == expected
    for path in folders[1].iterdir():
        image = nib.load(path)
        assert image.shape == SMALL
        assert image.get_data_dtype() == (np.uint8 if "seg" in path.name else np.int16)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_xyzt_units()[0] == "mm"
    assert np.unique(nib.load(folders[1] / "phantom_001_seg.nii.gz").dataobj).tolist() == [0, NCR, ED, ET]


def test_affine_keeps_a_head_sized_field_of_view_centered():
    # mean side 256 / 3 voxels: 192 mm / 85.33 = 2.25 mm; the center of 80 voxels is 39.5, of 96 it is 47.5
    expected = [[-2.25, 0, 0, 88.875], [0, -2.25, 0, 106.875], [0, 0, 2.25, -88.875], [0, 0, 0, 1]]
    np.testing.assert_allclose(lps_affine((80, 96, 80)), expected)


def test_a_case_does_not_depend_on_how_many_are_written(tmp_path):
    (one,) = write_phantoms(tmp_path / "one", 1, SMALL, seed=7)
    first, second = write_phantoms(tmp_path / "two", 2, SMALL, seed=7)
    (other,) = write_phantoms(tmp_path / "other", 1, SMALL, seed=8)
    for path in one.iterdir():
        assert path.read_bytes() == (first / path.name).read_bytes()
        assert path.read_bytes() != (other / path.name).read_bytes()
        assert path.read_bytes() != (second / path.name.replace("_000_", "_001_")).read_bytes()


def test_nothing_is_overwritten(tmp_path, capsys):
    mine = tmp_path / "phantom_001" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    with pytest.raises(InputError, match="phantom_001 exists already"):
        write_phantoms(tmp_path, 2, SMALL)
    error = main(["phantom", "--output_dir", str(tmp_path), "--num_cases", "2", "--shape", "[32,32,32]"])
    assert "phantom_001 exists already" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom_001"]
    assert mine.read_text() == "keep"


def test_an_interrupted_case_leaves_nothing(tmp_path, monkeypatch):
    def fail_on_label(image: nib.Nifti1Image, path: Path, save=nib.save) -> None:
        if "seg" in str(path):
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(nib, "save", fail_on_label)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path, 1, SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "[31,40,40]"], "at least 32 voxels, got (31, 40, 40)"),
        (["--num_cases", "0"], "num_cases should be 1 or more, got 0"),
        (["--seed", "-1"], "seed should be 0 or more, got -1"),
    ],
    ids=["small side", "no case", "negative seed"],
)
def test_bad_arguments_end_in_one_sentence(tmp_path, capsys, arguments, message):
    output_dir = tmp_path / "out"
    error = str(main(["phantom", "--output_dir", str(output_dir), *arguments]))
    assert message in error
    assert "\n" not in error
    assert not output_dir.exists()


def test_command_line(tmp_path):
    bundle = Path(__file__).parents[1] / "bundle"
    arguments = ["--output_dir", str(tmp_path), "--num_cases", "1", "--shape", "[32,32,32]"]
    command = [sys.executable, "-m", "scripts", "phantom", *arguments]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the progress bar is for terminals
    assert len(list((tmp_path / "phantom_000").iterdir())) == 5
