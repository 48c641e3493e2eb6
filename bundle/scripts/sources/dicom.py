"""One DICOM series to one NIfTI file: slices in the order of their positions, geometry kept.

python -m scripts dicom --source <folder of one series> --output <case>/<case>_t1ce.nii.gz
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np

from ..data.cases import NIFTI_EXTENSIONS
from ..errors import InputError
from ..files import whole_file

__all__ = ["is_dicom", "read_series", "read_slices", "sort_slices", "sorted_slices", "write_image"]

logger = logging.getLogger(__name__)

EXTENSIONS = (".dcm", ".ima", "")
UID = re.compile(r"[\d.]+")  # the whole name of a file from an archive, whose "suffix" is a number
PREAMBLE = 128  # bytes before the letters DICM
POSITION, ORIENTATION, SERIES = "0020|0032", "0020|0037", "0020|000e"  # DICOM tags
PIXEL_MM, INSTANCE = "0028|0030", "0020|0013"
GAP_TOLERANCE = 0.05  # of the usual distance of slices; scanners round positions
ROUNDING = 1e-3  # of cosines, and of mm within a slice


class Slice(NamedTuple):
    """What the header of one slice says: its file, the place of its first voxel (x, y, z) in mm, and its kind.

    ``number`` is that of the instance, where it has one.
    """

    file: Path
    position: np.ndarray
    orientation: np.ndarray
    pixel_mm: np.ndarray
    series: str
    size: tuple[int, int]
    number: int | None


def read_header(file: Path) -> Slice:
    """The header of one DICOM file.

    Raises:
        InputError: when it is no DICOM file of one slice of grey values with a position and the size of its pixels.
    """
    io = itk.GDCMImageIO.New(FileName=str(file))
    try:
        io.ReadImageInformation()
        columns, rows, frames = (io.GetDimensions(axis) for axis in range(3))
        if frames != 1:
            raise InputError(f"{file} should hold one slice, it holds {frames}.")
        tags = io.GetMetaDataDictionary()
        position, orientation, pixel_mm = (
            np.array(tags[tag].split("\\"), float) for tag in (POSITION, ORIENTATION, PIXEL_MM)
        )
        series = tags[SERIES].strip()
    except InputError:
        raise
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read as a DICOM slice with a position and the size of its pixels."
        ) from error
    if io.GetNumberOfComponents() != 1:
        raise InputError(f"{file} should hold grey values, it is a picture in color.")
    number = tags[INSTANCE].strip(" \0") if tags.HasKey(INSTANCE) else ""
    return Slice(
        *(file, position, orientation, pixel_mm, series, (rows, columns)), int(number) if number.isdigit() else None
    )


def is_dicom(file: Path) -> bool:
    """Whether a file is called as a slice is, or has DICOM's letters: a damaged one counts, so that it is missed."""
    if file.suffix.lower() in EXTENSIONS or UID.fullmatch(file.name):
        return True
    try:
        with open(file, "rb") as stream:
            return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error


