"""Synthetic gliomas in a deformed template brain: four contrasts with labels, and no patient in them.

A case is drawn, not measured. A template brain is deformed, a tumor of three tissues grows in its white matter and
pushes it aside, and the contrasts are drawn from priors wide enough for many scanners. What looks like a tumor and is
none is drawn too: vessels and meninges after contrast, lesions of age, old blood, cysts. The priors come from what MRI
physics and the annotation rules of BraTS say. None is estimated from patients; they were set wider where pictures and
mean signals of 13 cases of BraTS 2018 lay outside, or a network trained on drawn brains failed on them.

The anatomy is the symmetric non-linear template ICBM 2009a (T1, grey and white matter, 1 mm) from the files of
``nilearn`` (BSD-3-Clause). The template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University; it may be used, copied, modified and distributed for any purpose
where this notice stays. Fonov et al., NeuroImage 47 (2009) S102 and 54 (2011) 313-327.

    cd bundle && python -m scripts gliomas --output_dir DIR --num_cases 24 --seed 0
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform
from scipy import ndimage
from tqdm import tqdm

from ..errors import InputError

__all__ = [
    "MODALITIES",
    "SHAPE",
    "SPACING_MM",
    "DrawGliomad",
    "case_seed",
    "draw_glioma",
    "synthetic_cases",
    "write_cases",
]

MODALITIES = ("t1", "t1ce", "t2", "flair")
SHAPE = (80, 96, 80)  # voxels to the right, anterior and superior
SPACING_MM = 2.0
MIN_SIDE = 32
NCR, ED, ET = 1, 2, 3
BRATS_2018_VALUES = torch.tensor([0, 1, 2, 4], dtype=torch.uint8)
WITHOUT_TUMOR = 0.09

# Mean signals of CSF, grey and white matter in standard deviations around the brain's mean, which is how a z-scored
# scan shows them. Each case draws its own from these ranges.
TISSUES = {
    "t1": ((-3.2, -1.9), (-0.7, 0.0), (0.5, 1.1)),
    "t1ce": ((-3.2, -1.9), (-0.5, 0.1), (0.3, 0.9)),
    "t2": ((1.8, 4.2), (-0.1, 0.7), (-0.9, -0.2)),
    "flair": ((-3.2, -1.4), (0.1, 1.2), (-0.5, 0.3)),
}
DETAIL = {"t1": 5.0, "t1ce": 4.0, "t2": -3.0, "flair": 0.0}  # gain of what the template's T1 shows within a tissue
TEXTURE = {"t1": 0.4, "t1ce": 0.45, "t2": 0.7, "flair": 0.9}  # standard deviation within a tumor tissue
RIM = {"t1": (-2.5, 0.0), "t1ce": (-2.5, 2.5), "t2": (-2.0, 2.5), "flair": (-3.0, 1.0)}  # left by skull stripping


class _Draws:
    """All that is random about a case, from one generator of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def index(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def smooth(self, shape: Sequence[int], spacing: float, channels: int = 1) -> torch.Tensor:
        """Smooth noise (channels, H, W, D) of unit variance that varies over ``spacing`` voxels."""
        weights = [_interpolation(side, spacing) for side in shape]
        noise = self.normal(channels, *[matrix.shape[1] for matrix in weights])
        for matrix in weights:  # each turn moves the interpolated axis to the end
            noise = torch.tensordot(noise, matrix, dims=([1], [1]))
        return noise


@functools.lru_cache(maxsize=1024)
def _interpolation(side: int, spacing: float) -> torch.Tensor:
    """Gaussian weights (side, cells) from a coarse axis to a fine one; rows of unit length, so that variance stays."""
    cells = torch.arange(-1.0, math.ceil((side - 1) / spacing) + 2)
    weights = torch.exp(-0.5 * ((torch.arange(side)[:, None] / spacing - cells) / 0.6) ** 2)
    return weights / weights.norm(dim=1, keepdim=True)


class _Template(NamedTuple):
    """The template at 1 mm, smoothed for voxels of 2 mm."""

    tissues: torch.Tensor  # (4, H, W, D): CSF, grey matter, white matter, detail of T1
    shape: torch.Tensor  # (2, H, W, D): depth below the surface in mm, and nearness of the lateral ventricles, 0 to 1
    ventricles: torch.Tensor  # (3, H, W, D): direction into the ventricles, at most 1


@functools.lru_cache(maxsize=1)
def _template() -> _Template:
    try:
        nilearn = resources.files("nilearn")
    except ModuleNotFoundError as error:
        raise InputError("Synthetic gliomas need the template in nilearn: pip install nilearn.") from error
    volumes = []
    for name in ("t1", "gm", "wm"):
        file = nilearn / f"datasets/data/mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        with resources.as_file(file) as path:
            volume = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float32)
        volumes.append(volume / volume.max())
    t1, grey, white = volumes
    brain = ndimage.binary_fill_holes(t1 > 0.05)
    csf = np.clip(brain - grey - white, 0, 1)
    below, above = ndimage.distance_transform_edt(brain), ndimage.distance_transform_edt(~brain)
    pools, _ = ndimage.label((csf > 0.5) & (below > 22))
    ventricles = (pools == np.bincount(pools[pools > 0]).argmax()).astype(np.float32)
    near = ndimage.gaussian_filter(ventricles, 4.0)
    into = np.stack(np.gradient(near))
    into /= np.sqrt((into**2).sum(0)).max()
    maps = np.stack([csf, grey, white, t1 - ndimage.gaussian_filter(t1, 3.0), below - above, near / near.max()])
    maps = maps.astype(np.float32)
    for axis in (1, 2, 3):
        maps = ndimage.convolve1d(maps, np.array([0.25, 0.5, 0.25], dtype=np.float32), axis=axis)
    return _Template(torch.from_numpy(maps[:4]), torch.from_numpy(maps[4:]), torch.from_numpy(into.astype(np.float32)))


