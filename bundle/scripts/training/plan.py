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
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from monai.losses import DiceCELoss

from ..arguments import listed, mapped
from ..data.datalist import load_datalist
from ..data.labels import LABEL_CONVENTIONS, Convention, class_names, given_or_found, num_classes, recorded_convention
from ..errors import InputError
from ..files import whole_file
from ..inference.inferer import Bfloat16Inferer
from ..memory import free_memory, gib
from ..networks import MISSU
from .fingerprint import PERCENTILES, find_modalities, read_fingerprint

__all__ = ["make_plan"]

logger = logging.getLogger(__name__)

SAME_SPACING = 1.1
ANISOTROPIC = 3.0  # nnU-Net's ANISO_THRESHOLD
LONGEST_SIDE, SIDE_STEP = 128, 16  # the paper's crop; the encoder halves three times, and twice that stays even
LEAST_SHARE = 0.2  # of a case in a uniform crop; below it, half of the crops are put on a class
PAPER_EPOCHS, MOST_STEPS, FEW_STEPS = 1000, 250_000, 10_000
PAPER_RATE, SHORT_RATE = 4e-4, 1e-3
PAPER_BATCH, SHORT_BATCH = 4, 2  # crops in a step
VAL_INTERVALS = range(5, 11)  # epochs from one validation to the next
STRETCH = 1.5
ORDERED_SHARE, LEAST_ORDERED = 0.98, 10  # of the cases, and how many, for an order of classes to be no chance
# Peak memory of training the default network in float32 on a CPU, measured from 64^3 to 96^3.
BYTES_PER_VOXEL, BYTES_FIXED = 1200, 400 * 2**20
# Multiplications of the default network: of convolutions and linear layers for each voxel, and of attention for each
# pair of tokens (docs/about/architecture.md); both for one pass.
MACS_PER_VOXEL, MACS_PER_PAIR, TOKEN_SIDE = 130.6e9 / 128**3, 68.7e9 / 4096**2, 8
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


def bytes_of(crop: Sequence[int], batch_size: int) -> int:
    """Memory of a training, estimated."""
    return BYTES_FIXED + BYTES_PER_VOXEL * batch_size * math.prod(crop)


def macs_of(crop: Sequence[int]) -> float:
    """Multiplications of one pass of the default network."""
    voxels = math.prod(crop)
    return MACS_PER_VOXEL * voxels + MACS_PER_PAIR * (voxels / TOKEN_SIDE**3) ** 2


