"""What the experiments try beyond the bundle: named by the variants of ``experiments/*.json`` as ``ideas.<name>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from scripts.networks import MISSU, InstanceNorm, MultiScaleFusion, SelfDistillation, Windows


def begin_as_identity(fusion: MultiScaleFusion) -> None:
    """Sets the fusion's first weights so that B1..B3 begin as A1..A3, and depart from them where the loss gains.

    The paper names no initialisation; with torch's, teachers begin as the skips plus noise of about their size. As
    in residual networks, the last convolution of each branch, and W_B, begin at zero; W_A begins as the identity.
    """
    with torch.no_grad():
        for stage in fusion.branches:
            for branch in stage.branches:
                nn.init.zeros_(branch[-1].weight)
                nn.init.zeros_(branch[-1].bias)
        for same_stage, finer_stage in zip(fusion.same_stage, fusion.finer_stage):
            nn.init.dirac_(same_stage.weight)
            for parameter in (same_stage.bias, finer_stage.weight, finer_stage.bias):
                nn.init.zeros_(parameter)


class IdentityDistillation(SelfDistillation):
    """Self-distillation whose teachers begin as the students."""

    def __init__(self, network: MISSU, detach_teacher: bool) -> None:
        super().__init__(network, detach_teacher)
        begin_as_identity(self.fusion)


class IdentityFusion(MultiScaleFusion):
    """Fusion whose B1..B3 begin as A1..A3."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        begin_as_identity(self)


class ResidualStage(nn.Sequential):
    """A stage whose convolutions after the first are residual: no further parameters."""

    def forward(self, x: torch.Tensor, windows: Windows | None = None) -> torch.Tensor:
        first, *rest = self
        x = first(x, windows)
        for block in rest:
            x = x + block(x, windows)
        return x


class ResidualMISSU(MISSU):
    """MISSU with residual convolutions in the encoder; arguments as for :class:`MISSU`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.encoder = nn.ModuleList(ResidualStage(*stage) for stage in self.encoder)


class EightGroups(nn.GroupNorm):
    """A norm of eight groups, called as :class:`~scripts.networks.InstanceNorm` is, but never with windows."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_groups=8, num_channels=num_channels)

    def forward(self, x: torch.Tensor, windows: None = None) -> torch.Tensor:
        return super().forward(x)


class GroupNormMISSU(MISSU):
    """MISSU with norms of eight groups in place of instance norms; arguments as for :class:`MISSU`."""

    takes_windows = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name, module in list(self.named_modules()):
            if isinstance(module, InstanceNorm):
                self.set_submodule(name, EightGroups(module.num_channels))


class ViTInitMISSU(MISSU):
    """MISSU with the first weights of ViT (linear layers normal, 0.02) and of He et al. (convolutions)."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def warm_up_poly(optimizer: torch.optim.Optimizer, total_iters: int, power: float, warm_up_iters: int) -> LambdaLR:
    """Poly decay per step after a linear rise of the learning rate."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warm_up_iters)
        return rise * (1 - min(step, total_iters) / total_iters) ** power

    return LambdaLR(optimizer, factor)
