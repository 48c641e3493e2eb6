"""Losses of the training: of distillation, and their sums with the loss of the segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "RegionDistillationLoss",
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


class RegionDistillationLoss(nn.Module):
    """Divergence KL(teacher || student) of the probability of each region, the mean over regions.

    Each region counts alike, however small: the mean over the voxels of all classes would be one over the background.
    A voxel counts for a region where the teacher is right about it, within a few voxels of the true region. The
    probability of a region is the sum of those of its classes.

    Args:
        regions: the classes of each region.
        temperature: T, by which logits of a region are divided; the loss is multiplied by its square, so that the
            gradient keeps its size.
        reach: how many voxels from the region one may be, along each axis.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]], temperature: float = 2.0, reach: int = 3) -> None:
        super().__init__()
        self.regions = {name: list(classes) for name, classes in regions.items()}
        self.temperature = temperature
        self.reach = reach

    def forward(self, logits: torch.Tensor, teacher_logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Takes logits (B, classes, H, W, D) of student and teacher, and the true classes (B, 1, H, W, D).

        Of a network with a sigmoid for each region, logits and label have a channel for each, in their order.

        Raises:
            ValueError: when the label holds neither classes nor what the logits are of.
        """
        of_regions = label.shape[1] == logits.shape[1]
        if not of_regions and label.shape[1] != 1:
            raise ValueError(
                f"The label should be classes (B, 1, H, W, D), or regions as the logits {list(logits.shape)}, "
                f"got {list(label.shape)}."
            )
        losses = []
        for channel, classes in enumerate(self.regions.values()):
            if of_regions:
                inside = label[:, [channel]] > 0
                student, teacher = (of[:, [channel]].float() for of in (logits, teacher_logits))
            else:
                inside = torch.isin(label, label.new_tensor(classes))
                student, teacher = (region_logits(of.float(), classes) for of in (logits, teacher_logits))
            near = F.max_pool3d(inside.float(), 2 * self.reach + 1, stride=1, padding=self.reach) > 0
            counts = near & ((teacher > 0) == inside)
            target = (teacher / self.temperature).sigmoid()
            divergence = F.binary_cross_entropy_with_logits(student / self.temperature, target, reduction="none")
            divergence = divergence - F.binary_cross_entropy(target, target, reduction="none")
            losses.append((divergence * counts).sum() / counts.sum().clamp_min(1))
        return torch.stack(losses).mean() * self.temperature**2


def region_logits(logits: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Log odds of a region: (B, classes, H, W, D) -> (B, 1, H, W, D)."""
    others = [index for index in range(logits.shape[1]) if index not in classes]
    return logits[:, list(classes)].logsumexp(1, keepdim=True) - logits[:, others].logsumexp(1, keepdim=True)


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


class MISSULoss(LossOfTerms):
    """``L = L_seg + lambda L_sd`` (Eq. 6) of a training step; of a network without teachers ``L_seg`` alone.

    Args:
        segmentation: loss of logits (B, classes, H, W, D) and label (B, 1, H, W, D).
        distillation_weight: lambda.
    """

    def __init__(self, segmentation: nn.Module, distillation_weight: float = 0.3) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.distillation = SelfDistillationLoss()
        self.distillation_weight = distillation_weight

    def forward(self, output: SelfDistillationOutput | torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if isinstance(output, torch.Tensor):
            return self.summed_up(loss=self.segmentation(output, label))
        segmentation = self.segmentation(output.logits, label)
        distillation = self.distillation(output.students, output.teachers)
        return self.summed_up(
            loss=segmentation + self.distillation_weight * distillation,
            segmentation_loss=segmentation,
            distillation_loss=distillation,
        )


class ModalityDistillationLoss(LossOfTerms):
    """Loss of a :class:`~scripts.networks.ModalityDistillation`.

    ``L = L_seg(student) + L_seg(teacher) + lambda w(t) (a KL + b L_sd)``, with KL of the regions' probabilities
    (:class:`RegionDistillationLoss`) and L_sd of squared attention maps on stages 2 and 3: stage 1 is one convolution
    of the image. A teacher has little to tell before it has learned: w is 0 in the first third of the training, and
    rises to 1 by two thirds.

    Args:
        segmentation: loss of logits (B, classes, H, W, D) and label (B, 1, H, W, D).
        of_regions: KL.
        total_steps: of the training.
        distillation_weight: lambda.
        regions_weight: a.
        attention_weight: b.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        of_regions: RegionDistillationLoss,
        total_steps: int,
        distillation_weight: float = 1.0,
        regions_weight: float = 0.5,
        attention_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.of_regions = of_regions
        self.of_attention = SelfDistillationLoss(exponent=2)
        self.total_steps = total_steps
        self.distillation_weight = distillation_weight
        self.regions_weight = regions_weight
        self.attention_weight = attention_weight
        self.num_steps: torch.Tensor
        self.register_buffer("num_steps", torch.tensor(0))  # part of the state that a training goes on from

    def forward(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        if output.teacher_logits is None:
            raise ValueError("The output should be of a ModalityDistillation, its teacher has no logits.")
        weight = self.distillation_weight * min(max(3 * int(self.num_steps) / self.total_steps - 1, 0.0), 1.0)
        self.num_steps += 1
        segmentation = self.segmentation(output.logits, label)
        teacher = self.segmentation(output.teacher_logits, label)
        # A teacher that these could move would come down to the student.
        regions = self.of_regions(output.logits, output.teacher_logits.detach(), label)
        attention = self.of_attention(output.students[1:], output.teachers[1:])
        distillation = self.regions_weight * regions + self.attention_weight * attention
        return self.summed_up(
            loss=segmentation + teacher + weight * distillation,
            segmentation_loss=segmentation,
            teacher_loss=teacher,
            regions_loss=regions,
            attention_loss=attention,
        )


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
