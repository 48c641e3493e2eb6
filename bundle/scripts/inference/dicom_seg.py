"""A mask as a DICOM segmentation object (SEG) of the series that it was drawn on, for PACS and viewers.

    python -m scripts dicom_seg --source <folder of one series> --mask mask.nii.gz --output mask.dcm --sr volumes.dcm

``--sr`` writes a structured report of the segments' volumes, too. It needs ``highdicom``: ``pip install -r
requirements-dicom.txt``. The mask has to lie on the grid of the series, in whatever order and direction of axes:
nothing is resampled.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from ..data.labels import Convention, class_names, values_to_classes
from ..data.loading import read_checked
from ..errors import InputError
from ..files import check_new, check_writable, whole_file
from ..sources.dicom import sorted_slices
from ..weights.origin import convention_of_mask, weights_of_mask
from ..weights.record import convention_to_write
from ..weights.versions import versions

__all__ = ["check_source", "write_seg"]

logger = logging.getLogger(__name__)

GRID_TOLERANCE = 1e-2  # in voxels, and of cosines; NIfTI's affines have 32 bits
MANUFACTURER = "MISSU bundle (research only)"
# What highdicom copies from the series. These say something (DICOM PS3.3, type 1) ..
FILLED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
NEEDED = (  # .. and these may be empty, but have to be there all the same (type 2).
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    "AccessionNumber",
)


class Coded(NamedTuple):
    """A segment's category and type: code, scheme and meaning of each."""

    category: tuple[str, str, str]
    kind: tuple[str, str, str]


ANATOMY = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
# By the names of classes. SNOMED CT, and NCIt where DICOM's own table for tumors (CID 7169) takes it.
CODES = {
    "ncr": Coded(ABNORMAL, ("6574001", "SCT", "Necrosis")),
    "ed": Coded(ABNORMAL, ("79654002", "SCT", "Edema")),
    "et": Coded(ABNORMAL, ("C113842", "NCIt", "Enhancing Lesion")),
    "cc": Coded(ABNORMAL, ("367643001", "SCT", "Cyst")),
    "liver": Coded(ANATOMY, ("10200004", "SCT", "Liver")),
    "spleen": Coded(ANATOMY, ("78961009", "SCT", "Spleen")),
    "right-kidney": Coded(ANATOMY, ("9846003", "SCT", "Right kidney")),
    "left-kidney": Coded(ANATOMY, ("18639004", "SCT", "Left kidney")),
}
OWN_SCHEME = "99MISSU"  # DICOM leaves names that begin with 99 to everybody


def check_highdicom() -> Any:
    """The library, where it is installed.

    Raises:
        InputError: when it is not.
    """
    try:
        return import_module("highdicom")
    except ImportError as error:
        raise InputError("A DICOM SEG needs highdicom: pip install -r requirements-dicom.txt.") from error


def check_source(source: Sequence[Path]) -> None:
    """Sees that a SEG of a series can be made: minutes before there is a mask.

    Args:
        source: its slices in the order of their positions.

    Raises:
        InputError: when highdicom is missing, or the series lacks what a SEG takes over from it.
    """
    highdicom = check_highdicom()
    grid_of(highdicom, read_headers(source[::-1]))


def code_of(name: str) -> Coded:
    """The codes of a class; one that is not known gets a code of our own, its name."""
    return CODES.get(name, Coded(ANATOMY, (name[:16], OWN_SCHEME, name[:64])))


def read_headers(files: Sequence[Path]) -> list[Any]:
    """The headers of a series' slices.

    Raises:
        InputError: when one lacks what a SEG takes over from it.
    """
    pydicom = import_module("pydicom")
    headers: list[Any] = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    for file, header in zip(files, headers):
        missing = [name for name in FILLED if not header.get(name)]
        missing += [name for name in NEEDED if name not in header]
        if missing:
            raise InputError(f"{file} should say to which patient and study it belongs, it lacks {', '.join(missing)}.")
    for name in ("StudyInstanceUID", "PatientID", "FrameOfReferenceUID"):
        values = sorted({str(header[name].value) for header in headers})
        if len(values) > 1:
            raise InputError(f"{files[0].parent} should be of one {name}, its slices have {' and '.join(values)}.")
    for header in headers:
        if not has_frames(header):  # highdicom asks for it, scanners may leave it out
            header.SliceThickness = header.get("SliceThickness") or distance_mm(headers)
        header.decode()  # by its own character sets, of which highdicom copies one alone
        header.SpecificCharacterSet = "ISO_IR 192"
    return headers


