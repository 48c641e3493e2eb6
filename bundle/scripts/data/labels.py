"""Label conventions: which value in a file means which class of the network."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from ..errors import InputError

__all__ = [
    "LABEL_CONVENTIONS",
    "class_names",
    "classes_to_regions",
    "classes_to_values",
    "convention_table",
    "num_classes",
    "regions",
    "regions_to_classes",
    "values_to_classes",
]

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Value in the file: class of the network, as metadata.json's channel_def names it
# (1 necrotic and non-enhancing core, 2 edema, 3 enhancing tumor). 0 is the background everywhere.
# What only one convention knows is class 4 of its own, so that nothing is lost on the way there and back.
LABEL_CONVENTIONS: dict[str, dict[int, int]] = {
    "brats2018": {1: 1, 2: 2, 4: 3},  # BraTS 2018 to 2021
    "brats2023": {1: 1, 2: 2, 3: 3},  # from 2023 on, and the values of our own masks
    "brats2024_gli": {1: 1, 2: 2, 3: 3, 4: 4},  # gliomas after treatment: 4 is the resection cavity
    "brats_ped": {1: 3, 2: 1, 3: 4, 4: 2},  # children: 1 enhancing, 2 non-enhancing, 3 cystic, 4 edema
    "decathlon": {1: 2, 2: 1, 3: 3},  # Medical Segmentation Decathlon, Task01
    "nnunet": {1: 2, 2: 1, 3: 3},  # nnU-Net's own BraTS data sets
    # Other organs; their classes have names of their own.
    "hippocampus": {1: 1, 2: 2},  # Medical Segmentation Decathlon, Task04: 1 anterior, 2 posterior
    "chaos_organs": {1: 1, 2: 2, 3: 3, 4: 4},  # as scripts.chaos writes them: liver, right and left kidney, spleen
    "chaos_liver": {1: 1, 2: 0, 3: 0, 4: 0},  # the liver against the rest
}

# Region: its classes. Whole tumor, tumor core and enhancing tumor overlap.
REGIONS: dict[str, tuple[int, ...]] = {"tc": (1, 3), "wt": (1, 2, 3), "et": (3,)}
REGIONS_OF_CONVENTION: dict[str, dict[str, tuple[int, ...]]] = {
    # A cavity is no tumor: BraTS 2024 scores it apart (arXiv:2405.18368).
    "brats2024_gli": {**REGIONS, "rc": (4,)},
    # Cysts are part of the core (BraTS-PEDs, arXiv:2404.15009).
    "brats_ped": {"tc": (1, 3, 4), "wt": (1, 2, 3, 4), "et": (3,), "cc": (4,)},
    "hippocampus": {"anterior": (1,), "posterior": (2,)},
    "chaos_organs": {"liver": (1,), "right-kidney": (2,), "left-kidney": (3,), "spleen": (4,)},
    "chaos_liver": {"liver": (1,)},
}


def convention_table(convention: str) -> dict[int, int]:
    """The class of each value of a convention.

    Raises:
        InputError: when the convention is unknown.
    """
    if convention not in LABEL_CONVENTIONS:
        raise InputError(f"label_convention should be one of {', '.join(LABEL_CONVENTIONS)}, got {convention}.")
    return LABEL_CONVENTIONS[convention]


def num_classes(label_convention: str) -> int:
    """Channels of a network for a convention, the background among them."""
    return 1 + max(convention_table(label_convention).values())


def regions(label_convention: str) -> dict[str, tuple[int, ...]]:
    """The regions that are scored, with their classes; for tumors ``tc``, ``wt``, ``et`` and what there is besides."""
    convention_table(label_convention)
    return REGIONS_OF_CONVENTION.get(label_convention, REGIONS)


def class_names(label_convention: str) -> list[str]:
    """The classes of a network by their numbers, the background first."""
    of_convention: dict[str, tuple[int, ...]] = regions(label_convention)
    names = {0: "background"} | ({} if "wt" not in of_convention else {1: "ncr", 2: "ed", 3: "et"})
    names |= {classes[0]: name for name, classes in of_convention.items() if len(classes) == 1}
    return [names[number] for number in sorted(names)]


def _replace(array: Array, table: dict[int, int]) -> tuple[Array, Array]:
    """The array with its values replaced, and the mask of those that the table knows (0 always)."""
    replaced = array * 0
    known = array == 0
    for old, new in table.items():
        mask = array == old
        replaced[mask] = new
        known |= mask
    return replaced, known


def values_to_classes(values: Array, convention: str) -> Array:
    """Classes from 0 from a label as it stands in a file; same type and shape.

    Raises:
        InputError: when the label holds a value that the convention does not define.
    """
    table: dict[int, int] = convention_table(convention)
    classes, known = _replace(values, table)
    if not known.all():
        raise InputError(
            f"label_convention {convention} allows the values {', '.join(map(str, [0, *table]))}, "
            f"the label holds {float(values[~known][0]):g}."
        )
    return classes


def classes_to_values(classes: Array, convention: str) -> Array:
    """The inverse of :func:`values_to_classes`, for masks that are written.

    Raises:
        InputError: when the convention has no value for one of the classes.
    """
    table = {label: value for value, label in convention_table(convention).items() if label > 0}
    values, known = _replace(classes, table)
    if not known.all():
        raise InputError(f"label_convention {convention} has no value for class {float(classes[~known][0]):g}.")
    return values


def classes_to_regions(classes: torch.Tensor, label_convention: str) -> torch.Tensor:
    """One channel per region of a convention: (1, H, W, D) -> (regions, H, W, D), bool."""
    return torch.cat([torch.isin(classes, classes.new_tensor(of)) for of in regions(label_convention).values()])


def regions_to_classes(masks: torch.Tensor, label_convention: str) -> torch.Tensor:
    """One class per voxel from one channel per region: (regions, H, W, D) -> (1, H, W, D), uint8.

    A voxel is in the regions whose channel, a mask or logits, is above 0. It takes the class that tells the
    smallest of its regions from those inside of it: WT alone is edema, TC without ET is necrotic core. Regions that
    contradict each other, such as ET outside of WT, count as the smaller one.
    """
    of = regions(label_convention)
    classes = torch.zeros_like(masks[:1], dtype=torch.uint8)
    for region, mask in sorted(zip(of, masks), key=lambda item: -len(of[item[0]])):
        inside = [set(other) for other in of.values() if set(other) < set(of[region])]
        [own] = set(of[region]).difference(*inside)
        classes[0][mask > 0] = own
    return classes
