"""Seeded four-modality "glioma" phantoms in BraTS layout: synthetic data for the demo and the tests.

A phantom is drawn, not measured, in milliseconds and at any size, without a template: for a network that is to segment
real gliomas there are the slower ones of ``scripts/sources/gliomas``. It shows what a segmentation network has to cope
with (folded grey matter, ventricles, a tumor of three tissues, contrasts that differ by modality, bias field, noise),
and says nothing about real scans.

    cd bundle && python -m scripts phantom --output_dir DIR --num_cases 24 --shape "[80,96,80]" --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import fft, ndimage

from ..arguments import listed
from .drawn import check_drawn, write_drawn

FIELD_OF_VIEW_MM = 192.0
NOISE_LIMIT = 2.5  # smooth noise is clipped here, so that a deformed boundary has a known reach

OUTSIDE, CSF, GREY, WHITE, LESION, VESSEL, NECROSIS, EDEMA, ENHANCING = range(9)
BRATS_2018_LABELS = {NECROSIS: 1, EDEMA: 2, ENHANCING: 4}
# Mean signal of each tissue, in the order above. Outside is drawn as CSF, the fluid around the brain, so that the blur
# that mimics partial volume has something plausible to mix in; it is set to zero afterwards. Lesions are what age
# leaves in FLAIR, a bright lining of the ventricles and bright patches in white matter; vessels enhance in T1ce. Both
# are there because no threshold can tell them from tumor.
SIGNALS = {
    #        outside CSF   grey  white lesion vessel necrosis edema enhancing
    "t1": (0.30, 0.30, 0.62, 0.85, 0.76, 0.55, 0.42, 0.66, 0.60),
    "t1ce": (0.30, 0.30, 0.60, 0.80, 0.72, 1.15, 0.38, 0.62, 1.20),
    "t2": (1.00, 1.00, 0.64, 0.45, 0.66, 0.40, 0.92, 0.80, 0.68),
    "flair": (0.20, 0.20, 0.62, 0.50, 0.84, 0.45, 0.58, 0.92, 0.76),
}


def _smooth_noise(rng: np.random.Generator, shape: Sequence[int], smoothness: float) -> np.ndarray:
    """Smooth random field of unit variance, clipped to +-NOISE_LIMIT; `smoothness` is a fraction of each side."""
    sigma = [max(1.0, smoothness * side) for side in shape]
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32))
    field = fft.irfftn(ndimage.fourier_gaussian(spectrum, sigma, n=shape[-1]), s=shape)
    return np.clip((field - field.mean()) / field.std(), -NOISE_LIMIT, NOISE_LIMIT).astype(np.float32)


def _brain_coordinates(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Coordinates in which the brain is the unit ball, axes to the left, posterior and superior: (3, H, W, D)."""
    half_extents = np.array([0.76, 0.82, 0.78]) * rng.uniform(0.95, 1.05, size=3)
    axes = [np.linspace(-1 / extent, 1 / extent, side) for side, extent in zip(shape, half_extents, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", copy=False)
    # A head seen from above is egg-shaped, and the base of the brain is flatter than its top.
    return np.stack([x / (1 + 0.08 * np.clip(y, -1, 1)), y, np.where(z < 0, 1.2 * z, z)]).astype(np.float32)


def _anatomy(coordinates: np.ndarray, radius: np.ndarray, folds: np.ndarray, ventricle_size: float) -> np.ndarray:
    """Tissue map (H, W, D) of a healthy brain; `radius` is 1 on its surface, `folds` a fine smooth-noise field."""
    x, y, z = coordinates
    lateral, depth = np.abs(x), 1 - radius
    # The zero level set of smooth noise is a winding sheet: a sulcus, lined by grey matter, that ends at some depth.
    to_sulcus = np.abs(folds) / np.sqrt(np.clip(1 - depth / 0.36, 1e-6, None))
    callosum = (y / 0.5) ** 2 + ((z - 0.05) / 0.34) ** 2 < 1
    fissure_width = np.where(callosum, 0, 0.025)
    deep_nuclei = ((lateral - 0.27) / 0.12) ** 2 + ((y - 0.02) / 0.3) ** 2 + ((z + 0.06) / 0.2) ** 2 < 1
    lateral_ventricle = np.sqrt(
        ((lateral - 0.09 - 0.55 * y**2) / 0.085) ** 2 + (y / 0.48) ** 2 + ((z - 0.12 + 0.4 * y**2) / 0.22) ** 2
    )
    third_ventricle = (lateral / 0.03) ** 2 + ((y - 0.03) / 0.2) ** 2 + ((z + 0.12) / 0.17) ** 2 < 1

    tissue = np.full(radius.shape, WHITE, dtype=np.uint8)
    tissue[(to_sulcus < 0.7) | (depth < 0.09) | (lateral < 3.2 * fissure_width) | deep_nuclei] = GREY
    tissue[(to_sulcus < 0.17) | (depth < 0.015) | (lateral < fissure_width)] = CSF
    tissue[lateral_ventricle < 1.2 * ventricle_size] = LESION
    tissue[(lateral_ventricle < ventricle_size) | third_ventricle] = CSF
    tissue[depth <= 0] = OUTSIDE
    return tissue


def _draw_tissue(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Tissue map (H, W, D) of a brain with one tumor, which grows in white matter and pushes the anatomy aside."""
    coordinates = _brain_coordinates(shape, rng)
    ball_radius = np.sqrt((coordinates**2).sum(axis=0))
    radius = ball_radius * (1 + 0.025 * _smooth_noise(rng, shape, 0.075))
    folds = _smooth_noise(rng, shape, 0.026)
    ventricle_size = rng.uniform(0.8, 1.15)
    healthy = _anatomy(coordinates, radius, folds, ventricle_size)

    core_radius = rng.uniform(0.18, 0.32)
    core_waviness, edema_waviness = 0.14, 0.22
    # Distances in these coordinates obey the triangle inequality: no such center lets the core leave the brain.
    core_reach = core_radius * (1 + core_waviness * NOISE_LIMIT)
    may_start = (healthy == WHITE) & (ball_radius + core_reach < 0.88) & (np.abs(coordinates[0]) > 0.18)
    h, w, d = np.unravel_index(rng.choice(np.flatnonzero(may_start)), shape)
    offset = coordinates - coordinates[:, h, w, d][:, None, None, None]
    distance = np.sqrt((offset**2).sum(axis=0))
    push = 0.4 * np.exp(-((distance / (1.7 * core_radius)) ** 2))
    tissue = _anatomy(coordinates - push * offset, radius, folds, ventricle_size)

    patches = _smooth_noise(rng, shape, 0.03)
    tissue[(patches > rng.uniform(2.0, NOISE_LIMIT)) & (tissue == WHITE)] = LESION
    vessels = np.abs(folds) + np.abs(patches) < 0.16  # two winding sheets meet along a winding line
    tissue[vessels & (radius < 0.97) & (tissue != WHITE) & (tissue != OUTSIDE)] = VESSEL

    edema_radius = core_radius * rng.uniform(1.6, 2.3) * (1 + edema_waviness * _smooth_noise(rng, shape, 0.05))
    same_side = coordinates[0] * coordinates[0, h, w, d] > 0
    white = np.isin(tissue, (WHITE, LESION))  # edema spares the cortex
    edema = (distance < edema_radius) & same_side & white
    core_depth = distance / (core_radius * (1 + core_waviness * _smooth_noise(rng, shape, 0.045)))
    necrosis_extent = rng.uniform(0.5, 0.75) * (1 + 0.12 * _smooth_noise(rng, shape, 0.04))
    core = core_depth < 1
    tissue[ndimage.binary_propagation(core, mask=core | edema)] = EDEMA  # without islands
    tissue[core] = ENHANCING
    tissue[core_depth < np.minimum(necrosis_extent, 0.85)] = NECROSIS
    return tissue


def _acquire(tissue: np.ndarray, signals: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """One modality of a tissue map: int16 (H, W, D), exactly 0 outside the brain and at least 1 inside."""
    means = np.asarray(signals, dtype=np.float32) * rng.uniform(0.93, 1.07, size=len(signals)).astype(np.float32)
    signal = ndimage.gaussian_filter(means[tissue], sigma=0.55, truncate=2.0)  # partial volume
    signal *= 1 + 0.04 * _smooth_noise(rng, tissue.shape, 0.02)  # texture
    signal *= np.exp(0.11 * _smooth_noise(rng, tissue.shape, 0.25))  # bias field
    # The magnitude of a complex signal has Rician noise.
    level = rng.uniform(0.015, 0.035)
    real, imaginary = level * rng.standard_normal((2, *tissue.shape), dtype=np.float32)
    signal = rng.uniform(300, 1500) * np.hypot(signal + real, imaginary)
    return np.where(tissue == OUTSIDE, 0, np.clip(np.rint(signal), 1, np.iinfo(np.int16).max)).astype(np.int16)


def make_phantom(seed: int, shape: Sequence[int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw one phantom. The same seed and shape give the same bytes, whatever the global random state.

    Args:
        seed: any integer from 0.
        shape: voxels to the left, posterior and superior (H, W, D), each at least 32; all sizes scale with it.

    Returns:
        The int16 volumes (H, W, D) by modality name (`t1`, `t1ce`, `t2`, `flair`), 0 outside the brain and positive
        inside; and the uint8 label (H, W, D) by the convention of BraTS 2018: 1 NCR/NET, 2 ED, 4 ET, all present.

    Raises:
        InputError: when `seed` is negative or `shape` is not three sides of at least 32.
    """
    check_drawn(seed, shape)
    rng = np.random.default_rng(seed)
    tissue = _draw_tissue(rng, tuple(shape))
    images = {modality: _acquire(tissue, signals, rng) for modality, signals in SIGNALS.items()}
    label = np.zeros(tissue.shape, dtype=np.uint8)
    for code, value in BRATS_2018_LABELS.items():
        label[tissue == code] = value
    return images, label


def lps_affine(shape: Sequence[int]) -> np.ndarray:
    """Affine (4, 4) in mm of a centered volume whose axes run left, posterior, superior, with cubic voxels."""
    spacing_mm = round(FIELD_OF_VIEW_MM / float(np.mean(shape)), 2)
    steps_mm = spacing_mm * np.array([-1.0, -1.0, 1.0])
    affine = np.diag([*steps_mm, 1.0])
    affine[:3, 3] = -steps_mm * (np.array(shape) - 1) / 2
    return affine


def write_phantoms(output_dir: str | Path, num_cases: int, shape: Sequence[int], seed: int = 0) -> list[Path]:
    """Write `phantom_000/phantom_000_{t1,t1ce,t2,flair,seg}.nii.gz` and so on under `output_dir`.

    As :func:`~scripts.sources.drawn.write_drawn` does.

    Args:
        output_dir: made when missing.
        num_cases: at least 1.
        shape: as in `make_phantom`.
        seed: any integer from 0.

    Returns:
        The case folders, in order.

    Raises:
        InputError: when one of the case folders exists; nothing has been written then.
        InputError: when an argument is out of range.
    """
    check_drawn(seed, shape)

    def draw(case_seed: int) -> dict[str, np.ndarray]:
        images, label = make_phantom(case_seed, shape)
        return {**images, "seg": label}

    return write_drawn(output_dir, "phantom", num_cases, seed, draw, lps_affine(shape))


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the phantoms."""
    parser = argparse.ArgumentParser(prog="python -m scripts phantom", description="Write synthetic BraTS-like cases.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives one folder per case")
    parser.add_argument("--num_cases", type=int, default=24, help="number of cases (default: %(default)s)")
    parser.add_argument(
        "--shape", type=listed(int, 3), default=[80, 96, 80], help="voxels, 32 or more (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other cases (default: %(default)s)")
    args = parser.parse_args(argv)
    write_phantoms(args.output_dir, args.num_cases, args.shape, args.seed)
    print(f"{args.num_cases} phantoms written to {args.output_dir}")