def has_frames(header: Any) -> bool:
    """Whether a file holds many frames, each with a place of its own."""
    return "PerFrameFunctionalGroupsSequence" in header


def distance_mm(headers: Sequence[Any]) -> float:
    """Between slices, by their positions; of a single one its thickness."""
    if len(headers) == 1:
        return float(headers[0].get("SliceThickness") or 1)
    first, last = (np.array(header.ImagePositionPatient, float) for header in (headers[0], headers[-1]))
    return float(np.linalg.norm(last - first)) / (len(headers) - 1)


def grid_of(highdicom: Any, headers: Sequence[Any]) -> Any:
    """Where the voxels of a series lie: of its slices in their order, or of its one file of many frames.

    Raises:
        InputError: when rows and columns are not at right angles, as cosines with few digits make them.
    """
    first = headers[0]
    try:
        if has_frames(first):
            return highdicom.imread(first.filename, lazy_frame_retrieval=True).get_volume_geometry()
        return grid_of_slices(highdicom, headers)
    except ValueError as error:
        raise InputError(f"{first.filename} should say where a SEG lies, it does not: {error}") from error


def grid_of_slices(highdicom: Any, headers: Sequence[Any]) -> Any:
    first = headers[0]
    return highdicom.VolumeGeometry.from_attributes(
        image_position=first.ImagePositionPatient,
        image_orientation=first.ImageOrientationPatient,
        rows=first.Rows,
        columns=first.Columns,
        pixel_spacing=first.PixelSpacing,
        spacing_between_slices=distance_mm(headers),
        number_of_frames=len(headers),
        coordinate_system="PATIENT",
        frame_of_reference_uid=first.FrameOfReferenceUID,
    )


def mask_on_grid(highdicom: Any, mask: Path, headers: Sequence[Any], label_convention: Convention) -> Any:
    """The classes of a mask as a volume (slices, rows, columns) on the grid of a series.

    Raises:
        InputError: when it cannot be read, has other values, or lies on another grid.
    """
    try:
        image = read_checked(mask)
        values = np.asarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib have an error of their own for each way of being damaged
        raise InputError(f"{mask} cannot be read as a mask.") from error
    classes = values_to_classes(values, label_convention).astype(np.uint8)
    first, grid = headers[0], grid_of(highdicom, headers)
    volume = highdicom.Volume.from_nibabel(
        nib.Nifti1Image(classes, image.affine), frame_of_reference_uid=first.FrameOfReferenceUID
    )
    series = Path(first.filename).parent
    same_voxels = np.allclose(sorted(volume.spacing), sorted(grid.spacing), rtol=GRID_TOLERANCE)
    try:
        if not same_voxels or sorted(volume.spatial_shape) != sorted(grid.spatial_shape):
            raise RuntimeError("sizes differ")  # it would be thinned, cut or padded else
        matched = volume.match_geometry(grid, tol=GRID_TOLERANCE)
    except RuntimeError as error:
        raise InputError(f"{mask} should lie on the grid of the series in {series}, it does not: {error}.") from error
    if np.count_nonzero(matched.array) != np.count_nonzero(classes):
        raise InputError(f"{mask} should lie on the grid of the series in {series}, it lies beside it.")
    return grid.with_array(matched.array)


def write_seg(
    source: Path | Sequence[Path],
    mask: Path,
    output: Path,
    label_convention: Convention,
    checkpoint: Path | None,
    report: Path | None = None,
) -> None:
    """Writes a mask as a DICOM SEG, and the volumes of its segments, whole or not at all.

    Args:
        source: the folder of the series, or its slices in the order of their positions.
        mask: a NIfTI file on the grid of the series.
        output: the file, a new one.
        label_convention: of the mask.
        checkpoint: the weights that made it, where they are known; their sha256 is written, or that of its record.
        report: the file of a structured report with the volumes (TID 1500), a new one.

    Raises:
        InputError: when highdicom is missing, the series lacks what it should say of patient and study, or the mask
            lies on another grid or was made by other weights.
    """
    highdicom = check_highdicom()
    from_pydicom = import_module("pydicom.sr.coding").Code
    files = sorted_slices(source) if isinstance(source, Path) else list(source)
    headers = read_headers(files[::-1])  # highdicom's volumes are right-handed: slices from the far end
    volume = mask_on_grid(highdicom, mask, headers, label_convention)
    version = versions()["bundle"]
    digest = ", ".join(weights_of_mask(mask, checkpoint))
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="MISSU",
        family=from_pydicom("123110", "DCM", "Artificial Intelligence"),
        version=version,
        parameters={"weights sha256": digest} if digest else None,
    )
    segments = []
    for number, name in list(enumerate(class_names(label_convention)))[1:]:
        coded = code_of(name)
        segments.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=from_pydicom(*coded.category),
                segmented_property_type=from_pydicom(*coded.kind),
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
        )
    segmentation = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=volume,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="MISSU",
        software_versions=version,
        device_serial_number=(digest or "unknown")[:16],
        content_description="For research only",
        content_label="RESEARCH",
    )
    segmentation.SeriesDescription = "MISSU segmentation, research only"
    of_volumes = None if report is None else volumes_report(highdicom, segmentation, volume, headers, algorithm)
    with ExitStack() as stack:
        for path, content in ((output, segmentation), (report, of_volumes)):
            if path is not None and content is not None:
                content.save_as(stack.enter_context(whole_file(path)))