class _Anatomy(NamedTuple):
    """A brain with room for a tumor: fields (H, W, D), and where the tumor begins."""

    csf: torch.Tensor
    grey: torch.Tensor
    white: torch.Tensor
    detail: torch.Tensor
    depth: torch.Tensor  # below the surface, mm
    ventricles: torch.Tensor  # nearness
    position: torch.Tensor  # (3, H, W, D): in the template, mm from its center
    mask: torch.Tensor
    folds: torch.Tensor  # noise of several scales, shared by what follows
    coarse: torch.Tensor
    medium: torch.Tensor
    fine: torch.Tensor
    center: torch.Tensor  # of the tumor, voxels
    radius: float  # of its core, voxels
    elsewhere: torch.Tensor  # (N, 3): where another focus may lie, voxels


def _sample(maps: torch.Tensor, points_mm: torch.Tensor) -> torch.Tensor:
    """Values (C, ...) of maps (C, H, W, D) at 1 mm, at points (..., 3) in mm from their center."""
    half = torch.tensor([(side - 1) / 2 for side in maps.shape[1:]])
    grid = (points_mm / half).flip(-1).reshape(1, -1, 1, 1, 3)
    values = F.grid_sample(maps[None], grid, align_corners=True, padding_mode="border")
    return values.reshape(maps.shape[0], *points_mm.shape[:-1])


def _resize(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x[None], size=tuple(shape), mode="trilinear", align_corners=True)[0]


def _grid(shape: Sequence[int]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in shape], indexing="ij"), -1)


def _blur(x: torch.Tensor, side: float) -> torch.Tensor:
    """Blur (C, H, W, D) by the kernel (side, 1 - 2 side, side) along each axis."""
    for axis in (1, 2, 3):
        blurred = x * (1 - 2 * side)
        length = x.shape[axis] - 1
        blurred.narrow(axis, 1, length).add_(x.narrow(axis, 0, length), alpha=side)
        blurred.narrow(axis, 0, length).add_(x.narrow(axis, 1, length), alpha=side)
        x = blurred
    return x


def _rotation(draws: _Draws) -> torch.Tensor:
    """Small rotation and scale (3, 3)."""
    matrix = torch.eye(3)
    for axis in range(3):
        angle = draws.uniform(-0.17, 0.17)
        first, second = [other for other in range(3) if other != axis]
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    size = draws.uniform(0.95, 1.09)
    return matrix @ torch.diag(torch.tensor([size * draws.uniform(0.95, 1.05) for _ in range(3)]))


