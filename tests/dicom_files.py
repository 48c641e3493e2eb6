"""Writes volumes as DICOM series, for the tests of what reads them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)  # two directions at right angles, of length 1


def new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def write_series(
    folder: Path,
    voxels: np.ndarray,
    orientation: Sequence[float] = AXIAL,
    names: Sequence[str] | None = None,
    spacing_mm: Sequence[float] = (1.5, 1.5, 3.0),
    origin_mm: Sequence[float] = (-20.0, 30.0, 10.0),
    series: str | None = None,
) -> str:
    """One file per slice of int16 voxels (slices, rows, columns), called ``<name>.dcm``, by default 0, 1, 2, ..

    Slice k lies k times the slice spacing along the normal; ``spacing_mm`` is along columns, rows and slices. Gives the
    UID of the series.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = series or new_uid()
    axes = np.stack([orientation[:3], orientation[3:], np.cross(orientation[:3], orientation[3:])], axis=1)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, (name, pixels) in enumerate(zip(names or map(str, range(len(voxels))), voxels, strict=True)):
        slice_ = SimpleITK.GetImageFromArray(pixels[None].astype(np.int16))
        slice_.SetSpacing(spacing_mm)
        slice_.SetOrigin((np.array(origin_mm) + index * spacing_mm[2] * axes[:, 2]).tolist())
        slice_.SetDirection(axes.flatten().tolist())
        for tag, value in (("0008|0060", "MR"), ("0008|0018", new_uid()), ("0020|000e", series)):
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{name}.dcm"))
        writer.Execute(slice_)
    return series