def sorted_slices(folder: Path) -> list[Path]:
    """The files of the one series in a folder, in the order of their positions along the normal of the slices.

    Raises:
        InputError: when there is none, and as :func:`sort_slices`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} should be a folder of DICOM files, it is not there.")
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.name[0] != "." and file.name.upper() != "DICOMDIR" and is_dicom(file)
    )
    if not files:
        raise InputError(f"{folder} should hold the DICOM files of a series, it holds none.")
    return sort_slices(files, folder)


def sort_slices(files: Sequence[Path], folder: Path) -> list[Path]:
    """Slices of one series in the order of their positions along the normal.

    Args:
        files: one for each slice.
        folder: where they lie, for sentences.

    Raises:
        InputError: when one is damaged, series are mixed, slices are missing, doubled or shifted within their plane.
    """
    slices = [read_header(file) for file in files]

    def names(*of: Slice) -> str:
        inside = (folder in each.file.parents for each in of)
        return " and ".join(
            str(each.file.relative_to(folder) if is_in else each.file) for each, is_in in zip(of, inside)
        )

    first = slices[0]
    for other in slices:
        same = {
            "series": other.series == first.series,
            "orientation": np.allclose(other.orientation, first.orientation, rtol=0, atol=ROUNDING),
            "size": other.size == first.size,
            "size of pixels": np.allclose(other.pixel_mm, first.pixel_mm, rtol=0, atol=ROUNDING),
        }
        for what, is_same in same.items():
            if not is_same:
                raise InputError(f"{folder} should hold one series, {names(first, other)} differ in {what}.")
    if len(slices) == 1:
        return list(files)
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    places = np.array([float(normal @ each.position) for each in slices])
    order = np.argsort(places, kind="stable")
    steps = np.diff(places[order])
    usual = float(np.median(steps))
    for below, above, step in zip(order, order[1:], steps):
        two = names(slices[below], slices[above])
        if step < GAP_TOLERANCE * max(usual, 1e-3):
            raise InputError(f"{folder} should hold each slice once, {two} have the same position.")
        if abs(step - usual) > GAP_TOLERANCE * usual:
            raise InputError(
                f"{folder} should hold slices at one distance, {usual:.2f} mm: {two} are {step:.2f} mm apart."
            )
    shifts = np.array([each.position for each in slices]) - places[:, None] * normal
    shift = float(np.linalg.norm(shifts[order[-1]] - shifts[order[0]])) / len(steps)
    if shift > GAP_TOLERANCE * usual:
        raise InputError(
            f"{folder} should hold slices one above the other, each is shifted by {shift:.2f} mm within its plane, as "
            "by a tilted gantry: resample the series first."
        )
    numbers = {each.number for each in slices if each.number is not None}
    if len(numbers) == len(slices) < max(numbers):
        logger.warning(
            f"{folder}: {len(slices)} slices have the numbers {min(numbers)} to {max(numbers)}, some may be missing."
        )
    return [slices[index].file for index in order]


def read_series(folder: Path) -> Any:
    """The series of a folder as an ITK image of float32.

    Raises:
        InputError: as :func:`sorted_slices`, and when voxels cannot be read.
    """
    return read_slices(sorted_slices(folder), folder)


def read_slices(files: Sequence[Path], folder: Path) -> Any:
    """Sorted slices, or one file of many frames, as an ITK image of float32.

    Raises:
        InputError: when voxels cannot be read.
    """
    try:
        # Not itk.imread, which asks for the letters DICM that GDCM itself can do without.
        volume = itk.Image[itk.F, 3]
        if len(files) > 1:
            reader = itk.ImageSeriesReader[volume].New(FileNames=list(map(str, files)))
        else:
            reader = itk.ImageFileReader[volume].New(FileName=str(files[0]))
        reader.SetImageIO(itk.GDCMImageIO.New())
        reader.Update()
        return reader.GetOutput()
    except RuntimeError as error:
        raise InputError(f"{folder}: the voxels of its slices cannot be read.") from error


def write_image(image: Any, path: Path) -> None:
    """Writes an ITK image whole or not at all; as int16 where nothing is lost by it."""
    voxels = itk.array_view_from_image(image)
    limits = np.iinfo(np.int16)
    if voxels.min() >= limits.min and voxels.max() <= limits.max and (voxels == np.rint(voxels)).all():
        image = itk.cast_image_filter(image, ttype=(type(image), itk.Image[itk.SS, 3]))
    with whole_file(path) as temporary:
        itk.imwrite(image, str(temporary), compression=True)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts dicom", description="One DICOM series to one NIfTI file.")
    parser.add_argument("--source", type=Path, required=True, help="folder of one series")
    parser.add_argument("--output", type=Path, required=True, help="such as <case>/<case>_t1ce.nii.gz; a new file")
    arguments = parser.parse_args(argv)
    if not arguments.output.name.endswith(NIFTI_EXTENSIONS):
        raise InputError(f"output should end with .nii.gz or .nii, it is {arguments.output}.")
    if arguments.output.exists():
        raise InputError(f"output should be a new file, {arguments.output} exists.")
    image = read_series(arguments.source)
    write_image(image, arguments.output)
    size, spacing = itk.size(image), itk.spacing(image)
    print(f"{arguments.output}: {' x '.join(map(str, size))} voxels of {' x '.join(f'{mm:.3g}' for mm in spacing)} mm.")