def fit_memory(crop: Sequence[int], batch_size: int, memory: float) -> tuple[list[int], int]:
    """Crop and batch that fit: the batch is halved to 2, then the longest side by 16, at last the batch to 1.

    Raises:
        InputError: when the smallest crop does not fit.
    """
    crop = list(crop)
    while bytes_of(crop, batch_size) > memory:
        if batch_size > 2:
            batch_size //= 2
        elif max(crop) > SIDE_STEP:
            longest = crop.index(max(crop))
            crop[longest] = max(SIDE_STEP, crop[longest] // 2 // SIDE_STEP * SIDE_STEP)
        elif batch_size > 1:
            batch_size = 1
        else:
            raise InputError(
                f"A training needs {gib(bytes_of(crop, 1))} of memory or more, {gib(memory)} are free: close other "
                "programs, or take another machine."
            )
    return crop, batch_size


def has_bfloat16() -> bool:
    """Whether a training on this machine's CPU gains by bfloat16; a GPU has automatic mixed precision of its own."""
    return not torch.cuda.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Speed:
    """What a training takes on this machine: seconds of a pass there and back for each crop, and of each update."""

    of_crop: float
    of_update: float
    how: str

    def of_step(self, batch_size: int) -> float:
        return batch_size * self.of_crop + self.of_update


def measure_speed(crop: Sequence[int], in_channels: int, out_channels: int) -> Speed:
    """Takes three steps on one crop of at most 64^3; a larger one takes as much more as it has multiplications."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = [min(side, 64) for side in crop]
    network = MISSU(in_channels=in_channels, out_channels=out_channels, img_size=sides)
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.randn(1, in_channels, *sides, device=device)
    label = torch.zeros(1, 1, *sides, device=device)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters())
    inferer: Inferer = Bfloat16Inferer() if has_bfloat16() else SimpleInferer()
    seconds = []
    for _ in range(3):
        times = []
        for act in (lambda: loss(inferer(image, network), label).backward(), optimizer.step):
            start = time.perf_counter()
            act()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds.append(times)
    of_crop, of_update = np.min(seconds[1:], axis=0)  # the first step prepares
    scale = macs_of(crop) / macs_of(sides)
    how = f"{of_crop:.2g} s for one crop of {sides} on this machine's {device.type}"
    how += " in bfloat16" if has_bfloat16() else ""
    how += f", times {scale:.3g} by its MACs" if scale > 1 else ""
    return Speed(float(of_crop * scale), float(of_update), f"{how}, {of_update:.2g} s for an update of the weights")


class Schedule(NamedTuple):
    """How long a training is, in steps of ``num_crops``, why of so many, and how often it is validated."""

    num_crops: int
    epochs: int
    val_interval: int
    steps_per_epoch: int
    why: str

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def plan_validations(epochs: int) -> tuple[int, int]:
    """The most epochs that end with a validation, which keeps the weights, and how many lie from one to the next."""
    if epochs <= max(VAL_INTERVALS):
        return epochs, epochs
    return max((epochs // interval * interval, interval) for interval in VAL_INTERVALS)


def plan_schedule(num_cases: int, per_case: int, most_crops: int, speed: Speed, hours: float | None) -> Schedule:
    """The paper's batch and epochs, at most nnU-Net's steps, or what fits the hours.

    Where these hold few steps, smaller ones, of which they hold more.

    Args:
        num_cases: to train on.
        per_case: crops of a case in a step.
        most_crops: in a step, by the memory.
        speed: of this machine.
        hours: that the training may take, or ``None``.

    Raises:
        InputError: when the hours do not hold one epoch.
    """
    of_paper = f"the paper's {PAPER_BATCH}"
    why = of_paper if most_crops == PAPER_BATCH else f"not {of_paper}, for the memory"
    for num_crops in (most_crops, min(most_crops, SHORT_BATCH)):
        steps_per_epoch = math.ceil(num_cases * per_case / num_crops)
        epochs = min(PAPER_EPOCHS, max(1, MOST_STEPS // steps_per_epoch))
        seconds = speed.of_step(num_crops) * steps_per_epoch
        fitting = epochs if hours is None else int(hours * 3600 / seconds)
        epochs, is_cut = min(epochs, fitting), fitting < epochs
        schedule = Schedule(num_crops, *plan_validations(epochs), steps_per_epoch, why)
        if not is_cut or schedule.steps >= FEW_STEPS:
            break
        why = f"not {of_paper}: {hours} hours hold {schedule.steps} of these, less than {FEW_STEPS}"
    if schedule.epochs < 1:
        raise InputError(
            f"hours should be {seconds / 3600:.2g} or more, for one epoch of {steps_per_epoch} steps, got {hours}."
        )
    return schedule


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
    share = math.prod(crop) / max(1, math.prod(median.tolist()))
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
        schedule.val_interval,
        f"Epochs from one validation to the next, at most {max(VAL_INTERVALS)}, so that the last one is validated.",
    )
    rate = SHORT_RATE if steps < FEW_STEPS else PAPER_RATE
    plan.set("learning_rate", rate, f"{SHORT_RATE:g} below {FEW_STEPS} steps, else the paper's {PAPER_RATE:g}.")

    fits = bool((largest <= STRETCH * np.array(crop) // TOKEN_SIDE * TOKEN_SIDE).all())
    plan.set(
        "stretch",
        STRETCH if fits else 1.0,
        f"The largest case spans {' x '.join(map(str, largest))} voxels: "
        + (f"whole images fit one window of at most {STRETCH} times the crop." if fits else "windows of the crop."),
    )
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
            f"A crop holds {share:.0%} of a median case: every second one is put on a class.",
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
    if arguments.output.exists():
        raise InputError(f"output should be a new file, {arguments.output} exists.")
    modalities = arguments.modalities or find_modalities(arguments.dataset_dir, arguments.suffixes)
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
    memory = arguments.memory_gib * 2**30 if arguments.memory_gib else memory_of_device()
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


def memory_of_device() -> float:
    """Bytes that are free for a training: of the GPU, else of the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(free_memory() or math.inf)
