"""A brain with room for a tumor: the deformed template."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from ...errors import InputError
from .draws import Draws, grid_of, resize, sample

__all__ = ["SPACING_MM", "Anatomy", "draw_anatomy"]

SPACING_MM = 2.0


class Template(NamedTuple):
    """The template at 1 mm, smoothed for voxels of 2 mm."""

    tissues: torch.Tensor  # (4, H, W, D): CSF, grey matter, white matter, detail of T1
    shape: torch.Tensor  # (2, H, W, D): depth below the surface in mm, and nearness of the lateral ventricles, 0 to 1
    ventricles: torch.Tensor  # (3, H, W, D): direction into the ventricles, at most 1


@functools.lru_cache(maxsize=1)
def mni_template() -> Template:
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
    return Template(torch.from_numpy(maps[:4]), torch.from_numpy(maps[4:]), torch.from_numpy(into.astype(np.float32)))


class Anatomy(NamedTuple):
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


def rotation(draws: Draws) -> torch.Tensor:
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


def draw_anatomy(draws: Draws, shape: Sequence[int], has_tumor: bool) -> Anatomy:
    u, chance = draws.uniform, draws.chance
    template = mni_template()
    # Deformations are smooth: half the resolution holds them. A point of the case is looked up in the template.
    low = [side // 2 for side in shape]
    voxels = grid_of(low) * torch.tensor([(side - 1) / (half - 1) for side, half in zip(shape, low, strict=True)])
    points = (voxels - (torch.tensor(shape) - 1) / 2) * SPACING_MM @ rotation(draws).T
    points = points + torch.tensor([u(-2, 2) for _ in range(3)])
    for spacing, size_mm in ((10, u(1, 4)), (5, u(0.5, 2.0)), (2.5, u(0, 0.8))):  # nothing symmetric about it
        points = points + size_mm * draws.has("deformation") * draws.smooth(low, spacing, 3).permute(1, 2, 3, 0)
    wider_mm = (u(-2.5, 3) if chance(0.6) else u(2, 9)) * draws.has("deformation")
    points = points + wider_mm * sample(template.ventricles, points).permute(1, 2, 3, 0)

    depth = sample(template.shape[:1], points)[0]
    white = sample(template.tissues[2:3], points)[0]
    x_mm, y_mm, z_mm = points.unbind(-1)
    below = (z_mm < -40) & ((y_mm < -12) | (x_mm.abs() < 15))  # cerebellum and brain stem
    may_start = (white > 0.5) & (depth > u(3, 12)) & (below if chance(0.05) else ~below)
    candidates = (may_start if may_start.any() else depth > 0).nonzero()
    place = candidates[draws.index(len(candidates))]
    radius = u(2.5, 8) if chance(0.27) else u(6, 18)
    if has_tumor and draws.has("mass_effect"):  # tissue moves away from the center, and the skull does not give way
        offset_mm = points - points[tuple(place)]
        reach_mm = radius * SPACING_MM * u(1.2, 2.6)
        pushed = u(0, 0.55) * (depth / 18).clamp(0, 1) * torch.exp(-offset_mm.square().sum(-1) / reach_mm**2)
        points = points - pushed[..., None] * offset_mm

    depth, ventricles = resize(sample(template.shape, points), shape)
    position = resize(points.permute(3, 0, 1, 2), shape)
    near = depth > -4
    tissues = torch.zeros(4, *shape)
    tissues[:, near] = sample(template.tissues, position[:, near].T)
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
    return Anatomy(*fields, voxels[tuple(place)], radius, voxels[tuple(candidates.T)])
