"""Losses of the training: of distillation, and their sums with the loss of the segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from ..data.cases import cases_of_batch
from ..errors import InputError
from ..networks.self_distillation import SelfDistillationOutput

__all__ = [
    "FiniteLoss",
    "MISSULoss",
    "ModalityDistillationLoss",
    "SelfDistillationLoss",
    "attention_map",
]


def attention_map(features: torch.Tensor, exponent: int = 1) -> torch.Tensor:
    """Spatial attention map phi of features (Eq. 4): (B, C, H, W, D) -> (B, H, W, D), the sum of absolute values.

    Args:
        features: A^s or B^s.
        exponent: 2 sums their squares instead, as Zagoruyko and Komodakis do (arXiv:1612.03928): it weighs strong
            features more.
    """
    return features.abs().pow(exponent).sum(dim=1)


class SelfDistillationLoss(nn.Module):
    """Distance of the attention maps of students and teachers (Eq. 5), averaged over the batch.

    The sum over stages of ``|q_A / |q_A| - q_B / |q_B||``, all norms Euclidean and q the flattened attention map.
    It is 0 for identical maps and at most sqrt(2) for each stage, as maps are not negative.

    Args:
        exponent: of the features in the map, and of the distance. 1 is the paper's. The gradient of that is as large
            for maps that are nearly alike as for any; 2, the square, pulls less the nearer they are.
    """

    def __init__(self, exponent: int = 1) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, students: Sequence[torch.Tensor], teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Takes features A^s and B^s of shape (B, C_s, H_s, W_s, D_s) each."""
        distances = []
        for student, teacher in zip(students, teachers, strict=True):
            # float32: a sum over 128^3 voxels leaves the range of float16
            student_map, teacher_map = (
                F.normalize(attention_map(features.float(), self.exponent).flatten(1), dim=1)
                for features in (student, teacher)
            )
            distances.append(torch.linalg.vector_norm(student_map - teacher_map, dim=1) ** self.exponent)
        return torch.stack(distances).sum(dim=0).mean()


class LossOfTerms(nn.Module):
    """A loss whose terms are logged."""

    terms: dict[str, float]

    def summed_up(self, **terms: torch.Tensor) -> torch.Tensor:
        """Keeps the terms, and gives the one called ``loss``."""
        self.terms = {name: term.item() for name, term in terms.items()}
        return terms["loss"]

    def last_terms(self, _: Any) -> dict[str, float]:
        """The terms of the last step by name: an ``output_transform`` for the log and TensorBoard handlers."""
        return self.terms


class DistillationLoss(LossOfTerms):
    """``L = L_seg + lambda L_distill`` of a training step; of a network without teachers ``L_seg`` alone.

    Args:
        segmentation: loss of logits (B, classes, H, W, D) and label (B, 1, H, W, D).
        distillation_weight: lambda.
    """

    def __init__(self, segmentation: nn.Module, distillation_weight: float) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.distillation_weight = distillation_weight

    def distill(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        """What the student is away from its teacher."""
        raise NotImplementedError

    def forward(self, output: SelfDistillationOutput | torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if isinstance(output, torch.Tensor):
            return self.summed_up(loss=self.segmentation(output, label))
        segmentation = self.segmentation(output.logits, label)
        distillation = self.distill(output, label)
        return self.summed_up(
            loss=segmentation + self.distillation_weight * distillation,
            segmentation_loss=segmentation,
            distillation_loss=distillation,
        )


class MISSULoss(DistillationLoss):
    """``L = L_seg + lambda L_sd`` (Eq. 6), with L_sd of :class:`SelfDistillationLoss`.

    Args:
        segmentation: loss of logits (B, classes, H, W, D) and label (B, 1, H, W, D).
        distillation_weight: lambda.
    """

    def __init__(self, segmentation: nn.Module, distillation_weight: float = 0.3) -> None:
        super().__init__(segmentation, distillation_weight)
        self.distillation = SelfDistillationLoss()

    def distill(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        return self.distillation(output.students, output.teachers)


class ModalityDistillationLoss(DistillationLoss):
    """Loss of a :class:`~scripts.networks.ModalityDistillation`: ``L = L_seg + lambda KL(teacher || student)``.

    The divergence is of the probabilities of the classes, or of each region, the mean over the voxels within a few
    voxels of the foreground, the true one or the teacher's: that over all voxels would be one over the background.

    Args:
        segmentation: loss of logits (B, classes, H, W, D) and label (B, 1, H, W, D).
        distillation_weight: lambda.
        reach: how many voxels from the foreground, along each axis.
    """

    def __init__(self, segmentation: nn.Module, distillation_weight: float = 1.0, reach: int = 3) -> None:
        super().__init__(segmentation, distillation_weight)
        self.reach = reach

    def distill(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        if output.teacher_logits is None:
            raise ValueError("The output should be of a ModalityDistillation, its teacher has no logits.")
        of_regions = label.shape[1] == output.logits.shape[1]
        if not of_regions and label.shape[1] != 1:
            raise ValueError(
                f"The label should be classes (B, 1, H, W, D), or regions as the logits {list(output.logits.shape)}, "
                f"got {list(label.shape)}."
            )
        student, teacher = output.logits.float(), output.teacher_logits.float()
        if of_regions:
            target = teacher.sigmoid()
            divergence = F.binary_cross_entropy_with_logits(student, target, reduction="none")
            divergence = divergence - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
            seen_by_teacher = teacher > 0
        else:
            divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
            seen_by_teacher = teacher.argmax(1, keepdim=True) > 0
        foreground = ((label > 0) | seen_by_teacher).any(1, keepdim=True)
        near = F.max_pool3d(foreground.float(), 2 * self.reach + 1, stride=1, padding=self.reach)
        return (divergence.sum(1, keepdim=True) * near).sum() / near.sum().clamp_min(1)


class FiniteLoss:
    """Handler that ends a training whose loss is not a number, before it gets into the weights.

    ignite's ``TerminateOnNan`` looks after the step, when it is in them, names no case, and ends as if all were well.

    Raises:
        InputError: naming the cases of the step.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        loss = engine.state.output["loss"]
        if not torch.isfinite(loss):
            cases = cases_of_batch(engine.state.batch)
            raise InputError(
                f"The loss should be finite, it is {loss.item()} in step {engine.state.iteration}, with the cases "
                f"{', '.join(cases)}: look at these, or take a smaller learning_rate; no weights were saved since."
            )
