"""DICOM series as they come: names that say nothing, oblique slices, and what is wrong with a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_files import OBLIQUE, write_series

from scripts.__main__ import main
from scripts.errors import InputError
from scripts.sources.dicom import read_series, sorted_slices, write_image

SHAPE = (5, 6, 8)  # slices, rows, columns


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)


def read_by_simpleitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_same_geometry(path: Path, expected: SimpleITK.Image) -> None:
    image = SimpleITK.ReadImage(str(path))
    assert image.GetSize() == expected.GetSize()
    assert image.GetSpacing() == pytest.approx(expected.GetSpacing(), rel=1e-5)
    assert image.GetOrigin() == pytest.approx(expected.GetOrigin(), abs=1e-3)
    assert image.GetDirection() == pytest.approx(expected.GetDirection(), abs=1e-5)
    assert (SimpleITK.GetArrayFromImage(image) == SimpleITK.GetArrayFromImage(expected)).all()


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE], ids=["axial", "oblique"])
def test_voxels_and_geometry(tmp_path, orientation):
    series = tmp_path / "series"
    write_series(series, voxels(), orientation, names=["c", "a", "e", "b", "d"])
    output = tmp_path / "out" / "p1_t1ce.nii.gz"
    assert main(["dicom", "--source", str(series), "--output", str(output)]) is None
    assert_same_geometry(output, read_by_simpleitk(series))
    assert (itk.array_from_image(itk.imread(str(output))) == voxels()).all()
    assert [path.name for path in output.parent.iterdir()] == ["p1_t1ce.nii.gz"]


@pytest.mark.parametrize("folder", ["dicom/t1post", "dicom/chaos_ct/1/DICOM_anon"])
def test_real_series(real_data, tmp_path, folder):
    output = tmp_path / "scan.nii.gz"
    assert main(["dicom", "--source", str(real_data / folder), "--output", str(output)]) is None
    assert_same_geometry(output, read_by_simpleitk(real_data / folder))


@pytest.mark.parametrize(
    ("values", "kind"), [([1.0, -5.0], "int16"), ([0.25, 1.0], "float32"), ([1e5, 0.0], "float32")]
)
def test_nothing_is_lost_in_the_file(tmp_path, values, kind):
    volume = np.array(values, np.float32).reshape(1, 1, 2)
    write_image(itk.image_from_array(volume), tmp_path / "x.nii.gz")
    stored = nib.load(tmp_path / "x.nii.gz")
    assert stored.get_data_dtype() == kind
    assert stored.get_fdata().flatten().tolist() == values


def test_what_else_lies_in_a_folder(tmp_path):
    write_series(tmp_path, voxels())
    for name in ("DICOMDIR", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("-")
    assert len(sorted_slices(tmp_path)) == len(voxels())


@pytest.mark.parametrize("name", ["1.2.840.113619.2.5.{}", "MR.1.2.840.{}", "slice{}.bin", "IM{}"])
def test_names_of_archives(tmp_path, name):
    """Slices are told by their content; a "suffix" of digits is none."""
    write_series(tmp_path, voxels())
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / name.format(file.stem))
    assert [file.name for file in sorted_slices(tmp_path)] == [name.format(index) for index in range(len(voxels()))]


def replace_slice(folder: Path, name: str, **changes) -> None:
    """Puts a slice of another series in the place of one."""
    write_series(folder.parent / "other", voxels(), **changes)
    shutil.copy(folder.parent / "other" / name, folder / name)


def change(series: Path, name: str, old: bytes, new: bytes) -> None:
    """Other bytes in a file, as many as there were."""
    content = (series / name).read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    (series / name).write_bytes(content.replace(old, new))


def in_color(series: Path) -> None:
    file = series / "0.dcm"
    image = SimpleITK.ReadImage(str(file))
    tags = {tag: image.GetMetaData(tag) for tag in ("0020|000e", "0020|0032", "0020|0037")}
    color = SimpleITK.Compose([SimpleITK.Cast(image, SimpleITK.sitkUInt8)] * 3)
    for tag, value in (*tags.items(), ("0008|0060", "MR")):
        color.SetMetaData(tag, value)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(file))
    writer.Execute(color)


SERIES = "2.25.1"
PIXEL_SPACING = b"\x28\x00\x30\x00"
FAULTS = {
    "a slice is missing": (lambda series: (series / "2.dcm").unlink(), "1.dcm and 3.dcm are 6.00 mm apart"),
    "a slice is doubled": (lambda series: shutil.copy(series / "2.dcm", series / "9.dcm"), "have the same position"),
    "two series": (lambda series: replace_slice(series, "3.dcm"), "0.dcm and 3.dcm differ in series"),
    "two orientations": (
        lambda series: replace_slice(series, "4.dcm", series=SERIES, orientation=OBLIQUE),
        "0.dcm and 4.dcm differ in orientation",
    ),
    "no DICOM": (lambda series: (series / "2.dcm").write_text("hello"), "2.dcm cannot be read as a DICOM slice"),
    "half a slice": (
        lambda series: (series / "2.dcm").write_bytes((series / "2.dcm").read_bytes()[:-40]),
        "2.dcm cannot be read as a DICOM slice",
    ),
    "two sizes of pixels": (
        lambda series: replace_slice(series, "3.dcm", series=SERIES, spacing_mm=(1.2, 1.2, 3.0)),
        "0.dcm and 3.dcm differ in size of pixels",
    ),
    "no size of pixels": (
        lambda series: [change(series, f"{k}.dcm", PIXEL_SPACING, b"\x28\x00\x33\x00") for k in range(SHAPE[0])],
        "0.dcm cannot be read as a DICOM slice with a position and the size of its pixels",
    ),
    "in color": (in_color, "0.dcm should hold grey values, it is a picture in color"),
    "nothing": (lambda series: [path.unlink() for path in series.iterdir()], "it holds none"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    series, output = tmp_path / "series", tmp_path / "scan.nii.gz"
    write_series(series, voxels(), series=SERIES)
    plant, sentence = FAULTS[fault]
    plant(series)
    message = main(["dicom", "--source", str(series), "--output", str(output)])
    assert str(message).startswith(f"Error: {series}")
    assert sentence in str(message)
    assert "\n" not in str(message)
    assert not output.exists()


def test_cosines_that_are_rounded_otherwise_are_the_same(tmp_path):
    """0.0005 is rounded up, 0.0004999 down."""
    series = tmp_path / "series"
    write_series(series, voxels()[:3], (1, 0.0005, 0, -0.0005, 1, 0), ["0", "1", "2"], series=SERIES)
    other = (1, 0.0004999, 0, -0.0004999, 1, 0)
    write_series(tmp_path / "other", voxels()[:3], other, ["0", "1", "2"], series=SERIES)
    shutil.copy(tmp_path / "other" / "1.dcm", series / "1.dcm")
    assert len(sorted_slices(series)) == 3


def test_files_without_the_letters_of_dicom_are_read(tmp_path):
    series = tmp_path / "series"
    write_series(series, voxels())
    expected = itk.array_from_image(read_series(series))
    for file in series.iterdir():
        file.write_bytes(file.read_bytes()[132:])
    assert (itk.array_from_image(read_series(series)) == expected).all()


def numbered(series: Path, numbers: list[int]) -> None:
    for file, number in zip(sorted(series.iterdir()), numbers):
        image = SimpleITK.ReadImage(str(file))
        image.SetMetaData("0020|0013", str(number))
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(image)


@pytest.mark.parametrize(
    ("numbers", "warned"),
    [
        ([1, 2, 3, 4, 5], False),
        ([4, 3, 2, 1, 0], False),
        ([7, 7, 7, 7, 7], False),
        ([1, 3, 5, 7, 9], True),
        ([6, 7, 8, 9, 10], True),
    ],
    ids=["all", "reversed", "one number", "each other", "the first are missing"],
)
def test_numbers_that_say_that_slices_are_missing(tmp_path, caplog, numbers, warned):
    series = tmp_path / "series"
    write_series(series, voxels(), series=SERIES)
    numbered(series, numbers)
    sorted_slices(series)
    sentence = f"{series}: 5 slices have the numbers {min(numbers)} to {max(numbers)}, some may be missing."
    assert (sentence in caplog.text) == warned


def test_an_output_that_exists_stays(tmp_path):
    write_series(tmp_path / "series", voxels())
    output = tmp_path / "scan.nii.gz"
    output.write_text("mine")
    assert "exists" in str(main(["dicom", "--source", str(tmp_path / "series"), "--output", str(output)]))
    assert output.read_text() == "mine"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_series(tmp_path / "nowhere")
