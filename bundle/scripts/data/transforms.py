"""Transforms of a case that is loaded: intensities, grid, and a convention's values, classes and regions."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, affine_to_spacing
from monai.data.utils import AFFINE_TOL
from monai.networks.layers import AffineTransform
from monai.transforms import (
    Invertd,
    InvertibleTransform,
    MapTransform,
    RandAxisFlipd,
    RandFlipd,
    RandomizableTransform,
    Spacingd,
    SpatialResample,
)
from monai.utils import TraceKeys, ensure_tuple
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
from .loading import is_ct

__all__ = [
    "ClassesToRegionsd",
    "ClassesToValuesd",
    "InvertRestd",
    "LargestLogitd",
    "NormalizeChannelsd",
    "RandModalityDropoutd",
    "RegionProbabilitiesd",
    "RegionsToClassesd",
    "RemoveSmallPiecesd",
    "SpacingOfKeysd",
    "ValuesToClassesd",
    "ZeroMissingd",
    "flip_axes",
    "is_nonzero",
    "name_by_case",
]

logger = logging.getLogger(__name__)


def flip_axes(transforms: Sequence[Any]) -> list[int]:
    """The axes of a volume, 0 to 2, on which the transforms of a training flip some of its crops."""
    axes: set[int] = set()
    for transform in transforms:
        if isinstance(transform, RandAxisFlipd) and transform.prob > 0:
            axes |= {0, 1, 2}
        elif isinstance(transform, RandFlipd) and transform.prob > 0:
            axis = transform.flipper.spatial_axis
            axes |= {0, 1, 2} if axis is None else {each % 3 for each in ensure_tuple(axis)}
    return sorted(axes)


def is_nonzero(image: torch.Tensor) -> torch.Tensor:
    """Foreground of a skull-stripped image, for ``CropForegroundd``: unlike its default it keeps negative values."""
    return image != 0


INTENSITIES = ("low", "high", "mean", "std")
# A body of 500 x 500 x 2000 mm has 2^29 voxels of 1 mm; voxels of 4 mm become 64 of 1 mm.
MOST_VOXELS, LARGEST_GROWTH = 2**29, 64
FEWEST_VOXELS = 4  # on the longest side
SAME_SPACING = 0.01  # headers of one spacing differ by rounding
INTERPOLATION = AffineTransform(padding_mode="border", align_corners=False)  # as SpatialResample has it


class SpacingOfKeysd(Spacingd):
    """``Spacingd`` that smooths an image before it makes its voxels larger, and leaves other entries alone.

    ``Spacingd`` takes single voxels: from 1 to 2 mm every second one, and the noise with it. Here each is first
    averaged with its neighbors, by a triangle as wide as the new voxels on both sides, as ``antialias`` of
    ``torch.nn.functional.interpolate`` does. What is interpolated by ``nearest``, such as a label, is not smoothed.

    Other entries: MONAI 1.6.1 takes each whose name begins with ``image_`` for a dictionary of metadata; MONAI Label
    adds ``image_path``.

    Raises:
        InputError: when the size in the header cannot be one in millimeters: at the new spacing, the image would take
            more memory than there is, or next to nothing would be left of it.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], mode: str | Sequence[str] = "bilinear") -> None:
        super().__init__(keys, pixdim, mode=mode)
        self.pixdim = tuple(pixdim)
        self.spacing_transform.sp_resample = AxisResample()

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.key_iterator(dict(data))}
        for image in own.values():
            check_size(image, self.pixdim)
        return {**data, **super().__call__(own, lazy)}


def check_size(image: MetaTensor, spacing_mm: Sequence[float]) -> None:
    """Refuses an image (C, H, W, D) whose voxels, by its header, are of no size that a scan has."""
    of_file = affine_to_spacing(image.affine).tolist()
    wanted = [new if new > 0 else old for new, old in zip(spacing_mm, of_file, strict=True)]
    sides = [side * old / new for side, old, new in zip(image.shape[1:], of_file, wanted)]
    growth = math.prod(sides) / math.prod(image.shape[1:])
    case_id = image.meta.get("case_id")
    spacing = " x ".join(f"{size:g}" for size in wanted)
    if growth > LARGEST_GROWTH and math.prod(sides) > MOST_VOXELS:
        raise InputError(
            f"Case {case_id}: at spacing_mm {spacing} it would have {math.prod(sides):.2g} voxels, {growth:.0f} times "
            f"as many as in its file, whose header has voxels of {' x '.join(f'{size:g}' for size in of_file)} mm: "
            "correct that."
        )
    if max(sides) < FEWEST_VOXELS <= max(image.shape[1:]):
        extent = " x ".join(f"{side * old:.2g}" for side, old in zip(image.shape[1:], of_file))
        raise InputError(
            f"Case {case_id}: it should be larger than {FEWEST_VOXELS} voxels of spacing_mm {spacing}, the header of "
            f"its file makes it {extent} mm: correct that."
        )


