"""The multi-scale fusion (MSF) block, which exists in training only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

__all__ = ["MultiScaleFusion"]


class AtrousBranches(nn.Module):
    """A-bar^s: a skip plus four parallel branches of atrous convolutions on it, of the same shape."""

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
        x = skip
        for branch in self.branches:
            x = x + branch(skip)
        return x


class MultiScaleFusion(nn.Module):
    """Multi-scale fusion: the skips A1..A3 become B1..B3 with wider receptive fields (section III-C, Eq. 3).

    Per stage, four parallel atrous branches with receptive fields of 3, 7, 9 and 19 voxels are added to A^s; across
    stages, B^1 = A-bar^1 and B^s = W_A (1x1x1) * A-bar^s + W_B (3x3x3, stride 2) * B^(s-1).

    Args:
        channels: channels of A1, A2, ..., from the finest stage on.

    Example:
        >>> fusion = MultiScaleFusion(channels=[16, 32, 64])
        >>> skips = [torch.rand(1, 16, 32, 32, 32), torch.rand(1, 32, 16, 16, 16), torch.rand(1, 64, 8, 8, 8)]
        >>> [tuple(teacher.shape) for teacher in fusion(skips)] == [tuple(skip.shape) for skip in skips]
        True
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(AtrousBranches(width) for width in channels)
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
