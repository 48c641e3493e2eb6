"""Drawn cases on disk: a folder for each, by its number, whole or not there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..errors import InputError

__all__ = ["MIN_SIDE", "case_seed", "check_drawn", "write_drawn"]

MIN_SIDE = 32  # of a volume, voxels: below it a tumor's rim is thinner than one


def check_drawn(seed: int, shape: Sequence[int]) -> None:
    """Refuses what no case can be drawn from.

    Raises:
        InputError: when the seed is negative, or the shape is not three sides of at least ``MIN_SIDE``.
    """
    if seed < 0:
        raise InputError(f"seed should be 0 or more, got {seed}.")
    if len(shape) != 3 or min(shape) < MIN_SIDE:
        raise InputError(f"shape should be three sides of at least {MIN_SIDE} voxels, got {tuple(shape)}.")


def case_seed(seed: int, number: int) -> int:
    """The seed of a case by its number in a set: sets of different seeds share none."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def write_drawn(
    output_dir: str | Path,
    kind: str,
    num_cases: int,
    seed: int,
    draw: Callable[[int], Mapping[str, np.ndarray]],
    affine: np.ndarray,
) -> list[Path]:
    """Writes ``<kind>_000/<kind>_000_<suffix>.nii.gz`` and so on.

    A case depends on ``seed`` and its number only, so a larger ``num_cases`` repeats the cases of a smaller one. A
    folder appears complete or not at all; nothing is overwritten.

    Args:
        output_dir: made where it is missing.
        kind: of case, in its name.
        num_cases: at least 1.
        seed: of the set, from 0.
        draw: gives the volumes (H, W, D) of a case by its own seed, by their suffix.
        affine: of the volumes, in mm.

    Returns:
        The folders of the cases, in order.

    Raises:
        InputError: when a folder exists, before anything is written, or there is no case to write.
    """
    if num_cases < 1:
        raise InputError(f"num_cases should be 1 or more, got {num_cases}.")
    folders = [Path(output_dir) / f"{kind}_{number:03d}" for number in range(num_cases)]
    for folder in folders:
        if folder.exists():
            raise InputError(f"{folder} exists already, and nothing is overwritten.")
    for number, folder in enumerate(tqdm(folders, desc=f"{kind}s", unit="case", disable=None)):
        volumes = draw(case_seed(seed, number))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{kind}_", dir=folder.parent) as staging:
            unfinished = Path(staging) / folder.name
            unfinished.mkdir()
            for suffix, volume in volumes.items():
                file = nib.Nifti1Image(volume, affine)
                file.header.set_xyzt_units("mm")
                nib.save(file, unfinished / f"{folder.name}_{suffix}.nii.gz")
            unfinished.rename(folder)
    return folders
