"""A case read from disk by modality name, with all that can be checked while it is read."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import LoadImage, LoadImaged
from monai.utils import ensure_tuple

from ..errors import InputError
from .cases import Case, case_of

__all__ = [
    "LoadImageCased",
    "air",
    "check_same_space",
    "corner_distance",
    "image_loader",
    "is_ct",
    "is_invertible",
    "read",
    "read_checked",
]

# How far apart corners of two files of one case may lie, in voxels. Rounding in headers moves the corner of a brain by
# some hundredths of a millimeter; a tenth of a voxel is far below what can be outlined.
CORNER_TOLERANCE = 0.1
OF_TORCH = ("u1", "i1", "i2", "i4", "i8", "f4", "f8")  # types of files that torch has, too


def is_ct(modality: str) -> bool:
    """Whether a channel is one in Hounsfield units, where 0 is water, by its name: ``ct``, ``CT arterial``."""
    return "ct" in re.split(r"[^a-z0-9]+", modality.lower())


class LoadImageCased(LoadImaged):
    """Loads a case: ``image`` as (modalities, H, W, D) and, where asked for, ``label`` as (1, H, W, D).

    ``image`` is given as a mapping from modality name to file, as one of the case's files (the siblings are found by
    name), as the folder of the case, or as one 4D file whose channels have the order of ``channel_order``, else that of
    the Decathlon's ``dataset.json``, else that of ``modalities``. The air around the brain becomes zero: some exports
    of z-scored scans keep it at a constant of their own; a ``ct`` keeps its units. The name contains ``LoadImage``
    because MONAI Deploy finds by it what to leave out.

    Args:
        keys: ``image``, or ``image`` and ``label``.
        modalities: names of the modalities, in the order of the network's channels.
        channel_order: names of the channels of a 4D file, in the order of the file; those of ``modalities`` among them.

    Raises:
        InputError: when a file cannot be read, is missing or doubled, the shapes or affines within the case differ, a
            modality is zero everywhere, holds NaN or infinity, has two values alone or the voxels of another one, a 4D
            file has another number of channels, or their names do not hold each modality once.
    """

    def __init__(
        self, keys: KeysCollection, modalities: Sequence[str], channel_order: Sequence[str] | None = None
    ) -> None:
        super().__init__(keys)
        self.modalities = tuple(modalities)
        self.channel_order = tuple(channel_order or ())
        if self.channel_order and any(
            self.channel_order.count(name) != 1 for name in (*modalities, *self.channel_order)
        ):
            raise InputError(
                f"channel_order should name each of {', '.join(self.modalities)} once, "
                f"got {', '.join(self.channel_order)}."
            )

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        d = dict(data)
        first, *others = self.keys
        d[first] = image = self.load_image(d[first], d.get("case_id"))
        case_id = image.meta["case_id"]
        for key in others:
            label = read(image_loader(), case_id, d[key], channels=[str(key)])
            check_same_space(case_id, label, image)
            label.meta["case_id"] = case_id
            d[key] = label
        return d

    def load_image(self, source: Mapping[str, str] | str, case_id: str | None) -> MetaTensor:
        case = Case(case_id or "", Path())
        if not isinstance(source, Mapping) or case_id is None:
            case = case_of(next(iter(source.values())) if isinstance(source, Mapping) else source)
        case_id = case_id or case.case_id
        found: Mapping[str, Any] | Path = source if isinstance(source, Mapping) else case.image(self.modalities)
        if isinstance(found, Mapping):
            files = found
            if lacking := [name for name in self.modalities if name not in files]:
                there = ", ".join(map(str, files.values()))
                raise InputError(f"Case {case_id}: {lacking[0]} is missing or doubled, its other files are {there}.")
            # Unpacking and copying let go of Python's lock, so that the files are read beside each other.
            with ThreadPoolExecutor(len(self.modalities)) as threads:
                volumes = list(
                    threads.map(lambda name: read(image_loader(), case_id, files[name], [name]), self.modalities)
                )
            for volume in volumes:
                check_same_space(case_id, volume, volumes[0])
            image = cast(MetaTensor, torch.cat(tuple(volumes)))
        else:
            order = self.channel_order or case.channels or self.modalities
            for name in self.modalities:
                if name not in order:
                    raise InputError(f"Case {case_id}: {name} is missing, {found} has the channels {', '.join(order)}.")
            channels = read(image_loader(), case_id, found, channels=order)
            image = cast(MetaTensor, channels[[order.index(name) for name in self.modalities]])
            files = dict.fromkeys(self.modalities, found)
        clean_scans(case_id, image, {name: files[name] for name in self.modalities})
        image.meta["case_id"] = case_id
        return image


def clean_scans(case_id: str, image: MetaTensor, files: Mapping[str, str | Path]) -> None:
    """Sees that each channel of an image (modalities, H, W, D) shows something, and sets its air to 0, in place.

    Args:
        case_id: for the sentence of an error.
        image: has the channels in the order of ``files``.
        files: the file of each channel by its name.

    Raises:
        InputError: as :class:`LoadImageCased`.
    """
    seen: dict[str, tuple[float, float, torch.Tensor]] = {}
    for name, channel in zip(files, image, strict=True):
        volume, file = channel.as_tensor(), files[name]
        lowest, highest = (float(value) for value in volume.aminmax())  # NaN if there is one
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise InputError(f"Case {case_id}: {name} should be finite, {file} holds NaN or infinity.")
        constant = 0.0 if is_ct(name) else air(volume)
        if lowest == highest == constant:
            raise InputError(f"Case {case_id}: {name} should show something, {file} is zero everywhere.")
        if constant:
            volume -= constant  # of which -3.4e38 leaves nothing of the rest
            lowest, highest = (float(value) for value in volume.aminmax())
        if not is_ct(name) and has_two_values(volume, lowest, highest):  # none would be left of it, normalized
            raise InputError(
                f"Case {case_id}: {name} should be a scan, {file} has no value but {lowest + constant:g} and "
                f"{highest + constant:g}."
            )
        for other, (*extremes, of_other) in seen.items():
            if extremes == [lowest, highest] and torch.equal(volume, of_other):
                same = dict.fromkeys((str(files[other]), str(file)))
                raise InputError(
                    f"Case {case_id}: {other} and {name} should be two scans, their voxels are the same: "
                    f"{' and '.join(same)}."
                )
        seen[name] = lowest, highest, volume


class CheckedNibabelReader(NibabelReader):
    """Reads a ``.nii.gz`` to its end, where its check sum stands, with the affine that nibabel gives.

    nibabel stops with the last voxel. A file with a wrong bit can be unpacked all the same, to other voxels. MONAI's
    reader takes another affine where the one of the file differs from its voxel sizes by rounding, be it one that the
    header says is none: a mask would lie elsewhere, and mirrored.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        [name] = ensure_tuple(data)
        self.filenames = (name,)  # as MONAI's does, for get_data
        image = read_checked(name)
        if not is_invertible(image.affine):
            raise ValueError("its affine has NaN or no inverse")
        if image.get_data_dtype().kind == "c":  # its real part would be taken without a word
            raise ValueError("it holds complex numbers")
        return image

    def _get_array_data(self, img: Any, filename: Any) -> np.ndarray:
        return in_c_order(super()._get_array_data(img, filename))


