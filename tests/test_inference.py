"""Inference over many cases: the good ones are done, the bad ones reported at the end, no file is left half-written."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Lambdad, SaveImage
from torch import nn

from scripts.errors import InputError
from scripts.files import whole_file
from scripts.inference import AdaptiveInferer, AtomicNibabelWriter, CaseDataset, CaseEvaluator
from scripts.inference.inferer import fewest_windows
from scripts.networks import InstanceNorm, Windows


def read_case(value: float) -> torch.Tensor:
    if value < 0:
        raise InputError(f"Case {value:g}: it is bad.")
    if value > 100:
        raise ZeroDivisionError("a bug")
    return torch.full((1, 2, 2, 2), value)


def evaluator(values: list[float], done: list[float], folder: Path, num_workers: int = 0, **more) -> CaseEvaluator:
    """Cases of one value each; the network hands it on, and the post-processing notes it."""
    cases = [{"case_id": f"{value:g}", "image": value} for value in values]
    dataset = CaseDataset(cases, Lambdad("image", read_case), str(folder), **more)
    return CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, num_workers=num_workers),
        network=nn.Identity(),
        postprocessing=Lambdad("pred", lambda pred: done.append(pred.max().item()) or pred),
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_good_cases_are_done_and_bad_ones_reported(num_workers, tmp_path):
    done = []
    with pytest.raises(InputError) as raised:
        evaluator([1.0, -2.0, 3.0, -4.0, 5.0], done, tmp_path, num_workers).run()
    assert done == [1, 3, 5]
    assert str(raised.value).splitlines() == ["2 of 5 cases failed.", "Case -2: it is bad.", "Case -4: it is bad."]


def test_good_cases_alone(tmp_path):
    done = []
    evaluator([1.0, 2.0], done, tmp_path).run()
    assert done == [1, 2]


class Refuses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.max() == 2:
            raise InputError("It is too large.")
        return x


def test_a_case_that_the_network_cannot_take_is_one_of_the_bad(tmp_path):
    done = []
    runner = evaluator([1.0, 2.0, 3.0], done, tmp_path)
    runner.network = Refuses()
    with pytest.raises(InputError, match=r"^1 of 3 cases failed.\nCase 2: It is too large.$"):
        runner.run()
    assert done == [1, 3]


def test_faults_are_those_of_the_last_run(tmp_path):
    done = []
    runner = evaluator([-1.0], done, tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 1 cases failed"):
            runner.run()
    assert done == []


def test_a_bug_is_not_passed_over(tmp_path):
    done = []
    with pytest.raises(RuntimeError) as raised:
        evaluator([1.0, 101.0, 2.0], done, tmp_path).run()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert done == [1]


def test_what_is_there_is_not_replaced(tmp_path):
    (tmp_path / "2_seg.nii.gz").write_text("corrected by hand")
    done = []
    with pytest.raises(InputError, match=r"holds masks of 1 of these cases, such as 2_seg.nii.gz: keep them by"):
        evaluator([1.0, 2.0, 3.0], done, tmp_path).run()
    assert done == []
    evaluator([1.0, 2.0, 3.0], done, tmp_path, skip_existing=True).run()
    assert done == [1, 3]
    assert (tmp_path / "2_seg.nii.gz").read_text() == "corrected by hand"


def test_nothing_is_left_to_do(tmp_path, caplog):
    (tmp_path / "1_seg.nii.gz").touch()
    with caplog.at_level("INFO"):
        evaluator([1.0], [], tmp_path, skip_existing=True).run()
    assert caplog.messages[-1] == "0 of 1 cases segmented, 1 were there already, 0 failed."


def test_a_summary_at_the_end(tmp_path, caplog):
    (tmp_path / "2_seg.nii.gz").touch()
    with caplog.at_level("INFO"), pytest.raises(InputError):
        evaluator([1.0, 2.0, -3.0, 4.0], [], tmp_path, skip_existing=True).run()
    assert "2 of 4 cases segmented, 1 were there already, 1 failed." in caplog.messages


def test_processes_share_the_cases(tmp_path, monkeypatch):
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        (tmp_path / "0_seg.nii.gz").touch()  # what one process has done meanwhile does not move the others' shares
        cases = [{"case_id": str(number), "image": str(number)} for number in range(8)]
        shares.append([item["case_id"] for item in CaseDataset(cases, nn.Identity(), str(tmp_path)).share])
    assert shares == [["0", "3", "6"], ["1", "4", "7"], ["2", "5"]]


def test_what_a_killed_process_left(tmp_path):
    for name in (".123.1_seg.nii.gz", ".123.other_seg.nii.gz", ".hidden"):
        (tmp_path / name).touch()
    evaluator([1.0], [], tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".123.other_seg.nii.gz", ".hidden"]


def test_an_output_folder_that_cannot_be_written_to(tmp_path):
    done = []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir .*file.* cannot be written to: "):
        evaluator([1.0], done, tmp_path / "file" / "eval").run()
    assert done == []


def test_sigterm_ends_in_order(tmp_path):
    """Half a mask does not stay, and the handler of before is there again."""
    before = signal.getsignal(signal.SIGTERM)

    def save(pred: torch.Tensor) -> torch.Tensor:
        with whole_file(tmp_path / "1_seg.nii.gz") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
        return pred

    runner = evaluator([1.0, 2.0], [], tmp_path)
    runner.postprocessing = Lambdad("pred", save)
    runner._register_postprocessing(runner.postprocessing)
    with pytest.raises(SystemExit) as raised:
        runner.run()
    assert raised.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [16, 40], ids=["one window", "more"])
def test_logits_that_are_not_finite_are_no_mask(value, side):
    image = torch.rand(1, 2, side, 16, 16)
    image[0, 1, 3, 2, 1] = value
    inferer = AdaptiveInferer(roi_size=(16, 16, 16), stretch=1.5, overlap=0.5)
    with pytest.raises(InputError, match="The logits are not finite"):
        inferer(image, Recorder())


def test_a_case_without_finite_logits_is_reported_and_the_others_are_done(tmp_path):
    done: list[float] = []
    runner = evaluator([1.0, float("nan"), 3.0], done, tmp_path)
    runner.inferer = AdaptiveInferer(roi_size=(8, 8, 8), stretch=1, overlap=0)
    with pytest.raises(InputError, match=r"1 of 3 cases failed\.\nCase nan: The logits are not finite"):
        runner.run()
    assert done == [1, 3]


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


class TestWriter:
    @pytest.fixture
    def save(self, tmp_path):
        return SaveImage(
            output_dir=tmp_path, output_dtype="uint8", separate_folder=False, writer=AtomicNibabelWriter, resample=False
        )

    def test_a_whole_file(self, save, tmp_path):
        mask = torch.zeros(1, 4, 5, 6)
        mask[0, 1, 2, 3] = 3
        save(mask, meta_data={"filename_or_obj": "case.nii.gz", "affine": np.diag([2.0, 3, 4, 1])})
        [path] = tmp_path.iterdir()
        assert path.name == "case_trans.nii.gz"
        stored = nib.load(path)
        assert stored.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(stored.dataobj, mask[0])
        assert stored.header.get_zooms() == (2, 3, 4)

    @pytest.mark.parametrize("existing", [False, True], ids=["new", "in place of another"])
    def test_none_where_saving_fails(self, save, tmp_path, monkeypatch, existing):
        path = tmp_path / "case_trans.nii.gz"
        if existing:
            path.write_text("the old mask")

        def fail_midway(_, filename):
            with open(filename, "wb") as file:
                file.write(b"half a file")
            raise OSError("No space left on device")

        monkeypatch.setattr(nib, "save", fail_midway)
        with pytest.raises(RuntimeError, match="No space left"):  # by SaveImage
            save(torch.zeros(1, 4, 5, 6), meta_data={"filename_or_obj": "case.nii.gz", "affine": np.eye(4)})
        assert [file.name for file in tmp_path.iterdir()] == ([path.name] if existing else [])
        assert not existing or path.read_text() == "the old mask"
