"""Losses on tensors of a few voxels, with the arithmetic beside the number."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import IterationEvents
from torch import nn

from scripts.errors import InputError
from scripts.networks.self_distillation import SelfDistillationOutput
from scripts.training.losses import (
    FiniteLoss,
    MISSULoss,
    ModalityDistillationLoss,
    SelfDistillationLoss,
    attention_map,
)


def feature(*channels: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One case; a list of voxels for each channel: (1, C, voxels, 1, 1)."""
    return torch.tensor(channels, dtype=dtype)[None, :, :, None, None]


def test_attention_map_sums_absolute_values_over_channels():
    # |-1| + |2| = 3 and |2| + |-2| = 4
    assert attention_map(feature([-1, 2], [2, -2])).flatten().tolist() == [3, 4]
    assert attention_map(torch.ones(2, 5, 3, 4, 6)).shape == (2, 3, 4, 6)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # (3, 4) / 5 = (0.6, 0.8) and (4, 3) / 5 = (0.8, 0.6): sqrt(0.2^2 + 0.2^2)
        (feature([3, 4]), feature([4, 3]), math.sqrt(0.08)),
        # the maps are (3, 4) and (0, 2): (0.6, 0.8) - (0, 1), sqrt(0.36 + 0.04)
        (feature([-1, 2], [2, -2]), feature([0, -2], [0, 0]), math.sqrt(0.4)),
        # other channels, signs and scale, the same map
        (feature([3, 4]), feature([10, -30], [-20, 10]), 0.0),
        # nothing in common: (1, 0) - (0, 1), the most that a stage can cost
        (feature([7, 0]), feature([0, 0.1]), math.sqrt(2)),
        # a silent student: (0, 0) - (0.6, 0.8)
        (feature([0, 0]), feature([3, 4]), 1.0),
        # 3 * 60,000 leaves the range of float16, 65,504: (1, 0) - (0, 1)
        (
            feature([6e4, 0], [6e4, 0], [6e4, 0], dtype=torch.float16),
            feature([0, 6e4], [0, 6e4], [0, 6e4], dtype=torch.float16),
            math.sqrt(2),
        ),
    ],
    ids=["Eq. 5", "over channels", "same map", "disjoint", "silent", "float16"],
)
def test_one_stage(student, teacher, expected):
    assert SelfDistillationLoss()([student], [teacher]).item() == pytest.approx(expected, abs=1e-6)


def test_sum_over_stages_and_mean_over_the_batch():
    same, other = feature([1, 0]), feature([0, 1])
    # first stage: sqrt(2) and 0; second stage: sqrt(2) and sqrt(2); so 2 sqrt(2) and sqrt(2), 1.5 sqrt(2) on average
    students = [torch.cat([same, same]), torch.cat([same, same])]
    teachers = [torch.cat([other, same]), torch.cat([other, other])]
    assert SelfDistillationLoss()(students, teachers).item() == pytest.approx(1.5 * math.sqrt(2))


def test_stages_of_different_sizes():
    students = [torch.rand(2, 8, 4, 4, 4), torch.rand(2, 16, 2, 2, 2)]
    assert SelfDistillationLoss()(students, [3 * student for student in students]).item() == pytest.approx(0, abs=1e-6)


def test_a_missing_teacher_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        SelfDistillationLoss()([feature([1]), feature([1])], [feature([1])])


def test_gradient_of_identical_maps_is_finite():
    """The distance has no derivative at 0; a NaN there would end a training whose teacher equals its student."""
    student = feature([3, 4]).requires_grad_()
    SelfDistillationLoss()([student], [feature([3, 4])]).backward()
    assert student.grad.isfinite().all()


class MeanDifference(nn.Module):
    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return (logits - label).mean()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # segmentation (5 + 7) / 2 - 1 = 5, distillation sqrt(2)
        ({}, 5 + 0.3 * math.sqrt(2)),
        ({"distillation_weight": 0.0}, 5.0),
    ],
    ids=["lambda 0.3", "lambda 0"],
)
def test_sum_of_the_terms(arguments, expected):
    loss = MISSULoss(MeanDifference(), **arguments)
    output = SelfDistillationOutput(feature([5, 7]), [feature([7, 0])], [feature([0, 1])])
    assert loss(output, feature([1, 1])).item() == pytest.approx(expected)
    terms = {"segmentation_loss": 5.0, "distillation_loss": math.sqrt(2), "loss": expected}
    assert loss.last_terms(None) == pytest.approx(terms)


def test_last_terms_are_those_of_the_last_step():
    loss = MISSULoss(MeanDifference())
    same = [feature([1, 0])]
    for logit in (5, 2):
        loss(SelfDistillationOutput(feature([logit]), same, same), feature([1]))
    assert loss.last_terms(None)["segmentation_loss"] == 1  # 2 - 1