def in_c_order(volume: np.ndarray) -> np.ndarray:
    """The same volume with its last axis dense, as all that follows wants it; a NIfTI file has its first axis dense.

    In two steps, which take half of the time that numpy needs for it.
    """
    kind = volume.dtype
    if volume.ndim != 3 or not volume.flags.f_contiguous or not kind.isnative or kind.str[1:] not in OF_TORCH:
        return volume
    planes = torch.from_numpy(volume.T).flatten(1).t().contiguous()  # (D, W, H) -> (W H, D)
    return planes.view(volume.shape[1], volume.shape[0], -1).transpose(0, 1).contiguous().numpy()


def read_checked(path: str | Path) -> Any:
    """A NIfTI file by nibabel, a packed one to its end, where its check sum stands.

    Raises:
        Exception: nibabel's, gzip's or zlib's own, when it is damaged.
    """
    if not str(path).lower().endswith(".gz"):
        return nib.load(path)
    content = gzip.decompress(Path(path).read_bytes())
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(content):
            return kind.from_bytes(content)
    raise nib.filebasedimages.ImageFileError("it is no NIfTI file")


def image_loader() -> LoadImage:
    """Reads (channels, H, W, D); one for each thread.

    MONAI takes the reader that was registered last of those that know a suffix.
    """
    loader = LoadImage(image_only=True, ensure_channel_first=True)
    loader.register(CheckedNibabelReader())
    return loader


