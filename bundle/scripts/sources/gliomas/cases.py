"""Drawn cases: one by its seed, a new one for each sample of a training, or files on disk.

cd bundle && python -m scripts gliomas --output_dir DIR --num_cases 24 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform

from ...errors import InputError
from ..drawn import check_drawn, write_drawn
from .anatomy import SPACING_MM, draw_anatomy
from .contrasts import MODALITIES, draw_contrasts
from .draws import PARTS, Draws
from .tumors import grow

__all__ = ["SHAPE", "DrawGliomad", "draw_glioma", "main", "synthetic_cases", "write_cases"]

SHAPE = (80, 96, 80)  # voxels to the right, anterior and superior
BRATS_2018_VALUES = torch.tensor([0, 1, 2, 4], dtype=torch.uint8)
WITHOUT_TUMOR = 0.09


def draw_glioma(
    seed: int, shape: Sequence[int] = SHAPE, without: Collection[str] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one case. The same seed and shape give the same bytes, whatever the global random state.

    One case in eleven has no tumor, and one in five no enhancing tumor.

    Args:
        seed: any integer from 0.
        shape: voxels of 2 mm to the right, anterior and superior (H, W, D), each at least 32; the brain keeps its
            size in mm, and is cut where they do not hold it.
        without: of :data:`PARTS`, what the case is drawn without.

    Returns:
        Float32 image (4, H, W, D) of T1, T1ce, T2, FLAIR, 0 outside the brain and positive inside, not z-scored; and
        uint8 classes (H, W, D): 0 background, 1 necrotic and non-enhancing core, 2 edema, 3 enhancing tumor.

    Raises:
        InputError: when ``seed`` is negative, ``shape`` is not three sides of at least 32, ``without`` names another
            part, or nilearn is not installed.
    """
    check_drawn(seed, shape)
    if unknown := set(without) - set(PARTS):
        raise InputError(f"without should name some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}.")
    draws = Draws(seed, without)
    has_tumor = not draws.chance(WITHOUT_TUMOR)
    anatomy = draw_anatomy(draws, shape, has_tumor)
    tumor = grow(draws, anatomy)
    if not has_tumor:
        tumor = tumor._replace(classes=torch.zeros_like(tumor.classes))
    return draw_contrasts(draws, anatomy, tumor), tumor.classes


def synthetic_cases(num_cases: int) -> list[dict[str, str]]:
    """A datalist of cases that :class:`DrawGliomad` draws, for a training: so many make one epoch. No file is there."""
    names = [f"glioma_{number:04d}" for number in range(num_cases)]
    return [{"case_id": name, "image": f"synthetic_gliomas/{name}"} for name in names]


class DrawGliomad(Randomizable, Transform):
    """Draws a case by :func:`draw_glioma`, another one each time that it is called, where others load one.

    Sets ``image`` (4, H, W, D) and ``label`` (1, H, W, D), classes, with the affine of voxels of 2 mm. What is drawn
    depends on the random state alone, which ``scripts.data.SeededDataset`` sets for each sample.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        image, classes = draw_glioma(int(self.R.randint(2**31)))
        meta = {"case_id": data["case_id"]}
        return {
            **data,
            "image": MetaTensor(image, affine=torch.from_numpy(affine_of(SHAPE)), meta=dict(meta)),
            "label": MetaTensor(classes[None], affine=torch.from_numpy(affine_of(SHAPE)), meta=dict(meta)),
        }


def affine_of(shape: Sequence[int]) -> np.ndarray:
    """Affine (4, 4) of a centered volume with axes to the right, anterior and superior."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = -SPACING_MM * (np.array(shape) - 1) / 2
    return affine


def write_cases(output_dir: str | Path, num_cases: int, seed: int = 0, shape: Sequence[int] = SHAPE) -> list[Path]:
    """Write ``glioma_000/glioma_000_{t1,t1ce,t2,flair,seg}.nii.gz`` and so on, voxels of 2 mm, labels of BraTS 2018.

    As :func:`~scripts.sources.drawn.write_drawn` does.

    Args:
        output_dir: made where it is missing.
        num_cases: at least 1.
        seed: another seed draws other cases.
        shape: as in :func:`draw_glioma`.

    Returns:
        The folders of the cases, in order.

    Raises:
        InputError: when a folder exists, before anything is written, or an argument is out of range.
    """
    check_drawn(seed, shape)

    def draw(case_seed: int) -> dict[str, np.ndarray]:
        image, classes = draw_glioma(case_seed, shape)
        volumes = dict(zip(MODALITIES, (1000 * image).ceil().to(torch.int16).numpy(), strict=True))
        return {**volumes, "seg": BRATS_2018_VALUES[classes.long()].numpy()}

    return write_drawn(output_dir, "glioma", num_cases, seed, draw, affine_of(shape))


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the cases."""
    parser = argparse.ArgumentParser(prog="python -m scripts gliomas", description="Write synthetic gliomas.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives one folder per case")
    parser.add_argument("--num_cases", type=int, default=24, help="number of cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other cases (default: %(default)s)")
    args = parser.parse_args(argv)
    write_cases(args.output_dir, args.num_cases, args.seed)
    print(f"{args.num_cases} synthetic cases written to {args.output_dir}")
