"""What cases say of themselves: the headers of all, the voxels of some. The ground of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import Compose, Orientationd
from tqdm.auto import tqdm

from ..data.cases import MODALITIES, WHOLE, channel_names, find_cases, first_file
from ..data.labels import NAME, Convention
from ..data.loading import LoadImageCased, is_ct
from ..data.transforms import ValuesToClassesd
from ..errors import InputError

__all__ = ["PERCENTILES", "Fingerprint", "find_modalities", "read_fingerprint"]

MOST_CASES = 50  # whose voxels are read
PERCENTILES = (0.5, 99.5)  # of the foreground of a CT, as nnU-Net clips it
SAMPLES = 10_000  # voxels of a CT from each case


@dataclass
class Fingerprint:
    """What cases say of themselves; axes to the right, to the front and up.

    Each row is of a case: ``spacing_mm`` and ``shape`` of all, ``box`` of those whose voxels were read: the sides in
    voxels of what is not zero, at a spacing of ``box_spacing_mm``. ``centers`` has the center of each class in a case.
    """

    spacing_mm: np.ndarray
    shape: np.ndarray
    box: np.ndarray
    box_spacing_mm: np.ndarray
    intensities: dict[str, dict[str, float]] = field(default_factory=dict)
    centers: list[dict[int, np.ndarray]] = field(default_factory=list)


def find_modalities(dataset_dir: Path, suffixes: Mapping[str, str] | None = None) -> list[str]:
    """The channels that the ``dataset.json`` names, else those that all cases have by their files' names.

    Raises:
        InputError: when nothing tells.
    """
    cases = find_cases(dataset_dir, suffixes=suffixes)
    if named := channel_names(dataset_dir):
        if strange := [name for name in named if not NAME.fullmatch(name)]:
            raise InputError(f"dataset.json should name channels by letters and digits, it names one {strange[0]!r}.")
        return list(named)
    common = set.intersection(*(set(case.files) for case in cases)) - {"seg", WHOLE}
    if not common:
        raise InputError(
            f"{dataset_dir} should have a dataset.json that names the channels, or files such as <case>_t1.nii.gz with "
            "the same names in all cases: else give --modalities."
        )
    return sorted(common, key=lambda name: (MODALITIES.index(name) if name in MODALITIES else len(MODALITIES), name))


def read_fingerprint(
    entries: Sequence[Mapping[str, Any]], modalities: Sequence[str], label_convention: Convention
) -> Fingerprint:
    """Reads the headers of all cases, and the voxels of up to 50, evenly among them.

    Raises:
        InputError: when a case cannot be read, or its label holds a value that the convention does not define.
    """
    headers = [read_header(entry) for entry in entries]
    load = Compose(
        [
            LoadImageCased(["image", "label"], modalities),
            ValuesToClassesd("label", label_convention),
            Orientationd(["image", "label"], axcodes="RAS", labels=None),
        ]
    )
    chosen = np.unique(np.linspace(0, len(entries) - 1, min(MOST_CASES, len(entries))).round().astype(int))
    boxes, spacings, centers = [], [], []
    samples: dict[str, list[np.ndarray]] = {name: [] for name in modalities if is_ct(name)}
    generator = np.random.default_rng(0)
    for index in tqdm(chosen, desc="reading", leave=False, disable=None):
        case = load(dict(entries[index]))
        image, label = case["image"].numpy(), case["label"].numpy()[0]
        boxes.append([side_of(image.any(axis=0), axis) for axis in range(3)])
        spacings.append(case["image"].pixdim.tolist())
        classes = [int(number) for number in np.unique(label) if number]
        centers.append({number: np.argwhere(label == number).mean(axis=0) for number in classes})
        for name in samples:
            voxels = image[list(modalities).index(name)][label > 0]
            samples[name].append(generator.choice(voxels, SAMPLES) if voxels.size > SAMPLES else voxels)
    intensities = {}
    for name, pieces in samples.items():
        values = np.concatenate(pieces)
        if values.size < 2 or not values.std():
            raise InputError(f"The labels should hold voxels of several intensities of {name}, they hold {values[:3]}.")
        low, high = np.percentile(values, PERCENTILES)
        numbers = {"low": low, "high": high, "mean": values.mean(), "std": values.std()}
        intensities[name] = {key: round(float(number), 3) for key, number in numbers.items()}
    return Fingerprint(
        np.array([spacing for spacing, _ in headers]),
        np.array([shape for _, shape in headers]),
        np.array(boxes),
        np.array(spacings),
        intensities,
        centers,
    )


def read_header(entry: Mapping[str, Any]) -> tuple[list[float], list[int]]:
    """Spacing in mm and shape of a case, axes to the right, to the front and up."""
    path = first_file(entry)
    try:
        image: Any = nib.load(path)
        if len(image.shape) < 3:
            raise ValueError(f"it should have 3 axes, its shape is {list(image.shape)}")
        axes = nib.io_orientation(image.affine)[:, 0].astype(int)
    except Exception as error:  # nibabel, gzip and numpy have an error of their own for each way of being damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise InputError(f"Case {entry['case_id']}: {path} cannot be read as an image: {reason}.") from error
    order = np.argsort(axes)
    spacing = nib.affines.voxel_sizes(image.affine)
    return [float(spacing[axis]) for axis in order], [int(image.shape[axis]) for axis in order]


def side_of(mask: np.ndarray, axis: int) -> int:
    """Length in voxels of what is set, along an axis."""
    occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return int(occupied[-1] - occupied[0] + 1) if occupied.size else 0
