"""The training wrapper: logits of the plain network, nothing left in its weights, and who receives gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scripts.networks import MISSU, ModalityDistillation, MultiScaleFusion, SelfDistillation, training_network
from scripts.training.losses import MISSULoss, ModalityDistillationLoss


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


@pytest.mark.parametrize("mode", [True, False], ids=["training", "eval"])
def test_logits_are_those_of_the_plain_network(tiny_network, image, mode):
    wrapper = SelfDistillation(tiny_network).train(mode)
    assert torch.equal(wrapper(image).logits, tiny_network(image))


def test_students_and_teachers_are_the_first_three_stages(tiny_network, image):
    output = SelfDistillation(tiny_network)(image)
    shapes = [(2, 8, 16, 16, 16), (2, 16, 8, 8, 8), (2, 32, 4, 4, 4)]
    assert [student.shape for student in output.students] == shapes
    assert [teacher.shape for teacher in output.teachers] == shapes
    for student, feature in zip(output.students, tiny_network.encode(image)[:3], strict=True):
        assert torch.equal(student, feature)
    assert output.teacher_logits is None


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


def test_each_weight_receives_gradient(tiny_network, image):
    """So that DDP needs no find_unused_parameters."""
    wrapper = SelfDistillation(tiny_network)
    label = torch.randint(3, (2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(2))
    MISSULoss(CrossEntropy())(wrapper(image), label).backward()
    without = [name for name, largest in gradients(wrapper).items() if not largest > 0]
    assert without == []


def test_the_distillation_loss_moves_both_sides(tiny_network, image):
    wrapper = SelfDistillation(tiny_network)
    loss = MISSULoss(CrossEntropy())
    output = wrapper(image)
    loss.distillation(output.students, output.teachers).backward()
    assert min(gradients(wrapper.fusion).values()) > 0
    assert gradients(tiny_network.encoder)["0.0.0.weight"] > 0


def test_what_is_trained(tiny_network):
    assert training_network(tiny_network, distillation_weight=0.0) is tiny_network
    wrapper = training_network(tiny_network, distillation_weight=0.3)
    assert wrapper.network is tiny_network


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


def test_checkpointing_changes_memory_alone(tiny_network, image):
    label = (image[:, :1] > 0.5).long()
    results = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        wrapper = SelfDistillation(copy.deepcopy(tiny_network), checkpointing)
        output, kept = forward_counting_kept(wrapper, image)
        MISSULoss(CrossEntropy())(output, label).backward()
        results[checkpointing] = wrapper.state_dict(), gradients(wrapper), kept
    weights, plain, kept = results[False]
    same_weights, checkpointed, kept_less = results[True]
    assert list(weights) == list(same_weights)
    assert checkpointed == pytest.approx(plain, rel=1e-4, abs=1e-7)
    assert kept_less < 0.9 * kept


def missing_one(image: torch.Tensor) -> torch.Tensor:
    return image * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)


@pytest.fixture
def teacher(tiny_network) -> MISSU:
    """Another network with the same modalities and classes."""
    other = copy.deepcopy(tiny_network)
    for weight in other.parameters():
        nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(3))
    return other


def test_a_teacher_without_weight_leaves_the_student_as_it_is(tiny_network, teacher, image):
    """Bit for bit, after steps with the whole loss: nothing but the distillation leads from teacher to student."""
    label = torch.randint(3, (2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(2))
    plain, as_it_was = copy.deepcopy(tiny_network), copy.deepcopy(teacher.state_dict())
    wrapper, without = ModalityDistillation(tiny_network, teacher), ModalityDistillationLoss(CrossEntropy(), 0.0)
    both = [
        (plain, lambda: CrossEntropy()(plain(missing_one(image)), label)),
        (wrapper, lambda: without(wrapper(missing_one(image), image), label)),
    ]
    for module, loss in both:
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, wrapper.network.state_dict()[name]), name
    assert all(torch.equal(weight, as_it_was[name]) for name, weight in wrapper.teacher.state_dict().items())


def test_the_teacher_sees_all_modalities_and_the_student_what_is_left(tiny_network, teacher, image):
    output = ModalityDistillation(tiny_network, teacher)(missing_one(image), image)
    assert torch.equal(output.logits, tiny_network(missing_one(image)))
    assert torch.equal(output.teacher_logits, teacher.eval()(image))


def test_the_student_alone_is_moved(tiny_network, teacher, image):
    wrapper = ModalityDistillation(tiny_network, teacher).train()
    assert (wrapper.network.training, wrapper.teacher.training) == (True, False)
    label = torch.ones(2, 1, 16, 16, 16, dtype=torch.long)
    ModalityDistillationLoss(CrossEntropy())(wrapper(missing_one(image), image), label).backward()
    found = gradients(wrapper)
    assert min(largest for name, largest in found.items() if name.startswith("network.")) > 0
    assert {largest for name, largest in found.items() if name.startswith("teacher.")} == {-1.0}
