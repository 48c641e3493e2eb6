"""Transforms of a case that is loaded: intensities, grid, and a convention's values, classes and regions."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, Spacingd
from scipy import ndimage

from ..errors import InputError
from .labels import (
    Convention,
    classes_to_regions,
    classes_to_values,
    convention_table,
    outermost,
    regions,
    regions_to_classes,
    values_to_classes,
)

__all__ = [
    "ClassesToRegionsd",
    "ClassesToValuesd",
    "LargestLogitd",
    "NormalizeChannelsd",
    "RandModalityDropoutd",
    "RegionProbabilitiesd",
    "RegionsToClassesd",
    "RemoveSmallPiecesd",
    "SpacingOfKeysd",
    "ValuesToClassesd",
    "ZeroMissingd",
    "is_nonzero",
    "name_by_case",
]

logger = logging.getLogger(__name__)


def is_nonzero(image: torch.Tensor) -> torch.Tensor:
    """Foreground of a skull-stripped image, for ``CropForegroundd``: unlike its default it keeps negative values."""
    return image != 0


INTENSITIES = ("low", "high", "mean", "std")
SAME_SPACING = 0.01  # headers of one spacing differ by rounding


class SpacingOfKeysd(Spacingd):
    """``Spacingd`` that smooths an image before it makes its voxels larger, and leaves other entries alone.

    ``Spacingd`` takes single voxels: from 1 to 2 mm every second one, and the noise with it. Here each is first
    averaged with its neighbors, by a triangle as wide as the new voxels on both sides, as ``antialias`` of
    ``torch.nn.functional.interpolate`` does. What is interpolated by ``nearest``, such as a label, is not smoothed.

    Other entries: MONAI 1.6.1 takes each whose name begins with ``image_`` for a dictionary of metadata; MONAI Label
    adds ``image_path``.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.key_iterator(dict(data))}
        for key, mode in self.key_iterator(own, self.mode):
            if mode != "nearest":
                own[key] = averaged(own[key], self.spacing_transform.pixdim.tolist())
        return {**data, **super().__call__(own, lazy)}


def averaged(image: MetaTensor, spacing_mm: Sequence[float]) -> MetaTensor:
    """An image (channels, H, W, D) averaged along each axis whose voxels are to become larger; -1 keeps an axis."""
    smooth = image.as_tensor()
    for axis, (new, old) in enumerate(zip(spacing_mm, image.pixdim.tolist()), start=1):
        ratio = new / old
        if ratio <= 1 + SAME_SPACING:
            continue
        reach = math.ceil(ratio) - 1
        kernel = (1 - torch.arange(-reach, reach + 1).abs() / ratio).clamp_min(0)
        columns = smooth.movedim(axis, -1)
        flat = F.pad(columns.reshape(-1, 1, columns.shape[-1]), (reach, reach), mode="replicate")
        flat = F.conv1d(flat, (kernel / kernel.sum()).to(flat)[None, None])
        smooth = flat.reshape(columns.shape).movedim(-1, axis)
    return MetaTensor(smooth.contiguous(), meta=image.meta, applied_operations=image.applied_operations)


