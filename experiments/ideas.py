"""What the experiments try beyond the bundle: named by the variants of ``experiments/*.json`` as ``ideas.<name>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from scripts.networks import MISSU, InstanceNorm, MultiScaleFusion, SelfDistillation, Windows
from scripts.networks.self_distillation import SelfDistillationOutput
from scripts.training import MISSULoss


class TaughtDistillation(SelfDistillation):
    """Self-distillation whose gradient stops at the teachers; they learn by the student's decoder, run on B1..B3.

    Args:
        network: the network that is kept after training.
        from_identity: whether the teachers begin as the students.
    """

    def __init__(self, network: MISSU, from_identity: bool = False) -> None:
        super().__init__(network)
        if from_identity:
            self.fusion.begin_as_identity()

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:
        *students, deepest = self.network.encode(x)
        teachers = self.fusion(students)
        bottleneck = self.network.bottleneck(deepest)
        logits = self.network.decode(bottleneck, students)
        teacher_logits = self.network.decode(bottleneck, teachers)
        # A teacher that the distillation loss could move would come down to the student.
        return SelfDistillationOutput(logits, students, [teacher.detach() for teacher in teachers], teacher_logits)


class TaughtLoss(MISSULoss):
    """``L_seg(student) + L_seg(teacher) + lambda L_sd``.

    Args:
        segmentation: loss of logits and label.
        distillation_weight: lambda.
        ramp_steps: steps in which lambda rises linearly from 0; a teacher has little to tell before it has learned.
    """

    def __init__(self, segmentation: nn.Module, distillation_weight: float, ramp_steps: int = 0) -> None:
        super().__init__(segmentation, distillation_weight)
        self.ramp_steps = ramp_steps
        self.num_steps: torch.Tensor
        self.register_buffer("num_steps", torch.tensor(0))  # part of the state that a training goes on from

    def forward(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        self.num_steps += 1
        weight = self.distillation_weight * min(1.0, int(self.num_steps) / max(1, self.ramp_steps))
        segmentation = self.segmentation(output.logits, label)
        teacher = self.segmentation(output.teacher_logits, label)
        distillation = self.distillation(output.students, output.teachers)
        return self.summed_up(
            loss=segmentation + teacher + weight * distillation,
            segmentation_loss=segmentation,
            teacher_loss=teacher,
            distillation_loss=distillation,
        )


class IdentityFusion(MultiScaleFusion):
    """Fusion whose B1..B3 begin as A1..A3."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.begin_as_identity()


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
