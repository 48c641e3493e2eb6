"""Inference over many cases: the good ones are done, the bad ones reported at the end, no file is left half-written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, SaveImaged
from torch import nn

from scripts.data import LoadImageCased, name_by_case
from scripts.errors import InputError
from scripts.files import whole_file
from scripts.inference import CaseDataset, CaseEvaluator, MaskLayout


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


def test_a_mask_that_came_meanwhile_is_not_replaced(tmp_path, write_case):
    """Of another run into the same folder; the other cases are done all the same."""
    cases = [{"case_id": name, "image": str(write_case(tmp_path / name, name, ["t1"])["t1"])} for name in ("p1", "p2")]
    masks = tmp_path / "masks"
    dataset = CaseDataset(cases, LoadImageCased("image", ["t1"]), str(masks))
    save = SaveImaged(
        "pred",
        resample=False,
        folder_layout=MaskLayout(str(masks)),
        writer="scripts.inference.AtomicNibabelWriter",
        output_name_formatter=name_by_case,
    )
    runner = CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=nn.Identity(),
        postprocessing=Compose([save]),
    )
    dataset.prepare()
    runner.add_event_handler(Events.STARTED, lambda _: (masks / "p1_seg.nii.gz").write_text("of another run"))
    with pytest.raises(InputError, match=r"^1 of 2 cases failed.\nCase p1: \S+p1_seg.nii.gz should be a new file"):
        runner.run()
    assert (masks / "p1_seg.nii.gz").read_text() == "of another run"
    assert (masks / "p2_seg.nii.gz").is_file()


def test_nothing_is_left_to_do(tmp_path, caplog):
    (tmp_path / "1_seg.nii.gz").touch()
    with caplog.at_level("INFO"):
        evaluator([1.0], [], tmp_path, skip_existing=True).run()
    assert "0 of 1 cases segmented, 1 were there already, 0 failed." in caplog.messages


def test_a_summary_at_the_end(tmp_path, caplog):
    (tmp_path / "2_seg.nii.gz").touch()
    with caplog.at_level("INFO"), pytest.raises(InputError):
        evaluator([1.0, 2.0, -3.0, 4.0], [], tmp_path, skip_existing=True).run()
    assert "2 of 4 cases segmented, 1 were there already, 1 failed." in caplog.messages


@pytest.mark.parametrize("shared", [True, False])
def test_processes_share_the_cases_where_that_is_asked_for(shared, tmp_path, monkeypatch):
    """The variables alone say nothing: schedulers set them for jobs of one process, too."""
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        (tmp_path / "0_seg.nii.gz").touch()  # what one process has done meanwhile does not move the others' shares
        cases = [{"case_id": str(number), "image": str(number)} for number in range(8)]
        dataset = CaseDataset(cases, nn.Identity(), str(tmp_path), shared=shared)
        shares.append([item["case_id"] for item in dataset.share])
    everything = [str(number) for number in range(8)]
    assert shares == ([["0", "3", "6"], ["1", "4", "7"], ["2", "5"]] if shared else [everything] * 3)


def test_nobody_to_share_with(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"by torchrun .* 'RANK' is not set"):
        CaseDataset([], nn.Identity(), str(tmp_path), shared=True)


@pytest.mark.parametrize(
    "entries",
    [
        [{"case_id": "a", "image": "x/a_t1.nii.gz"}, {"case_id": "a", "image": "y/a_t1.nii.gz"}],
        [{"image": "x/a.nii.gz"}, {"image": "y/a.nii"}],  # as the Decathlon lists them
    ],
    ids=["by ID", "by name"],
)
def test_two_cases_with_one_mask_are_refused(entries, tmp_path):
    with pytest.raises(InputError, match=r"^Case a is doubled, .*: x/a.* and y/a.* would both be a_seg.nii.gz\.$"):
        CaseDataset(entries, nn.Identity(), str(tmp_path))


def test_dots_tell_cases_apart(tmp_path):
    """As in DICOM's UIDs."""
    entries = [{"case_id": f"1.2.{last}", "image": "x.nii"} for last in (840, 841)]
    dataset = CaseDataset(entries, nn.Identity(), str(tmp_path))
    assert [dataset.mask_of(item).name for item in dataset.share] == ["1.2.840_seg.nii.gz", "1.2.841_seg.nii.gz"]


@pytest.mark.parametrize("case_id", ["../../a", "a/b", "a\\b", "..", ".a", "a\nb", "a" * 250])
def test_an_id_that_is_no_file_name_is_refused(case_id, tmp_path):
    with pytest.raises(InputError, match="an ID should be"):
        CaseDataset([{"case_id": case_id, "image": "x.nii"}], nn.Identity(), str(tmp_path))


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
