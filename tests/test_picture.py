"""The picture of a case: which slice, which way round, which colors, and what happens with bad files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.__main__ import main
from scripts.pictures.picture import choose_slice, draw_case, load_canonical, radiological_slice

RAS = np.diag([1.0, 1.0, 1.0, 1.0])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (20, 30, 6)


def write(path: Path, volume: np.ndarray, affine: np.ndarray = RAS) -> Path:
    nib.save(nib.Nifti1Image(volume, affine), path)
    return path


def with_block(value: int, x: slice, y: slice, z: slice, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    volume = np.zeros(shape, dtype=np.uint8)
    volume[x, y, z] = value
    return volume


def grey_image() -> np.ndarray:
    """A block with a little texture, zeros around it."""
    volume = np.zeros(SHAPE, dtype=np.int16)
    volume[1:-1, 1:-1, 1:-1] = 100 + np.arange(28)[None, :, None] % 5
    return volume


def orange_center(picture: np.ndarray, left: float, right: float) -> tuple[float, float]:
    """Mean position, as fractions down and across, of the ET color between two fractions of the width, no legend."""
    panel = picture[:-80, int(left * picture.shape[1]) : int(right * picture.shape[1]), :3]
    red, green, blue = np.moveaxis(panel, -1, 0)
    rows, columns = np.nonzero((red > green + 0.15) & (green > blue + 0.1))
    assert rows.size > 100, "nothing in the color of ET"
    return float(rows.mean() / panel.shape[0]), float(columns.mean() / panel.shape[1])


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        ("truth", "prediction", 4),
        (None, "prediction", 2),
        ("empty", "prediction", 2),
        (None, None, 3),
        ("empty", "empty", 3),
    ],
)
def test_slice_with_most_tumor(truth, prediction, expected):
    maps = {
        "truth": with_block(1, slice(4), slice(4), slice(4, 5))
        + with_block(2, slice(9, 11), slice(9, 11), slice(1, 5)),
        "prediction": with_block(3, slice(4), slice(4), slice(2, 3)),
        "empty": np.zeros(SHAPE, dtype=np.uint8),
    }
    image = with_block(7, slice(5, 9), slice(5, 9), slice(2, 6))  # slices 2 to 5, halfway is 3.5
    assert choose_slice(image, maps.get(truth), maps.get(prediction)) == expected


def test_slice_of_an_empty_image_is_the_middle():
    assert choose_slice(np.zeros((4, 4, 9))) == 4


def test_left_is_on_the_right_and_anterior_is_up():
    # x grows to the patient's right, y to anterior: [left posterior, left anterior], [right posterior, right anterior]
    volume = np.array([["LP", "LA"], ["RP", "RA"]])[:, :, None]
    assert radiological_slice(volume, 0).tolist() == [["RA", "LA"], ["RP", "LP"]]


def test_load_canonical_turns_axes_and_keeps_spacing_with_them(tmp_path):
    # Stored superior, left, posterior, steps of 4, 2, 3 mm; the marked voxel is the most left, anterior and inferior.
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    stored = np.zeros((5, 6, 7), dtype=np.int16)
    stored[0, 5, 0] = 9
    volume, spacing_mm = load_canonical(write(tmp_path / "a.nii.gz", stored, affine))
    assert volume.shape == (6, 7, 5)
    assert spacing_mm == (2.0, 3.0, 4.0)
    assert np.argwhere(volume).tolist() == [[0, 6, 0]]


@pytest.mark.parametrize("affine", [RAS, LPS], ids=["RAS file", "LPS file"])
def test_overlays_are_drawn_where_the_tumor_is(tmp_path, affine):
    """Truth left anterior, prediction right posterior, each in its own panel: the picture is right way round."""
    turn = (slice(None, None, -1), slice(None, None, -1)) if affine is LPS else (slice(None), slice(None))
    image = write(tmp_path / "a_flair.nii.gz", grey_image()[turn], affine)
    left_anterior = with_block(4, slice(2, 6), slice(22, 28), slice(2, 4))[turn]
    right_posterior = with_block(3, slice(14, 18), slice(2, 8), slice(2, 4))[turn]
    write(tmp_path / "a_seg.nii.gz", left_anterior, affine)
    prediction = write(tmp_path / "prediction.nii.gz", right_posterior, affine)
    output = tmp_path / "out" / "case.png"
    files = ["--case", str(image), "--modalities", "flair", "--prediction", str(prediction)]
    assert main(["picture", *files, "--output", str(output)]) is None

    picture = imread(output)
    assert picture.shape[1] == 1600
    down, across = orange_center(picture, 1 / 3, 2 / 3)
    assert down < 0.4
    assert across > 0.6
    down, across = orange_center(picture, 2 / 3, 1)
    assert down > 0.6
    assert across < 0.4
    with pytest.raises(AssertionError, match="color of ET"):
        orange_center(picture, 0, 1 / 3)


def test_height_follows_the_spacing(tmp_path):
    # One panel of 20 x 30 voxels; anterior steps twice as long make it twice as high, headings aside.
    volume = np.ones(SHAPE)
    heights = [
        imread(draw_case({"t1": volume}, None, None, tmp_path / f"{step}.png", spacing_mm=(1, step, 1))).shape[0]
        for step in (1, 2)
    ]
    assert heights[1] - heights[0] == pytest.approx((1600 - 24) * 30 / 20, abs=2)


@pytest.mark.parametrize("image", [np.zeros(SHAPE), np.ones(SHAPE), -grey_image()], ids=["zeros", "flat", "negative"])
def test_odd_intensities_are_drawn(tmp_path, image):
    assert draw_case({"t1": image}, None, None, tmp_path / "a.png").stat().st_size > 0


def test_output_is_replaced_and_its_path_printed(tmp_path, capsys):
    image = write(tmp_path / "a_t2.nii.gz", grey_image())
    output = tmp_path / "case.png"
    output.write_text("old")
    assert main(["picture", "--case", str(image), "--modalities", "t2", "--output", str(output)]) is None
    assert capsys.readouterr().out.strip() == str(output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_t2.nii.gz", "case.png"]


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({"a_flair": np.ones(SHAPE)}, ["flair", "t1"], "Case a: t1 is missing"),
        ({"a_flair": np.ones(SHAPE), "a_seg": np.ones((5, 5, 5))}, ["flair"], "truth has shape (5, 5, 5), but flair"),
        ({"a_flair": np.ones(SHAPE), "a_t1": np.ones((5, 5, 5))}, ["flair", "t1"], "t1 has shape (5, 5, 5)"),
        ({"a_flair": np.ones((*SHAPE, 2))}, ["flair"], "not one of shape (20, 30, 6, 2)"),
        ({"a_flair": None}, ["flair"], "a_flair.nii.gz cannot be read"),
        ({"a_flair": np.ones(SHAPE), "a_seg": np.full(SHAPE, 3)}, ["flair"], "label_convention brats2018"),
    ],
    ids=["missing", "truth", "modality", "4D", "text", "convention"],
)
def test_bad_input_ends_in_one_sentence_and_keeps_the_old_picture(tmp_path, files, arguments, message):
    for name, volume in files.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_text("no image") if volume is None else write(path, volume.astype(np.uint8))
    output = tmp_path / "case.png"
    output.write_text("old")
    error = str(
        main(
            ["picture", "--case", str(tmp_path / "a_flair.nii.gz"), "--modalities", *arguments, "--output", str(output)]
        )
    )
    assert message in error
    assert "\n" not in error
    assert output.read_text() == "old"


def test_the_output_has_to_be_a_png(tmp_path):
    with pytest.raises(ValueError, match=r"should be a \.png file"):
        draw_case({"t1": np.ones(SHAPE)}, None, None, tmp_path / "case.jpg")


def test_the_convention_of_a_prediction_can_be_given(tmp_path):
    image = write(tmp_path / "a_flair.nii.gz", grey_image())
    label = write(tmp_path / "label.nii.gz", with_block(4, slice(4, 16), slice(8, 20), slice(2, 4)))
    files = ["--case", str(image), "--modalities", "flair", "--prediction", str(label)]
    assert (
        main(["picture", *files, "--prediction_convention", "brats2018", "--output", str(tmp_path / "a.png")]) is None
    )
    orange_center(imread(tmp_path / "a.png"), 0.5, 1)
