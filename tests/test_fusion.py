"""Multi-scale fusion: how far each branch sees, and Eq. 3 with weights set by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks import MultiScaleFusion
from scripts.networks.fusion import AtrousBranches, atrous


def set_identity(conv: nn.Module) -> None:
    """A 1x1x1 convolution that hands its input on."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)


@pytest.fixture
def skips() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 2, 8, 12, 4), torch.randn(2, 4, 4, 6, 2), torch.randn(2, 8, 2, 3, 1)]


@pytest.fixture
def silent() -> MultiScaleFusion:
    """All weights zero; each test sets those it is about."""
    fusion = MultiScaleFusion([2, 4, 8])
    for weight in fusion.parameters():
        nn.init.zeros_(weight)
    return fusion


def branches_of(fusion: MultiScaleFusion, stage: int) -> list[nn.Sequential]:
    """The four branches on A^s, s counted from 1."""
    return list(fusion.branches[stage - 1].branches)


@pytest.mark.parametrize(("branch", "field"), [(0, 3), (1, 7), (2, 9), (3, 19)], ids=["3", "7", "9", "19"])
def test_receptive_field(branch, field):
    branches = nn.ModuleList(branches_of(MultiScaleFusion([1, 1]), stage=2)).double()
    for weight in branches.parameters():
        nn.init.ones_(weight)  # so that no gradient is zero by chance
    x = torch.zeros(1, 1, 23, 23, 23, dtype=torch.double, requires_grad=True)
    y = branches[branch](x)
    assert y.shape == x.shape
    y[0, 0, 11, 11, 11].backward()
    seen = x.grad[0, 0].nonzero()
    reach = field // 2
    assert seen.min(dim=0).values.tolist() == [11 - reach] * 3
    assert seen.max(dim=0).values.tolist() == [11 + reach] * 3


def test_teachers_have_the_shape_of_their_students(skips):
    teachers = MultiScaleFusion([2, 4, 8])(skips)
    assert [teacher.shape for teacher in teachers] == [skip.shape for skip in skips]


def test_silent_branches_leave_a1_as_it_is(silent, skips):
    b1, b2, b3 = silent(skips)
    assert torch.equal(b1, skips[0])
    assert not b2.any()  # W_A and W_B are zero
    assert not b3.any()


def test_each_branch_is_added(silent, skips):
    for constant, branch in zip((1.0, 10.0, 100.0, 1000.0), branches_of(silent, stage=1), strict=True):
        nn.init.constant_(branch[-1].bias, constant)
    torch.testing.assert_close(silent(skips)[0], skips[0] + 1111)


def test_w_a_takes_the_same_stage(silent, skips):
    for branch in branches_of(silent, stage=2):
        nn.init.constant_(branch[-1].bias, 0.5)
    set_identity(silent.same_stage[0])
    set_identity(silent.same_stage[1])
    _, b2, b3 = silent(skips)
    torch.testing.assert_close(b2, skips[1] + 2)  # A-bar 2: four branches of 0.5 each
    torch.testing.assert_close(b3, skips[2])  # its branches are silent


def test_w_b_takes_the_fused_finer_stage(silent, skips):
    nn.init.constant_(branches_of(silent, stage=1)[0][-1].bias, 1)  # A-bar 1 = A1 + 1
    with torch.no_grad():
        silent.finer_stage[0].weight[3, 1, 1, 1, 1] = 2  # channel 1 of B1, at the center of the kernel
        silent.finer_stage[1].weight[5, 3, 1, 1, 1] = 10  # channel 3 of B2
    _, b2, b3 = silent(skips)
    torch.testing.assert_close(b2[:, 3], 2 * (skips[0][:, 1, ::2, ::2, ::2] + 1))
    torch.testing.assert_close(b3[:, 5], 20 * (skips[0][:, 1, ::4, ::4, ::4] + 1))
    assert not b2[:, :3].any()


def test_w_b_has_a_kernel_of_three(silent, skips):
    nn.init.ones_(silent.finer_stage[0].weight)
    b2 = silent(skips)[1]
    # An output voxel at 2 sees the inputs 3 to 5 of each axis, and both channels of B1.
    torch.testing.assert_close(b2[0, 0, 2, 2, 1], skips[0][0, :, 3:6, 3:6, 1:4].sum())


def test_branches_computed_together_are_those_one_after_the_other():
    torch.manual_seed(0)
    together = AtrousBranches(3).double()
    skip = torch.randn(2, 3, 13, 11, 12, dtype=torch.double, requires_grad=True)
    results = []
    for forward in (together, lambda x: x + sum(branch(x) for branch in together.branches)):
        output = forward(skip)
        gradients = torch.autograd.grad(output.square().sum(), [skip, *together.parameters()])
        results.append([output, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("rate", [1, 3, 5])
def test_gradients_are_those_of_torch(rate, layout):
    """Of two images, with sides that the rate divides and sides that it does not."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 15, 7, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 4, 15, 7, 4, dtype=torch.float64)
    results, gradients = [], []
    for result in (atrous(x, weight, bias, rate), F.conv3d(x, weight, bias, padding=rate, dilation=rate)):
        results.append(result)
        gradients.append(torch.autograd.grad((result * direction).sum(), [x, weight, bias]))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    torch.testing.assert_close(*gradients)


def test_gradients_with_autocast():
    """The convolutions are in bfloat16, their weights and what those learn in float32."""
    torch.manual_seed(0)
    branches, x = AtrousBranches(4), torch.randn(1, 4, 9, 9, 9)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = branches(x).square().sum()
        gradients.append(torch.autograd.grad(loss, list(branches.parameters())))
    for in_float32, in_bfloat16 in zip(*gradients, strict=True):
        assert in_bfloat16.dtype == torch.float32
        assert (in_bfloat16 - in_float32).norm() < 0.03 * in_float32.norm()
