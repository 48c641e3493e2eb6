"""Label conventions: which value in a file means which class of the network."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

__all__ = ["LABEL_CONVENTIONS", "classes_to_values", "values_to_classes"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Value in the file: class of the network, as metadata.json's channel_def names it
# (1 necrotic and non-enhancing core, 2 edema, 3 enhancing tumor). 0 is the background everywhere.
LABEL_CONVENTIONS: dict[str, dict[int, int]] = {
    "brats2018": {1: 1, 2: 2, 4: 3},  # BraTS 2018 to 2021
    "brats2023": {1: 1, 2: 2, 3: 3},  # from 2023 on, and the values of our own masks
}
EITHER = "brats"  # for reading: a label with a 4 is of brats2018, else of brats2023; 3 and 4 together are neither


def _table(convention: str) -> dict[int, int]:
    if convention not in LABEL_CONVENTIONS:
        raise ValueError(f"label_convention should be one of {', '.join(LABEL_CONVENTIONS)}, got {convention}.")
    return LABEL_CONVENTIONS[convention]


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
    """Classes 0..3 from a label as it stands in a file; same type and shape.

    The convention ``brats`` reads both ``brats2018`` and ``brats2023``, as they differ by the value of the enhancing
    tumour only: scans labelled in MONAI Label, where it is 3, are trained on beside those of BraTS 2018 to 2021.

    Raises:
        ValueError: when the convention is unknown, or the label holds a value that it does not define.
    """
    if convention == EITHER:
        convention = "brats2018" if (values == 4).any() else "brats2023"
    table = _table(convention)
    classes, known = _replace(values, table)
    if not known.all():
        raise ValueError(
            f"label_convention {convention} allows the values {', '.join(map(str, [0, *table]))}, "
            f"the label holds {float(values[~known][0]):g}."
        )
    return classes


def classes_to_values(classes: Array, convention: str) -> Array:
    """The inverse of :func:`values_to_classes`, for masks that are written."""
    return _replace(classes, {label: value for value, label in _table(convention).items()})[0]
