"""Outlines of organs: which slices, which labels, and that they lie where the mask lies."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.__main__ import main
from scripts.pictures.outlines import choose_slices, draw_outlines

SHAPE = (40, 30, 10)


def block(value: int, x: slice, y: slice, z: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[x, y, z] = value
    return mask


def grey() -> np.ndarray:
    return (np.full(SHAPE, 100) + np.arange(30)[None, :, None] % 7).astype(np.int16)


def of_color(picture: np.ndarray, blue: bool) -> np.ndarray:
    """Positions (rows, columns) of one of the two outlines, the legend left out."""
    red_channel, _, blue_channel = np.moveaxis(picture[:-80, :, :3], -1, 0)
    difference = blue_channel - red_channel
    return np.argwhere(difference > 0.3 if blue else difference < -0.3)


def test_slices_are_spread_over_the_organ():
    assert choose_slices(block(1, slice(9), slice(9), slice(2, 10))) == [3, 5, 7, 9]  # 8 slices in quarters
    assert choose_slices(block(1, slice(9), slice(9), slice(4, 6))) == [4, 5]
    assert choose_slices(np.zeros((4, 4, 8))) == [1, 3, 5, 7]


def test_a_line_around_each_mask(tmp_path):
    # The patient's right half is the left of the picture: there the truth, the prediction on the other side.
    truth = block(1, slice(25, 35), slice(5, 25), slice(4, 5))
    prediction = block(1, slice(5, 15), slice(5, 25), slice(4, 5))
    path = draw_outlines(grey(), {"truth": truth, "prediction": prediction}, tmp_path / "x.png", (1, 1, 5), "case")
    picture = imread(path)
    assert picture.shape[1] == 1600
    blue, orange = of_color(picture, True), of_color(picture, False)
    assert len(blue) > 200
    assert len(orange) > 200
    assert blue[:, 1].max() < 800 < orange[:, 1].min()
    assert (blue[:, 1].max() - blue[:, 1].min()) / 1576 == pytest.approx(10 / 40, abs=0.02)  # a line, ten voxels wide


def test_labels_that_the_network_does_not_know_are_left_out(tmp_path):
    truth = block(1, slice(25, 35), slice(5, 25), slice(4, 5)) + block(4, slice(5, 15), slice(5, 25), slice(4, 5))
    liver = np.where(truth == 1, truth, 0)
    blue = of_color(imread(draw_outlines(grey(), {"truth": truth, "prediction": liver}, tmp_path / "x.png")), True)
    assert not (blue[:, 1] > 800).any()
    both = of_color(imread(draw_outlines(grey(), {"truth": truth}, tmp_path / "y.png")), True)
    assert (both[:, 1] > 800).any()


def save(path: Path, volume: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 4.0, 1.0])), path)
    return path


def test_command_line(tmp_path, capsys):
    image, output = save(tmp_path / "a_ct.nii.gz", grey()), tmp_path / "out" / "a.png"
    mask = save(tmp_path / "a_seg.nii.gz", block(1, slice(9), slice(9), slice(9)))
    assert main(["outlines", "--image", str(image), "--prediction", str(mask), "--output", str(output)]) is None
    assert output.is_file()
    assert capsys.readouterr().out.strip() == str(output)


@pytest.mark.parametrize(
    ("masks", "output", "sentence"),
    [
        ([], "a.png", "There should be a --truth"),
        (["small"], "a.png", "truth should have the shape"),
        (["mask"], "a.jpg", ".png"),
    ],
)
def test_bad_input(tmp_path, masks, output, sentence):
    image = save(tmp_path / "image.nii.gz", grey())
    save(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8))
    save(tmp_path / "small.nii.gz", np.ones((3, 3, 3), np.uint8))
    given = [part for name in masks for part in ("--truth", str(tmp_path / f"{name}.nii.gz"))]
    message = main(["outlines", "--image", str(image), *given, "--output", str(tmp_path / output)])
    assert str(message).startswith("Error: ")
    assert sentence in str(message)
    assert not (tmp_path / output).exists()
