"""Inference over many cases: the good ones are done, the bad ones reported at the end, no file is left half-written."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Lambdad, SaveImage
from torch import nn

from scripts.errors import InputError
from scripts.inference import AtomicNibabelWriter, CaseDataset, CaseEvaluator


def read_case(value: float) -> torch.Tensor:
    if value < 0:
        raise InputError(f"Case {value:g}: it is bad.")
    if value > 100:
        raise ZeroDivisionError("a bug")
    return torch.full((1, 2, 2, 2), value)


def evaluator(values: list[float], done: list[float], num_workers: int = 0) -> CaseEvaluator:
    """Cases of one value each; the network hands it on, and the post-processing notes it."""
    dataset = CaseDataset([{"image": value} for value in values], Lambdad("image", read_case))
    return CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, num_workers=num_workers),
        network=nn.Identity(),
        postprocessing=Lambdad("pred", lambda pred: done.append(pred.max().item()) or pred),
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_good_cases_are_done_and_bad_ones_reported(num_workers):
    done = []
    with pytest.raises(InputError) as raised:
        evaluator([1.0, -2.0, 3.0, -4.0, 5.0], done, num_workers).run()
    assert done == [1, 3, 5]
    assert str(raised.value).splitlines() == ["2 of 5 cases failed.", "Case -2: it is bad.", "Case -4: it is bad."]


def test_good_cases_alone():
    done = []
    evaluator([1.0, 2.0], done).run()
    assert done == [1, 2]


def test_faults_are_those_of_the_last_run():
    done = []
    runner = evaluator([-1.0], done)
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 1 cases failed"):
            runner.run()
    assert done == []


def test_a_bug_is_not_passed_over():
    done = []
    with pytest.raises(RuntimeError) as raised:
        evaluator([1.0, 101.0, 2.0], done).run()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert done == [1]


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
