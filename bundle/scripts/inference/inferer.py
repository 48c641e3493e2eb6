"""As few windows as cover an image: whole brains in one pass, whatever the crop of the training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInfererAdapt
from monai.utils import ensure_tuple
from torch.utils._pytree import tree_map_only

from ..errors import InputError
from ..memory import free_memory, gib
from ..networks.missu import STRIDE, windows_of_stages

__all__ = [
    "AdaptiveInferer",
    "Bfloat16Inferer",
    "fewest_windows",
]

logger = logging.getLogger(__name__)

# A forward of the default network takes so much for each voxel of its window, and stitching for each of the image:
# measured as peak memory of 64^3 to 144 x 184 x 144, float32, on a CPU.
BYTES_PER_VOXEL, BYTES_PER_IMAGE_VOXEL = 750, 60


class AdaptiveInferer(Inferer):
    """As few windows as cover the image, all of one size, evenly placed: most brains are one window.

    A side of a window is a multiple of 8 voxels, from the one of ``roi_size`` to ``stretch`` times that, which bounds
    the memory whatever the image. An image within that is one window, padded with zeros. Windows are blended with
    Gaussian weights.

    What a network makes of a larger window than the crops of its training hangs on its instance norms: there is more
    air in it. So a network that says so (``takes_windows``) is given :class:`~scripts.networks.Windows` of ``roi_size``
    beside a larger window, for its norms. Any other network, such as an exported one, gets windows of ``roi_size``.

    Where a GPU has no room for the whole image, MONAI's ``SlidingWindowInfererAdapt`` puts the windows together on the
    CPU; where it has none for a stretched window, this one goes on with windows of ``roi_size``, and says so. On a CPU,
    where the system ends a process that takes too much, the need is estimated before. Nothing of a call is kept: the
    next image is treated as if it were the first, and threads may share an inferer.

    Args:
        roi_size: the crop that the network was trained on.
        stretch: how many times as long a window may be, on each axis; 1 for windows of exactly ``roi_size``.
        overlap: of neighboring windows, at least, as a share of ``roi_size``.
        progress: whether to show a bar over the windows.

    Raises:
        InputError: when ``stretch`` is below 1, or ``overlap`` not in [0, 1); by a call, when one window of
            ``roi_size`` alone is too much for the memory, or a logit is NaN or infinite: it names the case where the
            image does.
    """

    def __init__(self, roi_size: Sequence[int], stretch: float, overlap: float, progress: bool = False) -> None:
        super().__init__()
        if stretch < 1:
            raise InputError(f"stretch should be at least 1, got {stretch}.")
        if not 0 <= overlap < 1:
            raise InputError(f"overlap should be at least 0 and below 1, got {overlap}.")
        self.roi_size = tuple(roi_size)
        self.stretch = stretch
        self.overlap = overlap
        self.progress = progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits (B, classes, H, W, D) of images (B, C, H, W, D); ``args`` and ``kwargs`` go to the network."""
        try:
            return self.logits_of(inputs, network, *args, **kwargs)
        except InputError as error:
            cases = ", ".join(ensure_tuple(getattr(inputs, "meta", {}).get("case_id", ())))
            raise InputError(f"Case {cases}: {error}" if cases else str(error)) from error

    def logits_of(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        image_size = tuple(inputs.shape[2:])
        stretch = self.stretch if getattr(network, "takes_windows", False) else 1.0
        placed = self.place(image_size, stretch)
        if inputs.device.type == "cpu" and not self.has_room(image_size, placed):
            placed = self.place(image_size, stretch=1.0)
        try:
            logits = self.slide(placed, inputs, network, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            if placed.window == self.roi_size:
                raise self.no_room() from error
            logits = None
        if logits is None:  # here, where the error, which holds tensors, is gone
            logger.warning(f"Out of memory: goes on with windows of roi_size {list(self.roi_size)}.")
            try:
                logits = self.slide(self.place(image_size, stretch=1.0), inputs, network, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                raise self.no_room() from error
        # Of the image, too: OpenVINO makes finite logits of a NaN.
        if not (torch.isfinite(logits).all() and torch.isfinite(inputs).all()):
            raise InputError(
                "The logits are not finite, so that no class is the likeliest: the weights or the image hold values "
                "that are NaN or too large, or --amp false is needed."
            )
        return logits

    def place(self, image_size: Sequence[int], stretch: float) -> Placement:
        """The window for an image of this size, and the overlap."""
        axes = [fewest_windows(size, side, stretch, self.overlap) for size, side in zip(image_size, self.roi_size)]
        # MONAI rounds the step down: the half keeps it from falling short of a voxel.
        overlap = tuple(max(0.0, 1 - (step + 0.5) / side) for side, step in axes)
        return Placement(tuple(side for side, _ in axes), overlap)

    def has_room(self, image_size: Sequence[int], placed: Placement) -> bool:
        """Whether the free memory is enough for the window.

        Raises:
            InputError: when it is not enough for a window of ``roi_size``.
        """
        free = free_memory()
        if free is None:
            return True
        window, least = (
            BYTES_PER_VOXEL * math.prod(sides) + BYTES_PER_IMAGE_VOXEL * math.prod(image_size)
            for sides in (placed.window, self.roi_size)
        )
        if least > free:
            raise InputError(
                f"An image of {list(image_size)} voxels in windows of roi_size {list(self.roi_size)} needs about "
                f"{gib(least)} of memory, {gib(free)} are free: close other programs, or take another machine."
            )
        if window > free:
            logger.warning(
                f"Windows of {list(placed.window)} need about {gib(window)} of memory, {gib(free)} are free: goes on "
                f"with windows of roi_size {list(self.roi_size)}."
            )
        return window <= free

    def slide(
        self, placed: Placement, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The logits of windows, blended."""
        if placed.window != self.roi_size:
            kwargs["windows"] = windows_of_stages(inputs.shape[2:], placed.window, self.roi_size, inputs.device)
        # A new one for each image: it keeps what it learned about the memory.
        inferer = SlidingWindowInfererAdapt(
            roi_size=placed.window, overlap=placed.overlap, mode="gaussian", progress=self.progress
        )
        return inferer(inputs, network, *args, **kwargs)  # type: ignore[return-value]

    def no_room(self) -> InputError:
        return InputError(
            f"The device has no memory for one window of roi_size {list(self.roi_size)}: "
            "train with a smaller roi_size, or take another device."
        )


class Placement(NamedTuple):
    """Sides of the windows on an image, and the overlap of neighbors on each axis as a share of the side."""

    window: tuple[int, ...]
    overlap: tuple[float, ...]


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


class Bfloat16Inferer(SimpleInferer):
    """One pass of the network in bfloat16 where that loses little, for a training on a CPU; the results are float32.

    MONAI's engines know automatic mixed precision for CUDA alone. A processor without instructions of its own for
    bfloat16 (AVX512-BF16 or AMX) gives the same in more time, and a warning says so.
    """

    def __init__(self) -> None:
        super().__init__()
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            logger.warning("This processor has no instructions for bfloat16: leave out bfloat16.json, it costs time.")

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            output = super().__call__(inputs, network, *args, **kwargs)
        return tree_map_only(torch.Tensor, torch.Tensor.float, output)
