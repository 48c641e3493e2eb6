"""The multi-scale fusion (MSF) block, which exists in training only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .eager import apply_to, is_eager_on_cpu

__all__ = ["AtrousBranches", "MultiScaleFusion"]


class AtrousBranches(nn.Module):
    """A-bar^s: a skip plus four parallel branches of atrous convolutions on it, of the same shape.

    There is nothing but sums between the convolutions of a branch, so that they are computed together: those of rate 3
    read the skip in one, those that end the first and the third branch in another, and each of 1x1x1 is multiplied
    into the one before it. The sums are those of the branches, one after the other.
    """

    # Dilation of each 3x3x3 convolution of a branch: 1 + 2 * sum is its receptive field, 3, 7, 9 and 19 voxels.
    dilations = ((1,), (3,), (3, 1), (3, 1, 5))

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for rates in self.dilations:
            convs = [nn.Conv3d(channels, channels, kernel_size=3, padding=rate, dilation=rate) for rate in rates]
            if rates != (1,):
                convs.append(nn.Conv3d(channels, channels, kernel_size=1))
            self.branches.append(nn.Sequential(*convs))

    def forward(self, skip: torch.Tensor) -> torch.Tensor:
        weights: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for branch in self.branches:
            for conv in branch:  # type: ignore[attr-defined]
                bias = conv.bias
                assert bias is not None  # for TorchScript
                weights.append(conv.weight)
                biases.append(bias)
        # Of the first to fourth branch, its first to fourth convolution.
        w11, w21, w22, w31, w32 = weights[0], weights[1], weights[2], weights[3], weights[4]
        w33, w41, w42, w43, w44 = weights[5], weights[6], weights[7], weights[8], weights[9]
        b11, b21, b22, b31, b32 = biases[0], biases[1], biases[2], biases[3], biases[4]
        b33, b41, b42, b43, b44 = biases[5], biases[6], biases[7], biases[8], biases[9]
        w21, b21 = multiplied(w22, b22, w21, b21)
        w32, b32 = multiplied(w33, b33, w32, b32)
        w43, b43 = multiplied(w44, b44, w43, b43)
        x = atrous(skip, torch.cat([w21, w31, w41]), torch.cat([b21, b31, b41]), rate=3)
        x2, x3, x4 = x.chunk(3, dim=1)  # (B, 3 C, H, W, D) -> three of (B, C, H, W, D)
        x1 = atrous(torch.cat([skip, x3], dim=1), torch.cat([w11, w32], dim=1), b11 + b32, rate=1)
        x4 = atrous(atrous(x4, w42, b42, rate=1), w43, b43, rate=5)
        return skip + x1 + x2 + x4


def multiplied(
    pointwise: torch.Tensor, pointwise_bias: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of one convolution that does what one and a 1x1x1 convolution after it do."""
    product = pointwise.flatten(1)  # (C, C, 1, 1, 1) -> (C, C)
    return (product @ weight.flatten(1)).view_as(weight), product @ bias + pointwise_bias


def atrous(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rate: int) -> torch.Tensor:
    """3x3x3 convolution of voxels ``rate`` apart: (B, C_in, H, W, D) -> (B, C_out, H, W, D)."""
    if not torch.jit.is_scripting() and is_eager_on_cpu(x) and weight.requires_grad and torch.is_grad_enabled():
        if torch.is_autocast_enabled("cpu"):
            half = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(half), weight.to(half), bias.to(half)
        return apply_to(x, AtrousConvolution, weight, bias, rate)
    return F.conv3d(x, weight, bias, padding=rate, dilation=rate)


