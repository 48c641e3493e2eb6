"""Label conventions: which value in a file means which class of the network, and what the classes are called.

BraTS has conventions by name. Any other data set says it in its ``dataset.json``, as nnU-Net v2 or the Medical
Segmentation Decathlon have it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import InputError

__all__ = [
    "LABEL_CONVENTIONS",
    "Convention",
    "class_names",
    "classes_to_regions",
    "classes_to_values",
    "convention_table",
    "is_lesion",
    "num_classes",
    "outermost",
    "painting_order",
    "recorded_convention",
    "regions",
    "regions_to_classes",
    "values_to_classes",
]

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# A name of LABEL_CONVENTIONS, the path of a dataset.json, or the content of one.
Convention = str | Path | Mapping[str, Any]

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
}

# Region: its classes. Whole tumor, tumor core and enhancing tumor overlap.
REGIONS: dict[str, tuple[int, ...]] = {"tc": (1, 3), "wt": (1, 2, 3), "et": (3,)}
REGIONS_OF_CONVENTION: dict[str, dict[str, tuple[int, ...]]] = {
    # A cavity is no tumor: BraTS 2024 scores it apart (arXiv:2405.18368).
    "brats2024_gli": {**REGIONS, "rc": (4,)},
    # Cysts are part of the core (BraTS-PEDs, arXiv:2404.15009).
    "brats_ped": {"tc": (1, 3, 4), "wt": (1, 2, 3, 4), "et": (3,), "cc": (4,)},
}
TISSUES = {1: "ncr", 2: "ed", 3: "et"}  # of a tumor; the first two are no region of their own
BACKGROUND = "background"
HIGHEST = 255  # masks are written as bytes
# What a class or region of a disease is called; all else is anatomy, or what a surgeon left.
LESION = re.compile(
    r"^(wt|tc|et|cc|ncr|net|ed|netc|snfh)$|tumou?r|lesion|cancer|carcinoma|glioma|metasta|cyst|o?edema|necro|enhancing|"
    r"infarct|stroke|ischemi|h[ae]+morrhag|hematoma|plaque|nodule|polyp|abscess|aneurysm"
)
# In a config, a name that begins with $, @ or % would be run or looked up, and # parts a path.
NAME = re.compile(r"\w[\w .,:;+/()&'-]*")


@dataclass(frozen=True)
class Labels:
    """What a convention says, whichever way it is given.

    ``table`` has the class of each value, ``regions`` the classes of what is scored, by name; ``order`` the values by
    which nnU-Net tells classes from regions, where the data set says so; ``title`` is for sentences.
    """

    title: str
    table: dict[int, int]
    regions: dict[str, tuple[int, ...]]
    names: tuple[str, ...]
    order: tuple[int, ...] | None = None


def labels_of(convention: Convention) -> Labels:
    """A convention in one form.

    Raises:
        InputError: when there is none of that name, or a ``dataset.json`` is damaged or contradicts itself.
    """
    if isinstance(convention, Mapping):
        return of_dataset(convention, "label_convention")
    if convention in LABEL_CONVENTIONS:
        of = REGIONS_OF_CONVENTION.get(str(convention), REGIONS)
        own = {classes[0]: name for name, classes in of.items() if len(classes) == 1}
        names = {0: BACKGROUND} | TISSUES | own
        table = LABEL_CONVENTIONS[str(convention)]
        return Labels(f"label_convention {convention}", table, of, tuple(names[number] for number in sorted(names)))
    path = Path(convention)
    if path.suffix != ".json":
        raise InputError(
            f"label_convention should be one of {', '.join(LABEL_CONVENTIONS)}, or the path of a dataset.json, "
            f"got {convention}."
        )
    return of_dataset(read_dataset(path), str(path))


def read_dataset(path: Path) -> dict[str, Any]:
    """The content of a ``dataset.json``.

    Raises:
        InputError: when it is not there, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read, it should be a dataset.json: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} should be JSON, it is not: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold an object with labels, it holds a {type(content).__name__}.")
    return content


def of_dataset(content: Mapping[str, Any], title: str) -> Labels:
    """What the ``labels`` of a data set say: nnU-Net's names with values, or the Decathlon's values with names.

    A list of values is a region; regions may overlap. ``background`` is 0, and may be a list of further values that
    count as background. Classes are numbered by their values.
    """
    values_of = read_labels(content, title)
    _, *others = values_of.pop(BACKGROUND)
    values = sorted({value for values in values_of.values() for value in values})
    for name, of in values_of.items():
        covered = [value for value in of if value != 0 and value not in others]
        if same := [other for other in values_of if other < name and values_of[other] == of]:
            raise InputError(f"{title} has the values {list(of)} for {same[0]} and for {name}, they would be one.")
        if not covered:
            raise InputError(f"{title} names the region {name}, which no class covers: its values are {list(of)}.")
        if len(covered) < len(of):
            raise InputError(f"{title} has the values {list(of)} for {name}, the background holds one of them.")
    class_of = {value: number for number, value in enumerate(values, start=1)}
    of_regions = {name: tuple(class_of[value] for value in of) for name, of in values_of.items()}
    order = content.get("regions_class_order")
    if not any(len(of) > 1 for of in values_of.values()):
        order = None  # each region is a class
    elif order is not None:
        wanted = f"regions_class_order with a value of labels for each of the {len(values_of)} regions"
        numbers = whole_numbers(order, title, wanted)
        if len(numbers) != len(values_of) or not set(numbers) <= set(values):
            raise InputError(f"{title} should have {wanted}, it has {order}.")
        check_order(dict(zip(values_of, numbers)), values_of, title)
        order = numbers
    names = {0: BACKGROUND}
    for number in class_of.values():
        inside = sorted((len(of), name) for name, of in of_regions.items() if number in of)
        size, name = inside[0]  # the smallest region
        names[number] = name if size == 1 else f"{name}-{values[number - 1]}"
    table = {**class_of, **dict.fromkeys(others, 0)}
    return Labels(title, table, of_regions, tuple(names.values()), None if order is None else tuple(order))


