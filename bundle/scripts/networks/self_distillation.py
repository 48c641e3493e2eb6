"""What trains a plain MISSU by distillation; nothing of it remains in the saved weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, flag
from .fusion import AtrousBranches, MultiScaleFusion
from .missu import MISSU

__all__ = ["ModalityDistillation", "SelfDistillation", "SelfDistillationOutput", "training_network"]


class SelfDistillationOutput(NamedTuple):
    """What one training step needs: logits (B, classes, H, W, D) and the pairs A^s, B^s to distill.

    ``teacher_logits`` are those of a teacher that has logits of its own, else ``None``.
    """

    logits: torch.Tensor
    students: list[torch.Tensor]
    teachers: list[torch.Tensor]
    teacher_logits: torch.Tensor | None = None


class RecomputedBranches(AtrousBranches):
    """Branches whose activations are computed again in the backward pass, instead of kept until then."""

    def forward(self, skip: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, skip, use_reentrant=False)


def fusion_of(network: MISSU, checkpointing: bool | str) -> MultiScaleFusion:
    """The fusion of a network's skips.

    Args:
        network: one with plain skips.
        checkpointing: whether the branches of the fusion are computed twice instead of kept in memory.

    Raises:
        InputError: when the network makes its skips by a module of its own ("MS-output"): inference would use them,
            and the students here would be others.
    """
    if network.skips is not None:
        raise InputError(
            "A network to distill should have plain skips, got skips by "
            f"{type(network.skips).__name__}: set distillation_weight to 0, or leave skips out."
        )
    branches = RecomputedBranches if flag("checkpointing", checkpointing) else AtrousBranches
    return MultiScaleFusion(network.feature_channels[:-1], branches)


class SelfDistillation(nn.Module):
    """The paper's: a plain MISSU and, beside it, the fusion of its skips: students A1..A3, teachers B1..B3.

    As in Algorithm 1 the distillation loss moves A and B towards each other. The logits are those of the plain
    network, bit for bit.

    Args:
        network: the network that is kept after training.
        checkpointing: whether the branches of the fusion are computed twice instead of kept in memory.

    Raises:
        InputError: when the network has a fusion already.
    """

    def __init__(self, network: MISSU, checkpointing: bool | str = False) -> None:
        super().__init__()
        self.network = network
        self.fusion = fusion_of(network, checkpointing)

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:
        """Takes an image (B, C, H, W, D)."""
        *students, deepest = self.network.encode(x)
        # First, so that backward comes to it last, when the decoder's activations are gone.
        teachers = self.fusion(students)
        logits = self.network.decode(self.network.bottleneck(deepest), students)
        return SelfDistillationOutput(logits, students, teachers)


class ModalityDistillation(nn.Module):
    """A plain MISSU that sees the modalities that a step has left, and a teacher that sees all of them.

    ::

        what is left of the modalities           all modalities
                     |                                 |
             network (kept)              teacher (frozen, as it was trained)
                     |                                 |
        L_seg --- logits  <------ KL, stopped ----- logits

    The teacher is never moved, and the two share nothing: so with the distillation at weight 0 the student becomes the
    network that was trained without a teacher, bit for bit, and the comparison with it is fair. The teacher sees the
    image as the student does, but for the modalities.

    Args:
        network: the network that is kept after training.
        teacher: a trained network that reads all modalities, such as of :func:`~scripts.weights.frozen_teacher`.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.teacher = teacher.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ModalityDistillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: torch.Tensor, complete: torch.Tensor) -> SelfDistillationOutput:
        """Takes an image (B, C, H, W, D) in which modalities may be zero, and the same with all of them."""
        with torch.no_grad():
            teacher_logits = self.teacher(complete)
        return SelfDistillationOutput(self.network(x), [], [], teacher_logits)


def training_network(
    network: MISSU, distillation_weight: float, checkpointing: bool | str = False
) -> MISSU | SelfDistillation:
    """What is trained: the network within :class:`SelfDistillation`, or itself where nothing is distilled.

    Args:
        network: the network that is kept after training.
        distillation_weight: lambda (Eq. 6); at 0 the fusion block is not made, and a step pays nothing for it.
        checkpointing: as for :class:`SelfDistillation`.
    """
    return SelfDistillation(network, checkpointing) if distillation_weight else network
