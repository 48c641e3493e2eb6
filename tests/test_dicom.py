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


SERIES = "2.25.1"
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


def test_an_output_that_exists_stays(tmp_path):
    write_series(tmp_path / "series", voxels())
    output = tmp_path / "scan.nii.gz"
    output.write_text("mine")
    assert "exists" in str(main(["dicom", "--source", str(tmp_path / "series"), "--output", str(output)]))
    assert output.read_text() == "mine"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_series(tmp_path / "nowhere")