def volumes_report(highdicom: Any, segmentation: Any, volume: Any, headers: Sequence[Any], algorithm: Any) -> Any:
    """A structured report (TID 1500) with the volume of each segment in ml.

    Args:
        highdicom: the library.
        segmentation: the SEG that it tells of.
        volume: its classes (slices, rows, columns) on the grid of the series.
        headers: of the series.
        algorithm: what made the mask, as it stands in the SEG.
    """
    codes = import_module("pydicom.sr.codedict").codes
    sr = highdicom.sr
    voxel_ml = float(np.prod(volume.spacing)) / 1000
    measured = []
    for segment in segmentation.SegmentSequence:
        number = segment.SegmentNumber
        size = sr.Measurement(
            name=codes.SCT.Volume,
            value=np.count_nonzero(volume.array == number) * voxel_ml,
            unit=sr.CodedConcept("mL", "UCUM", "milliliter"),
        )
        measured.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(highdicom.UID(), segment.SegmentLabel),
                referenced_segment=sr.ReferencedSegment(
                    segmentation.SOPClassUID,
                    segmentation.SOPInstanceUID,
                    number,
                    source_series=sr.SourceSeriesForSegmentation(headers[0].SeriesInstanceUID),
                ),
                finding_category=segment.segmented_property_category,
                finding_type=segment.segmented_property_type,
                algorithm_id=sr.AlgorithmIdentification(
                    algorithm.name,
                    algorithm.version,
                    [f"{name}: {value}" for name, value in (algorithm.parameters or {}).items()],
                ),
                measurements=[size],
            )
        )
    device = sr.DeviceObserverIdentifyingAttributes(
        highdicom.UID(), name="MISSU", manufacturer_name=MANUFACTURER, model_name="MISSU"
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=measured,
        title=codes.DCM.ImagingMeasurementReport,
    )
    document = sr.Comprehensive3DSR(
        evidence=[segmentation, *headers],
        content=content,
        series_instance_uid=highdicom.UID(),
        series_number=1001,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
    )
    document.SeriesDescription = "MISSU volumes, research only"
    return document


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts dicom_seg", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the series that the mask lies on")
    parser.add_argument("--mask", type=Path, required=True, help="the mask, NIfTI")
    parser.add_argument("--output", type=Path, required=True, help="the segmentation object, a new .dcm")
    parser.add_argument("--sr", type=Path, help="a structured report with the volumes, a new .dcm")
    parser.add_argument("--checkpoint", type=Path, help="the weights that made the mask; default: those of its record")
    parser.add_argument("--label_convention", help="of the mask; default: what its record says, or the weights write")
    arguments = parser.parse_args(argv)
    written = {"output": arguments.output} | ({} if arguments.sr is None else {"sr": arguments.sr})
    for name, path in written.items():
        check_new(name, path, ".dcm")
    if arguments.output == arguments.sr:
        raise InputError(f"output and sr should be two files, both are {arguments.sr}.")
    if arguments.checkpoint is not None and not arguments.checkpoint.is_file():
        raise InputError(f"checkpoint should be a file of weights, {arguments.checkpoint} is not there.")
    weights = () if arguments.checkpoint is None else (str(arguments.checkpoint),)
    label_convention = convention_of_mask(arguments.mask, arguments.label_convention, "label_convention")
    if label_convention is None:
        label_convention = convention_to_write(weights, "brats2023")
        if not weights:
            logger.warning(
                f"{arguments.mask} has no record that says what its values mean: they are taken for those of "
                f"{label_convention}, {', '.join(class_names(label_convention)[1:])}; give --label_convention, or the "
                "--checkpoint that made it."
            )
    for name, path in written.items():
        check_writable(path.parent, f"the folder of {name}")
    write_seg(arguments.source, arguments.mask, arguments.output, label_convention, arguments.checkpoint, arguments.sr)
    print(*written.values(), sep="\n")
