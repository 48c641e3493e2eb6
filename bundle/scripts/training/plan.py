"""An overlay of train.json for a data set, from what its files say; the number behind each value stands in the overlay.

    python -m scripts plan --dataset_dir <folder with a dataset.json> --output plan.json

What is read are the cases to train on: the headers of all, the voxels of up to 50. The rules are nnU-Net's where it
has one (Isensee et al., 2021), with the paper's crop as the largest.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import listed, mapped
from ..data.datalist import load_datalist
from ..data.labels import LABEL_CONVENTIONS, Convention, class_names, given_or_found, num_classes, recorded_convention
from ..errors import InputError
from ..files import check_new, whole_file
from ..memory import gib
from .fingerprint import PERCENTILES, find_modalities, read_fingerprint
from .schedule import (
    FEW_STEPS,
    PAPER_BATCH,
    SIDE_STEP,
    TOKEN_SIDE,
    VAL_INTERVALS,
    bytes_of,
    fit_memory,
    has_bfloat16,
    measure_speed,
    memory_of_device,
    plan_schedule,
)

__all__ = ["make_plan"]

logger = logging.getLogger(__name__)

SAME_SPACING = 1.1
ANISOTROPIC = 3.0  # nnU-Net's ANISO_THRESHOLD
LONGEST_SIDE = 128  # the paper's crop
LEAST_SHARE = 0.2  # of a case in a uniform crop; below it, half of the crops are put on a class
PAPER_RATE, SHORT_RATE = 4e-4, 1e-3
STRETCH = 1.5
ORDERED_SHARE, LEAST_ORDERED = 0.98, 10  # of the cases, and how many, for an order of classes to be no chance
AXES = {0: ("flip_left_right", "right"), 1: ("flip_front_back", "forward"), 2: ("flip_bottom_top", "up")}


@dataclass
class Plan:
    """Values of knobs in the order in which they are written, and why each is what it is."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, knob: str, value: Any, reason: str) -> None:
        self.values[knob] = value
        self.reasons[knob] = reason


def plan_spacing(spacing_mm: np.ndarray, shape: np.ndarray) -> tuple[list[float], np.ndarray, str]:
    """The knob ``spacing_mm``, the spacing that it means for most cases, and why.

    An axis on which all cases agree within 10 % keeps its voxels. Else it is the median; where that has thick slices,
    more than three times as thick as wide and few, the 10th percentile of them, as in nnU-Net.
    """
    median = np.median(spacing_mm, axis=0)
    target = median.copy()
    agree = spacing_mm.max(axis=0) <= SAME_SPACING * spacing_mm.min(axis=0)
    written = " x ".join(f"{size:.3g}" for size in median)
    span = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in zip(spacing_mm.min(axis=0), spacing_mm.max(axis=0)))
    if agree.all():
        return [-1, -1, -1], target, f"As it is: all {len(spacing_mm)} cases have {written} mm, within 10 %."
    reason = (
        f"The median of {len(spacing_mm)} cases, {written} mm; they span {span} mm. -1 where they agree within 10 %."
    )
    worst = int(median.argmax())
    others = np.delete(median, worst)
    sides = np.median(shape * spacing_mm / median, axis=0)
    if median[worst] > ANISOTROPIC * others.max() and sides[worst] * ANISOTROPIC < np.delete(sides, worst).min():
        thick = float(np.percentile(spacing_mm[:, worst], 10))
        target[worst] = max(thick, others.max())
        if not agree[worst]:
            reason += f" The slices are thick: their 10th percentile, {thick:.3g} mm."
    target[agree] = median[agree]
    return [-1 if same else round(float(size), 3) for same, size in zip(agree, target)], target, reason


