"""What all parts of a drawn case share: its random numbers, and fields over its voxels."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F

from ...data.transforms import along_axes

__all__ = ["PARTS", "Draws", "blur", "grid_of", "resize", "sample"]


# What a case can be drawn without, to see what it is worth: no deformation of the template but turns and scales; no
# tissue pushed aside; none of what looks like a tumor; tumors and cortex of even signal; any signal for any tissue.
PARTS = ("deformation", "mass_effect", "mimics", "texture", "priors")


class Draws:
    """All that is random about a case, from one generator of its own; and what of :data:`PARTS` it goes without."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.without = without

    def has(self, part: str) -> bool:
        return part not in self.without

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
        weights = [interpolation(side, spacing) for side in shape]
        return along_axes(self.normal(channels, *[matrix.shape[1] for matrix in weights]), weights)


@functools.lru_cache(maxsize=1024)
def interpolation(side: int, spacing: float) -> torch.Tensor:
    """Gaussian weights (side, cells) from a coarse axis to a fine one; rows of unit length, so that variance stays."""
    cells = torch.arange(-1.0, math.ceil((side - 1) / spacing) + 2)
    weights = torch.exp(-0.5 * ((torch.arange(side)[:, None] / spacing - cells) / 0.6) ** 2)
    return weights / weights.norm(dim=1, keepdim=True)


def sample(maps: torch.Tensor, points_mm: torch.Tensor) -> torch.Tensor:
    """Values (C, ...) of maps (C, H, W, D) at 1 mm, at points (..., 3) in mm from their center."""
    half = torch.tensor([(side - 1) / 2 for side in maps.shape[1:]])
    grid = (points_mm / half).flip(-1).reshape(1, -1, 1, 1, 3)
    values = F.grid_sample(maps[None], grid, align_corners=True, padding_mode="border")
    return values.reshape(maps.shape[0], *points_mm.shape[:-1])


def resize(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x[None], size=tuple(shape), mode="trilinear", align_corners=True)[0]


def grid_of(shape: Sequence[int]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in shape], indexing="ij"), -1)


def blur(x: torch.Tensor, side: float) -> torch.Tensor:
    """Blur (C, H, W, D) by the kernel (side, 1 - 2 side, side) along each axis."""
    for axis in (1, 2, 3):
        blurred = x * (1 - 2 * side)
        length = x.shape[axis] - 1
        blurred.narrow(axis, 1, length).add_(x.narrow(axis, 0, length), alpha=side)
        blurred.narrow(axis, 0, length).add_(x.narrow(axis, 1, length), alpha=side)
        x = blurred
    return x
