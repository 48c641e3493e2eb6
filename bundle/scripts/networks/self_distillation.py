"""The training wrapper around MISSU; nothing of it remains in the saved weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, flag
from .fusion import MultiScaleFusion
from .missu import MISSU

__all__ = ["SelfDistillation", "SelfDistillationOutput", "training_network"]


class SelfDistillationOutput(NamedTuple):
    """What one training step needs: logits (B, classes, H, W, D) and the pairs A^s, B^s to distill.

    ``teacher_logits`` are the logits decoded from B1..B3 where the teacher has a loss of its own, else ``None``.
    """

    logits: torch.Tensor
    students: list[torch.Tensor]
    teachers: list[torch.Tensor]
    teacher_logits: torch.Tensor | None


class Recomputed(nn.Sequential):
    """A sequence whose activations are computed again in the backward pass, instead of kept until then."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class SelfDistillation(nn.Module):
    """Runs a plain MISSU and, beside it, the multi-scale fusion of its skips: students A1..A3, teachers B1..B3.

    The logits are those of the plain network, bit for bit.

    Args:
        network: the network that is kept after training.
        detach_teacher: ``False`` is the paper's Algorithm 1: the distillation loss moves A and B towards each other.
            ``True`` stops its gradient at B; the teacher then learns from the segmentation, by the same decoder run
            on B1..B3 as skips.
        checkpointing: whether the branches of the fusion are computed twice instead of kept in memory.

    Raises:
        InputError: when the network makes its skips by a module of its own ("MS-output"): inference would use them,
            and the students here would be others.
    """

    def __init__(self, network: MISSU, detach_teacher: bool | str = False, checkpointing: bool | str = False) -> None:
        super().__init__()
        if network.skips is not None:
            raise InputError(
                "A network to distill should have plain skips, got skips by "
                f"{type(network.skips).__name__}: set distillation_weight to 0, or leave skips out."
            )
        self.network = network
        self.fusion = MultiScaleFusion(network.feature_channels[:-1])
        if flag("checkpointing", checkpointing):
            for name, module in list(self.fusion.named_modules()):
                if isinstance(module, nn.Sequential):  # a branch
                    self.fusion.set_submodule(name, Recomputed(*module))
        self.detach_teacher = flag("detach_teacher", detach_teacher)

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:
        """Takes an image (B, C, H, W, D)."""
        features = self.network.encode(x)
        students = features[:-1]
        # First, so that backward comes to it last, when the decoder's activations are gone.
        teachers = self.fusion(students)
        bottleneck = self.network.bottleneck(features[-1])
        logits = self.network.decode(bottleneck, students)
        if not self.detach_teacher:
            return SelfDistillationOutput(logits, students, teachers, None)
        teacher_logits = self.network.decode(bottleneck, teachers)
        # A teacher that the distillation loss could move would come down to the student.
        return SelfDistillationOutput(logits, students, [teacher.detach() for teacher in teachers], teacher_logits)


def training_network(
    network: MISSU,
    distillation_weight: float,
    detach_teacher: bool | str = False,
    checkpointing: bool | str = False,
) -> MISSU | SelfDistillation:
    """What is trained: the network within :class:`SelfDistillation`, or itself where nothing is distilled.

    Args:
        network: the network that is kept after training.
        distillation_weight: lambda (Eq. 6); at 0 the fusion block is not made, and a step pays nothing for it.
        detach_teacher: as for :class:`SelfDistillation`.
        checkpointing: likewise.
    """
    return SelfDistillation(network, detach_teacher, checkpointing) if distillation_weight else network
