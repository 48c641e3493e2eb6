"""Instance norm, of a whole image or of the windows that a sliding window would meet in it."""

# No annotations from __future__: TorchScript cannot read the fields of a NamedTuple that are text.
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .eager import apply_to, is_eager_on_cpu, is_written_down

__all__ = ["InstanceNorm", "Windows"]

SLAB = 2**18  # numbers that are summed up or blended at a time, 1 MB in float32


class Windows(NamedTuple):
    """Where the norms of one stage take mean and variance: windows of the training's size on a larger input.

    What a network makes of a larger input than the crops of its training hangs on its instance norms: there is more
    air in it. With these, a voxel is normalized by what the windows around it say, blended with Gaussian weights, as
    the results of a sliding window would be. The windows overlap by half or more, and lie evenly on the image.

    Args:
        averages: for H, W and D, the matrix (windows, voxels) that takes the mean over each window.
        weights: for H, W and D, the weight of each window for each voxel (windows, voxels); of a voxel, they sum to 1.
    """

    averages: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @classmethod
    def of(
        cls,
        image_size: Sequence[int],
        window_size: Sequence[int],
        crop: Sequence[int],
        stride: int = 1,
        device: torch.device | str = "cpu",
    ) -> "Windows":
        """The windows of one stage.

        Args:
            image_size: sides of the image.
            window_size: sides of what the network gets, multiples of ``stride``: the image with zeros around it, or a
                part of it.
            crop: sides of the windows, those of the training.
            stride: of the stage; its sides are so much smaller than the input's.
            device: of the tensors.
        """
        axes = [axis_windows(*sides, stride) for sides in zip(image_size, window_size, crop)]
        averages, weights = zip(*([matrix.to(device) for matrix in axis] for axis in axes))
        return cls(averages, weights)

    def flip(self, axes: Sequence[int]) -> "Windows":
        """The windows of the mirror image; ``axes`` are those of an image (B, C, H, W, D), 2 to 4."""

        def flipped(matrices: Sequence[torch.Tensor]) -> tuple:
            return tuple(matrix.flip(1) if axis in axes else matrix for axis, matrix in enumerate(matrices, start=2))

        return Windows(flipped(self.averages), flipped(self.weights))


