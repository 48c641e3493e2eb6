"""Losses of the training: distillation of attention maps, and its sum with the segmentation loss."""

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

__all__ = ["FiniteLoss", "MISSULoss", "SelfDistillationLoss", "attention_map"]


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Spatial attention map phi of features (Eq. 4): (B, C, H, W, D) -> (B, H, W, D), the sum of absolute values."""
    return features.abs().sum(dim=1)


class SelfDistillationLoss(nn.Module):
    """Distance of the attention maps of students and teachers (Eq. 5), averaged over the batch.

    The sum over stages of ``|q_A / |q_A| - q_B / |q_B||``, all norms Euclidean and q the flattened attention map.
    It is 0 for identical maps and at most sqrt(2) for each stage, as maps are not negative.
    """

    def forward(self, students: Sequence[torch.Tensor], teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Takes features A^s and B^s of shape (B, C_s, H_s, W_s, D_s) each."""
        distances = []
        for student, teacher in zip(students, teachers, strict=True):
            # float32: a sum over 128^3 voxels leaves the range of float16
            student_map, teacher_map = (
                F.normalize(attention_map(features.float()).flatten(1), dim=1) for features in (student, teacher)
            )
            distances.append(torch.linalg.vector_norm(student_map - teacher_map, dim=1))
        return torch.stack(distances).sum(dim=0).mean()


class MISSULoss(nn.Module):
    """``L = L_seg + lambda L_sd`` (Eq. 6) of a training step; of a network without teachers ``L_seg`` alone.

    Args:
        segmentation: loss of logits (B, classes, H, W, D) and label (B, 1, H, W, D).
        distillation_weight: lambda.
        ramp_steps: steps in which lambda rises linearly from 0; a teacher has little to tell before it has learned.
    """

    def __init__(self, segmentation: nn.Module, distillation_weight: float = 0.3, ramp_steps: int = 0) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.distillation = SelfDistillationLoss()
        self.distillation_weight = distillation_weight
        self.ramp_steps = ramp_steps
        self.num_steps: torch.Tensor
        self.register_buffer("num_steps", torch.tensor(0))  # part of the state that a training goes on from
        self.terms: dict[str, float] = {}

    def forward(self, output: SelfDistillationOutput | torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if isinstance(output, torch.Tensor):
            loss = self.segmentation(output, label)
            self.terms = {"loss": loss.item()}
            return loss
        self.num_steps += 1
        weight = self.distillation_weight * min(1.0, int(self.num_steps) / max(1, self.ramp_steps))
        segmentation = self.segmentation(output.logits, label)
        distillation = self.distillation(output.students, output.teachers)
        loss = segmentation + weight * distillation
        terms = {"segmentation_loss": segmentation, "distillation_loss": distillation}
        if output.teacher_logits is not None:
            teacher = self.segmentation(output.teacher_logits, label)
            loss = loss + teacher
            terms["teacher_loss"] = teacher
        self.terms = {name: term.item() for name, term in ({"loss": loss} | terms).items()}
        return loss

    def last_terms(self, _: Any) -> dict[str, float]:
        """The terms of the last step by name: an ``output_transform`` for the log and TensorBoard handlers."""
        return self.terms


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
