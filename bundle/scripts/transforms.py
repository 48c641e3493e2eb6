"""Loading of a case by modality name, with its checks; between a convention's values, classes and regions."""

from __future__ import annotations

import gzip
import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import LoadImage, LoadImaged, MapTransform, Spacingd
from monai.utils import ensure_tuple

from .cases import Case, case_of
from .errors import InputError
from .labels import (
    classes_to_regions,
    classes_to_values,
    convention_table,
    regions_to_classes,
    values_to_classes,
)

__all__ = [
    "ClassesToRegionsd",
    "ClassesToValuesd",
    "LargestLogitd",
    "LoadImageCased",
    "NormalizeNonzerod",
    "RegionsToClassesd",
    "SpacingOfKeysd",
    "ValuesToClassesd",
    "image_loader",
    "is_nonzero",
    "name_by_case",
]

AFFINE_TOLERANCE = 1e-3  # mm; headers of one case differ by rounding


class LoadImageCased(LoadImaged):
    """Loads a case: ``image`` as (modalities, H, W, D) and, where asked for, ``label`` as (1, H, W, D).

    ``image`` is given as a mapping from modality name to file, as one of the case's files (the siblings are found by
    name), as the folder of the case, or as one 4D file whose channels have the order of ``channel_order``, else that of
    the Decathlon's ``dataset.json``, else that of ``modalities``. The air around the brain becomes zero: some exports
    of z-scored scans keep it at a constant of their own. The name contains ``LoadImage`` because MONAI Deploy finds by
    it what to leave out.

    Args:
        keys: ``image``, or ``image`` and ``label``.
        modalities: names of the modalities, in the order of the network's channels.
        channel_order: names of the channels of a 4D file, in the order of the file; those of ``modalities`` among them.

    Raises:
        InputError: when a file cannot be read, is missing or doubled, the shapes or affines within the case differ, a
            modality is zero everywhere or holds NaN or infinity, a 4D file has another number of channels, or their
            names do not hold each modality once.
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
        files: Mapping[str, str | Path] | Path
        case = Case(case_id or "", Path())
        if not isinstance(source, Mapping) or case_id is None:
            case = case_of(next(iter(source.values())) if isinstance(source, Mapping) else source)
        case_id = case_id or case.case_id
        files = source if isinstance(source, Mapping) else case.image(self.modalities)
        if isinstance(files, Mapping):
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
                    raise InputError(f"Case {case_id}: {name} is missing, {files} has the channels {', '.join(order)}.")
            channels = read(image_loader(), case_id, files, channels=order)
            image = cast(MetaTensor, channels[[order.index(name) for name in self.modalities]])
        for name, volume in zip(self.modalities, image):
            file = files[name] if isinstance(files, Mapping) else files
            lowest, highest = (float(value) for value in volume.as_tensor().aminmax())  # NaN if there is one
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise InputError(f"Case {case_id}: {name} should be finite, {file} holds NaN or infinity.")
            constant = air(volume)
            if lowest == highest == constant:
                raise InputError(f"Case {case_id}: {name} should show something, {file} is zero everywhere.")
            if constant:
                volume -= constant
        image.meta["case_id"] = case_id
        return image


class CheckedNibabelReader(NibabelReader):
    """Reads a ``.nii.gz`` to its end, where its check sum stands.

    nibabel stops with the last voxel. A file with a wrong bit can be unpacked all the same, to other voxels.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        [name] = ensure_tuple(data)
        if not str(name).lower().endswith(".gz"):
            return super().read(data, **kwargs)
        content = gzip.decompress(Path(name).read_bytes())
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            if kind.header_class.may_contain_header(content):
                self.filenames = (name,)  # as MONAI's does, for get_data
                return correct_nifti_header_if_necessary(kind.from_bytes(content))
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
    difference = (volume.affine - reference.affine).abs().max().item()
    if not difference <= AFFINE_TOLERANCE:
        raise InputError(
            f"Case {case_id}: the files should have one affine, {file} and {reference_file} differ by {difference:g}."
        )


