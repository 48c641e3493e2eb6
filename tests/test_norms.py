"""The instance norm: exact in both layouts and all precisions, of a whole image and of the windows in it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from scripts.networks import InstanceNorm, Windows

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])


@LAYOUTS
def test_exact_in_both_layouts(layout):
    """Features far from zero, in a volume in which a sum of voxel after voxel in float32 is off by a percent."""
    torch.manual_seed(0)
    x = (10 + 3 * torch.rand(1, 4, 96, 96, 96)).to(memory_format=layout)
    result = InstanceNorm(4)(x)
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result.double(), nn.InstanceNorm3d(4)(x.double()), atol=1e-4, rtol=0)


@LAYOUTS
@pytest.mark.parametrize("planes_at_a_time", [1, 4, 5])
def test_gradients_by_differences(layout, planes_at_a_time, monkeypatch):
    """Of two images at once, and of the norm's weights; 2 + 2 + 1 planes have other shares than five."""
    monkeypatch.setattr("scripts.networks.norms.SLAB", planes_at_a_time * 3 * 4 * 3)
    torch.manual_seed(0)
    norm = InstanceNorm(3).double()
    x = torch.randn(2, 3, 5, 3, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def normalized(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(normalized, (x, weight, bias))


@LAYOUTS
def test_gradient_in_bfloat16(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8, 8).to(memory_format=layout)
    direction = torch.randn(2, 4, 8, 8, 8)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        given = x.detach().clone().to(dtype).requires_grad_()
        (InstanceNorm(4)(given) * direction).sum().backward()
        gradients.append(given.grad)
    assert gradients[1].dtype == torch.bfloat16
    torch.testing.assert_close(gradients[1].float(), gradients[0], atol=0.03, rtol=0.02)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("windows", [None, Windows.of((16, 8, 8), (16, 8, 8), (8, 8, 8))], ids=["whole", "windows"])
@pytest.mark.parametrize("given", ["half input", "half network", "autocast"])
def test_statistics_in_float32(layout, dtype, windows, given):
    """Squares of 300 leave the range of float16, and bfloat16 knows no number between 300 and 302."""
    torch.manual_seed(0)
    norm, x = InstanceNorm(2), (300 + 40 * torch.randn(1, 2, 16, 8, 8)).to(dtype).to(memory_format=layout)
    expected = norm(x.float(), windows)
    with torch.autocast("cpu", dtype, enabled=given == "autocast"):
        result = norm.to(dtype if given == "half network" else torch.float32)(x, windows)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result.float(), expected, atol=torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@LAYOUTS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("windows", [None, Windows.of((8, 8, 8), (8, 8, 8), (8, 8, 8), stride=8)])
def test_one_voxel_becomes_the_bias(layout, training, windows):
    norm = InstanceNorm(2).train(training)
    nn.init.uniform_(norm.bias)
    x = torch.tensor([3.0, -4.0]).reshape(1, 2, 1, 1, 1).to(memory_format=layout)
    torch.testing.assert_close(norm(x, windows).flatten(), norm.bias, atol=1e-3, rtol=0)


@LAYOUTS
@pytest.mark.parametrize("planes_at_a_time", [1, 5, 24])
def test_norms_of_a_large_window(layout, planes_at_a_time, monkeypatch):
    """Two images of 20 x 13 x 8 in windows of 24 x 16 x 8, crops of 16 x 8 x 8.

    H: crops of 16 at 2 and 6. W: 13 voxels from 1 on, crops of 8 at 1, 3 (2.5 is rounded to even) and 6. D: one.
    """
    monkeypatch.setattr("scripts.networks.norms.SLAB", planes_at_a_time * 16 * 8 * 3)
    torch.manual_seed(0)
    norm = InstanceNorm(3)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    images = torch.randn(2, 3, 24, 16, 8).to(memory_format=layout)

    def expected(x, starts, side):
        total = weight = 0
        for i, j in product(*starts):
            crop = x[:, i : i + side[0], j : j + side[1], : side[2]].flatten(1)
            mean, variance = (value.view(-1, 1, 1, 1) for value in (crop.mean(1), crop.var(1, correction=0)))
            h, w = (
                torch.exp(-(((torch.arange(n) + 0.5 - start - length / 2) / (length / 8)) ** 2) / 2)
                for n, start, length in zip(x.shape[1:3], (i, j), side)
            )
            gaussian = h[:, None, None] * w[None, :, None]
            total, weight = total + gaussian * (x - mean) / (variance + norm.eps).sqrt(), weight + gaussian
        return total / weight * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1)

    result = norm(images, Windows.of((20, 13, 8), (24, 16, 8), (16, 8, 8)))
    assert result.is_contiguous(memory_format=layout)
    for x, normalized in zip(images, result):
        torch.testing.assert_close(normalized, expected(x, ((2, 6), (1, 3, 6)), (16, 8, 8)))


def test_windows_at_a_coarser_stage():
    """Crops of 16 at 2 and 6 of 24 voxels, at stride 4: 2 to 18 is half of a voxel, three whole ones, half of one."""
    windows = Windows.of((20, 8, 8), (24, 8, 8), (16, 8, 8), stride=4)
    expected = torch.tensor([[2.0, 4, 4, 4, 2, 0], [0, 2, 4, 4, 4, 2]]) / 16
    torch.testing.assert_close(windows.averages[0], expected)
    torch.testing.assert_close(windows.weights[0].sum(0), torch.ones(6))
    # Voxel 2 has its center at 10, as the first window has; the second's is 4 away, two of its sigma.
    first = 1 / (1 + torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(windows.weights[0][:, 2], torch.stack([first, 1 - first]))


def test_windows_of_the_mirror_image():
    """Neither W's windows at 1, 3, 6 nor H's zeros around the image are symmetric."""
    torch.manual_seed(0)
    norm, x = InstanceNorm(2), torch.randn(1, 2, 24, 16, 8)
    windows = Windows.of((19, 13, 8), (24, 16, 8), (16, 8, 8))
    for axes in ([2], [3], [2, 4], [2, 3, 4]):
        torch.testing.assert_close(norm(x.flip(axes), windows.flip(axes)).flip(axes), norm(x, windows))
    assert not torch.allclose(norm(x.flip(3), windows).flip(3), norm(x, windows), atol=1e-2)
