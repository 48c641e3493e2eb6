"""The picture of a case: which slices, which way round, which colors, outlines, and what happens with bad files."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.__main__ import main
from scripts.pictures.picture import ShownCase, choose_slice, choose_slices, draw_case, load_case, radiological_slice

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
    given = {"truth": maps.get(truth), "prediction": maps.get(prediction)}
    assert choose_slice(image, {name: mask for name, mask in given.items() if mask is not None}) == expected


def test_slice_of_an_empty_image_is_the_middle():
    assert choose_slice(np.zeros((4, 4, 9)), {}) == 4


def test_left_is_on_the_right_and_anterior_is_up():
    # x grows to the patient's right, y to anterior: [left posterior, left anterior], [right posterior, right anterior]
    volume = np.array([["LP", "LA"], ["RP", "RA"]])[:, :, None]
    assert radiological_slice(volume, 0).tolist() == [["RA", "LA"], ["RP", "LP"]]


def test_axes_are_turned_and_spacing_with_them(tmp_path):
    # Stored superior, left, posterior, steps of 4, 2, 3 mm; the marked voxel is the most left, anterior and inferior.
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    stored = np.random.default_rng(0).integers(0, 8, (5, 6, 7), dtype=np.int16)
    stored[0, 5, 0] = 9
    write(tmp_path / "a_seg.nii.gz", (stored == 9).astype(np.int16), affine)
    case = load_case(write(tmp_path / "a_t1.nii.gz", stored, affine), ["t1"])
    for bright in (case.images["t1"] == 9, case.masks["truth"]):
        assert bright.shape == (6, 7, 5)
        assert np.argwhere(bright).tolist() == [[0, 6, 0]]
    assert case.spacing_mm == [2, 3, 4]


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
        imread(draw_case(ShownCase("a", {"t1": volume}, {}, {}, (1, step, 1)), tmp_path / f"{step}.png")).shape[0]
        for step in (1, 2)
    ]
    assert heights[1] - heights[0] == pytest.approx((1600 - 24) * 30 / 20, abs=2)


@pytest.mark.parametrize("image", [np.zeros(SHAPE), np.ones(SHAPE), -grey_image()], ids=["zeros", "flat", "negative"])
def test_odd_intensities_are_drawn(tmp_path, image):
    assert draw_case(ShownCase("a", {"t1": image}, {}, {}), tmp_path / "a.png").stat().st_size > 0


def test_output_is_replaced_and_its_path_printed(tmp_path, capsys):
    image = write(tmp_path / "a_t2.nii.gz", grey_image())
    output = tmp_path / "case.png"
    output.write_text("old")
    assert main(["picture", "--case", str(image), "--modalities", "t2", "--output", str(output)]) is None
    assert capsys.readouterr().out.strip() == str(output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_t2.nii.gz", "case.png"]


SMALL, MOVED = np.arange(125).reshape(5, 5, 5) % 2, np.diag([1.0, 1.0, 1.2, 1.0])


@pytest.mark.parametrize("style", ["colors", "outlines"])
@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ({}, ["--modalities", "['flair','t1']"], "Case a: t1 is missing"),
        ({"a_seg": SMALL}, [], "should have one shape, {folder}/a_seg.nii.gz has [5, 5, 5] and"),
        ({"a_seg": (np.ones(SHAPE), MOVED)}, [], "should have one affine, {folder}/a_seg.nii.gz and"),
        ({"a_t1": SMALL}, ["--modalities", "['flair','t1']"], "should have one shape, {folder}/a_t1.nii.gz has"),
        ({"p": SMALL}, ["--prediction", "{folder}/p.nii.gz"], "one shape, {folder}/p.nii.gz has [5, 5, 5]"),
        ({"p": (np.ones(SHAPE), MOVED)}, ["--prediction", "{folder}/p.nii.gz"], "one affine, {folder}/p.nii.gz and"),
        ({}, ["--prediction", "{folder}/p.nii.gz"], "Case a: {folder}/p.nii.gz is not there."),
        ({"a_flair": np.ones((*SHAPE, 2))}, [], "{folder}/a_flair.nii.gz should be 3D"),
        ({"a_flair": None}, [], "{folder}/a_flair.nii.gz cannot be read"),
        ({"a_seg": None}, [], "{folder}/a_seg.nii.gz cannot be read"),
        ({"a_seg": np.full(SHAPE, 3)}, [], "{folder}/a_seg.nii.gz: label_convention brats2018 allows"),
        (
            {"a_seg": np.ones(SHAPE), "p": np.full(SHAPE, 4)},
            ["--prediction", "{folder}/p.nii.gz"],
            "{folder}/p.nii.gz: label_convention brats2023 allows",
        ),
        (
            {"a_seg": np.ones(SHAPE), "p": np.ones(SHAPE)},
            [
                *("--prediction", "{folder}/p.nii.gz"),
                *("--label_convention", "brats_ped", "--prediction_convention", "brats2024_gli"),
            ],
            "should name the same classes, class 4 is cc in brats_ped and rc in brats2024_gli.",
        ),
    ],
    ids=[
        *("modality missing", "shape of the label", "place of the label", "shape of a modality"),
        *("shape of the prediction", "place of the prediction", "prediction missing", "4D", "text", "text as label"),
        *("value of the label", "value of the prediction", "two organs"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_keeps_the_old_picture(tmp_path, files, more, message, style):
    for name, content in ({"a_flair": grey_image()} | files).items():
        path = tmp_path / f"{name}.nii.gz"
        volume, affine = content if isinstance(content, tuple) else (content, RAS)
        path.write_text("no image") if volume is None else write(path, volume.astype(np.uint8), affine)
    output = tmp_path / "case.png"
    output.write_text("old")
    arguments = ["--modalities", "flair", *(part.format(folder=tmp_path) for part in more), "--style", style]
    error = str(main(["picture", "--case", str(tmp_path / "a_flair.nii.gz"), *arguments, "--output", str(output)]))
    assert error.startswith("Error: ")
    assert message.format(folder=tmp_path) in error
    assert "\n" not in error
    assert output.read_text() == "old"


def test_a_damaged_file_is_not_drawn(tmp_path):
    """A flipped bit that unpacks all the same: only the check sum at the end tells."""
    image = write(tmp_path / "a_flair.nii.gz", grey_image())
    whole = gzip.decompress(image.read_bytes())
    stored = bytearray(gzip.compress(whole, compresslevel=0))
    stored[len(stored) // 2] ^= 64
    image.write_bytes(bytes(stored))
    error = main(["picture", "--case", str(image), "--modalities", "flair", "--output", str(tmp_path / "a.png")])
    assert "a_flair.nii.gz cannot be read as an image: CRC check failed" in str(error)
    assert not (tmp_path / "a.png").exists()


def test_the_output_has_to_be_a_png(tmp_path):
    with pytest.raises(ValueError, match=r"should be a \.png file"):
        draw_case(ShownCase("a", {"t1": np.ones(SHAPE)}, {}, {}), tmp_path / "case.jpg")


def test_the_convention_of_a_prediction_can_be_given(tmp_path):
    image = write(tmp_path / "a_flair.nii.gz", grey_image())
    label = write(tmp_path / "label.nii.gz", with_block(4, slice(4, 16), slice(8, 20), slice(2, 4)))
    files = ["--case", str(image), "--modalities", "flair", "--prediction", str(label)]
    assert (
        main(["picture", *files, "--prediction_convention", "brats2018", "--output", str(tmp_path / "a.png")]) is None
    )
    orange_center(imread(tmp_path / "a.png"), 0.5, 1)


def test_the_names_of_the_classes_are_those_of_the_convention(tmp_path):
    image = write(tmp_path / "a_t2spir.nii.gz", grey_image())
    write(tmp_path / "a_seg.nii.gz", with_block(4, slice(4, 16), slice(8, 20), slice(2, 4)))
    organs = {"labels": {"background": 0, "liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}}
    seen = load_case(image, ["t2spir"], label_convention=organs)
    assert seen.names == {1: "liver", 2: "right-kidney", 3: "left-kidney", 4: "spleen"}
    assert seen.masks["truth"].max() == 4
    liver = load_case(image, ["t2spir"], label_convention={"labels": {"background": [0, 2, 3, 4], "liver": 1}})
    assert liver.names == {1: "liver"}
    assert not liver.masks["truth"].any()  # of the spleen this convention says nothing


def test_slices_are_spread_over_the_organ():
    shape = (40, 30, 10)
    assert choose_slices(with_block(1, slice(9), slice(9), slice(2, 10), shape)) == [3, 5, 7, 9]  # 8 in quarters
    assert choose_slices(with_block(1, slice(9), slice(9), slice(4, 6), shape)) == [4, 5]
    assert choose_slices(np.zeros((4, 4, 8))) == [1, 3, 5, 7]


def of_color(picture: np.ndarray, blue: bool) -> np.ndarray:
    """Positions (rows, columns) of one of the two outlines, the legend left out."""
    red_channel, _, blue_channel = np.moveaxis(picture[:-80, :, :3], -1, 0)
    difference = blue_channel - red_channel
    return np.argwhere(difference > 0.3 if blue else difference < -0.3)


def test_outlines_lie_on_the_masks_in_two_conventions(tmp_path):
    # One slice with both. The patient's right (large x) is on the left of the picture: there the truth, the prediction
    # on the other side. ET is 4 by the one convention and 3 by the other.
    shape, affine = (40, 30, 10), np.diag([1.0, 1.0, 5.0, 1.0])
    grey = (np.full(shape, 100) + np.arange(30)[None, :, None] % 7).astype(np.int16)
    grey[0] = 0
    image = write(tmp_path / "a_flair.nii.gz", grey, affine)
    write(tmp_path / "a_seg.nii.gz", with_block(4, slice(25, 35), slice(5, 25), slice(4, 5), shape), affine)
    mask = write(tmp_path / "p.nii.gz", with_block(3, slice(5, 15), slice(5, 25), slice(4, 5), shape), affine)
    output = tmp_path / "out" / "a.png"
    arguments = ["--modalities", "flair", "--prediction", str(mask), "--style", "outlines", "--output", str(output)]
    assert main(["picture", "--case", str(image), *arguments]) is None
    picture = imread(output)
    assert picture.shape[1] == 1600
    blue, orange = of_color(picture, True), of_color(picture, False)
    assert min(len(blue), len(orange)) > 200
    assert blue[:, 1].max() < 800 < orange[:, 1].min()
    assert (blue[:, 1].max() - blue[:, 1].min()) / 1576 == pytest.approx(10 / 40, abs=0.02)  # a line, ten voxels wide


def test_nothing_to_outline(tmp_path):
    image = write(tmp_path / "a_flair.nii.gz", grey_image())
    arguments = ["--modalities", "flair", "--style", "outlines", "--output", str(tmp_path / "a.png")]
    error = main(["picture", "--case", str(image), *arguments])
    assert error == "Error: Case a should have a label or a prediction to outline, it has neither."
