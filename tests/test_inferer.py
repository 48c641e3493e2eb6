"""As few windows as cover an image, and what norms make of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import nn

from scripts.errors import InputError
from scripts.inference import AdaptiveInferer, Bfloat16Inferer
from scripts.inference.inferer import fewest_windows
from scripts.networks import InstanceNorm, SelfDistillation, Windows


class Recorder(nn.Module):
    """Doubles the image, notes the sizes of the windows, and has memory for so many voxels."""

    def __init__(self, room: float = float("inf"), takes_windows: bool = True) -> None:
        super().__init__()
        self.takes_windows = takes_windows
        self.room = room
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, windows: list[Windows] | None = None) -> torch.Tensor:
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
    monkeypatch.setattr("scripts.inference.inferer.free_memory", lambda: None)
    network.seen.clear()
    inferer(image, network)
    assert network.seen == [(24, 24, 24)]  # the next image as the first


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


def test_a_network_that_takes_no_windows_gets_those_of_the_training():
    for network in (Recorder(takes_windows=False), Recorder(takes_windows=False).forward):
        inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0)
        image = torch.rand(1, 1, 24, 16, 16)
        torch.testing.assert_close(inferer(image, network), 2 * image)
        assert getattr(network, "__self__", network).seen == [(16, 16, 16)] * 2


class OneNorm(nn.Module):
    """An instance norm, at full resolution."""

    takes_windows = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = InstanceNorm(2)

    def forward(self, x: torch.Tensor, windows: list[Windows] | None = None) -> torch.Tensor:
        return self.norm(x, None if windows is None else windows[0])


def test_a_large_image_as_its_windows_see_it():
    """Two halves that look alike: what a norm makes of each is what it makes of one alone, but in one pass."""
    network, half = OneNorm(), torch.randn(1, 2, 16, 8, 8)
    image = torch.cat([half, half.flip(2)], dim=2)
    inferer = AdaptiveInferer(roi_size=(16, 8, 8), stretch=2, overlap=0)
    torch.testing.assert_close(inferer(image, network)[:, :, :4], network(half)[:, :, :4], atol=2e-3, rtol=1e-2)


def test_each_image_of_a_batch_as_it_is_alone(tiny_network):
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    batch = torch.randn(2, 2, 24, 33, 16) * torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1, 1)
    with torch.inference_mode():
        result = inferer(batch, tiny_network.eval())
        alone = torch.cat([inferer(image, tiny_network) for image in batch.split(1)])
    torch.testing.assert_close(result, alone)


def test_threads_share_a_network_and_an_inferer(tiny_network):
    """As in a server: what each image gets is what it gets alone."""
    tiny_network.eval()
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=2, overlap=0.5)
    torch.manual_seed(0)
    images = [torch.randn(1, 2, *sides) for sides in ((8, 16, 16), (24, 16, 20), (40, 16, 16), (32, 32, 16))] * 6

    def infer(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return inferer(image, tiny_network)

    expected = [infer(image) for image in images[:4]] * 6
    with ThreadPoolExecutor(8) as threads:
        for result, alone in zip(threads.map(infer, images), expected):
            assert torch.equal(result.argmax(1), alone.argmax(1))
            torch.testing.assert_close(result, alone)


def test_a_network_that_hides_what_is_not_finite():
    image = torch.ones(1, 1, 16, 16, 16)
    image[0, 0, 3, 4, 5] = float("nan")
    with pytest.raises(InputError, match="the weights or the image hold values"):
        AdaptiveInferer((16,) * 3, stretch=1, overlap=0.5)(image, torch.zeros_like)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [16, 40], ids=["one window", "more"])
def test_logits_that_are_not_finite_are_no_mask(value, side):
    image = torch.rand(1, 2, side, 16, 16)
    image[0, 1, 3, 2, 1] = value
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    with pytest.raises(InputError, match="The logits are not finite"):
        inferer(image, Recorder())


def test_the_case_is_named_whoever_asks():
    """In a validation, an evaluation, an ensemble, a server: by the image, of one case or of several."""
    image = torch.full((1, 2, 16, 16, 16), float("nan"))
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    for case_id, named in (("a", "a"), (["a", "b"], "a, b")):
        with pytest.raises(InputError, match=f"^Case {named}: The logits are not finite"):
            inferer(MetaTensor(image, meta={"case_id": case_id}), Recorder())


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
    assert network.seen == [(24, 16, 16), (16, 16, 16), (16, 16, 16)] * 2  # the second image as the first
    assert [message for message in caplog.messages if "roi_size" in message] == [
        "Out of memory: goes on with windows of roi_size [16, 16, 16]."
    ] * 2


def test_no_room_for_one_window():
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0)
    with pytest.raises(InputError, match=r"no memory for one window of roi_size \[16, 16, 16\]"):
        inferer(torch.rand(1, 1, 24, 24, 24), Recorder(room=0))


@pytest.mark.parametrize(("stretch", "overlap"), [(0.9, 0.5), (1.5, 1.0), (1.5, -0.1)])
def test_impossible_windows(stretch, overlap):
    with pytest.raises(ValueError, match=r"stretch|overlap"):
        AdaptiveInferer(roi_size=(16, 16, 16), stretch=stretch, overlap=overlap)


def test_a_step_in_bfloat16_is_near_that_in_float32(tiny_network):
    image = torch.rand(1, 2, 16, 16, 16)
    exact, near = SimpleInferer()(image, tiny_network), Bfloat16Inferer()(image, tiny_network)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()
    distilled = Bfloat16Inferer()(image, SelfDistillation(tiny_network))
    assert {tensor.dtype for tensor in (distilled.logits, *distilled.students)} == {torch.float32}
    distilled.logits.square().mean().backward()
    assert all(weight.grad is not None for weight in tiny_network.parameters())
