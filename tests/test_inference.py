"""As few windows as cover an image, and what norms make of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from torch import nn

from scripts.errors import InputError
from scripts.inference.inferer import (
    AdaptiveInferer,
    WindowStatistics,
    fewest_windows,
)


class Recorder(nn.Module):
    """Doubles the image, notes the sizes of the windows, and has memory for so many voxels."""

    def __init__(self, room: float = float("inf"), norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 1) if norm else nn.Identity()  # not called
        self.room = room
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape[2:]))
        if x[0, 0].numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        ((16, 16, 16), [(16, 16, 16)]),
        ((5, 17, 24), [(16, 24, 24)]),  # one window: a side is padded to roi_size, or to the next multiple of 8
        # 25 to 40 with an overlap of 8: two windows of at most 24; 41: three.
        ((25, 16, 16), [(24, 16, 16)] * 2),
        ((16, 40, 16), [(16, 24, 16)] * 2),
        ((16, 16, 41), [(16, 16, 24)] * 3),
        ((40, 40, 16), [(24, 24, 16)] * 4),
    ],
)
def test_as_few_windows_as_cover_the_image(size, windows):
    network, image = Recorder(), torch.rand(1, 2, *size)
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    torch.testing.assert_close(inferer(image, network), 2 * image)
    assert network.seen == windows


@pytest.mark.parametrize(
    ("free", "windows"),
    # 24^3 voxels of 750 bytes and 60 for each of the image's: 11,197,440; 16^3: 3,901,440
    [(None, [(24, 24, 24)]), (11_197_440, [(24, 24, 24)]), (11_197_439, [(16, 16, 16)] * 8)],
)
def test_smaller_windows_where_memory_is_short(free, windows, monkeypatch, caplog):
    monkeypatch.setattr("scripts.inference.inferer.free_memory", lambda: free)
    network, image = Recorder(), torch.rand(1, 2, 24, 24, 24)
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    torch.testing.assert_close(inferer(image, network), 2 * image)
    assert network.seen == windows
    assert ("goes on with windows of roi_size [16, 16, 16]" in caplog.text) == (len(windows) > 1)


def test_an_image_that_memory_does_not_hold_is_refused_before(monkeypatch):
    monkeypatch.setattr("scripts.inference.inferer.free_memory", lambda: 3_901_439)
    network = Recorder()
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    with pytest.raises(InputError, match=r"windows of roi_size \[16, 16, 16\] needs about 0.0 GiB"):
        inferer(torch.rand(1, 2, 24, 24, 24), network)
    assert network.seen == []


@pytest.mark.parametrize(("size", "roi", "step"), [(145, 128, 17), (171, 128, 43), (300, 128, 58), (41, 16, 7)])
def test_windows_of_the_training_are_evenly_placed(size, roi, step):
    """As many as with MONAI's fixed step of half a window: 2, 2, 4 and 5."""
    assert fewest_windows(size, roi, stretch=1, overlap=0.5) == (roi, step)


def test_a_network_without_norms_gets_windows_of_the_training():
    for network in (Recorder(norm=False), Recorder(norm=False).forward):
        inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0)
        image = torch.rand(1, 1, 24, 16, 16)
        torch.testing.assert_close(inferer(image, network), 2 * image)
        assert getattr(network, "__self__", network).seen == [(16, 16, 16)] * 2


