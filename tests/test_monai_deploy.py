"""The application of MONAI Deploy writes the masks of ``inference.json``, from an exported TorchScript.

It runs in an environment of its own, ``.venv-deploy``, made from ``docs/monai_deploy/requirements.txt`` at first use.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.networks import MISSU
from scripts.sources.phantom import write_phantoms

pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[1]
APP = ROOT / "docs" / "monai_deploy"
SIZE = 32
TINY = {"hidden_size": 32, "mlp_dim": 32, "num_layers": 1, "num_heads": 4}


@dataclass
class App:
    """The application with a bundle of a tiny network, and its TorchScript."""

    python: Path
    bundle: Path

    def run(self, cases: Path, output_dir: Path) -> subprocess.CompletedProcess[str]:
        output_dir.mkdir(exist_ok=True)
        options = ["--input", cases, "--output", output_dir, "--model", self.bundle / "models" / "model.ts"]
        env = os.environ | {"PYTHONPATH": str(self.bundle)}
        command = [self.python, APP / "app.py", *options]
        return subprocess.run(command, env=env, cwd=output_dir, capture_output=True, text=True, timeout=300)


def monai_bundle(bundle: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    subprocess.run(command, cwd=bundle, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def app(environment: Callable[[str, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> App:
    bundle = tmp_path_factory.mktemp("deploy") / "bundle"
    left_out = shutil.ignore_patterns("demo", "eval", "*.pt", "model.json", "synthetic.json")
    shutil.copytree(ROOT / "bundle", bundle, ignore=left_out)
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text()) | {"roi_size": [SIZE] * 3, "stretch": 1.0, "num_workers": 0}
    content["network_def"] |= TINY
    config.write_text(json.dumps(content))
    torch.manual_seed(0)
    torch.save(MISSU(img_size=SIZE, **TINY).state_dict(), bundle / "models" / "model.pt")
    paths = ["--filepath", "models/model.ts", "--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    monai_bundle(bundle, "ckpt_export", "--net_id", "network_def", *paths, "--config_file", "configs/inference.json")
    return App(environment(".venv-deploy", APP / "requirements.txt"), bundle)


def test_masks_are_those_of_the_bundle(app, tmp_path):
    write_phantoms(tmp_path / "cases", 2, (40, 44, 36))
    folders = ["--dataset_dir", tmp_path / "cases", "--output_dir", tmp_path / "expected"]
    monai_bundle(app.bundle, "run", "--config_file", "configs/inference.json", *folders)
    done = app.run(tmp_path / "cases", tmp_path / "masks")
    assert done.returncode == 0, done.stderr
    expected = sorted((tmp_path / "expected").glob("*.nii.gz"))
    assert len(expected) == 2
    for path in expected:
        mask, wanted = nib.load(tmp_path / "masks" / path.name), nib.load(path)
        assert mask.get_data_dtype() == np.uint8
        assert len(np.unique(wanted.dataobj)) == 4  # else the comparison would say little
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(wanted.dataobj))
        np.testing.assert_array_equal(mask.affine, wanted.affine)

    again = app.run(tmp_path / "cases", tmp_path / "masks")
    assert again.returncode == 1
    assert "holds masks of 2 of these cases" in again.stderr


def test_a_bad_case_does_not_stop_the_others(app, tmp_path):
    write_phantoms(tmp_path / "cases", 2, (32, 32, 32))
    file = tmp_path / "cases" / "phantom_000" / "phantom_000_t2.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), file)
    done = app.run(tmp_path / "cases", tmp_path / "masks")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: Case phantom_000: t2 should be finite")
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["phantom_001_seg.nii.gz"]
