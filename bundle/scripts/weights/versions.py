"""Of what software a result is."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import torch

__all__ = ["versions"]

METADATA = Path(__file__).parents[2] / "configs" / "metadata.json"


def versions() -> dict[str, str]:
    """The versions of the bundle, of Python, and of the libraries that a result may hang on."""
    return {
        "bundle": json.loads(METADATA.read_text())["version"],
        "monai": monai.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "nibabel": nib.__version__,
        "python": platform.python_version(),
    }
