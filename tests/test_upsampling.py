"""The 2x upsampling: what torch gives, and its gradient, which is our own on a CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scripts.networks.upsampling import upsample

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])


def reference(x):
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


@LAYOUTS
def test_gradient_by_differences(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 1, 2, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    torch.testing.assert_close(upsample(x), reference(x), rtol=0, atol=0)
    assert torch.autograd.gradcheck(upsample, (x,))


@LAYOUTS
def test_gradient_is_that_of_torch(layout):
    """The gradient comes as a part of that of skip and upsampled features, which lie beside each other."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 5, 4).to(memory_format=layout)
    direction = torch.randn(1, 12, 12, 10, 8).to(memory_format=layout)[:, 4:]
    gradients = []
    for doubled in (upsample, reference):
        given = x.clone().requires_grad_()
        (doubled(given) * direction).sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("training", [False, True])
def test_autocast_keeps_the_type_of_its_input(training):
    """Computed in float32, rounded once: as interpolated by autocast, and then made bfloat16."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = upsample(x.requires_grad_(training))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, reference(x.float()).bfloat16(), rtol=0, atol=0)
    if training:
        result.float().square().sum().backward()
        assert x.grad.dtype == torch.bfloat16