class AtrousConvolution(torch.autograd.Function):
    """The convolution of :func:`atrous`, whose gradient torch takes up to five times as long for on a CPU.

    That of the weights is the one of a dense convolution of every ``rate``-th voxel (:func:`every`), that of the bias
    a product.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rate: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rate = rate  # type: ignore[attr-defined]
        with torch.autocast("cpu", enabled=False):
            return F.conv3d(x, weight, bias, padding=rate, dilation=rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        rate = ctx.rate  # type: ignore[attr-defined]
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        of_x = gradient_of_conv(gradient, x, weight, rate, [True, False, False])[0]
        of_weight = gradient_of_conv(every(gradient, rate), every(x, rate), weight, 1, [False, True, False])[1]
        of_voxels = gradient.movedim(1, -1).flatten(0, 3)  # (B H W D, C_out)
        return of_x, of_weight, of_voxels.new_ones(len(of_voxels)) @ of_voxels, None


def gradient_of_conv(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rate: int, wanted: list[bool]
) -> tuple[torch.Tensor, ...]:
    """Those of x, weight and bias that are ``wanted``, of a convolution that keeps the size."""
    around = [rate] * 3
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1] * 3, around, around, False, [0] * 3, 1, wanted
    )


def every(x: torch.Tensor, rate: int) -> torch.Tensor:
    """Every ``rate``-th voxel, from each place that one can begin at: (B, C, H, W, D) -> (B rate^3, C, H', W', D').

    There are zeros at the end of a side that ``rate`` does not divide.
    """
    if rate == 1:
        return x
    x = F.pad(x, [pad for side in reversed(x.shape[2:]) for pad in (0, -side % rate)]).movedim(1, -1)
    for axis in (3, 2, 1):
        x = x.unflatten(axis, (-1, rate))
    # (B, H', rate, W', rate, D', rate, C) -> (rate, rate, rate, B, H', W', D', C)
    return x.permute(2, 4, 6, 0, 1, 3, 5, 7).flatten(0, 3).movedim(-1, 1)


class MultiScaleFusion(nn.Module):
    """Multi-scale fusion: the skips A1..A3 become B1..B3 with wider receptive fields (section III-C, Eq. 3).

    Per stage, four parallel atrous branches with receptive fields of 3, 7, 9 and 19 voxels are added to A^s; across
    stages, B^1 = A-bar^1 and B^s = W_A (1x1x1) * A-bar^s + W_B (3x3x3, stride 2) * B^(s-1).

    Args:
        channels: channels of A1, A2, ..., from the finest stage on.
        branches: what makes A-bar^s of A^s.

    Example:
        >>> fusion = MultiScaleFusion(channels=[16, 32, 64])
        >>> skips = [torch.rand(1, 16, 32, 32, 32), torch.rand(1, 32, 16, 16, 16), torch.rand(1, 64, 8, 8, 8)]
        >>> [tuple(teacher.shape) for teacher in fusion(skips)] == [tuple(skip.shape) for skip in skips]
        True
    """

    def __init__(self, channels: Sequence[int], branches: type[AtrousBranches] = AtrousBranches) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches(width) for width in channels)
        self.same_stage = nn.ModuleList(nn.Conv3d(width, width, kernel_size=1) for width in channels[1:])  # W_A
        self.finer_stage = nn.ModuleList(  # W_B
            nn.Conv3d(finer, width, kernel_size=3, stride=2, padding=1) for finer, width in pairwise(channels)
        )

    def begin_as_identity(self) -> None:
        """Sets the first weights so that B1..B3 begin as A1..A3, and depart from them where the loss gains.

        The paper names no initialization; with torch's, B begins as A plus noise of about its size. As in residual
        networks, the last convolution of each branch, and W_B, begin at zero; W_A begins as the identity.
        """
        for stage in self.modules():
            if isinstance(stage, AtrousBranches):
                for branch in stage.branches:
                    for parameter in list(branch.children())[-1].parameters():
                        nn.init.zeros_(parameter)
        for parameter in self.finer_stage.parameters():
            nn.init.zeros_(parameter)
        for parameter in self.same_stage.parameters():
            nn.init.dirac_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def forward(self, skips: list[torch.Tensor]) -> list[torch.Tensor]:
        """B1..B3, each of the shape of its A^s (B, C_s, H_s, W_s, D_s)."""
        widened: list[torch.Tensor] = []  # A-bar
        for stage, branches in enumerate(self.branches):
            widened.append(branches(skips[stage]))
        fused = [widened[0]]
        for stage, (same_stage, finer_stage) in enumerate(zip(self.same_stage, self.finer_stage)):
            fused.append(same_stage(widened[stage + 1]) + finer_stage(fused[stage]))
        return fused
