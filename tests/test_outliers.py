"""A few voxels beside which the rest of a scan vanishes: when it is said."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from torch import nn

from scripts.data import NormalizeChannelsd
from scripts.inference import CaseDataset, CaseEvaluator, OutlierWarning
from scripts.inference.outliers import middle_of

MODALITIES = ("t1", "flair", "ct")


def test_the_middle_of_a_normal_distribution():
    voxels = torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    assert middle_of(voxels) == pytest.approx(2 * 1.645, abs=0.05)
    assert middle_of(torch.zeros(4, 4, 4)) is None  # a modality that is missing
    padded = torch.zeros(1, 96, 96, 96)
    padded[:, :64, :64, :64] = voxels
    assert middle_of(padded) == pytest.approx(2 * 1.645, abs=0.05)  # zeros are air


@pytest.mark.parametrize(
    ("voxel", "channel", "said"),
    [
        (1e30, 1, True),
        (-1e6, 0, True),
        (300.0, 1, False),  # a bright vessel
        (1e30, 2, False),  # has units: it was clipped
    ],
)
def test_the_log_names_the_channel(voxel, channel, said, tmp_path, caplog):
    def load(item):
        image = 100 + 20 * torch.randn(3, 24, 24, 24, generator=torch.Generator().manual_seed(1))
        image[channel, 4, 5, 6] = voxel
        window = {"ct": {"low": 0.0, "high": 200.0, "mean": 100.0, "std": 1000.0}}
        normalized = NormalizeChannelsd("image", MODALITIES, window)({"image": MetaTensor(image)})["image"]
        normalized.meta["case_id"] = item["case_id"]
        return {"image": normalized}

    CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(CaseDataset([{"case_id": "a", "image": 0}], load, str(tmp_path)), batch_size=1),
        network=nn.Identity(),
        val_handlers=[OutlierWarning(MODALITIES, {"ct": {}})],
    ).run()
    sentences = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [sentence.split(" ")[:3] for sentence in sentences] == (
        [["Case", "a:", MODALITIES[channel]]] if said else []
    )
