"""The record beside a mask: what it was made of and by what, and the warnings of its own case."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import RECORD, SETTINGS
from monai.data import DataLoader, MetaTensor
from torch import nn

from scripts.checks.faults import Fault
from scripts.errors import InputError
from scripts.inference import CaseDataset, CaseEvaluator, MaskRecord
from scripts.weights.origin import weights_of_mask
from scripts.weights.record import sha256, write_record


class WarnsOfTwo(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.max() == 2:
            logging.getLogger("scripts.inference.inferer").warning("Two is much.")
        return x


def as_case(item: dict) -> dict:
    meta = {"case_id": item["case_id"], "missing": "t1, flair" if item["image"] == 3 else ""}
    return {"image": MetaTensor(torch.full((1, 2, 2, 2), item["image"]), meta=meta)}


def records(folder: Path, weights: list[Path]) -> dict[str, dict]:
    cases = [{"case_id": f"site.{value}", "image": float(value)} for value in (1, 2, 3)]
    dataset = CaseDataset(cases, as_case, str(folder))
    settings = {"overlap": 0.5, "label_convention": "brats2023"}
    faults = [Fault("site.2", "spacing", "3 x 3 x 3 mm"), Fault("site.2, site.3", "same patient", "in several years")]
    record = MaskRecord(str(folder), [str(path) for path in weights], settings, faults)
    CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=WarnsOfTwo(),
        val_handlers=[record],
    ).run()
    assert not logging.getLogger("scripts").handlers  # none stays
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.iterdir())}


def test_each_mask_has_its_own(tmp_path):
    weights = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path in weights:
        path.write_text(path.name)
    write_record(weights[0], {**RECORD, "settings": SETTINGS})
    made = records(tmp_path / "masks", weights)
    assert list(made) == ["site.1_seg.json", "site.2_seg.json", "site.3_seg.json"]
    first, second, third = made.values()
    assert [each["warnings"] for each in (first, second)] == [
        [],
        ["spacing: 3 x 3 x 3 mm", "same patient: in several years", "Two is much."],
    ]
    assert third["warnings"][2:] == ["same patient: in several years"]
    assert [sentence.split(":")[0] for sentence in third["warnings"][:2]] == [
        "Without t1, flair",
        "The weights never saw a case without t1, flair, by their record (modality_dropout)",
    ]
    assert [each["missing"] for each in made.values()] == [[], [], ["t1", "flair"]]
    assert [each["image"] for each in made.values()] == [1, 2, 3]
    assert first["weights"] == [
        {"file": str(weights[0]), "sha256": sha256(weights[0]), "trained_on": "BraTS"},
        {"file": str(weights[1]), "sha256": sha256(weights[1]), "trained_on": None},
    ]
    assert (
        first["settings"]
        == second["settings"]
        == third["settings"]
        == {
            "overlap": 0.5,
            "label_convention": "brats2023",
        }
    )
    assert first["versions"]["torch"] == torch.__version__


def test_a_record_of_an_earlier_mask_does_not_stay(tmp_path):
    """The mask was deleted, its record forgotten; the case is refused this time."""

    def refused(item: dict) -> dict:
        raise InputError(f"Case {item['case_id']}: it is bad.")

    (tmp_path / "p1_seg.json").write_text("of an earlier mask")
    weights = tmp_path / "model.pt"
    weights.touch()
    dataset = CaseDataset([{"case_id": "p1", "image": 1.0}], refused, str(tmp_path))
    record = MaskRecord(str(tmp_path), str(weights), {"label_convention": "brats2023"})
    with pytest.raises(InputError, match="1 of 1 cases failed"):
        CaseEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(dataset, batch_size=1),
            network=WarnsOfTwo(),
            val_handlers=[record],
        ).run()
    assert not (tmp_path / "p1_seg.json").exists()


def test_a_mask_of_several_weights_is_of_all_of_them_whichever_is_given(tmp_path):
    weights = [tmp_path / "fold0.pt", tmp_path / "fold1.pt"]
    for path in weights:
        path.write_text(path.stem)
    digests = [sha256(path) for path in weights]
    told = [{"file": path.name, "sha256": digest} for path, digest in zip(weights, digests)]
    (tmp_path / "a_seg.json").write_text(json.dumps({"weights": told}))
    for given in (None, *weights):
        assert weights_of_mask(tmp_path / "a_seg.nii.gz", given) == digests
    assert weights_of_mask(tmp_path / "b_seg.nii.gz", weights[0]) == digests[:1]
