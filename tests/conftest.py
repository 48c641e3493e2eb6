"""What several tests share: tiny cases in BraTS layout, a tiny network, and real scans where somebody has them."""

from __future__ import annotations

import locale
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.networks import MISSU

MODALITIES = ("t1", "t1ce", "t2", "flair")
SHAPE = (20, 24, 16)
AFFINE = np.array([[-1.5, 0, 0, 15], [0, -1.25, 0, 14], [0, 0, 2, -16], [0, 0, 0, 1]])  # LPS, as BraTS is

# What a record of weights has to have; of the settings likewise.
RECORD = {"dataset": "BraTS", "cases": [], "epoch": 1, "metrics": {}}
SETTINGS = {
    "modalities": list(MODALITIES),
    "label_convention": "brats2018",
    "spacing_mm": [1, 1, 1],
    "roi_size": [16, 16, 16],
}

WriteCase = Callable[..., dict[str, Path]]


@pytest.fixture(autouse=True)
def _locale() -> Iterator[None]:
    """SimpleITK, which writes the DICOM files of tests, leaves a locale behind in which text is not UTF-8."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.fixture(scope="session")
def write_case() -> WriteCase:
    """Writes a case in BraTS layout and gives the file of each suffix: a box less one corner, zeros around it.

    The mean of modality i over the brain is near 100 * (i + 1), so that a test can tell the channels apart. The label
    holds 1, 2 and 4, a slab of each.
    """

    def write(
        folder: Path, case_id: str, suffixes: Sequence[str] = (*MODALITIES, "seg"), extension: str = ".nii.gz"
    ) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        files = {}
        for suffix in suffixes:
            volume = np.zeros(SHAPE, np.uint8 if suffix == "seg" else np.int16)
            if suffix == "seg":
                volume[6:12, 8:12, 6:8], volume[6:12, 8:12, 8:9], volume[6:12, 8:12, 9:10] = 1, 2, 4
            else:
                level = 100 * (MODALITIES.index(suffix) + 1) if suffix in MODALITIES else 100
                volume[3:15, 4:21, 2:13] = generator.integers(level - 20, level + 20, (12, 17, 11))
                volume[3:6, 4:8, 2:6] = 0
            files[suffix] = folder / f"{case_id}_{suffix}{extension}"
            nib.save(nib.Nifti1Image(volume, AFFINE), files[suffix])
        return files

    return write


@pytest.fixture
def tiny_case(tmp_path: Path, write_case: WriteCase) -> dict[str, Path]:
    """The files of one labelled case, ``case_1``, by suffix."""
    return write_case(tmp_path / "case_1", "case_1")


@pytest.fixture
def tiny_cases(tmp_path: Path, write_case: WriteCase) -> Path:
    """A folder of four labelled cases and one without a label."""
    for number in range(4):
        write_case(tmp_path / "data" / f"case_{number}", f"case_{number}")
    write_case(tmp_path / "data" / "new", "new", MODALITIES)
    return tmp_path / "data"


@pytest.fixture
def tiny_network() -> MISSU:
    """MISSU of two modalities and three classes, with tokens on a 2 x 2 x 2 grid."""
    torch.manual_seed(0)
    size = {"init_filters": 8, "hidden_size": 16, "mlp_dim": 16, "num_layers": 2, "num_heads": 2}
    return MISSU(in_channels=2, out_channels=3, img_size=16, **size)


@pytest.fixture(scope="session")
def environment() -> Callable[[str, Path], Path]:
    """Makes an environment beside ``.venv``, or takes the one that is there, and gives its Python."""

    def make(name: str, requirements: Path) -> Path:
        folder = Path(__file__).parents[1] / name
        python, stamp = folder / "bin" / "python", folder / "installed"
        if not stamp.is_file() or stamp.stat().st_mtime < requirements.stat().st_mtime:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
            stamp.touch()
        return python

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans that the environment variable MISSU_DATA names."""
    folder = os.environ.get("MISSU_DATA")
    if not folder:
        pytest.skip("MISSU_DATA is not set: it names the folder of real scans")
    return Path(folder)
