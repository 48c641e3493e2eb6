"""The four contrasts of an anatomy with its tumor, and what looks like a tumor and is none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy import ndimage

from .anatomy import Anatomy
from .draws import Draws, blur, grid_of
from .tumors import ED, ET, NCR, Tumor, blob

__all__ = ["MODALITIES", "draw_contrasts"]

MODALITIES = ("t1", "t1ce", "t2", "flair")

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
ANY = (-3.0, 5.0)  # where nothing is known of a tissue
RIM = {"t1": (-2.5, 0.0), "t1ce": (-2.5, 2.5), "t2": (-2.0, 2.5), "flair": (-3.0, 1.0)}  # left by skull stripping


def tumor_signals(draws: Draws, necrotic: bool) -> dict[str, tuple[float, float, float]]:
    """Mean signals of necrotic core, edema and enhancing tumor by modality, before they enhance."""
    u, chance = draws.uniform, draws.chance
    if not draws.has("priors"):
        return {name: (u(*ANY), u(*ANY), u(*ANY)) for name in MODALITIES}
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


def enhancing_mimics(draws: Draws, anatomy: Anatomy, healthy: torch.Tensor, vessels: torch.Tensor) -> torch.Tensor:
    """How bright contrast makes vessels, choroid plexus and meninges (H, W, D); 0 elsewhere."""
    u, chance = draws.uniform, draws.chance
    csf, depth, near, medium = anatomy.csf, anatomy.depth, anatomy.ventricles, anatomy.medium
    x_mm, y_mm, z_mm = anatomy.position
    midline = x_mm.abs()
    bright = torch.zeros(healthy.shape)
    if not draws.has("mimics"):
        return bright
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


def age_of(draws: Draws, anatomy: Anatomy) -> torch.Tensor:
    """Lesions of the white matter and caps of the ventricles (H, W, D), 0 to 1: bright on FLAIR and T2, no tumor."""
    u, chance = draws.uniform, draws.chance
    age = torch.zeros(anatomy.mask.shape)
    if not draws.has("mimics"):
        return age
    if chance(0.5):
        caps = (anatomy.ventricles - u(0.08, 0.2)).clamp(0, 1) * 6 * (anatomy.csf < 0.5)
        age = caps.clamp(0, 1) * u(0.2, 1)
    if chance(0.45):
        spots = draws.smooth(age.shape, u(2.2, 6))[0] - u(1.6, 2.6)
        age = torch.maximum(age, spots.clamp(0, 0.5) * 2)
    return age * anatomy.white


def one_place(draws: Draws, region: torch.Tensor) -> torch.Tensor:
    """One of the connected pieces of a mask (H, W, D)."""
    pieces, count = ndimage.label(region.numpy())
    return torch.from_numpy(pieces == 1 + draws.index(count)) if count else region


def blood_of(draws: Draws, anatomy: Anatomy, classes: torch.Tensor) -> torch.Tensor:
    """Old blood (H, W, D), in the necrotic core or far from any tumor."""
    if draws.chance(0.6):
        return (anatomy.medium + 0.3 * anatomy.folds > 0.3) & (classes == NCR)
    pools = draws.smooth(classes.shape, draws.uniform(3, 8))[0] > 1.7
    return one_place(draws, pools & (classes == 0) & (anatomy.depth > 3))


def old_cavity(draws: Draws, anatomy: Anatomy, healthy: torch.Tensor) -> torch.Tensor:
    """A cavity full of fluid (H, W, D) that was no tumor."""
    places = (anatomy.depth > 4).nonzero()
    center = places[draws.index(len(places))]
    distance = blob(draws, grid_of(healthy.shape), center, draws.uniform(2, 7))
    return (distance + 0.1 * anatomy.medium < 1) & healthy


def draw_contrasts(draws: Draws, anatomy: Anatomy, tumor: Tumor) -> torch.Tensor:
    """The four modalities (4, H, W, D)."""
    u, chance = draws.uniform, draws.chance
    shape = anatomy.mask.shape
    csf, grey, white, depth, medium = anatomy.csf, anatomy.grey, anatomy.white, anatomy.depth, anatomy.medium
    healthy = tumor.classes == 0
    parts = blur(torch.stack([(tumor.classes == k).float() for k in (NCR, ED, ET)]), u(0.05, 0.2))
    if chance(0.8):  # edema fades towards its border
        parts[1] *= (u(0.5, 1.0) + u(0, 0.6) * tumor.swelling).clamp_max(1)
    parts *= torch.tensor([u(0.85, 1), u(0.75, 1), 1.0]).view(3, 1, 1, 1)  # and lets the anatomy shine through
    sick = parts.sum(0)
    means = tumor_signals(draws, tumor.necrotic)
    grain = draws.smooth(shape, 1.6)[0]
    vessels = (
        draws.smooth(shape, u(5, 9), 2).square().sum(0).sqrt()
    )  # where two sheets of zeros meet lies a winding line
    bright = enhancing_mimics(draws, anatomy, healthy, vessels)
    age, age_gain = age_of(draws, anatomy), {"t1": -0.3, "t1ce": 0.0, "t2": u(0.2, 1.5), "flair": u(0.4, 3.0)}
    blood = blood_of(draws, anatomy, tumor.classes) if chance(0.15) and draws.has("mimics") else None
    blood_signal = {"t1": u(-0.5, 3.5), "t2": u(-3, 1.5), "flair": u(-3, 2)}
    blood_signal["t1ce"] = blood_signal["t1"] + u(-0.2, 0.2)
    cavity = old_cavity(draws, anatomy, healthy) if chance(0.06) and draws.has("mimics") else None
    rim = (-depth / 2 if chance(0.7) else 1 - depth / 3).clamp(0, 1)
    enhancement, uneven = u(0.9, 2.2) if chance(0.5) else u(1.6, 4.5), u(0, 0.45)
    shared = 0.6 * medium + 0.4 * grain
    roughness = u(0.3, 1.6)
    if not draws.has("texture"):
        uneven = roughness = 0.0
    if not draws.has("priors"):
        enhancement = 0.0
    regions = draws.smooth(shape, 20, len(MODALITIES))

    image = []
    for name, region in zip(MODALITIES, regions, strict=True):
        fluid, cortex, tracts = (u(*(limits if draws.has("priors") else ANY)) for limits in TISSUES[name])
        signal = csf * fluid + grey * (cortex * u(0.8, 1.2)) + white * (tracts * u(0.8, 1.2))
        if chance(0.5):  # fluid that flows, iron in the deep nuclei
            signal += region * (u(0, 0.5) * grey + u(0, 0.6) * csf * (anatomy.ventricles > 0.1))
        signal += anatomy.detail * (DETAIL[name] * u(0.2, 1)) + age * age_gain[name]
        if cavity is not None:
            signal = torch.where(cavity, fluid, signal)
        own = draws.smooth(shape, u(1.5, 4))[0]
        if chance(0.5) and draws.has("texture"):  # no two gyri alike
            signal += (medium + own) * grey * u(0, 0.35)
        signal = signal * (1 - sick).clamp_min(0) + sum(part * mean for part, mean in zip(parts, means[name]))
        signal += sick * (shared + own) * (0.5 * roughness * TEXTURE[name])
        if name == "t1ce":
            signal += parts[2] * enhancement * (1 + uneven * (0.7 * own + 0.5 * medium)).clamp(0.45, 2)
            signal = torch.maximum(signal, signal.clamp_max(0.5) + bright * (1 + 0.3 * grain).clamp_min(0.2))
        elif chance(0.25) and draws.has("mimics"):  # vessels without contrast, dark or bright
            signal = torch.where((vessels < 0.09) & healthy, signal + u(-2.5, 1.5), signal)
        if blood is not None:
            signal = torch.where(blood, blood_signal[name], signal)
        signal = torch.lerp(signal, torch.tensor(u(*RIM[name])), rim * u(0.3, 1))
        image.append(acquire(draws, signal, anatomy.mask))
    return torch.stack(image)


def acquire(draws: Draws, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a scanner makes of a signal (H, W, D): resolution, motion between scans, bias field, noise, contrast."""
    u, chance = draws.uniform, draws.chance
    if chance(0.5):
        signal = blur(signal[None], u(0.03, 0.22))[0]
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
    soft = blur(mask[None].float(), 0.25)[0]
    return signal * torch.where(mask, soft.clamp_min(0.3), soft * (soft > 0.12))
