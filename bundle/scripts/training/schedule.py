"""How long a training can be, and how large its steps: by the memory and the speed of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from monai.losses import DiceCELoss

from ..errors import InputError
from ..inference.inferer import Bfloat16Inferer
from ..memory import free_memory, gib
from ..networks import MISSU

__all__ = ["Schedule", "Speed", "fit_memory", "measure_speed", "plan_schedule", "plan_validations"]

SIDE_STEP = 16  # the encoder halves three times, and twice that stays even
PAPER_EPOCHS, MOST_STEPS, FEW_STEPS = 1000, 250_000, 10_000
PAPER_BATCH, SHORT_BATCH = 4, 2  # crops in a step
VAL_INTERVALS = range(5, 11)  # epochs from one validation to the next
# Peak memory of training the default network in float32 on a CPU, measured from 64^3 to 96^3.
BYTES_PER_VOXEL, BYTES_FIXED = 1200, 400 * 2**20
# Multiplications of the default network: of convolutions and linear layers for each voxel, and of attention for each
# pair of tokens (docs/about/architecture.md); both for one pass.
MACS_PER_VOXEL, MACS_PER_PAIR, TOKEN_SIDE = 130.6e9 / 128**3, 68.7e9 / 4096**2, 8


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


def memory_of_device() -> float:
    """Bytes that are free for a training: of the GPU, else of the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(free_memory() or math.inf)
