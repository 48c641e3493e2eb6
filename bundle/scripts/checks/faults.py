"""What can be wrong with one case: in its list of files, in its headers, in its voxels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data.cases import LABEL, MODALITIES, WHOLE, Case
from ..data.labels import Convention, regions, values_to_classes
from ..data.loading import air, corner_distance, is_invertible, read_checked

__all__ = ["CaseCheck", "Fault", "check_case"]

SPACING_MM = (0.8, 1.25)  # what still counts as 1 mm
OBLIQUE_DEGREES = 15.0
# A brain cut to its bounding box leaves about half of it empty, as an ellipsoid does: 1 - pi / 6.
LEAST_AIR = 0.3
# With these a case cannot be used; the others are said and gone on with.
STOPPING = {
    "missing modality",
    "doubled file",
    "doubled case",
    "unreadable",
    "channels",
    "shapes differ",
    "affines differ",
    "no affine",
}


@dataclass(frozen=True)
class Fault:
    """One fault of a case, or of several."""

    case: str
    fault: str
    detail: str

    @property
    def stops(self) -> bool:
        return self.fault in STOPPING

    def is_of(self, case_id: str) -> bool:
        """Whether it is one of this case, alone or among others."""
        return case_id in self.case.split(", ") or self.case == "all"


@dataclass
class CaseCheck:
    """What a check found out about a case, for the checks that compare cases.

    ``found`` has the details of each fault, ``fingerprints`` the modality of each distinct volume (``--deep``).
    """

    case_id: str
    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    orientation: str | None = None
    num_voxels: int = 0
    is_labelled: bool = False
    fingerprints: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def faults(self) -> list[Fault]:
        return [Fault(self.case_id, fault, "; ".join(details)) for fault, details in self.found.items()]


def check_case(
    case: Case,
    modalities: Sequence[str],
    channel_order: Sequence[str] | None = None,
    label_convention: Convention | None = None,
) -> CaseCheck:
    """Checks the files of a case and their headers; with a ``label_convention`` the voxels, too.

    Args:
        case: as the file names tell.
        modalities: those that the case has to have.
        channel_order: names of the channels of a 4D file, as in :class:`scripts.data.LoadImageCased`.
        label_convention: of the label's values; ``None`` reads the headers only.
    """
    check = CaseCheck(case.case_id, is_labelled=LABEL in case.files)
    order = tuple(channel_order or case.channels or modalities)
    wanted = (WHOLE,) if WHOLE in case.files else tuple(modalities)
    missing = [name for name in wanted if not any(path.is_file() for path in case.files.get(name, []))]
    missing += [name for name in modalities if wanted == (WHOLE,) and name not in order]
    if missing:
        check.found["missing modality"].append(", ".join(missing))
    if wanted == (WHOLE,) and len(modalities) > 1 and not channel_order and not case.channels:
        # The masks of any other order are wrong, and look like masks.
        check.found["channel order"].append(f"taken for {', '.join(order)}: no dataset.json, no channel_order")
    images = {}
    for name in (*wanted, LABEL):
        paths = [path for path in case.files.get(name, []) if path.is_file()]
        if len(paths) > 1:
            check.found["doubled file"].append(f"{name}: {' and '.join(map(str, paths))}")
        elif paths and (image := read_header(check, paths[0], order if name == WHOLE else ())):
            images[name] = image
    check_space(check, images)
    if check.orientation and set(modalities) <= set(MODALITIES):  # no spacing without an affine
        check_spacing(check, next(iter(images.values())))
    if label_convention is not None:
        for name, image in images.items():
            check_voxels(check, name, image, order, label_convention)
    return check


def read_header(check: CaseCheck, path: Path, channels: Sequence[str]) -> nib.Nifti1Image | None:
    """The image, its voxels not yet read, where its header can be read and has the right number of axes."""
    try:
        image: Any = nib.load(path)
        shape = image.shape
        if path.suffix == ".nii":
            num_bytes = image.dataobj.offset + int(np.prod(shape)) * image.get_data_dtype().itemsize
            if path.stat().st_size < num_bytes:
                raise EOFError(f"it has {path.stat().st_size} of {num_bytes} bytes")
    except Exception as error:  # nibabel, gzip and zlib have an error of their own for each way of being damaged
        check.found["unreadable"].append(f"{path}: {reason(error)}")
        return None
    expected = f"{len(channels)} channels ({', '.join(channels)})" if channels else "one volume"
    fits = shape[3:] == (len(channels),) if len(channels) > 1 else set(shape[3:]) <= {1}
    if len(shape) < 3 or not fits:
        check.found["channels"].append(f"{path} should hold {expected}, its shape is {list(shape)}")
        return None
    return image


def reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")


def file_of(image: nib.Nifti1Image) -> str:
    return str(image.get_filename())


def check_space(check: CaseCheck, images: Mapping[str, nib.Nifti1Image]) -> None:
    """One shape and one affine within the case; axes along the patient's."""
    if not images:
        return
    reference, *others = images.values()
    check.num_voxels = int(np.prod(reference.shape[:3]))
    for image in others:
        if image.shape[:3] != reference.shape[:3]:
            shapes = f"{file_of(image)} {list(image.shape[:3])}, {file_of(reference)} {list(reference.shape[:3])}"
            check.found["shapes differ"].append(shapes)
            continue
        distance_mm, allowed_mm = corner_distance(image.affine, reference.affine, reference.shape)
        if not distance_mm <= allowed_mm:
            apart = f"corners of {file_of(image)} and {file_of(reference)} are {distance_mm:.3g} mm apart"
            check.found["affines differ"].append(apart)
    affine = reference.affine
    if not is_invertible(affine):
        check.found["no affine"].append("the affine is singular")
        return
    check.orientation = "".join(nib.aff2axcodes(affine))
    header = reference.header
    if isinstance(header, nib.Nifti1Header) and not header["sform_code"] and not header["qform_code"]:
        check.found["orientation"].append("the headers say none")
    oblique = float(np.degrees(np.max(nib.affines.obliquity(affine))))
    if oblique > OBLIQUE_DEGREES:
        check.found["orientation"].append(f"oblique by {oblique:.0f} degrees")


