"""What the guide shows to run from Python, run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch
from matplotlib.image import imread

from scripts.networks import MISSU
from scripts.sources.phantom import write_phantoms

pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_guide(tmp_path):
    section = (ROOT / "docs" / "guide.md").read_text().partition("\n## Python\n")[2].partition("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.+?)```", section, re.DOTALL))
    assert code.count("/data/my_cases") == 2
    cases = tmp_path / "my_cases"
    write_phantoms(cases, 1, (64, 72, 56))
    for path in (cases / "phantom_000").iterdir():
        path.rename(path.with_name(path.name.replace("phantom_000", "p1")))
    (cases / "phantom_000").rename(cases / "p1")

    bundle = tmp_path / "bundle"
    shutil.copytree(ROOT / "bundle", bundle, ignore=shutil.ignore_patterns("demo", "eval", "data", "*.pt"))
    torch.manual_seed(0)
    torch.save(MISSU(img_size=128).state_dict(), bundle / "models" / "model.pt")

    script = code.replace("/data/my_cases", str(cases)) + "\nassert network.training is False\n"
    env = os.environ | {"PYTHONPATH": str(bundle)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=bundle, env=env, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    assert nib.load(bundle / "eval" / "p1_seg.nii.gz").shape == (64, 72, 56)
    assert imread(bundle / "p1.png").shape[1] == 1600