class TestWindowStatistics:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
    def test_norms_of_a_large_window(self, layout):
        """An image of 20 x 13 x 8 in a window of 24 x 16 x 8, crops of 16 x 8 x 8, at full and at half resolution.

        H: crops of 16 at 2 and 6. W: 13 voxels from 1 on, crops of 8 at 1, 3 (2.5 is rounded to even) and 6. D: one.
        """
        torch.manual_seed(0)
        norm, half = nn.GroupNorm(3, 3), nn.GroupNorm(2, 2)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
        image = torch.randn(1, 3, 24, 16, 8).to(memory_format=layout)
        smaller = torch.randn(1, 2, 12, 8, 4)
        plain = norm(image)
        with WindowStatistics([norm, half], (20, 13, 8), (24, 16, 8), (16, 8, 8)):
            result, half_result = norm(image), half(smaller)
        torch.testing.assert_close(norm(image), plain)

        def expected(x, norm, starts, side):
            total = weight = 0
            for i, j in product(*starts):
                crop = x[0, :, i : i + side[0], j : j + side[1], : side[2]].flatten(1)
                mean, variance = (value.view(-1, 1, 1, 1) for value in (crop.mean(1), crop.var(1, correction=0)))
                normalized = (x[0] - mean) / (variance + norm.eps).sqrt()
                h, w = (
                    torch.exp(-(((torch.arange(n) + 0.5 - start - length / 2) / (length / 8)) ** 2) / 2)
                    for n, start, length in zip(x.shape[2:4], (i, j), side)
                )
                gaussian = h[:, None, None] * w[None, :, None]
                total, weight = total + gaussian * normalized, weight + gaussian
            shape = (-1, 1, 1, 1)
            return (total / weight * norm.weight.view(shape) + norm.bias.view(shape))[None]

        torch.testing.assert_close(result, expected(image, norm, ((2, 6), (1, 3, 6)), (16, 8, 8)))
        assert half_result.shape == smaller.shape

    def test_mixed_precision_keeps_the_range(self):
        """Squares of 300 leave the range of float16."""
        norm, image = nn.GroupNorm(2, 2), 300 + torch.randn(1, 2, 16, 8, 8)
        with torch.autocast("cpu", torch.float16), WindowStatistics([norm], (16, 8, 8), (16, 8, 8), (8, 8, 8)):
            result = norm(image)
        assert torch.isfinite(result).all()
        assert result.std().item() == pytest.approx(1, abs=0.1)

    def test_a_window_of_the_training_has_its_own_statistics(self):
        norm, image = nn.GroupNorm(2, 2), torch.randn(1, 2, 8, 8, 8)
        with WindowStatistics([norm], (7, 8, 5), (8, 8, 8), (8, 8, 8)):
            result = norm(image)
        torch.testing.assert_close(result, norm(image))

    def test_a_large_image_as_its_windows_see_it(self):
        """Two halves that look alike: what a norm makes of each is what it makes of one alone, but in one pass."""
        norm, half = nn.GroupNorm(2, 2), torch.randn(1, 2, 16, 8, 8)
        norms = nn.Sequential(norm)
        image = torch.cat([half, half.flip(2)], dim=2)
        inferer = AdaptiveInferer(roi_size=(16, 8, 8), stretch=2, overlap=0)
        torch.testing.assert_close(inferer(image, norms)[:, :, :4], norm(half)[:, :, :4], atol=2e-3, rtol=1e-2)


def test_threads_share_a_network():
    """As in a server: what each image gets is what it gets alone."""
    network = nn.Sequential(nn.GroupNorm(2, 2))
    images = [torch.randn(1, 2, side, 16, 16) for side in (16, 24, 32, 40)]

    def infer(image: torch.Tensor) -> torch.Tensor:
        return AdaptiveInferer(roi_size=(16, 16, 16), stretch=2.5, overlap=0.5)(image, network)

    expected = [infer(image) for image in images]
    with ThreadPoolExecutor(len(images)) as threads:
        for _ in range(20):
            for result, alone in zip(threads.map(infer, images), expected):
                torch.testing.assert_close(result, alone)


def test_images_of_several_sizes_by_one_inferer():
    network = Recorder()
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    for side in (40, 8, 24):
        inferer(torch.rand(1, 1, side, 8, 8), network)
    assert network.seen == [(24, 16, 16), (24, 16, 16), (16, 16, 16), (24, 16, 16)]


def test_windows_of_the_training_where_memory_is_short(caplog):
    network, image = Recorder(room=16**3), torch.rand(1, 1, 24, 16, 16)
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0)
    for _ in range(2):
        torch.testing.assert_close(inferer(image, network), 2 * image)
    assert network.seen == [(24, 16, 16), *[(16, 16, 16)] * 4]  # the second image does not try again
    assert [message for message in caplog.messages if "roi_size" in message] == [
        "Out of memory: goes on with windows of roi_size [16, 16, 16]."
    ]


def test_no_room_for_one_window():
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0)
    with pytest.raises(InputError, match=r"no memory for one window of roi_size \[16, 16, 16\]"):
        inferer(torch.rand(1, 1, 24, 24, 24), Recorder(room=0))


@pytest.mark.parametrize(("stretch", "overlap"), [(0.9, 0.5), (1.5, 1.0), (1.5, -0.1)])
def test_impossible_windows(stretch, overlap):
    with pytest.raises(ValueError, match=r"stretch|overlap"):
        AdaptiveInferer(roi_size=(16, 16, 16), stretch=stretch, overlap=overlap)