def axis_windows(size: int, side: int, crop: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages and weights (windows, voxels of the stage) on an axis of ``size`` voxels, padded or cut to ``side``."""
    starts = torch.tensor(window_starts(size, side, crop))[:, None]
    voxels = torch.arange(side)
    inside = ((voxels >= starts) & (voxels < starts + crop)) / crop
    centers = (torch.arange(side // stride) + 0.5) * stride - (starts + crop / 2)
    # Gaussians of the width that MONAI gives them.
    weights = torch.softmax(-((centers / (crop / 8)) ** 2) / 2, dim=0)
    return inside.reshape(len(starts), -1, stride).sum(2), weights


def window_starts(size: int, side: int, crop: int) -> list[int]:
    """Where windows of ``crop`` start on an axis of ``size`` voxels that is padded or cut to ``side``."""
    seen = max(min(size, side), crop)
    first, steps = (side - seen) // 2, math.ceil(2 * (seen - crop) / crop)  # as MONAI pads
    return [first + round(number * (seen - crop) / max(1, steps)) for number in range(steps + 1)]


class InstanceNorm(nn.GroupNorm):
    """Instance norm, as group norm of one group per channel: half of what ``nn.InstanceNorm3d`` costs on a CPU.

    Mean and variance are summed up in float32 at least, whatever the type of the input. Of one voxel, the variance is
    0 and the result the bias, in training too, where ``nn.InstanceNorm3d`` raises.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_groups=num_channels, num_channels=num_channels)

    def forward(self, x: torch.Tensor, windows: Windows | None = None) -> torch.Tensor:
        """Takes features (B, C, H, W, D), and the windows of their stage where they are not normalized as a whole."""
        if windows is not None:
            return self.of_windows(x, windows)
        half = x.dtype == torch.float16 or x.dtype == torch.bfloat16
        dtype = torch.float32 if half else x.dtype
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        channels_last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
        if not torch.jit.is_scripting() and channels_last and is_eager_on_cpu(x):
            return apply_to(x, ChannelsLastNorm, weight, bias, self.eps)
        wide = x.to(dtype)
        if wide.is_cuda or wide.is_contiguous():
            # Not F.group_norm, which refuses one voxel.
            return torch.group_norm(wide, self.num_groups, weight, bias, self.eps).to(x.dtype)
        # For channels last, torch's kernel of group norm on CPUs sums up voxel after voxel in float32: at 128^3 that is
        # an error of 1e-3 in a logit, this one of 1e-5.
        variance, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0, keepdim=True)
        scale = weight.view(1, -1, 1, 1, 1) * torch.rsqrt(variance + self.eps)
        return torch.addcmul(bias.view(1, -1, 1, 1, 1) - mean * scale, wide, scale).to(x.dtype)

    @torch.jit.unused
    def of_windows(self, x: torch.Tensor, windows: Windows) -> torch.Tensor:
        # With autocast the products below would be in float16, whose range the squares leave.
        with torch.autocast(x.device.type, enabled=False):
            # A copy where channels are not last.
            planes = x.movedim(1, -1).flatten(3)  # (B, H, W, D C)
            if is_written_down():  # no loop over an axis whose length is not fixed
                factors = self.factors(moments_along_width(planes, windows), windows)
                voxels = scaled(planes, factors, windows).unflatten(3, (-1, self.num_channels))
                return voxels.movedim(-1, 1).to(x.dtype)
            # Some planes at a time, which stay in the cache of the processor.
            size = max(1, SLAB // planes[0, 0].numel())
            slabs = planes.split(size, dim=1)
            factors = self.factors(torch.cat([moments_along_width(slab, windows) for slab in slabs], dim=2), windows)
            output = torch.empty_like(x)
            for number, (slab, of_slab) in enumerate(zip(slabs, factors.split(size, dim=2))):
                voxels = scaled(slab, of_slab, windows).unflatten(3, (-1, self.num_channels))
                output[:, :, number * size : (number + 1) * size] = voxels.movedim(-1, 1)
            return output

    def factors(self, moments: torch.Tensor, windows: Windows) -> torch.Tensor:
        """Scale and shift (2, B, H, windows on W, D C) of :func:`scaled`, from moments of that shape."""
        h, _, d = windows.averages
        of_voxels = moments.unflatten(-1, (-1, self.num_channels))
        mean, mean_of_squares = torch.einsum("mbhjdc,ih,kd->mbijkc", of_voxels, h, d)
        variance = (mean_of_squares - mean.square()).clamp_min(0)
        scale = self.weight.float() * torch.rsqrt(variance + self.eps)
        shift = self.bias.float() - mean * scale
        h, _, d = windows.weights
        return torch.einsum("mbijkc,ih,kd->mbhjdc", torch.stack([scale, shift]), h, d).flatten(4)


class ChannelsLastNorm(torch.autograd.Function):
    """Instance norm of images whose channels are last, on a CPU, by the kernels of batch norm on one image at a time.

    Forward and backward take a fifth of what they take as sums and products of tensors, in float32 and in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        """Takes x (B, C, H, W, D), weight and bias (C) of float32 at least."""
        moments = [moments_of(image, weight.dtype) for image in x.split(1)]
        normalized = [
            F.batch_norm(image, mean, variance, weight, bias, training=False, eps=eps)
            for image, (mean, variance) in zip(x.split(1), moments)
        ]
        means, variances = (torch.stack(values) for values in zip(*moments))
        ctx.save_for_backward(x, weight, means, torch.rsqrt(variances + eps))
        return torch.cat(normalized) if len(normalized) > 1 else normalized[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple:
        x, weight, *moments = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        of_images = [
            torch.ops.aten.native_batch_norm_backward(
                of_image, image, weight, None, None, mean, factor, True, 0.0, [True, True, True]
            )
            for of_image, image, mean, factor in zip(gradient.split(1), x.split(1), *moments)
        ]
        of_x, of_weight, of_bias = zip(*of_images)
        return torch.cat(of_x) if len(of_x) > 1 else of_x[0], sum(of_weight), sum(of_bias), None


def moments_of(image: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C) of an image (1, C, H, W, D) whose channels are last, in ``dtype``.

    Of some planes at a time: the kernel adds voxel after voxel, and of millions the sum would be off.
    """
    slabs = image.split(max(1, SLAB // image[0, :, 0].numel()), dim=2)
    unused = torch.zeros(image.shape[1], dtype=dtype)  # running averages, whose type is that of the result
    of_slabs = [torch.batch_norm_update_stats(slab, unused, unused, momentum=0.0) for slab in slabs]
    means, variances = (torch.stack(values).double() for values in zip(*of_slabs))
    shares = torch.tensor([slab.shape[2] / image.shape[2] for slab in slabs], dtype=torch.float64)
    mean = shares @ means
    variance = shares @ (variances + (means - mean).square())
    return mean.to(dtype), variance.to(dtype)


def moments_along_width(planes: torch.Tensor, windows: Windows) -> torch.Tensor:
    """The means of (B, H, W, D C), and of its squares, over each window on W: (2, B, H, windows, D C)."""
    wide = planes.float()
    average = windows.averages[1]
    return torch.stack([torch.matmul(average, wide), torch.matmul(average, wide.square())])


def scaled(planes: torch.Tensor, factors: torch.Tensor, windows: Windows) -> torch.Tensor:
    """(B, H, W, D C) times a scale, and a shift: those of the windows on W, blended."""
    scale, shift = torch.matmul(windows.weights[1].t(), factors)  # (2, B, H, windows, D C) -> (2, B, H, W, D C)
    return torch.addcmul(shift, planes.float(), scale)
