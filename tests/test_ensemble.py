"""Ensembles and test-time flips: the mean of what each member, each mirror image, predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.errors import InputError
from scripts.networks import Ensemble, InstanceNorm, Mirrored, Windows

ALL = (0, 1, 2)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_the_mean_of_the_members():
    ensemble = Ensemble(Scaled(1.0), 3)
    for member, factor in zip(ensemble.members, (1.0, 2.0, 6.0)):
        member.load_state_dict({"factor": torch.tensor(factor)})
    assert torch.equal(ensemble(torch.ones(1, 1, 2, 2, 2)), torch.full((1, 1, 2, 2, 2), 3.0))


class Position(nn.Module):
    """Adds to each voxel its number along one axis, so that a mirror image gives something else."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = x.shape[self.axis]
        return x + torch.arange(x.shape[self.axis]).reshape(shape)


def test_mirror_images_are_turned_back():
    x = torch.rand(1, 2, 4, 6, 3)
    for axis, side in ((2, 4), (3, 6), (4, 3)):
        # Half of the eight passes see the axis reversed: voxel i gets i and side - 1 - i.
        assert torch.allclose(Mirrored(Position(axis), ALL)(x), x + (side - 1) / 2)
    assert torch.allclose(Mirrored(Position(3), axes=[0, 2])(x), Position(3)(x))


def test_each_of_the_eight_mirror_images_once():
    seen = []

    class Recorder(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.flatten()[0].item())
            return x

    Mirrored(Recorder(), ALL)(torch.arange(8.0).reshape(1, 1, 2, 2, 2))
    assert sorted(seen) == list(range(8))  # the corner that is first tells the mirror image


class OneNorm(nn.Module):
    takes_windows = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = InstanceNorm(2)

    def forward(self, x: torch.Tensor, windows: list[Windows] | None = None) -> torch.Tensor:
        return self.norm(x, None if windows is None else windows[0])


def test_windows_are_handed_on():
    """A norm does not know left from right, so that its windows in a mirror image are those of the image."""
    windows = [Windows.of((19, 13, 8), (24, 16, 8), (16, 8, 8))]
    x, network = torch.randn(1, 2, 24, 16, 8, generator=torch.Generator().manual_seed(0)), OneNorm()
    assert not torch.allclose(network(x, windows), network(x), atol=1e-2)
    for wrapper in (Ensemble(network, 2), Mirrored(network, ALL), Mirrored(Ensemble(network, 2), axes=[1])):
        assert wrapper.takes_windows
        torch.testing.assert_close(wrapper(x, windows), network(x, windows))
        torch.testing.assert_close(wrapper(x), network(x))


def test_a_network_without_windows_has_none_in_an_ensemble():
    assert not Mirrored(Ensemble(Scaled(1.0), 2), ALL).takes_windows


def test_weights_that_do_not_say_what_was_flipped_are_not_mirrored():
    with pytest.raises(InputError, match="flip_axes should be the axes, 0 to 2, that the training flipped"):
        Mirrored(Scaled(1.0), None)


@pytest.mark.parametrize(("weights", "axes"), [("model", [0, 1, 2]), ("synthetic", [0, 1, 2]), ("liver", [])])
def test_the_shipped_weights_say_what_their_training_flipped(weights, axes):
    bundle = Path(__file__).parents[1] / "bundle"
    assert json.loads((bundle / "models" / f"{weights}.json").read_text())["settings"]["flip_axes"] == axes
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "inference.json"), str(bundle / "configs" / "tta.json")])
    parser.update({"bundle_root": str(bundle), "checkpoint": str(bundle / "models" / f"{weights}.pt")})
    assert parser.get_parsed_content("flip_axes") == axes
