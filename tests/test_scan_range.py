"""A scan that looks like none of the training: what is measured, when it is said, where the range is kept."""

from __future__ import annotations

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import RECORD, SETTINGS
from monai.data import DataLoader, MetaTensor
from torch import nn

from scripts.__main__ import main
from scripts.inference import CaseDataset, CaseEvaluator, ScanRangeWarning
from scripts.inference.scan_range import measure, outside
from scripts.weights.record import read_record, write_record

BRAINS = {"volume_ml": [1000.0, 2000.0], "air": [0.4, 0.5], "num_cases": 13}


def ball(radius: float, side: int) -> torch.Tensor:
    """A ball of ones (1, side, side, side) in zeros."""
    at = torch.arange(side) - (side - 1) / 2
    return (torch.stack(torch.meshgrid(at, at, at, indexing="ij")).square().sum(0) <= radius**2)[None].float()


def test_what_is_measured():
    image = torch.zeros(2, 2, 5, 5)
    image[0, 0], image[1, 1, 0] = 1, -1  # 25 and 5 of 50 voxels of 2 x 2 x 10 mm
    assert measure(image, (2, 2, 10)) == {"volume_ml": pytest.approx(30 * 0.04), "air": pytest.approx(0.4)}


@pytest.mark.parametrize(
    ("volume_ml", "air", "said", "skull"),
    [
        (1400, 0.45, False, False),
        (800, 0.31, False, False),  # within the margins: 1000 / 1.3, and 0.4 - 0.1
        (2500, 0.45, False, False),
        (2700, 0.45, True, True),  # larger than any brain
        (1400, 0.05, True, True),  # the noise around a head
        (60, 0.45, True, False),  # a small organ
        (60, 0.0, True, False),
        (1400, 0.8, True, False),
    ],
)
def test_when_it_is_said(volume_ml, air, said, skull):
    for is_brain in (True, False):
        sentence = outside({"volume_ml": volume_ml, "air": air}, BRAINS, is_brain)
        assert (sentence is not None) == said
        if sentence:
            assert f"{volume_ml} ml" in sentence
            assert "1000 to 2000 ml" in sentence
            assert ("skull" in sentence) == (skull and is_brain)


def test_the_log_names_the_cases_that_are_outside(tmp_path, caplog):
    weights = tmp_path / "a.pt"
    weights.write_text("a")
    write_record(
        weights, {**RECORD, "settings": SETTINGS, "scan_range": {"volume_ml": [10.0, 30.0], "air": [0.5, 0.7]}}
    )

    def load(item):
        image = ball(item["image"] / 2 - 1, item["image"])
        return {
            "image": MetaTensor(
                image, affine=torch.diag(torch.tensor([2.0, 2, 2, 1])), meta={"case_id": item["case_id"]}
            )
        }

    cases = [{"case_id": "small", "image": 8}, {"case_id": "fits", "image": 18}, {"case_id": "large", "image": 32}]
    CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(CaseDataset(cases, load, str(tmp_path / "out")), batch_size=1),
        network=nn.Identity(),
        val_handlers=[ScanRangeWarning(str(weights), {"wt": (1, 2, 3)})],
    ).run()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [sentence.split(":")[0] for sentence in said] == ["Case small", "Case large"]
    assert ["skull" in sentence for sentence in said] == [False, True]


def test_the_range_is_stored_beside_the_weights(tmp_path, capsys):
    for name, radius in (("p1", 8.0), ("p2", 9.0)):
        folder = tmp_path / "cases" / name
        folder.mkdir(parents=True)
        for modality in ("t1", "flair"):
            volume = ball(radius, 24)[0].numpy().astype(np.int16)
            volume[::2] *= len(modality)  # two scans, neither of which is zero everywhere once normalized
            nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"{name}_{modality}.nii.gz")
    weights = tmp_path / "model.pt"
    weights.write_text("weights")
    arguments = ["scan_range", "--dataset_dir", str(tmp_path / "cases"), "--checkpoint", str(weights)]
    assert "should have a record" in str(main(arguments))
    settings = {**SETTINGS, "modalities": ["t1", "flair"], "spacing_mm": [-1, -1, -1]}
    write_record(weights, {**RECORD, "settings": settings, "cases": ["p1"]})
    assert main(arguments) is None
    known = json.loads(capsys.readouterr().out)
    assert read_record(weights)["scan_range"] == known
    assert read_record(weights)["cases"] == ["p1"]
    assert known["num_cases"] == 2
    assert known["volume_ml"] == [round(float(ball(radius, 24).sum()) / 1000, 3) for radius in (8, 9)]
    box_air = [1 - float(ball(radius, 24).sum()) / side**3 for radius, side in ((8, 16), (9, 18))]
    assert known["air"] == pytest.approx(sorted(box_air), abs=1e-3)
