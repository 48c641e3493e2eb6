"""As few windows as cover an image, with the statistics of small ones."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from monai.inferers import SlidingWindowInfererAdapt
from torch import nn

from ..errors import InputError
from ..memory import free_memory, gib
from ..networks.missu import STRIDE

__all__ = [
    "AdaptiveInferer",
    "WindowStatistics",
    "fewest_windows",
]

logger = logging.getLogger(__name__)

# A forward of the default network takes so much for each voxel of its window, and stitching for each of the image:
# measured as peak memory of 64^3 to 144 x 184 x 144, float32, on a CPU.
BYTES_PER_VOXEL, BYTES_PER_IMAGE_VOXEL = 750, 60
# One image at a time: WindowStatistics changes the network, which a server may share among threads.
NETWORK_IN_USE = threading.Lock()


class AdaptiveInferer(SlidingWindowInfererAdapt):
    """As few windows as cover the image, all of one size, evenly placed: most brains are one window.

    A side of a window is a multiple of 8 voxels, from the one of ``roi_size`` to ``stretch`` times that, which bounds
    the memory whatever the image. An image within that is one window, padded with zeros. Windows are blended with
    Gaussian weights.

    What a network makes of a larger window than the crops of its training hangs on its instance norms: there is more
    air in it. So they take mean and variance from windows of ``roi_size`` (:class:`WindowStatistics`). A network whose
    norms cannot be seen, such as an exported one, gets windows of ``roi_size``.

    Where a GPU has no room for the whole image, MONAI's class puts the windows together on the CPU; where it has none
    for a stretched window, this one goes on with windows of ``roi_size``, and says so. On a CPU, where the system ends
    a process that takes too much, the need is estimated before.

    Args:
        roi_size: the crop that the network was trained on.
        stretch: how many times as long a window may be, on each axis; 1 for windows of exactly ``roi_size``.
        overlap: of neighboring windows, at least, as a share of ``roi_size``.
        progress: whether to show a bar over the windows.

    Raises:
        ValueError: when ``stretch`` is below 1, or ``overlap`` not in [0, 1).
        InputError: by a call, when one window of ``roi_size`` alone is too much for the memory.
    """

    def __init__(self, roi_size: Sequence[int], stretch: float, overlap: float, progress: bool = False) -> None:
        if stretch < 1:
            raise ValueError(f"stretch should be at least 1, got {stretch}.")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap should be at least 0 and below 1, got {overlap}.")
        super().__init__(roi_size=roi_size, overlap=overlap, mode="gaussian", progress=progress)
        self.crop = tuple(roi_size)
        self.stretch = stretch
        self.least_overlap = overlap

    def place(self, image_size: Sequence[int], stretch: float) -> tuple[int, ...]:
        """Chooses the window, which it returns, and its overlap for an image of this size."""
        axes = [fewest_windows(size, side, stretch, self.least_overlap) for size, side in zip(image_size, self.crop)]
        self.roi_size = tuple(side for side, _ in axes)
        # MONAI rounds the step down: the half keeps it from falling short of a voxel.
        self.overlap = tuple(max(0.0, 1 - (step + 0.5) / side) for side, step in axes)
        return self.roi_size

    def make_room(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """The window for the memory that is free: that which was placed, or else that of the training."""
        free = free_memory()
        window: tuple[int, ...] = tuple(self.roi_size)  # type: ignore[arg-type]
        need = BYTES_PER_VOXEL * math.prod(window) + BYTES_PER_IMAGE_VOXEL * math.prod(image_size)
        if free is None or need <= free:
            return window
        if window == self.crop:
            raise InputError(
                f"An image of {list(image_size)} voxels in windows of roi_size {list(self.crop)} needs about "
                f"{gib(need)} of memory, {gib(free)} are free: close other programs, or take another machine."
            )
        logger.warning(
            f"Windows of {list(window)} need about {gib(need)} of memory, {gib(free)} are free: goes on with windows "
            f"of roi_size {list(self.crop)}."
        )
        self.stretch = 1.0
        self.place(image_size, self.stretch)
        return self.make_room(image_size)

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        norms = [norm for norm in network.modules() if is_instance_norm(norm)] if isinstance(network, nn.Module) else []
        window_size = self.place(inputs.shape[2:], self.stretch if norms else 1.0)
        if inputs.device.type == "cpu":
            window_size = self.make_room(inputs.shape[2:])
        try:
            with NETWORK_IN_USE:
                if window_size == self.crop:
                    return super().__call__(inputs, network, *args, **kwargs)
                with WindowStatistics(norms, inputs.shape[2:], window_size, self.crop):
                    return super().__call__(inputs, network, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            if window_size == self.crop:
                raise InputError(
                    f"The device has no memory for one window of roi_size {list(self.crop)}: "
                    "train with a smaller roi_size, or take another device."
                ) from error
        logger.warning(f"Out of memory: goes on with windows of roi_size {list(self.crop)}.")
        self.stretch = 1.0
        return self(inputs, network, *args, **kwargs)


def fewest_windows(size: int, roi: int, stretch: float, overlap: float) -> tuple[int, int]:
    """The side of the windows that cover ``size`` voxels of an axis, and the step from one to the next.

    Example:
        >>> fewest_windows(145, roi=128, stretch=1.5, overlap=0.5)  # one window
        (152, 152)
        >>> fewest_windows(250, roi=128, stretch=1.5, overlap=0.5)  # 0 to 160, 90 to 250
        (160, 90)
    """
    longest = max(roi, int(roi * stretch) // STRIDE * STRIDE)
    shared = 0 if size <= longest else math.ceil(roi * overlap)
    num_windows = max(1, math.ceil((size - shared) / (longest - shared)))
    side = max(roi, math.ceil((size + (num_windows - 1) * shared) / num_windows / STRIDE) * STRIDE)
    return side, side if num_windows == 1 else math.ceil((size - side) / (num_windows - 1))


def is_instance_norm(module: nn.Module) -> TypeGuard[nn.GroupNorm]:
    """Whether it is a norm of MISSU: a group norm of one group per channel."""
    return isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels


class WindowStatistics:
    """While it is entered, instance norms of a large window take their statistics from small ones in it.

    The small windows have the size of ``crop``, overlap by half or more, and lie evenly on the image, such as a sliding
    window would meet them one by one. A voxel is normalized by what they say, blended with Gaussian weights as
    their results would be.

    Args:
        norms: the norms, of a network whose sides shrink by powers of 2; it is called without gradients, with one
            image at a time.
        image_size: sides of the image.
        window_size: sides of the window that the network gets: the image and zeros around it, or a part of it.
        crop: sides of the small windows.
    """

    def __init__(
        self,
        norms: Sequence[nn.GroupNorm],
        image_size: Sequence[int],
        window_size: Sequence[int],
        crop: Sequence[int],
    ) -> None:
        self.norms = norms
        self.window_size = window_size
        self.crop = crop
        self.starts = [small_windows(*sides) for sides in zip(image_size, window_size, crop)]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.forward = partial(self.normalize, norm)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for norm in self.norms:
            del norm.forward

    def averages(self, x: torch.Tensor) -> torch.Tensor:
        """The means of (H, W, D, C) over each window: (C, windows on H, on W, on D)."""
        for starts, side, crop in zip(self.starts, self.window_size, self.crop):
            inside = torch.zeros(len(starts), side, device=x.device)
            for row, start in zip(inside, starts):
                row[start : start + crop] = 1 / crop
            inside = inside.reshape(len(starts), len(x), -1).sum(2)  # the voxels of this stage
            # (windows, H) x (H, W D C) -> (W, D, C, windows): the next axis comes first.
            x = (inside @ x.reshape(len(x), -1)).reshape(-1, *x.shape[1:]).movedim(0, -1)
        return x

    def weights(self, axis: int, num_voxels: int, device: torch.device) -> torch.Tensor:
        """Of each window for the voxels of an axis, (windows, voxels): Gaussians of the width that MONAI gives them."""
        stride, crop = self.window_size[axis] / num_voxels, self.crop[axis]
        voxels = (torch.arange(num_voxels, device=device) + 0.5) * stride
        centers = torch.tensor(self.starts[axis], device=device)[:, None] + crop / 2
        return torch.softmax(-(((voxels - centers) / (crop / 8)) ** 2) / 2, dim=0)

    def normalize(self, norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        # In float32 throughout: with AMP the products below would be in float16, whose range the squares leave.
        with torch.autocast(x.device.type, enabled=False):
            return self.blend(norm, x)

    def blend(self, norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(x)
        voxels, result = x[0].movedim(0, -1), output[0].movedim(0, -1)  # (H, W, D, C), as with channels last
        wide = voxels.float()
        mean = self.averages(wide)
        variance = (self.averages(wide.square()) - mean.square()).clamp_min(0)
        scale = norm.weight.view(-1, 1, 1, 1) * (variance + norm.eps).rsqrt()
        shift = norm.bias.view(-1, 1, 1, 1) - mean * scale
        h, w, d = (self.weights(axis, side, voxels.device) for axis, side in enumerate(voxels.shape[:3]))
        scale, shift = (torch.einsum("cijk,jw,kd->iwdc", field, w, d) for field in (scale, shift))
        for i in range(len(voxels)):  # slice by slice, in the memory of the output
            slice_scale, slice_shift = (torch.tensordot(h[:, i], field, dims=1) for field in (scale, shift))
            result[i] = torch.addcmul(slice_shift, wide[i], slice_scale)
        return output


def small_windows(size: int, side: int, crop: int) -> list[int]:
    """Where windows of ``crop`` start on an axis of ``size`` voxels that is padded or cut to ``side``."""
    seen = max(min(size, side), crop)
    first, steps = (side - seen) // 2, math.ceil(2 * (seen - crop) / crop)  # as MONAI pads
    return [first + round(number * (seen - crop) / max(1, steps)) for number in range(steps + 1)]
