"""A tumor in an anatomy: where its three tissues lie, by the rules of BraTS."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from .anatomy import Anatomy
from .draws import Draws, grid_of

__all__ = ["ED", "ET", "NCR", "Tumor", "blob", "grow"]

NCR, ED, ET = 1, 2, 3


def blob(draws: Draws, voxels: torch.Tensor, center: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance (H, W, D) from the center of an ellipsoid, 1 on its surface."""
    turn, _ = torch.linalg.qr(draws.normal(3, 3))
    axes = torch.tensor([draws.uniform(0.7, 1.4) for _ in range(3)])
    return ((voxels - center) @ (turn / axes / radius)).square().sum(-1).sqrt()


def core_distance(draws: Draws, anatomy: Anatomy) -> torch.Tensor:
    """Distance (H, W, D) that is 1 on the core's surface: lobed, rough, of one focus or several."""
    u, chance = draws.uniform, draws.chance
    radius, center, shape = anatomy.radius, anatomy.center, anatomy.mask.shape
    voxels = grid_of(shape)
    core = blob(draws, voxels, center, radius)
    for _ in range(draws.index(3) if chance(0.5) else 0):
        lobe = center + draws.normal(3) * radius * 0.55
        core = torch.minimum(core, blob(draws, voxels, lobe, radius * u(0.45, 0.85)))
    for _ in range(1 + draws.index(3) if chance(0.2) else 0):
        satellite = center + draws.normal(3) * (radius + 5)
        if chance(0.25):
            satellite = anatomy.elsewhere[draws.index(len(anatomy.elsewhere))]
        core = torch.minimum(core, blob(draws, voxels, satellite, max(1.5, radius * u(0.15, 0.6))))
    roughness = u(0.03, 0.22)
    core = core + roughness * (anatomy.medium + u(0, 0.6) * anatomy.fine)
    return core + u(0.02, 0.2) * draws.smooth(shape, max(3.0, radius * 0.8))[0]


class Tumor(NamedTuple):
    classes: torch.Tensor  # (H, W, D) uint8
    swelling: torch.Tensor  # (H, W, D): 0 at the border of the edema to 1 inside
    necrotic: bool  # whether what does not enhance is dead tissue, and not solid tumor


def grow(draws: Draws, anatomy: Anatomy) -> Tumor:
    """Classes by the rules of BraTS: edema along white matter, core, enhancing rim or patches; never fluid spaces."""
    u, chance = draws.uniform, draws.chance
    core = core_distance(draws, anatomy)
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
    classes *= with_core(classes)
    return Tumor(classes, swelling, kind < 0.62 or chance(0.25))


def with_core(classes: torch.Tensor) -> torch.Tensor:
    """The connected pieces of a tumor that hold more than edema (H, W, D)."""
    pieces, _ = ndimage.label(classes.numpy() > 0)
    kept = np.unique(pieces[(classes == NCR) | (classes == ET)])
    return torch.from_numpy(np.isin(pieces, kept))
