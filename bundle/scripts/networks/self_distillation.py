"""What trains a plain MISSU by distillation; nothing of it remains in the saved weights."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, flag
from .fusion import MultiScaleFusion
from .missu import MISSU

__all__ = ["ModalityDistillation", "SelfDistillation", "SelfDistillationOutput", "training_network"]


class SelfDistillationOutput(NamedTuple):
    """What one training step needs: logits (B, classes, H, W, D) and the pairs A^s, B^s to distill.

    ``teacher_logits`` are those of a teacher that has a loss of its own, else ``None``.
    """

    logits: torch.Tensor
    students: list[torch.Tensor]
    teachers: list[torch.Tensor]
    teacher_logits: torch.Tensor | None = None


class Recomputed(nn.Sequential):
    """A sequence whose activations are computed again in the backward pass, instead of kept until then."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


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
    fusion = MultiScaleFusion(network.feature_channels[:-1])
    if flag("checkpointing", checkpointing):
        for name, module in list(fusion.named_modules()):
            if isinstance(module, nn.Sequential):  # a branch
                fusion.set_submodule(name, Recomputed(*module))
    return fusion


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

        what is left of the modalities                  all modalities
                     |                                        |
        encoder, Transformer (kept)      ->      the same weights, no gradient
           | A1..A3       | Z4                      | A1..A3       | Z4
           |              |                       fusion (MSF)     |
           |              |                         | B1..B3       |
        decoder (kept) ---+                      decoder of its own
           |                                             |
        logits  <----- KL, per region; stopped -----  logits         each with L_seg of its own
        A2, A3  <----- Eq. 5; stopped --------------  B2, B3

    Nothing that the teacher learns reaches the student but by these two losses. So with both at weight 0 the student
    becomes the network without a teacher, bit for bit where it has no dropout, and the comparison with it is fair. The
    fusion begins as the identity and the decoder as a copy of the student's, so that the teacher never is noise. The
    teacher sees the image as the student does, but for the modalities.

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
        self.fusion.begin_as_identity()
        self.decoder = copy.deepcopy(network.decoder)
        self.head = copy.deepcopy(network.head)

    def forward(self, x: torch.Tensor, complete: torch.Tensor) -> SelfDistillationOutput:
        """Takes an image (B, C, H, W, D) in which modalities may be zero, and the same with all of them."""
        *students, deepest = self.network.encode(x)
        logits = self.network.decode(self.network.bottleneck(deepest), students)
        with torch.no_grad():  # the student is not to be moved by what is easy with all modalities
            *skips, deepest = self.network.encode(complete)
            teacher = self.network.bottleneck(deepest)
        teachers = self.fusion(skips)
        for block, skip in zip(self.decoder, reversed(teachers)):
            teacher = block(teacher, skip)
        # The teacher is stopped in the loss, but for its own.
        return SelfDistillationOutput(logits, students, [skip.detach() for skip in teachers], self.head(teacher))


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
