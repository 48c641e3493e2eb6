"""Writes volumes as DICOM series, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)  # two directions at right angles, of length 1


def write_series(
    folder: Path,
    voxels: np.ndarray,
    orientation: Sequence[float] = AXIAL,
    names: Sequence[str] | None = None,
    spacing_mm: Sequence[float] = (1.5, 1.5, 3.0),
    origin_mm: Sequence[float] = (-20.0, 30.0, 10.0),
    slope: float = 1.0,
) -> None:
    """One file per slice of int16 voxels (slices, rows, columns), called ``<name>.dcm``, by default 0, 1, 2, ..

    Slice k lies k times the slice spacing along the normal; ``spacing_mm`` is along columns, rows and slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    series, frame = generate_uid(), generate_uid()
    for index, (name, pixels) in enumerate(zip(names or map(str, range(len(voxels))), voxels, strict=True)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID = series, frame
        slice_.FrameOfReferenceUID, slice_.Modality = frame, "MR"
        slice_.ImagePositionPatient = [float(x) for x in np.array(origin_mm) + index * spacing_mm[2] * normal]
        slice_.ImageOrientationPatient = list(orientation)
        slice_.PixelSpacing, slice_.SliceThickness = [spacing_mm[1], spacing_mm[0]], spacing_mm[2]
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = slope, 0
        slice_.PixelData = np.ascontiguousarray(pixels, np.int16).tobytes()
        slice_.save_as(folder / f"{name}.dcm", enforce_file_format=True)