def read(loader: LoadImage, case_id: str | None, file: str | Path, channels: Sequence[str]) -> MetaTensor:
    """One file as (channels, H, W, D), float32."""
    if not Path(file).is_file():
        raise InputError(f"Case {case_id}: {file} is not there.")
    try:
        volume = loader(file)
    except Exception as error:  # nibabel, gzip and ITK have an error of their own for each way of being damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise InputError(f"Case {case_id}: {file} cannot be read as an image: {reason}.") from error
    if volume.ndim != 4 or len(volume) != len(channels):
        raise InputError(
            f"Case {case_id}: {file} should be 3D with {len(channels)} channel(s) ({', '.join(channels)}), "
            f"it has {len(volume)} channel(s) of shape {list(volume.shape[1:])}."
        )
    return volume


def check_same_space(case_id: str | None, volume: MetaTensor, reference: MetaTensor) -> None:
    file, reference_file = volume.meta["filename_or_obj"], reference.meta["filename_or_obj"]
    if volume.shape[1:] != reference.shape[1:]:
        raise InputError(
            f"Case {case_id}: the files should have one shape, {file} has {list(volume.shape[1:])} "
            f"and {reference_file} {list(reference.shape[1:])}."
        )
    affine, expected = volume.affine.numpy(), reference.affine.numpy()
    distance_mm, allowed_mm = corner_distance(affine, expected, volume.shape[1:])
    if not distance_mm <= allowed_mm:
        raise InputError(
            f"Case {case_id}: the files should have one affine, {file} and {reference_file} differ by "
            f"{distance_mm:.3g} mm at a corner."
        )


def corner_distance(affine: np.ndarray, reference: np.ndarray, shape: Sequence[int]) -> tuple[float, float]:
    """How far apart the eight corners of two volumes of one shape lie at most, and may lie at most, in mm."""
    corners = np.array([*product(*((0, side - 1) for side in shape[:3]))], float)
    moved = nib.affines.apply_affine(affine, corners) - nib.affines.apply_affine(reference, corners)
    allowed = CORNER_TOLERANCE * nib.affines.voxel_sizes(reference).min()
    return float(np.linalg.norm(moved, axis=1).max()), float(allowed)


def is_invertible(affine: np.ndarray) -> bool:
    """Whether an affine of 4 x 4 gives each voxel a place of its own."""
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6)


def has_two_values(volume: torch.Tensor, lowest: float, highest: float) -> bool:
    """Whether a volume (H, W, D) holds its extremes alone; few of its voxels tell of most volumes that it does not."""
    return all(bool(((part == lowest) | (part == highest)).all()) for part in (volume[::8, ::8, ::8], volume))


def air(volume: torch.Tensor | np.ndarray) -> float:
    """The value of the air in a volume (H, W, D): what fills all eight corners, else 0."""
    corners = volume[:: volume.shape[0] - 1 or 1, :: volume.shape[1] - 1 or 1, :: volume.shape[2] - 1 or 1]
    value = float(corners.flatten()[0])
    return value if bool((corners == value).all()) else 0.0