def test_a_network_without_teachers():
    loss = MISSULoss(MeanDifference())
    assert loss(feature([5, 7]), feature([1, 1])).item() == 5  # (5 + 7) / 2 - 1
    assert loss.last_terms(None) == {"loss": 5}


def test_squared_maps_and_squared_distance():
    # squares sum up to (1 + 4, 4) = (5, 4) and to (0, 4): (5, 4) / sqrt(41) and (0, 1), 25 / 41 + (1 - 4 / sqrt(41))^2
    student, teacher = feature([-1, 2], [2, 0]), feature([0, -2], [0, 0])
    expected = 25 / 41 + (1 - 4 / math.sqrt(41)) ** 2
    assert SelfDistillationLoss(exponent=2)([student], [teacher]).item() == pytest.approx(expected)


def divergence(teacher: list[float], student: list[float]) -> float:
    """KL of two lists of logits."""
    of_teacher, of_student = (torch.tensor(logits).float().softmax(0).tolist() for logits in (teacher, student))
    return sum(p * math.log(p / q) for p, q in zip(of_teacher, of_student))


def test_divergence_near_the_foreground_of_label_and_teacher():
    # Foreground is voxel 0 by the label and voxel 4 by the teacher; voxel 2 is two voxels from both, 6 and 7 from 4.
    label = feature([1, 0, 0, 0, 0, 0, 0, 0])
    teacher = feature([0] * 8, [4, -2, -2, -2, 3, -2, -2, -2])
    student = feature([0] * 8, [1, 1, 1, 1, 1, 1, 1, 1])
    loss = ModalityDistillationLoss(MeanDifference(), distillation_weight=2.0, reach=1)
    output = SelfDistillationOutput(student, [], [], teacher)
    expected = sum(divergence([0, logit], [0, 1]) for logit in (4, -2, -2, 3, -2)) / 5  # voxels 0, 1 and 3 to 5
    # MeanDifference: half the logits are 1, an eighth of the label
    assert loss(output, label).item() == pytest.approx(0.5 - 0.125 + 2 * expected, rel=1e-5)
    terms = loss.last_terms(None)
    assert terms["distillation_loss"] == pytest.approx(expected, rel=1e-5)
    assert loss.distill(output._replace(logits=teacher), label).item() == pytest.approx(0, abs=1e-6)


def test_a_network_of_regions_is_taught_as_one_of_classes():
    """One region of one class: log odds of a softmax over two classes are the difference of their logits."""
    loss, label = ModalityDistillationLoss(MeanDifference(), reach=0), feature([1, 0, 0])
    student, teacher = feature([0, 0, 2], [1, -1, 0]), feature([0, 0, 0], [3, 1, -4])
    of_classes = loss.distill(SelfDistillationOutput(student, [], [], teacher), label)
    student, teacher = (logits[:, [1]] - logits[:, [0]] for logits in (student, teacher))
    of_regions = loss.distill(SelfDistillationOutput(student, [], [], teacher), label.bool())
    assert of_regions.item() == pytest.approx(of_classes.item(), rel=1e-5)


def test_nothing_near_teaches_nothing():
    output = SelfDistillationOutput(feature([0, 0], [5, 5]), [], [], feature([0, 0], [-1, -1]))
    assert ModalityDistillationLoss(MeanDifference()).distill(output, feature([0, 0])).item() == 0


@pytest.mark.parametrize(
    ("output", "label", "message"),
    [
        (SelfDistillationOutput(feature([0]), [], []), feature([0]), "its teacher has no logits"),
        (
            SelfDistillationOutput(feature([0], [1], [2]), [], [], feature([0], [1], [2])),
            feature([0], [1]),
            r"classes \(B, 1, H, W, D\), or regions as the logits \[1, 3, 1, 1, 1\], got \[1, 2, 1, 1, 1\]",
        ),
    ],
    ids=["another wrapper", "something else"],
)
def test_a_teacher_of_modalities_needs_its_logits_and_classes(output, label, message):
    with pytest.raises(ValueError, match=message):
        ModalityDistillationLoss(MeanDifference()).distill(output, label)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_the_cases(value):
    images = [{"image": MetaTensor(torch.zeros(1, 2), meta={"case_id": f"case_{i}"})} for i in (2, 1)]
    [batch] = DataLoader(Dataset(images), batch_size=2)
    engine = Engine(lambda *_: None)
    engine.register_events(*IterationEvents)
    FiniteLoss().attach(engine)
    engine.state.batch, engine.state.iteration = batch, 7
    engine.state.output = {"loss": torch.tensor(1.0)}
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    engine.state.output = {"loss": torch.tensor(value)}
    with pytest.raises(InputError, match=f"it is {value} in step 7, with the cases case_1, case_2"):
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