class AxisResample(SpatialResample):
    """``SpatialResample`` for another spacing, which smooths on the way there and not on the way back.

    Where old and new voxels have the same axes, linear interpolation is a product with a matrix along each: the values
    are those of ``grid_sample`` to rounding, in a tenth of the time.
    """

    def __call__(  # type: ignore[override]
        self, img: MetaTensor, dst_affine: torch.Tensor, spatial_size: Sequence[int], mode: str, **options: Any
    ) -> torch.Tensor:
        if mode != "bilinear":
            return super().__call__(img, dst_affine, spatial_size, mode, **options)
        change = torch.linalg.solve(img.affine, dst_affine.to(img.affine))
        means = [axis_means(side, ratio) for side, ratio in zip(img.shape[1:], change.diagonal().tolist())]
        return self.interpolate(img, dst_affine, spatial_size, means)

    def inverse(self, data: MetaTensor) -> torch.Tensor:  # type: ignore[override]
        done = self.pop_transform(data)
        size, info = done[TraceKeys.ORIG_SIZE], done[TraceKeys.EXTRA_INFO]
        with self.trace_transform(False):
            if info["mode"] != "bilinear":
                return super().__call__(data, info["src_affine"], size, info["mode"])
            return self.interpolate(data, info["src_affine"], size, means=[None] * len(size))

    def interpolate(
        self,
        img: MetaTensor,
        dst_affine: torch.Tensor,
        spatial_size: Sequence[int],
        means: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        """The image at the places of the new voxels, after the means along each axis."""
        change = torch.linalg.solve(img.affine, dst_affine.to(img.affine))
        sides = [int(side) for side in spatial_size]
        if (change[:3, :3] - change[:3, :3].diag().diag()).any():  # other axes, if by rounding alone
            smooth = MetaTensor(along_axes(img.as_tensor().float(), means)).copy_meta_from(img)
            return super().__call__(smooth, dst_affine, spatial_size, "bilinear")
        matrices = [
            axis_interpolation(old, new, float(change[axis, axis]), float(change[axis, 3]), mean)
            for axis, (old, new, mean) in enumerate(zip(img.shape[1:], sides, means))
        ]
        meta = self.track_transform_meta(
            img,
            sp_size=sides,
            affine=None if all(matrix is None for matrix in matrices) else change,
            extra_info={"mode": "bilinear", "src_affine": img.affine},
            orig_size=tuple(img.shape[1:]),
            transform_info=self.get_transform_info(),
        )
        return MetaTensor(along_axes(img.as_tensor().float(), matrices)).copy_meta_from(meta)


def along_axes(image: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The products of an image (C, H, W, D) with a matrix (new, old) for H, W and D; ``None`` keeps an axis."""
    h, w, d = (None if matrix is None else matrix.to(image) for matrix in matrices)
    if d is not None:
        image = image @ d.T
    if w is not None:
        image = w @ image
    if h is not None:
        image = (h @ image.flatten(2)).unflatten(2, image.shape[2:])
    return image


def axis_means(side: int, ratio: float) -> torch.Tensor | None:
    """The matrix (voxels, voxels) of means for an axis whose voxels get larger by a ratio; ``None`` where they do not.

    Each is the mean of its neighbors by a triangle that reaches as far as the new voxels; the voxels at the border go
    on outside.
    """
    if ratio <= 1 + SAME_SPACING:
        return None
    reach = math.ceil(ratio) - 1
    shifts = torch.arange(-reach, reach + 1)
    kernel = (1 - shifts.abs() / ratio).double()
    neighbors = (torch.arange(side)[:, None] + shifts).clamp(0, side - 1)
    weights = (kernel / kernel.sum()).expand(side, -1)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add(1, neighbors, weights)


def axis_interpolation(
    old: int, new: int, ratio: float, offset: float, means: torch.Tensor | None
) -> torch.Tensor | None:
    """The matrix (new voxels, old voxels) of linear interpolation along an axis; ``None`` where nothing changes.

    Args:
        old: how many voxels there are.
        new: how many there are to be.
        ratio: of a new voxel's length to an old one's.
        offset: where the first new voxel lies, in old voxels. Outside, the voxels at the border go on.
        means: the matrix of what is done before.
    """
    if old == new and abs(ratio - 1) < AFFINE_TOL and abs(offset) < AFFINE_TOL:
        return means
    change = torch.diag(torch.tensor([ratio, 1, 1, 1], dtype=torch.float64))
    change[0, 3] = offset
    # What grid_sample makes of each voxel alone: rounding included, by which air beside a brain is not quite zero.
    voxels = torch.eye(old, dtype=torch.float64)[None, :, :, None, None]
    matrix = INTERPOLATION(voxels, change, (new, 1, 1))[0, :, :, 0, 0].T
    return matrix if means is None else matrix @ means


class InvertRestd(Invertd):
    """``Invertd`` that goes on where another one ended: it inverts what is left of what was applied.

    So a class can be chosen on the brain alone, between two of them, and not on the volume of the file.

    Args:
        keys: of predictions.
        transform: what comes first in the preprocessing.
        orig_keys: the keys that ``transform`` knows.

    Raises:
        TypeError: when a prediction does not know what was applied to it: the mask would lie elsewhere.
    """

    def __init__(self, keys: KeysCollection, transform: InvertibleTransform, orig_keys: KeysCollection) -> None:
        super().__init__(keys, transform, orig_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        own = {original: data[key] for key, original in self.key_iterator(dict(data), self.orig_keys)}
        for prediction in own.values():
            if not isinstance(prediction, MetaTensor):
                raise TypeError(f"A prediction should be a MetaTensor, to be inverted, it is a {type(prediction)}.")
        done = super().__call__({**data, **own})
        return {**data, **{key: done[key] for key in self.key_iterator(dict(data))}}


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
        if without := [name for name in modalities if is_ct(name) and name not in intensities]:
            logger.warning(
                f"{', '.join(without)} has units, of which 0 is water, and intensities has no numbers of it: it is "
                "normalized by its nonzero voxels as an MRI is. python -m scripts plan finds the numbers."
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