def check_spacing(check: CaseCheck, image: nib.Nifti1Image) -> None:
    """Voxels of about 1 mm, as those of BraTS; of other data sets none is expected."""
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    if spacing_mm.min() < SPACING_MM[0] or spacing_mm.max() > SPACING_MM[1]:
        check.found["spacing"].append(f"{' x '.join(f'{size:.4g}' for size in spacing_mm)} mm, far from 1")


def check_voxels(
    check: CaseCheck, name: str, image: nib.Nifti1Image, channels: Sequence[str], label_convention: Convention
) -> None:
    """Values of a label by the convention; a scan finite, not empty, with air around the brain."""
    try:
        array = np.asanyarray(read_checked(file_of(image)).dataobj)  # with its check sum, as training reads it
    except Exception as error:
        check.found["unreadable"].append(f"{image.get_filename()}: {reason(error)}")
        return
    if name == LABEL:
        try:
            values_to_classes(np.unique(array), label_convention)
        except ValueError as error:
            check.found["label values"].append(str(error).rstrip("."))
        return
    volumes = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    for modality, volume in zip(channels if name == WHOLE else (name,), volumes):
        if not np.isfinite(volume).all():
            check.found["NaN or infinity"].append(modality)
            continue
        is_air = volume == air(volume)
        if is_air.all():
            check.found["zero everywhere"].append(modality)
            continue
        if "wt" in regions(label_convention) and is_air.mean() < LEAST_AIR:  # a glioma: other scans have a skull
            check.found["not skull-stripped"].append(f"{modality} has {is_air.mean():.0%} air")
        content = np.ascontiguousarray(volume, np.float32)
        digest = hashlib.blake2b(content.tobytes(), digest_size=16, person=str(volume.shape).encode()[:16])
        check.fingerprints[digest.hexdigest()].append(modality)
