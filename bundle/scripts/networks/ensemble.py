"""Several predictions of one image become one: of several networks, and of the image mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain, combinations

import torch
from torch import nn

from ..errors import InputError
from .norms import Windows

__all__ = ["Ensemble", "Mirrored"]


class Ensemble(nn.Module):
    """The mean of the logits of networks that are alike but for their weights, as nnU-Net takes it of its folds.

    Args:
        network: the network; each member is a copy.
        num_members: how many there are.
    """

    def __init__(self, network: nn.Module, num_members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(deepcopy(network) for _ in range(num_members))

        self.takes_windows = getattr(network, "takes_windows", False)

    def forward(self, x: torch.Tensor, windows: list[Windows] | None = None) -> torch.Tensor:
        """Logits (B, classes, H, W, D) of an image (B, C, H, W, D)."""
        total = predict(self.members[0], x, windows)
        for member in self.members[1:]:
            total = total + predict(member, x, windows)
        return total / len(self.members)


class Mirrored(nn.Module):
    """The mean of the logits of an image and of its mirror images, each turned back.

    Args:
        network: predicts each of them.
        axes: of a volume (H, W, D), 0 to 2: those that were flipped in the training, else a class that is told by its
            side is blended with its counterpart. All their combinations are taken, eight for three axes.

    Raises:
        InputError: when there is none, or they are not known.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int] | None) -> None:
        super().__init__()
        self.network = network
        if axes is None:
            raise InputError(
                "flip_axes should be the axes, 0 to 2, that the training flipped, the record of the weights does not "
                "have them: give --flip_axes, or leave out tta.json."
            )
        if not axes:
            raise InputError("The weights were trained without flips, as their record says: leave out tta.json.")
        dims = [axis + 2 for axis in axes]
        self.axes = tuple(axes)
        self.flips = [list(flip) for flip in chain(*(combinations(dims, n) for n in range(1, len(dims) + 1)))]

        self.takes_windows = getattr(network, "takes_windows", False)

    def forward(self, x: torch.Tensor, windows: list[Windows] | None = None) -> torch.Tensor:
        """Logits (B, classes, H, W, D) of an image (B, C, H, W, D)."""
        total = predict(self.network, x, windows)
        for flip in self.flips:
            flipped = None if windows is None else [stage.flip(flip) for stage in windows]
            total = total + predict(self.network, x.flip(flip), flipped).flip(flip)
        return total / (len(self.flips) + 1)


def predict(network: nn.Module, x: torch.Tensor, windows: list[Windows] | None) -> torch.Tensor:
    """The logits of a network that need not take windows."""
    return network(x) if windows is None else network(x, windows)