def plan_crop(box: np.ndarray) -> list[int]:
    """Sides of the crop for the median box of what is not zero, in voxels: multiples of 16, at most the paper's 128."""
    sides = np.clip(np.median(box, axis=0) // SIDE_STEP * SIDE_STEP, SIDE_STEP, LONGEST_SIDE)
    return [int(side) for side in sides]


def check_classes(centers: Sequence[Mapping[int, np.ndarray]], names: Sequence[str]) -> None:
    """Tells of classes that no case has, whose channel of the network would learn nothing.

    Raises:
        InputError: when there is none but the background.
    """
    unseen = [name for number, name in enumerate(names) if number and not any(number in of for of in centers)]
    if len(unseen) == len(names) - 1:
        raise InputError(f"The labels should hold {' or '.join(unseen)}, those of {len(centers)} cases are empty.")
    if unseen:
        logger.warning(f"No label of {len(centers)} cases holds {' or '.join(unseen)}: it will not be learned.")


def ordered_axes(centers: Iterable[Mapping[int, np.ndarray]], names: Sequence[str]) -> dict[int, str]:
    """Axes along which two classes lie in one order in nearly all cases, and which: a flip would contradict them."""
    found: dict[int, str] = {}
    of_cases = list(centers)
    for axis, (first, second) in product(range(3), combinations(range(1, len(names)), 2)):
        steps = [of[second][axis] - of[first][axis] for of in of_cases if first in of and second in of]
        after = sum(step > 0 for step in steps)
        if len(steps) >= LEAST_ORDERED and max(after, len(steps) - after) >= ORDERED_SHARE * len(steps):
            lower, upper = (first, second) if after > len(steps) / 2 else (second, first)
            share = max(after, len(steps) - after)
            said = f"{names[upper]} lies further {AXES[axis][1]} than {names[lower]} in {share} of {len(steps)} cases"
            found.setdefault(axis, said)
    return found


def make_plan(
    entries: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    label_convention: Convention,
    memory: float,
    hours: float | None = None,
) -> Plan:
    """The knobs for a data set, with their reasons.

    Args:
        entries: of a datalist: the cases to train on.
        modalities: names of the channels.
        label_convention: a name, or a ``dataset.json``, whose labels the plan then holds.
        memory: bytes that a training may take.
        hours: that it may take; ``None`` for as many steps as the paper or nnU-Net takes, whichever is less.

    Raises:
        InputError: when a case cannot be used, or memory or hours do not suffice for anything.
    """
    seen = read_fingerprint(entries, modalities, label_convention)
    names = class_names(label_convention)
    check_classes(seen.centers, names)
    is_brats = not isinstance(label_convention, Mapping) and label_convention in LABEL_CONVENTIONS
    plan = Plan()
    plan.set("modalities", list(modalities), "The channels that the data set has.")
    plan.set("label_convention", recorded_convention(label_convention), f"The classes are {', '.join(names)}.")

    spacing, target, reason = plan_spacing(seen.spacing_mm, seen.shape)
    plan.set("spacing_mm", spacing, reason)
    plan.set("invert_logits", spacing != [-1, -1, -1], "True where cases are resampled: borders stay smooth.")
    if seen.intensities:
        low, high = PERCENTILES
        plan.set(
            "intensities",
            seen.intensities,
            f"A CT has units: clipped to the percentiles {low}, {high} of what is labelled in {len(seen.box)} cases, "
            "then less its mean, by its standard deviation. As nnU-Net.",
        )

    box = seen.box * seen.box_spacing_mm / target
    median, largest = np.median(box, axis=0).round().astype(int), box.max(axis=0).round().astype(int)
    wanted = plan_crop(box)
    crop, most_crops = fit_memory(wanted, PAPER_BATCH, memory)
    reason = (
        f"What is not zero spans {' x '.join(map(str, median))} voxels in the median of {len(box)} cases: multiples of "
        f"{SIDE_STEP} below, at most the paper's {LONGEST_SIDE}."
    )
    if crop != wanted:
        reason += f" That would be {wanted}: the longest side was halved until the memory sufficed."
    plan.set("roi_size", crop, reason)
    # Crops of a training are taken of the whole file, what is around the box among it.
    whole = np.median(seen.shape * seen.spacing_mm / target, axis=0)
    share = math.prod(crop) / max(1.0, math.prod(whole.tolist()))
    per_case = 2 if share < LEAST_SHARE and most_crops > 1 else 1
    speed = measure_speed(crop, len(modalities), num_classes(label_convention))
    schedule = plan_schedule(len(entries), per_case, most_crops, speed, hours)
    num_crops, steps = schedule.num_crops, schedule.steps
    plan.set(
        "batch_size",
        num_crops // per_case,
        f"{num_crops} crops in a step ({schedule.why}), {per_case} of a case, need about "
        f"{gib(bytes_of(crop, num_crops))} of the {gib(memory)} that are free.",
    )
    if has_bfloat16():
        plan.set(
            "train#inferer",
            {"_target_": "scripts.inference.Bfloat16Inferer"},
            "This machine's CPU has instructions for bfloat16: as bfloat16.json, faster and as good.",
        )
    plan.set(
        "max_epochs",
        schedule.epochs,
        f"{steps} steps, {schedule.steps_per_epoch} in an epoch of {len(entries)} cases. They take about "
        f"{steps * speed.of_step(num_crops) / 3600:.2g} hours: {speed.how}; loading and validation come on top.",
    )
    plan.set(
        "val_interval",
        f"$min({schedule.val_interval}, @max_epochs)",  # for who wants fewer epochs
        f"Epochs from one validation to the next, at most {max(VAL_INTERVALS)}, so that the last one is validated.",
    )
    rate = SHORT_RATE if steps < FEW_STEPS else PAPER_RATE
    plan.set("learning_rate", rate, f"{SHORT_RATE:g} below {FEW_STEPS} steps, else the paper's {PAPER_RATE:g}.")

    fits = bool((largest <= STRETCH * np.array(crop) // TOKEN_SIDE * TOKEN_SIDE).all())
    spans = f"The largest case spans {' x '.join(map(str, largest))} voxels: "
    if not fits:
        reason = "windows of the crop."
    elif is_brats:
        reason = f"whole images fit one window of at most {STRETCH} times the crop, with the same masks on BraTS."
    else:
        reason = (
            f"whole images would fit one window of at most {STRETCH} times the crop, in less time; on hippocampi that "
            "costs 0.006 of Dice, so windows of the crop."
        )
    plan.set("stretch", STRETCH if fits and is_brats else 1.0, spans + reason)
    bytes_of_cases = (
        len(entries) * (4 * len(modalities) + 1) * int(np.median((seen.shape * seen.spacing_mm / target).prod(axis=1)))
    )
    keeps = bytes_of_cases < memory / 4
    plan.set(
        "cache_rate",
        1.0 if keeps else 0.0,
        f"The cases take {gib(bytes_of_cases)} of memory, {'less' if keeps else 'more'} than a quarter of the free.",
    )
    plan.set("num_workers", 0 if keeps else 4, "Processes that load cases; none where they stay in memory.")
    if not is_brats:
        plan.set("metrics", ["dice", "hd95_mm"], "For evaluate.json: those of lesions are for tumors.")
    for axis, said in ordered_axes(seen.centers, names).items():
        plan.set(f"train#{AXES[axis][0]}", {"_target_": "Identityd", "keys": "image"}, f"No flip: {said}.")
    if per_case > 1:
        image_key = {} if seen.intensities else {"image_key": "image"}
        plan.set(
            "train#crop",
            {
                "_target_": "RandCropByPosNegLabeld",
                "keys": ["image", "label"],
                "label_key": "label",
                **image_key,
                "spatial_size": "@roi_size",
                "pos": 1,
                "neg": 1,
                "num_samples": per_case,
            },
            f"A crop holds {share:.0%} of the file of a median case: every second one is put on a class.",
        )
    return plan


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts plan", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases, with a dataset.json or not")
    parser.add_argument("--output", type=Path, required=True, help="the overlay to write, a new .json file")
    parser.add_argument("--data_list_file_path", type=Path, help="the split; default: the one that a training makes")
    parser.add_argument("--fold", type=int, help="of a datalist with folds, the one to validate on")
    parser.add_argument("--modalities", type=listed(str), help="default: those that dataset.json or the files name")
    parser.add_argument(
        "--label_convention",
        help="of BraTS by name, or the path of a dataset.json; default: the dataset.json of the folder",
    )
    parser.add_argument("--hours", type=float, help="that the training may take on this machine")
    parser.add_argument("--memory_gib", type=float, help="that the training may take; default: what is free here")
    parser.add_argument("--suffixes", type=mapped, help="ends of foreign file names: \"{'T1w':'t1','dseg':'seg'}\"")
    arguments = parser.parse_args(argv)
    check_new("output", arguments.output, ".json")
    for name in ("hours", "memory_gib"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} should be above 0, got {value:g}.")
    modalities = arguments.modalities or find_modalities(arguments.dataset_dir, arguments.suffixes)
    if len(set(modalities)) < len(modalities):
        raise InputError(f"modalities should be different ones, got {', '.join(modalities)}.")
    convention = given_or_found(arguments.label_convention, arguments.dataset_dir)
    num_classes(convention)  # before cases are read
    entries = load_datalist(
        arguments.dataset_dir,
        "training",
        modalities,
        arguments.data_list_file_path,
        arguments.fold,
        suffixes=arguments.suffixes,
    )
    memory = memory_of_device() if arguments.memory_gib is None else arguments.memory_gib * 2**30
    plan = make_plan(entries, modalities, convention, memory, arguments.hours)
    if arguments.suffixes:
        plan.set("suffixes", arguments.suffixes, "As it was given.")
    about = (
        f"Overlay on train.json for {arguments.dataset_dir.resolve().name}, by python -m scripts plan; change what you "
        "know better. Below, the reason of each value."
    )
    with whole_file(arguments.output) as temporary:
        parts: dict[str, Any] = {f"+{name.split('#')[0]}": {} for name in plan.values if "#" in name}
        content = {"_desc_": {"plan": about, **plan.reasons}, **parts, **plan.values}
        temporary.write_text(json.dumps(content, indent=4) + "\n")
    for knob, value in plan.values.items():
        print(f"{knob}: {json.dumps(value)}\n    {plan.reasons[knob]}")