def _draw_anatomy(draws: _Draws, shape: Sequence[int], has_tumor: bool) -> _Anatomy:
    u, chance = draws.uniform, draws.chance
    template = _template()
    # Deformations are smooth: half the resolution holds them. A point of the case is looked up in the template.
    low = [side // 2 for side in shape]
    voxels = _grid(low) * torch.tensor([(side - 1) / (half - 1) for side, half in zip(shape, low, strict=True)])
    points = (voxels - (torch.tensor(shape) - 1) / 2) * SPACING_MM @ _rotation(draws).T
    points = points + torch.tensor([u(-2, 2) for _ in range(3)])
    for spacing, size_mm in ((10, u(1, 4)), (5, u(0.5, 2.0)), (2.5, u(0, 0.8))):  # nothing symmetric about it
        points = points + size_mm * draws.smooth(low, spacing, 3).permute(1, 2, 3, 0)
    wider_mm = u(-2.5, 3) if chance(0.6) else u(2, 9)
    points = points + wider_mm * _sample(template.ventricles, points).permute(1, 2, 3, 0)

    depth = _sample(template.shape[:1], points)[0]
    white = _sample(template.tissues[2:3], points)[0]
    x_mm, y_mm, z_mm = points.unbind(-1)
    below = (z_mm < -40) & ((y_mm < -12) | (x_mm.abs() < 15))  # cerebellum and brain stem
    may_start = (white > 0.5) & (depth > u(3, 12)) & (below if chance(0.05) else ~below)
    candidates = (may_start if may_start.any() else depth > 0).nonzero()
    place = candidates[draws.index(len(candidates))]
    radius = u(2.5, 8) if chance(0.27) else u(6, 18)
    if has_tumor:  # mass effect: tissue moves away from the center, and the skull does not give way
        offset_mm = points - points[tuple(place)]
        reach_mm = radius * SPACING_MM * u(1.2, 2.6)
        pushed = u(0, 0.55) * (depth / 18).clamp(0, 1) * torch.exp(-offset_mm.square().sum(-1) / reach_mm**2)
        points = points - pushed[..., None] * offset_mm

    depth, ventricles = _resize(_sample(template.shape, points), shape)
    position = _resize(points.permute(3, 0, 1, 2), shape)
    near = depth > -4
    tissues = torch.zeros(4, *shape)
    tissues[:, near] = _sample(template.tissues, position[:, near].T)
    csf, grey, white, detail = tissues
    folds, coarse, medium, fine = (draws.smooth(shape, spacing)[0] for spacing in (3.2, 14, 4.5, 2.2))
    # Sharper than the mean of 152 brains, with sulci of its own, narrow or wide.
    cortex = torch.exp(-(((depth - 7) / 7) ** 2)) * (ventricles < 0.05)
    csf = csf + u(0, 0.9) * cortex * (1 - folds.abs() / 0.25).clamp_min(0) * (grey + csf)
    mixture = torch.stack([csf * u(0.55, 1.9), grey, white]).clamp_min(1e-4) ** u(1.0, 2.2)
    csf, grey, white = mixture / mixture.sum(0)

    surface = depth - u(-1.5, 3.5) + u(0, 2.5) * coarse.clamp(-1.5, 1.5)  # skull stripping takes or leaves some
    if chance(0.3):
        surface = surface + u(0, 4) * draws.smooth(shape, 9)[0].clamp(-1, 1.5)
    mask = surface > 0
    if chance(0.04):  # the field of view ends in the brain
        cut = shape[2] // 13 + draws.index(shape[2] // 6)
        mask[..., slice(None, cut) if chance(0.5) else slice(shape[2] - cut, None)] = False
    fields = (csf, grey, white, detail, depth, ventricles, position, mask, folds, coarse, medium, fine)
    return _Anatomy(*fields, voxels[tuple(place)], radius, voxels[tuple(candidates.T)])


def _blob(draws: _Draws, voxels: torch.Tensor, center: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance (H, W, D) from the center of an ellipsoid, 1 on its surface."""
    turn, _ = torch.linalg.qr(draws.normal(3, 3))
    axes = torch.tensor([draws.uniform(0.7, 1.4) for _ in range(3)])
    return ((voxels - center) @ (turn / axes / radius)).square().sum(-1).sqrt()


def _core_distance(draws: _Draws, anatomy: _Anatomy) -> torch.Tensor:
    """Distance (H, W, D) that is 1 on the core's surface: lobed, rough, of one focus or several."""
    u, chance = draws.uniform, draws.chance
    radius, center, shape = anatomy.radius, anatomy.center, anatomy.mask.shape
    voxels = _grid(shape)
    core = _blob(draws, voxels, center, radius)
    for _ in range(draws.index(3) if chance(0.5) else 0):
        lobe = center + draws.normal(3) * radius * 0.55
        core = torch.minimum(core, _blob(draws, voxels, lobe, radius * u(0.45, 0.85)))
    for _ in range(1 + draws.index(3) if chance(0.2) else 0):
        satellite = center + draws.normal(3) * (radius + 5)
        if chance(0.25):
            satellite = anatomy.elsewhere[draws.index(len(anatomy.elsewhere))]
        core = torch.minimum(core, _blob(draws, voxels, satellite, max(1.5, radius * u(0.15, 0.6))))
    roughness = u(0.03, 0.22)
    core = core + roughness * (anatomy.medium + u(0, 0.6) * anatomy.fine)
    return core + u(0.02, 0.2) * draws.smooth(shape, max(3.0, radius * 0.8))[0]


class _Tumor(NamedTuple):
    classes: torch.Tensor  # (H, W, D) uint8
    swelling: torch.Tensor  # (H, W, D): 0 at the border of the edema to 1 inside
    necrotic: bool  # whether what does not enhance is dead tissue, and not solid tumor


def _grow(draws: _Draws, anatomy: _Anatomy) -> _Tumor:
    """Classes by the rules of BraTS: edema along white matter, core, enhancing rim or patches; never fluid spaces."""
    u, chance = draws.uniform, draws.chance
    core = _core_distance(draws, anatomy)
    csf, grey, white, radius = anatomy.csf, anatomy.grey, anatomy.white, anatomy.radius
    medium, coarse, fine = anatomy.medium, anatomy.coarse, anatomy.fine
    kind = u(0, 1)
    low_grade = kind > 0.78
    fluid = (csf > u(0.45, 0.7)) & (anatomy.ventricles > 0.15)
    inside = anatomy.mask & (anatomy.depth > 0) & ~fluid

    x_mm = anatomy.position[0]
    across = (x_mm * x_mm[tuple(anatomy.center.round().long())] < 0) & (x_mm.abs() > 1.5)
    bridge = white > (0.85 if chance(0.4) else 2)  # the corpus callosum, where the tumor crosses at all
    margin = u(0, 3.5) if low_grade and chance(0.65) else u(1.5, 7) if chance(0.3) else u(5, 20)
    noise = (0.22 * medium + u(0.05, 0.35) * coarse + u(0, 0.18) * fine) * max(margin, 1.5)
    distance = (core - 1) * radius + noise + (across & ~bridge) * (0.7 * margin + 4)
    reach = margin * (u(0, 0.35) * grey + 1.05 * white)
    swelling = ((reach - distance) / max(0.35 * margin, 1.0)).clamp(0, 1)
    classes = torch.zeros(core.shape, dtype=torch.uint8)
    classes[(distance < reach) & (csf < 0.5) & inside] = ED

    tumor = (core + across * u(0, 0.5) < 1) & inside
    if chance(0.5):  # sulci stay open near its surface
        tumor &= (csf < u(0.6, 0.95)) | (core < 0.75)
    classes[tumor] = NCR
    grain = draws.smooth(core.shape, u(2.5, 6))[0]
    if kind < 0.5:  # a ring, thin or thick, whole or broken
        from_surface = (1 - core - u(0, 0.18) * grain - u(0, 0.1) * fine) * radius
        enhancing = from_surface < (u(0.8, 2.0) if chance(0.5) else u(1.5, 5))
        if chance(0.15):  # with solid tumor around it
            enhancing &= core < 1 - u(0.1, 0.3)
        if chance(0.4):
            enhancing &= medium + 0.5 * coarse > u(-1.8, -0.1)
        if chance(0.3):
            enhancing |= grain.abs() < u(0.05, 0.25)
    elif kind < 0.62:  # solid
        enhancing = grain > u(-3.0, -0.8)
    elif kind < 0.78:  # in patches
        enhancing = grain + 0.4 * fine > u(-0.8, 1.0)
    elif kind < 0.86:  # a spot or two in a low-grade tumor
        enhancing = grain > u(1.4, 2.2)
    else:
        enhancing = torch.zeros_like(tumor)
    classes[tumor & enhancing] = ET
    classes *= _with_core(classes)
    return _Tumor(classes, swelling, kind < 0.62 or chance(0.25))


def _with_core(classes: torch.Tensor) -> torch.Tensor:
    """The connected pieces of a tumor that hold more than edema (H, W, D)."""
    pieces, _ = ndimage.label(classes.numpy() > 0)
    kept = np.unique(pieces[(classes == NCR) | (classes == ET)])
    return torch.from_numpy(np.isin(pieces, kept))


def _tumor_signals(draws: _Draws, necrotic: bool) -> dict[str, tuple[float, float, float]]:
    """Mean signals of necrotic core, edema and enhancing tumor by modality, before they enhance."""
    u, chance = draws.uniform, draws.chance
    edema = {"t1": u(-0.9, 0.7), "t2": u(0.4, 2.6), "flair": u(1.0, 2.4) if chance(0.4) else u(1.6, 5.2)}
    if not necrotic:
        core = {"t1": u(-2.0, 0.2), "t2": edema["t2"] + u(-0.3, 1.8), "flair": edema["flair"] + u(-2.0, 1.4)}
    elif chance(0.25):  # a cyst
        core = {"t1": u(-2.6, -0.8), "t2": u(2.2, 4.2), "flair": u(-2.6, 0.8)}
    else:
        core = {"t1": u(-1.9, 0.1), "t2": edema["t2"] + u(-0.3, 2.8), "flair": edema["flair"] + u(-2.4, 2.4)}
    enhancing = {"t1": u(-1.0, 0.7), "t2": edema["t2"] + u(-0.9, 1.1), "flair": edema["flair"] + u(-1.3, 1.6)}
    shift = u(-0.25, 0.15)
    for tissue in (core, edema, enhancing):
        tissue["t1ce"] = tissue["t1"] + shift + u(-0.15, 0.15)
    core["t1ce"] -= u(0, 0.4)
    return {name: (core[name], edema[name], enhancing[name]) for name in MODALITIES}


def _enhancing_mimics(draws: _Draws, anatomy: _Anatomy, healthy: torch.Tensor, vessels: torch.Tensor) -> torch.Tensor:
    """How bright contrast makes vessels, choroid plexus and meninges (H, W, D); 0 elsewhere."""
    u, chance = draws.uniform, draws.chance
    csf, depth, near, medium = anatomy.csf, anatomy.depth, anatomy.ventricles, anatomy.medium
    x_mm, y_mm, z_mm = anatomy.position
    midline = x_mm.abs()
    bright = torch.zeros(healthy.shape)
    if chance(0.85):  # superior sagittal sinus
        bright[(midline < u(1.5, 4)) & (depth < u(3, 9)) & ((z_mm > 0) | (y_mm < -40))] = u(0.5, 5)
    if chance(0.35):  # falx
        bright[(midline < 1.3) & (csf > 0.3) & (z_mm > -5)] = u(0.3, 2.5)
    if chance(0.6):  # transverse sinuses
        bright[(depth < u(3, 8)) & ((z_mm + 38).abs() < u(3, 7)) & (y_mm < -25)] = u(0.5, 4.5)
    if chance(0.9):  # vessels of the cortex and of the ventricles' walls
        bright[(vessels < u(0.05, 0.2)) & ((csf > 0.3) | (depth < 9) | (near > 0.1))] = u(0.8, 5)
    if chance(0.7):  # arteries of the base
        base = ((z_mm + 45).abs() < 14) & (midline < 28) & (y_mm > 0) & (csf > 0.25)
        bright[(vessels < u(0.15, 0.4)) & base] = u(1, 5.5)
    if chance(0.6):  # great vein
        bright[(midline < 3) & ((z_mm + 14).abs() < 5) & ((y_mm + 28).abs() < u(3, 9))] = u(0.5, 4.5)
    if chance(0.75):  # choroid plexus
        bright[(csf > 0.45) & (near > 0.3) & (medium + 0.4 * anatomy.fine > u(0.4, 1.8))] = u(0.8, 4.5)
    if chance(0.6):  # meninges, whole or in places
        bright[(depth < u(2, 5)) & (anatomy.folds + medium > u(-2.5, 1.5))] += u(0.3, 2.5)
    return bright if chance(0.1) else bright * healthy


def _age(draws: _Draws, anatomy: _Anatomy) -> torch.Tensor:
    """Lesions of the white matter and caps of the ventricles (H, W, D), 0 to 1: bright on FLAIR and T2, no tumor."""
    u, chance = draws.uniform, draws.chance
    age = torch.zeros(anatomy.mask.shape)
    if chance(0.5):
        caps = (anatomy.ventricles - u(0.08, 0.2)).clamp(0, 1) * 6 * (anatomy.csf < 0.5)
        age = caps.clamp(0, 1) * u(0.2, 1)
    if chance(0.45):
        spots = draws.smooth(age.shape, u(2.2, 6))[0] - u(1.6, 2.6)
        age = torch.maximum(age, spots.clamp(0, 0.5) * 2)
    return age * anatomy.white


def _one_place(draws: _Draws, region: torch.Tensor) -> torch.Tensor:
    """One of the connected pieces of a mask (H, W, D)."""
    pieces, count = ndimage.label(region.numpy())
    return torch.from_numpy(pieces == 1 + draws.index(count)) if count else region


def _blood(draws: _Draws, anatomy: _Anatomy, classes: torch.Tensor) -> torch.Tensor:
    """Old blood (H, W, D), in the necrotic core or far from any tumor."""
    if draws.chance(0.6):
        return (anatomy.medium + 0.3 * anatomy.folds > 0.3) & (classes == NCR)
    pools = draws.smooth(classes.shape, draws.uniform(3, 8))[0] > 1.7
    return _one_place(draws, pools & (classes == 0) & (anatomy.depth > 3))


def _old_cavity(draws: _Draws, anatomy: _Anatomy, healthy: torch.Tensor) -> torch.Tensor:
    """A cavity full of fluid (H, W, D) that was no tumor."""
    places = (anatomy.depth > 4).nonzero()
    center = places[draws.index(len(places))]
    distance = _blob(draws, _grid(healthy.shape), center, draws.uniform(2, 7))
    return (distance + 0.1 * anatomy.medium < 1) & healthy


def _draw_contrasts(draws: _Draws, anatomy: _Anatomy, tumor: _Tumor) -> torch.Tensor:
    """The four modalities (4, H, W, D)."""
    u, chance = draws.uniform, draws.chance
    shape = anatomy.mask.shape
    csf, grey, white, depth, medium = anatomy.csf, anatomy.grey, anatomy.white, anatomy.depth, anatomy.medium
    healthy = tumor.classes == 0
    parts = _blur(torch.stack([(tumor.classes == k).float() for k in (NCR, ED, ET)]), u(0.05, 0.2))
    if chance(0.8):  # edema fades towards its border
        parts[1] *= (u(0.5, 1.0) + u(0, 0.6) * tumor.swelling).clamp_max(1)
    parts *= torch.tensor([u(0.85, 1), u(0.75, 1), 1.0]).view(3, 1, 1, 1)  # and lets the anatomy shine through
    sick = parts.sum(0)
    means = _tumor_signals(draws, tumor.necrotic)
    grain = draws.smooth(shape, 1.6)[0]
    vessels = (
        draws.smooth(shape, u(5, 9), 2).square().sum(0).sqrt()
    )  # where two sheets of zeros meet lies a winding line
    bright = _enhancing_mimics(draws, anatomy, healthy, vessels)
    age, age_gain = _age(draws, anatomy), {"t1": -0.3, "t1ce": 0.0, "t2": u(0.2, 1.5), "flair": u(0.4, 3.0)}
    blood = _blood(draws, anatomy, tumor.classes) if chance(0.15) else None
    blood_signal = {"t1": u(-0.5, 3.5), "t2": u(-3, 1.5), "flair": u(-3, 2)}
    blood_signal["t1ce"] = blood_signal["t1"] + u(-0.2, 0.2)
    cavity = _old_cavity(draws, anatomy, healthy) if chance(0.06) else None
    rim = (-depth / 2 if chance(0.7) else 1 - depth / 3).clamp(0, 1)
    enhancement, uneven = u(0.9, 2.2) if chance(0.5) else u(1.6, 4.5), u(0, 0.45)
    shared = 0.6 * medium + 0.4 * grain
    roughness = u(0.3, 1.6)
    regions = draws.smooth(shape, 20, len(MODALITIES))

    image = []
    for name, region in zip(MODALITIES, regions, strict=True):
        fluid, cortex, tracts = (u(*limits) for limits in TISSUES[name])
        signal = csf * fluid + grey * (cortex * u(0.8, 1.2)) + white * (tracts * u(0.8, 1.2))
        if chance(0.5):  # fluid that flows, iron in the deep nuclei
            signal += region * (u(0, 0.5) * grey + u(0, 0.6) * csf * (anatomy.ventricles > 0.1))
        signal += anatomy.detail * (DETAIL[name] * u(0.2, 1)) + age * age_gain[name]
        if cavity is not None:
            signal = torch.where(cavity, fluid, signal)
        own = draws.smooth(shape, u(1.5, 4))[0]
        if chance(0.5):  # no two gyri alike
            signal += (medium + own) * grey * u(0, 0.35)
        signal = signal * (1 - sick).clamp_min(0) + sum(part * mean for part, mean in zip(parts, means[name]))
        signal += sick * (shared + own) * (0.5 * roughness * TEXTURE[name])
        if name == "t1ce":
            signal += parts[2] * enhancement * (1 + uneven * (0.7 * own + 0.5 * medium)).clamp(0.45, 2)
            signal = torch.maximum(signal, signal.clamp_max(0.5) + bright * (1 + 0.3 * grain).clamp_min(0.2))
        elif chance(0.25):  # vessels without contrast, dark or bright
            signal = torch.where((vessels < 0.09) & healthy, signal + u(-2.5, 1.5), signal)
        if blood is not None:
            signal = torch.where(blood, blood_signal[name], signal)
        signal = torch.lerp(signal, torch.tensor(u(*RIM[name])), rim * u(0.3, 1))
        image.append(_acquire(draws, signal, anatomy.mask))
    return torch.stack(image)


def _acquire(draws: _Draws, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a scanner makes of a signal (H, W, D): resolution, motion between scans, bias field, noise, contrast."""
    u, chance = draws.uniform, draws.chance
    if chance(0.5):
        signal = _blur(signal[None], u(0.03, 0.22))[0]
    if chance(0.3):  # thick slices
        axis, thickness = 2 if chance(0.7) else draws.index(2), u(1.3, 3)
        size = [round(side / thickness) if axis == other else side for other, side in enumerate(signal.shape)]
        slices = F.interpolate(signal[None, None], size=size, mode="area")
        signal = F.interpolate(slices, size=tuple(mask.shape), mode="trilinear", align_corners=False)[0, 0]
    if chance(0.3):  # not quite on the other modalities
        for axis in range(3):
            shift = u(-0.6, 0.6)
            signal = torch.lerp(signal, signal.roll(1 if shift > 0 else -1, axis), abs(shift))
    air = u(3.3, 4.5)  # how far below the brain's mean no signal is, in the brain's standard deviations
    bias = draws.smooth(mask.shape, u(25, 60))[0] * (u(0.005, 0.05) if chance(0.7) else u(0.03, 0.12))
    noise = draws.normal(*mask.shape) * (u(0.004, 0.02) if chance(0.7) else u(0.015, 0.06))
    signal = (1 + signal / air).clamp_min(0.01) * torch.exp(bias) + noise
    signal = signal.abs().clamp(0.02, 4) ** u(0.8, 1.25)  # a magnitude
    soft = _blur(mask[None].float(), 0.25)[0]
    return signal * torch.where(mask, soft.clamp_min(0.3), soft * (soft > 0.12))


def draw_glioma(seed: int, shape: Sequence[int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one case. The same seed and shape give the same bytes, whatever the global random state.

    One case in eleven has no tumor, and one in five no enhancing tumor.

    Args:
        seed: any integer from 0.
        shape: voxels of 2 mm to the right, anterior and superior (H, W, D), each at least 32; the brain keeps its
            size in mm, and is cut where they do not hold it.

    Returns:
        Float32 image (4, H, W, D) of T1, T1ce, T2, FLAIR, 0 outside the brain and positive inside, not z-scored; and
        uint8 classes (H, W, D): 0 background, 1 necrotic and non-enhancing core, 2 edema, 3 enhancing tumor.

    Raises:
        InputError: when ``seed`` is negative, ``shape`` is not three sides of at least 32, or nilearn is not installed.
    """
    _check(seed, shape)
    draws = _Draws(seed)
    has_tumor = not draws.chance(WITHOUT_TUMOR)
    anatomy = _draw_anatomy(draws, shape, has_tumor)
    tumor = _grow(draws, anatomy)
    if not has_tumor:
        tumor = tumor._replace(classes=torch.zeros_like(tumor.classes))
    return _draw_contrasts(draws, anatomy, tumor), tumor.classes


def _check(seed: int, shape: Sequence[int]) -> None:
    if seed < 0:
        raise InputError(f"seed should be 0 or more, got {seed}.")
    if len(shape) != 3 or min(shape) < MIN_SIDE:
        raise InputError(f"shape should be three sides of at least {MIN_SIDE} voxels, got {tuple(shape)}.")


def case_seed(seed: int, number: int) -> int:
    """The seed of a case by its number in a set: sets of different seeds share none."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


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
            "image": MetaTensor(image, affine=torch.from_numpy(_affine(SHAPE)), meta=dict(meta)),
            "label": MetaTensor(classes[None], affine=torch.from_numpy(_affine(SHAPE)), meta=dict(meta)),
        }


def _affine(shape: Sequence[int]) -> np.ndarray:
    """Affine (4, 4) of a centered volume with axes to the right, anterior and superior."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = -SPACING_MM * (np.array(shape) - 1) / 2
    return affine


def write_cases(output_dir: str | Path, num_cases: int, seed: int = 0, shape: Sequence[int] = SHAPE) -> list[Path]:
    """Write ``glioma_000/glioma_000_{t1,t1ce,t2,flair,seg}.nii.gz`` and so on, voxels of 2 mm, labels of BraTS 2018.

    A case depends on ``seed``, its number and ``shape`` only, so a larger ``num_cases`` repeats the cases of a smaller
    one. A folder appears complete or not at all; nothing is overwritten.

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
    if num_cases < 1:
        raise InputError(f"num_cases should be 1 or more, got {num_cases}.")
    _check(seed, shape)
    folders = [Path(output_dir) / f"glioma_{number:03d}" for number in range(num_cases)]
    for folder in folders:
        if folder.exists():
            raise InputError(f"{folder} exists already, and nothing is overwritten.")
    for number, folder in enumerate(tqdm(folders, desc="gliomas", unit="case", disable=None)):
        image, classes = draw_glioma(case_seed(seed, number), shape)
        volumes = dict(zip(MODALITIES, (1000 * image).ceil().to(torch.int16), strict=True))
        volumes["seg"] = BRATS_2018_VALUES[classes.long()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".glioma_", dir=folder.parent) as staging:
            unfinished = Path(staging) / folder.name
            unfinished.mkdir()
            for suffix, volume in volumes.items():
                file = nib.Nifti1Image(volume.numpy(), _affine(shape))
                file.header.set_xyzt_units("mm")
                nib.save(file, unfinished / f"{folder.name}_{suffix}.nii.gz")
            unfinished.rename(folder)
    return folders


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the cases."""
    parser = argparse.ArgumentParser(prog="python -m scripts gliomas", description="Write synthetic gliomas.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives one folder per case")
    parser.add_argument("--num_cases", type=int, default=24, help="number of cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other cases (default: %(default)s)")
    args = parser.parse_args(argv)
    write_cases(args.output_dir, args.num_cases, args.seed)
    print(f"{args.num_cases} synthetic cases written to {args.output_dir}")
