"""An overlay of train.json for a data set, from what its files say; the number behind each value stands in the overlay.

    python -m scripts plan --dataset_dir <folder with a dataset.json> --output plan.json

What is read are the cases to train on: the headers of all, the voxels of up to 50. The rules are nnU-Net's where it
has one (Isensee et al., 2021), with the paper's crop as the largest.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.transforms import Compose, Orientationd
from tqdm.auto import tqdm

from ..arguments import listed, mapped
from ..data.cases import MODALITIES, WHOLE, channel_names, find_cases, first_file
from ..data.datalist import load_datalist
from ..data.labels import LABEL_CONVENTIONS, NAME, Convention, class_names, num_classes, recorded_convention
from ..data.loading import CT, LoadImageCased
from ..data.transforms import ValuesToClassesd
from ..errors import InputError
from ..files import whole_file
from ..memory import free_memory, gib
from ..networks import MISSU

__all__ = ["make_plan", "read_fingerprint"]

MOST_CASES = 50  # whose voxels are read
SAME_SPACING = 1.1
ANISOTROPIC = 3.0  # nnU-Net's ANISO_THRESHOLD
LONGEST_SIDE, SIDE_STEP = 128, 16  # the paper's crop; the encoder halves three times, and twice that stays even
LEAST_SHARE = 0.2  # of a case in a uniform crop; below it, half of the crops are put on a class
PERCENTILES = (0.5, 99.5)  # of the foreground of a CT, as nnU-Net clips it
SAMPLES = 10_000  # voxels of a CT from each case
PAPER_EPOCHS, MOST_STEPS, FEW_STEPS = 1000, 250_000, 10_000
PAPER_RATE, SHORT_RATE = 4e-4, 1e-3
STRETCH = 1.5
ORDERED_SHARE, LEAST_ORDERED = 0.98, 10  # of the cases, and how many, for an order of classes to be no chance
# Peak memory of training the default network in float32 on a CPU, measured from 64^3 to 96^3.
BYTES_PER_VOXEL, BYTES_FIXED = 1200, 400 * 2**20
# Multiplications of the default network: of convolutions and linear layers for each voxel, and of attention for each
# pair of tokens (docs/about/architecture.md); both for one pass.
MACS_PER_VOXEL, MACS_PER_PAIR, TOKEN_SIDE = 130.6e9 / 128**3, 68.7e9 / 4096**2, 8
AXES = {0: ("flip_left_right", "right"), 1: ("flip_front_back", "forward"), 2: ("flip_bottom_top", "up")}


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


@dataclass
class Plan:
    """Values of knobs in the order in which they are written, and why each is what it is."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, knob: str, value: Any, reason: str) -> None:
        self.values[knob] = value
        self.reasons[knob] = reason


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
    samples: dict[str, list[np.ndarray]] = {name: [] for name in modalities if name == CT}
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


def seconds_per_step(crop: Sequence[int], batch_size: int, in_channels: int, out_channels: int) -> tuple[float, str]:
    """How long a step takes on this machine, and how that is known: two steps on a crop of at most 64^3, scaled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = [min(side, 64) for side in crop]
    network = MISSU(in_channels=in_channels, out_channels=out_channels, img_size=sides)
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.randn(1, in_channels, *sides, device=device)
    label = torch.zeros(1, 1, *sides, device=device)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        loss(network(image), label).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    scale = batch_size * macs_of(crop) / macs_of(sides)
    least = min(seconds[1:])  # the first one prepares
    how = f"{least:.2g} s for one crop of {sides} on this machine's {device.type}, times {scale:.3g} by its MACs"
    return least * scale, how


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
    batch_size = 4 if torch.cuda.is_available() else 2
    crop, batch_size = fit_memory(wanted, batch_size, memory)
    reason = (
        f"What is not zero spans {' x '.join(map(str, median))} voxels in the median of {len(box)} cases: multiples of "
        f"{SIDE_STEP} below, at most the paper's {LONGEST_SIDE}."
    )
    if crop != wanted:
        reason += f" That would be {wanted}: the longest side was halved until the memory sufficed."
    plan.set("roi_size", crop, reason)
    share = math.prod(crop) / max(1, math.prod(median.tolist()))
    is_small = share < LEAST_SHARE and batch_size > 1
    per_case = 2 if is_small else 1
    plan.set(
        "batch_size",
        batch_size // per_case,
        f"{batch_size} crops in a step (the paper's 4 on a GPU, 2 on a CPU), {per_case} of a case, need about "
        f"{gib(bytes_of(crop, batch_size))} of the {gib(memory)} that are free.",
    )

    steps_per_epoch = math.ceil(len(entries) / (batch_size // per_case))
    seconds, how = seconds_per_step(crop, batch_size, len(modalities), num_classes(label_convention))
    epochs = min(PAPER_EPOCHS, max(1, MOST_STEPS // steps_per_epoch))
    if hours is not None:
        epochs = min(epochs, int(hours * 3600 / seconds / steps_per_epoch))
        if epochs < 1:
            raise InputError(
                f"hours should be {seconds * steps_per_epoch / 3600:.2g} or more, for one epoch of "
                f"{steps_per_epoch} steps, got {hours}."
            )
    steps = epochs * steps_per_epoch
    plan.set(
        "max_epochs",
        epochs,
        f"{steps} steps, {steps_per_epoch} in an epoch of {len(entries)} cases. They take about "
        f"{steps * seconds / 3600:.2g} hours: {how}; loading and validation come on top.",
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
    if is_small:
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
    of_folder = arguments.dataset_dir / "dataset.json"
    modalities = arguments.modalities or find_modalities(arguments.dataset_dir, arguments.suffixes)
    convention = arguments.label_convention or of_folder
    if arguments.label_convention is None and not of_folder.is_file():
        raise InputError(
            f"What the values of labels mean is not guessed, and {of_folder} is not there: give --label_convention, "
            f"one of {', '.join(LABEL_CONVENTIONS)}, or the path of a dataset.json."
        )
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