class NormalizeChannelsd(MapTransform):
    """Each channel of an image (channels, H, W, D), float32, gets mean 0 and variance 1 over its nonzero voxels.

    ``NormalizeIntensityd`` with ``nonzero`` and ``channel_wise`` gives the same to rounding. It gathers the voxels,
    which takes three times as long on a CPU as sums over the volume.

    A channel of ``intensities`` has units instead, such as the Hounsfield units of a CT: it is clipped to ``low`` and
    ``high``, then ``mean`` becomes 0 and ``std`` 1, the same for all cases, as nnU-Net's ``CTNormalization`` does.

    Args:
        keys: of images.
        modalities: names of the channels, in their order.
        intensities: ``low``, ``high``, ``mean`` and ``std`` of channels by name, as ``python -m scripts plan`` finds
            them in the data.

    Raises:
        InputError: when a channel of ``intensities`` is none of ``modalities``, or lacks a number.
    """

    def __init__(
        self, keys: KeysCollection, modalities: Sequence[str], intensities: Mapping[str, Mapping[str, float]]
    ) -> None:
        super().__init__(keys)
        for name, numbers in intensities.items():
            if name not in modalities:
                raise InputError(f"intensities should name channels of {', '.join(modalities)}, it names {name}.")
            known = {key: numbers[key] for key in INTENSITIES if isinstance(numbers.get(key), int | float)}
            if len(known) < len(INTENSITIES) or known["low"] >= known["high"] or known["std"] <= 0:
                raise InputError(
                    f"intensities should have {', '.join(INTENSITIES)} of {name}, low below high and std above 0, "
                    f"it has {dict(numbers)}."
                )
        self.numbers = [intensities.get(name) for name in modalities]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            for channel, numbers in zip(d[key].as_tensor(), self.numbers, strict=True):  # in place, as MONAI does
                if numbers is None:
                    z_score_nonzero(channel)
                else:
                    channel.clamp_(numbers["low"], numbers["high"]).sub_(numbers["mean"]).div_(numbers["std"])
        return d


def z_score_nonzero(channel: torch.Tensor) -> None:
    """In place; zeros stay."""
    nonzero = channel != 0
    count = max(int(nonzero.sum()), 1)
    mean = float(channel.sum(dtype=torch.float64)) / count
    mean_square = float(torch.linalg.vector_norm(channel, dtype=torch.float64)) ** 2 / count
    deviation = math.sqrt(max(mean_square - mean**2, 0.0))
    channel.sub_(mean).mul_(nonzero).div_(deviation or 1.0)


