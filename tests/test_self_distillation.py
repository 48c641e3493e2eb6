"""The training wrapper: logits of the plain network, nothing left in its weights, and who receives gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scripts.networks import MISSU, MultiScaleFusion, SelfDistillation, training_network
from scripts.training.losses import MISSULoss

BOTH = pytest.mark.parametrize("detach_teacher", [False, True], ids=["literal", "detached"])


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))


class CrossEntropy(nn.Module):
    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, label[:, 0])


def gradients(module: nn.Module) -> dict[str, float]:
    """The largest absolute gradient of each weight; -1 where there is none."""
    return {
        name: -1.0 if weight.grad is None else weight.grad.abs().max().item()
        for name, weight in module.named_parameters()
    }


@BOTH
@pytest.mark.parametrize("mode", [True, False], ids=["training", "eval"])
def test_logits_are_those_of_the_plain_network(tiny_network, image, detach_teacher, mode):
    wrapper = SelfDistillation(tiny_network, detach_teacher).train(mode)
    assert torch.equal(wrapper(image).logits, tiny_network(image))


def test_students_and_teachers_are_the_first_three_stages(tiny_network, image):
    output = SelfDistillation(tiny_network)(image)
    shapes = [(2, 8, 16, 16, 16), (2, 16, 8, 8, 8), (2, 32, 4, 4, 4)]
    assert [student.shape for student in output.students] == shapes
    assert [teacher.shape for teacher in output.teachers] == shapes
    for student, feature in zip(output.students, tiny_network.encode(image)[:3], strict=True):
        assert torch.equal(student, feature)
    assert output.teacher_logits is None


def test_the_detached_teacher_has_logits_of_the_same_decoder(tiny_network, image):
    wrapper = SelfDistillation(tiny_network, detach_teacher=True)
    for weight in wrapper.fusion.parameters():
        nn.init.zeros_(weight)
    for conv in wrapper.fusion.same_stage:
        nn.init.dirac_(conv.weight)
    # B = A now, so the same decoder has to give the same logits.
    output = wrapper(image)
    torch.testing.assert_close(output.teacher_logits, output.logits)


def test_nothing_of_it_is_in_the_saved_weights(tiny_network, image):
    before = tiny_network.eval()(image)
    plain_keys = set(tiny_network.state_dict())
    wrapper = SelfDistillation(tiny_network)
    wrapper(image)
    assert set(wrapper.network.state_dict()) == plain_keys
    assert {key for key in wrapper.state_dict() if not key.startswith("network.")} == {
        f"fusion.{key}" for key in wrapper.fusion.state_dict()
    }
    restored = copy.deepcopy(tiny_network)
    for weight in restored.parameters():
        nn.init.zeros_(weight)
    restored.load_state_dict(wrapper.network.state_dict(), strict=True)
    assert torch.equal(restored.eval()(image), before)


@BOTH
def test_each_weight_receives_gradient(tiny_network, image, detach_teacher):
    """So that DDP needs no find_unused_parameters."""
    wrapper = SelfDistillation(tiny_network, detach_teacher)
    label = torch.randint(3, (2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(2))
    MISSULoss(CrossEntropy())(wrapper(image), label).backward()
    without = [name for name, largest in gradients(wrapper).items() if not largest > 0]
    assert without == []


@BOTH
def test_where_the_distillation_loss_stops(tiny_network, image, detach_teacher):
    wrapper = SelfDistillation(tiny_network, detach_teacher)
    loss = MISSULoss(CrossEntropy())
    output = wrapper(image)
    loss.distillation(output.students, output.teachers).backward()
    moved = {largest > 0 for largest in gradients(wrapper.fusion).values()}
    assert moved == ({False} if detach_teacher else {True})
    assert gradients(tiny_network.encoder)["0.0.0.weight"] > 0  # the students always learn


def test_the_detached_teacher_learns_from_the_segmentation(tiny_network, image):
    wrapper = SelfDistillation(tiny_network, detach_teacher=True)
    output = wrapper(image)
    CrossEntropy()(output.teacher_logits, torch.ones(2, 1, 16, 16, 16, dtype=torch.long)).backward()
    assert min(gradients(wrapper.fusion).values()) > 0


def test_what_is_trained(tiny_network):
    assert training_network(tiny_network, distillation_weight=0.0) is tiny_network
    wrapper = training_network(tiny_network, distillation_weight=0.3, detach_teacher="true")
    assert wrapper.network is tiny_network
    assert wrapper.detach_teacher is True


def test_fused_skips_leave_nothing_to_distill():
    with torch.device("meta"):
        network = MISSU(skips=MultiScaleFusion([16, 32, 64]))
    with pytest.raises(ValueError, match="should have plain skips, got skips by MultiScaleFusion"):
        training_network(network, distillation_weight=0.3)
    assert training_network(network, distillation_weight=0.0) is network


def forward_counting_kept(module: nn.Module, image: torch.Tensor):
    """The output, and how many numbers are kept for the backward pass."""
    kept = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = module(image)
    return output, sum(kept)


@BOTH
def test_checkpointing_changes_memory_alone(tiny_network, image, detach_teacher):
    label = (image[:, :1] > 0.5).long()
    results = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        wrapper = SelfDistillation(copy.deepcopy(tiny_network), detach_teacher, checkpointing)
        output, kept = forward_counting_kept(wrapper, image)
        MISSULoss(CrossEntropy())(output, label).backward()
        results[checkpointing] = wrapper.state_dict(), gradients(wrapper), kept
    weights, plain, kept = results[False]
    same_weights, checkpointed, kept_less = results[True]
    assert list(weights) == list(same_weights)
    assert checkpointed == pytest.approx(plain, rel=1e-4, abs=1e-7)
    assert kept_less < 0.9 * kept