def inside_of(name: str, of: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The regions that lie wholly inside of one."""
    return [other for other in of if set(of[other]) < set(of[name])]


def check_order(order: Mapping[str, int], values_of: Mapping[str, tuple[int, ...]], title: str) -> None:
    """Refuses a ``regions_class_order`` by which masks would come out otherwise than the labels are.

    Each region stands for a value that it has and no region inside of it, and comes before those inside of it.
    """
    painted: set[int] = set()
    names = list(order)
    for place, name in enumerate(names):
        inside = inside_of(name, values_of)
        if before := [other for other in names[:place] if other in inside]:
            raise InputError(
                f"{title} should name {name} before {before[0]}, which lies in it: regions_class_order paints each "
                "region over those before it."
            )
        own = set(values_of[name]).difference(*(values_of[other] for other in inside)) or set(values_of[name])
        if order[name] not in own or order[name] in painted:
            raise InputError(
                f"{title} should have a value of its own for each region in regions_class_order, of {name} "
                f"{' or '.join(map(str, sorted(own - painted))) or 'none is left'}, it has {order[name]}."
            )
        painted.add(order[name])


def read_labels(content: Mapping[str, Any], title: str) -> dict[str, tuple[int, ...]]:
    """The values of each name, ``background`` first, in the order of the data set."""
    labels = content.get("labels")
    example = '{"background": 0, "liver": 1}'
    if not isinstance(labels, Mapping) or not labels:
        raise InputError(f"{title} should have labels such as {example}, it has {labels}.")
    values_of: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items():
        name, values = (value, key) if str(key).isdigit() else (key, value)
        name = str(name).strip()
        if not NAME.fullmatch(name):
            raise InputError(f"{title} should name labels by letters and digits, it names one {name!r}.")
        name = re.sub(r"[\s_]+", "-", name.lower())
        of = tuple(sorted(set(whole_numbers(values, title, f"whole numbers for {name}"))))
        if name in values_of:
            raise InputError(f"{title} should name each label once, it names {name} twice.")
        if name == "ignore":
            raise InputError(
                f"{title} has the label ignore, {of[0]}, which stands for voxels that nobody labelled: they would be "
                "trained on as a class, label them or leave the cases out."
            )
        if of and of[0] < 0:
            raise InputError(f"{title} should have values from 0 on, it has {of[0]} for {name}.")
        if of and of[-1] > HIGHEST:
            raise InputError(f"{title} should have values up to {HIGHEST}, as masks have, it has {of[-1]} for {name}.")
        values_of[name] = of
    name = BACKGROUND if BACKGROUND in values_of else next((name for name, of in values_of.items() if of == (0,)), None)
    background = (0,) if name is None else values_of.pop(name)
    if not background or background[0] != 0:
        raise InputError(f"{title} should have the background as 0, it has it as {list(background)}.")
    return {BACKGROUND: background, **values_of}


def whole_numbers(values: Any, title: str, wanted: str) -> list[int]:
    """A number or a list of them, as such or as text."""
    try:
        numbers = values if isinstance(values, list | tuple) else [values]
        if any(isinstance(each, bool) or int(each) != float(each) for each in numbers):
            raise ValueError
        return [int(each) for each in numbers]
    except (TypeError, ValueError) as error:
        raise InputError(f"{title} should have {wanted}, it has {values}.") from error


def given_or_found(label_convention: Convention | None, dataset_dir: Path) -> Convention:
    """A convention that is given, else the ``dataset.json`` of a folder.

    Raises:
        InputError: when there is neither.
    """
    found = dataset_dir / "dataset.json"
    if label_convention is None and not found.is_file():
        raise InputError(
            f"What the values of labels mean is not guessed, and {found} is not there: give --label_convention, "
            f"one of {', '.join(LABEL_CONVENTIONS)}, or the path of a dataset.json."
        )
    return found if label_convention is None else label_convention


def recorded_convention(label_convention: Convention) -> str | dict[str, Any]:
    """A convention that needs no file: a name as it is, else the ``labels`` as nnU-Net writes them.

    For the record of weights, which are used where the data set is not.
    """
    if not isinstance(label_convention, Mapping) and label_convention in LABEL_CONVENTIONS:
        return str(label_convention)
    labels = labels_of(label_convention)
    value_of = {number: value for value, number in labels.table.items() if number}
    others = [value for value, number in labels.table.items() if not number]
    named: dict[str, Any] = {BACKGROUND: [0, *others] if others else 0}
    for name, of in labels.regions.items():
        values = [value_of[number] for number in of]
        named[name] = values if len(values) > 1 else values[0]
    return {"labels": named} | ({} if labels.order is None else {"regions_class_order": list(labels.order)})


def convention_table(convention: Convention) -> dict[int, int]:
    """The class of each value of a convention.

    Raises:
        InputError: when the convention is unknown.
    """
    return labels_of(convention).table


def num_classes(label_convention: Convention) -> int:
    """Channels of a network for a convention, the background among them."""
    return 1 + max(convention_table(label_convention).values())


def regions(label_convention: Convention) -> dict[str, tuple[int, ...]]:
    """The regions that are scored, with their classes; for tumors ``tc``, ``wt``, ``et`` and what there is besides."""
    return labels_of(label_convention).regions


def outermost(of: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The regions that lie in no other: of a tumor the whole, of organs each."""
    return {
        name: classes for name, classes in of.items() if not any(set(classes) < set(other) for other in of.values())
    }


def class_names(label_convention: Convention) -> list[str]:
    """The classes of a network by their numbers, the background first."""
    return list(labels_of(label_convention).names)


def _replace(array: Array, table: dict[int, int]) -> tuple[Array, Array]:
    """The array with its values replaced, and the mask of those that the table knows (0 always)."""
    replaced = array * 0
    known = array == 0
    for old, new in table.items():
        mask = array == old
        replaced[mask] = new
        known |= mask
    return replaced, known


def values_to_classes(values: Array, convention: Convention) -> Array:
    """Classes from 0 from a label as it stands in a file; same type and shape.

    Raises:
        InputError: when the label holds a value that the convention does not define.
    """
    labels: Labels = labels_of(convention)
    classes, known = _replace(values, labels.table)
    if not known.all():
        raise InputError(
            f"{labels.title} allows the values {', '.join(map(str, [0, *labels.table]))}, "
            f"the label holds {short(float(values[~known][0]))}."
        )
    return classes


def short(value: float) -> str:
    """A number in few digits, in all where few would say another."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def classes_to_values(classes: Array, convention: Convention) -> Array:
    """The inverse of :func:`values_to_classes`, for masks that are written.

    Raises:
        InputError: when the convention has no value for one of the classes.
    """
    labels = labels_of(convention)
    table = {label: value for value, label in labels.table.items() if label > 0}
    values, known = _replace(classes, table)
    if not known.all():
        raise InputError(f"{labels.title} has no value for class {float(classes[~known][0]):g}.")
    return values


def classes_to_regions(classes: torch.Tensor, label_convention: Convention) -> torch.Tensor:
    """One channel per region of a convention: (1, H, W, D) -> (regions, H, W, D), bool."""
    return torch.cat([torch.isin(classes, classes.new_tensor(of)) for of in regions(label_convention).values()])


def is_lesion(name: str) -> bool:
    """Whether a class or region is one of a disease, by its name: a piece of it is called a lesion."""
    return LESION.search(name) is not None


def painting_order(label_convention: Convention) -> dict[str, int]:
    """The class that each region alone stands for, in the order in which regions are painted over each other.

    It is the data set's own ``regions_class_order``, or else the larger regions come first, and each stands for the
    class that no region inside of it has: WT alone is edema, TC without ET is necrotic core.

    Raises:
        InputError: when a region has several classes that no smaller region tells apart.
    """
    labels = labels_of(label_convention)
    if labels.order is not None:
        return {name: labels.table[value] for name, value in zip(labels.regions, labels.order)}
    order = {}
    for name, of in sorted(labels.regions.items(), key=lambda item: -len(item[1])):
        own = set(of).difference(*(labels.regions[other] for other in inside_of(name, labels.regions)))
        if len(own) != 1:
            raise InputError(
                f"{labels.title} should have regions_class_order: the region {name} has {len(own)} classes that no "
                "region inside of it has, 1 would tell them apart."
            )
        [order[name]] = own
    return order


def regions_to_classes(masks: torch.Tensor, label_convention: Convention) -> torch.Tensor:
    """One class per voxel from one channel per region: (regions, H, W, D) -> (1, H, W, D), uint8.

    A voxel is in the regions whose channel, a mask or logits, is above 0. It takes the class of the last of its regions
    in :func:`painting_order`. Regions that contradict each other, such as ET outside of WT, count as the last one.
    """
    channel_of = dict(zip(regions(label_convention), masks))
    classes = torch.zeros_like(masks[:1], dtype=torch.uint8)
    for region, own in painting_order(label_convention).items():
        classes[0][channel_of[region] > 0] = own
    return classes