class RandModalityDropoutd(RandomizableTransform, MapTransform):
    """With a probability, a random subset of the channels of an image (modalities, H, W, D) is kept, the rest is zero.

    Each subset but the empty one is as likely as another, all channels among them. Comes after the normalization and
    what changes intensities: a missing modality is zero everywhere, at inference too
    (:class:`~scripts.data.ZeroMissingd`).

    Args:
        keys: of images that lose the same channels.
        prob: probability.
    """

    def __init__(self, keys: KeysCollection, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.kept: list[bool] = []

    def randomize(self, data: int) -> None:
        """Draws which of so many channels are kept."""
        super().randomize(None)
        subset = int(self.R.randint(1, 2**data)) if self._do_transform else -1  # a bit for each channel
        self.kept = [bool(subset >> channel & 1) for channel in range(data)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(len(d[self.first_key(d)]))
        for key in self.key_iterator(d):
            if not all(self.kept):  # not in place: the image may be a view of one that is cached
                d[key] = d[key] * torch.tensor(self.kept, device=d[key].device).view(-1, 1, 1, 1)
        return d


class ZeroMissingd(MapTransform):
    """An image of some modalities, in any order, gets the channels of the network: those that are missing are zero.

    After the normalization, whose mean is zero, as :class:`~scripts.data.RandModalityDropoutd` leaves them out in the
    training. The image's ``meta`` names them in ``missing``.

    Args:
        keys: of images.
        modalities: names of the image's channels, in their order.
        network_modalities: names of the network's channels, in their order; those of the image are among them.
    """

    def __init__(self, keys: KeysCollection, modalities: Sequence[str], network_modalities: Sequence[str]) -> None:
        super().__init__(keys)
        self.places = [list(network_modalities).index(name) for name in modalities]
        self.num_channels = len(network_modalities)
        self.missing = [name for name in network_modalities if name not in modalities]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d) if self.places != list(range(self.num_channels)) else ():
            image = d[key]
            channels = image.as_tensor().new_zeros((self.num_channels, *image.shape[1:]))
            channels[self.places] = image.as_tensor()
            meta = {**image.meta, "missing": ", ".join(self.missing)}
            d[key] = MetaTensor(channels, meta=meta, applied_operations=image.applied_operations)
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
    """What both directions share: the keys, and a convention of ``scripts/data/labels.py``.

    Raises:
        InputError: when the convention is unknown, before the first case.
    """

    def __init__(self, keys: KeysCollection, label_convention: Convention) -> None:
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


class RemoveSmallPiecesd(ConventionTransform):
    """Of a prediction's classes (1, H, W, D), pieces far smaller than the largest one become background.

    A piece is connected by faces, edges or corners, within a region that lies in no other: the whole tumor, or one
    organ. A second focus that is large enough stays. The log says, as a warning, what was left out.

    Args:
        keys: of predictions.
        label_convention: names the regions.
        min_share: of the largest piece's volume, below which a piece is left out; 0 keeps all.

    Raises:
        InputError: when ``min_share`` is not from 0 to 1.
    """

    def __init__(self, keys: KeysCollection, label_convention: Convention, min_share: float) -> None:
        super().__init__(keys, label_convention)
        if not 0 <= min_share <= 1:
            raise InputError(f"min_piece should be from 0 to 1, got {min_share}.")
        self.min_share = min_share
        self.regions = outermost(regions(label_convention))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d) if self.min_share else ():
            kept = d[key].clone()
            for name, classes in self.regions.items():
                self.keep(kept, name, classes)
            d[key] = kept
        return d

    def keep(self, prediction: MetaTensor, name: str, classes: Sequence[int]) -> None:
        """Removes the small pieces of one region, in place."""
        mask = torch.isin(prediction.as_tensor()[0], torch.tensor(classes, device=prediction.device)).numpy(force=True)
        if not mask.any():
            return
        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        pieces, count = ndimage.label(mask[box], np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        is_small = sizes < self.min_share * sizes.max()
        if not is_small.any():
            return
        small = torch.from_numpy(np.concatenate([[False], is_small])[pieces]).to(prediction.device)
        prediction.as_tensor()[0][box][small] = 0
        voxel_ml = float(prediction.pixdim.prod()) / 1000
        logger.warning(
            f"Case {prediction.meta.get('case_id')}: {is_small.sum()} of {count} piece(s) of {name} are left out, "
            f"{sizes[is_small].sum() * voxel_ml:.2f} ml together, each below {self.min_share:g} of the largest of "
            f"{sizes.max() * voxel_ml:.2f} ml (min_piece)."
        )


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


class RegionProbabilitiesd(ConventionTransform):
    """Logits become the probabilities of the regions (regions, H, W, D) under another key.

    With ``softmax`` they are of classes (classes, H, W, D): the logit of a region is the log odds of its classes, so
    that its sigmoid is the sum of their softmax. Without, they are of the regions. Where all are zero, as ``Invertd``
    leaves them around a crop, a probability is 0.

    Args:
        keys: of logits.
        output_key: of the probabilities.
        label_convention: whose regions are meant.
        softmax: whether the logits are of classes.
        temperature: by which the logits of a region are divided, 1 where it is not named.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_key: str,
        label_convention: Convention,
        softmax: bool,
        temperature: Mapping[str, float],
    ) -> None:
        super().__init__(keys, label_convention)
        self.output_key = output_key
        self.softmax = softmax
        self.temperature = temperature

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            logits = torch.as_tensor(d[key].as_tensor(), dtype=torch.float32)
            rows = []
            for channel, (name, of) in enumerate(regions(self.label_convention).items()):
                row = log_odds(logits, of) if self.softmax else logits[channel]
                rows.append((row / self.temperature.get(name, 1.0)).sigmoid())
            probabilities = torch.stack(rows) * (logits != 0).any(0)
            d[self.output_key] = MetaTensor(
                probabilities, meta=d[key].meta, applied_operations=d[key].applied_operations
            )
        return d


def log_odds(logits: torch.Tensor, of: Sequence[int]) -> torch.Tensor:
    """The logit of being in some of the classes, by the logits of all (classes, ...)."""
    others = [number for number in range(len(logits)) if number not in of]
    return logits[list(of)].logsumexp(0) - logits[others].logsumexp(0)


def name_by_case(meta: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """``output_name_formatter`` of ``SaveImaged``: the file is named after the case, not after one of its files."""
    return {"case_id": meta["case_id"]}
