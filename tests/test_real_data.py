"""The workflows on real scans, where MISSU_DATA names their folder (see CONTRIBUTING.md)."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from test_workflows import SMALL_NETWORK, configs, read, run

from scripts.__main__ import main
from scripts.data.datalist import load_datalist
from scripts.data.loading import LoadImageCased
from scripts.data.transforms import ValuesToClassesd

NETWORK = [argument for name, value in SMALL_NETWORK.items() for argument in (f"--network_def#{name}", str(value))]


@pytest.fixture(scope="module")
def gliomas(real_data):
    return real_data / "brats"


def test_four_modality_gliomas_train_and_are_segmented(gliomas, tmp_path):
    datalist = tmp_path / "datalist.json"
    assert main(["datalist", "--dataset_dir", str(gliomas), "--output", str(datalist)]) is None
    cases = {
        entry["case_id"] for split in ("training", "validation") for entry in json.loads(datalist.read_text())[split]
    }
    assert cases == {"TCGA-DU-7294", "TCGA-FG-6692"}
    paths = ["--dataset_dir", gliomas, "--output_dir", tmp_path / "out", "--num_workers", "0"]
    more = ["--data_list_file_path", datalist, "--ckpt_dir", tmp_path, "--max_epochs", "1", "--val_interval", "2"]
    result = run("training", "--config_file", configs("train", "cpu"), *paths, *more, *NETWORK)
    assert result.returncode == 0, result.stderr
    windows = ["--roi_size", "[64,64,64]", "--overlap", "0"]
    weights = ["--checkpoint", tmp_path / "model_final.pt"]
    result = run("--config_file", configs("inference"), *paths, *weights, *windows, *NETWORK)
    assert result.returncode == 0, result.stderr
    for case_id in cases:
        mask = nib.load(tmp_path / "out" / f"{case_id}_seg.nii.gz")
        scan = nib.load(gliomas / "LGG" / case_id / f"{case_id}_flair.nii.gz")
        assert mask.shape == scan.shape == (240, 240, 155)
        np.testing.assert_allclose(mask.affine, scan.affine)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}
        brain = np.any([read(path) for path in (gliomas / "LGG" / case_id).glob("*_[tf]*.nii.gz")], axis=0)
        inside = [slice(axis.min(), axis.max() + 1) for axis in np.nonzero(brain)]
        outside = np.array(mask.dataobj)
        outside[tuple(inside)] = 0
        assert not outside.any()


def test_z_scored_scans_have_air_of_zero(real_data):
    cases = load_datalist(real_data / "brats2013", "training", ["flair", "t1ce"])
    load = LoadImageCased(["image", "label"], ["flair", "t1ce"])
    item = ValuesToClassesd("label", "brats2018")(load(cases[0]))
    # About four fifths of a BraTS volume are air, which is at a value of its own in each of these files.
    assert 0.75 < float((item["image"] == 0).float().mean()) < 0.9
    assert set(item["label"].unique().tolist()) == {0, 1, 2, 3}
    # The tumor is bright on FLAIR: edema lies above the mean of the brain.
    flair, label = item["image"][0], item["label"][0]
    assert flair[label == 2].mean() > flair[flair != 0].mean()