def air(volume: torch.Tensor | np.ndarray) -> float:
    """The value of the air in a volume (H, W, D): what fills all eight corners, else 0."""
    corners = volume[:: volume.shape[0] - 1 or 1, :: volume.shape[1] - 1 or 1, :: volume.shape[2] - 1 or 1]
    value = float(corners.flatten()[0])
    return value if bool((corners == value).all()) else 0.0


def is_nonzero(image: torch.Tensor) -> torch.Tensor:
    """Foreground of a skull-stripped image, for ``CropForegroundd``: unlike its default it keeps negative values."""
    return image != 0


class SpacingOfKeysd(Spacingd):
    """``Spacingd`` that leaves other entries alone.

    MONAI 1.6.1 takes each entry whose name begins with ``image_`` for a dictionary of metadata; MONAI Label adds
    ``image_path``.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.key_iterator(dict(data))}
        return {**data, **super().__call__(own, lazy)}


class NormalizeNonzerod(MapTransform):
    """Each channel of an image (channels, H, W, D), float32, gets mean 0 and variance 1 over its nonzero voxels.

    ``NormalizeIntensityd`` with ``nonzero`` and ``channel_wise`` gives the same to rounding. It gathers the voxels,
    which takes three times as long on a CPU as sums over the volume.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            for channel in d[key].as_tensor():  # in place, as MONAI does
                nonzero = channel != 0
                count = max(int(nonzero.sum()), 1)
                mean = float(channel.sum(dtype=torch.float64)) / count
                mean_square = float(torch.linalg.vector_norm(channel, dtype=torch.float64)) ** 2 / count
                deviation = math.sqrt(max(mean_square - mean**2, 0.0))
                channel.sub_(mean).mul_(nonzero).div_(deviation or 1.0)
        return d


class LargestLogitd(MapTransform):
    """Logits (classes, H, W, D) become the class of the largest, (1, H, W, D), uint8.

    ``AsDiscreted`` gives the same by ``torch.argmax``, which takes ten times as long over the first axis on a CPU.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = d[key].max(dim=0, keepdim=True).indices.to(torch.uint8)
        return d


class ConventionTransform(MapTransform):
    """What both directions share: the keys, and a convention of ``scripts/labels.py``.

    Raises:
        InputError: when the convention is unknown, before the first case.
    """

    def __init__(self, keys: KeysCollection, label_convention: str) -> None:
        super().__init__(keys)
        convention_table(label_convention)
        self.label_convention = label_convention


class ValuesToClassesd(ConventionTransform):
    """A label's values, as they stand in a file, become the classes of the network.

    Raises:
        InputError: when the label holds a value that the convention does not define.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            try:
                d[key] = values_to_classes(d[key], self.label_convention)
            except ValueError as error:
                meta = d[key].meta
                raise InputError(f"Case {meta.get('case_id')}: {meta.get('filename_or_obj')}: {error}") from error
        return d


class ClassesToValuesd(ConventionTransform):
    """The classes of a prediction become the values of a mask to save."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = classes_to_values(d[key], self.label_convention)
        return d


class ClassesToRegionsd(ConventionTransform):
    """Classes (1, H, W, D) become the regions of the convention (regions, H, W, D), which overlap."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = classes_to_regions(d[key], self.label_convention)
        return d


class RegionsToClassesd(ConventionTransform):
    """Regions (regions, H, W, D), which overlap, become classes (1, H, W, D).

    As masks or as logits: a region is where its channel is above 0. Zero is outside, since ``Invertd`` puts it around
    a crop.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = regions_to_classes(d[key], self.label_convention)
        return d


def name_by_case(meta: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """``output_name_formatter`` of ``SaveImaged``: the file is named after the case, not after one of its files."""
    return {"subject": meta["case_id"], "idx": None}
