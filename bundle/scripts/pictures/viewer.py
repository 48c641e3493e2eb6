"""The volumes of a page, and NiiVue, which scrolls through them: all within the page, so that it opens offline."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from .picture import ShownCase, color_of

__all__ = ["viewer_of"]

NIIVUE = Path(__file__).with_name("niivue.umd.js.gz")  # of the npm package, see niivue.LICENSE
MAX_VOXELS = 4_000_000  # of all images of a page, a byte each before they are compressed


def viewer_of(case: ShownCase, greys: Mapping[str, np.ndarray], box: Sequence[slice]) -> dict[str, Any]:
    """What the viewer of a page needs, each file gzipped and in base64.

    Args:
        case: its masks keep their voxels.
        greys: a volume (H, W, D) of grey values 0 to 1 for each modality; together they are at most ``MAX_VOXELS``.
        box: the part that is shown.

    Returns:
        ``script``, ``images`` in the order of ``greys``, ``masks`` by name, and ``about``: the first voxel, the size of
        voxels in mm, names and colors of classes.
    """
    shown = tuple(box)
    shape = case.base[shown].shape
    ratio = max(1.0, (len(greys) * np.prod(shape) / MAX_VOXELS) ** (1 / 3))
    small = [max(1, round(side / ratio)) for side in shape]
    images = []
    for grey in greys.values():
        volume = torch.from_numpy(np.ascontiguousarray(grey[shown], dtype=np.float32))[None, None]
        mean = F.adaptive_avg_pool3d(volume, (small[0], small[1], small[2]))[0, 0].numpy()
        images.append(nifti((mean * 255).round().astype(np.uint8), np.multiply(case.spacing_mm, shape) / small))
    return {
        "script": base64.b64encode(NIIVUE.read_bytes()).decode(),
        "images": images,
        "masks": {name: nifti(mask[shown], case.spacing_mm) for name, mask in case.masks.items()},
        "about": {
            "first": [int(side.start) for side in shown],
            "spacing_mm": [float(size) for size in case.spacing_mm],
            "classes": {
                number: {"name": name, "color": [int(color_of(number)[at : at + 2], 16) for at in (1, 3, 5)]}
                for number, name in sorted(case.names.items())
            },
        },
    }


def nifti(volume: np.ndarray, spacing_mm: Sequence[float]) -> str:
    """A volume with the axes right, anterior, superior as NIfTI; the corner of its first voxel lies at zero."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = np.array(spacing_mm) / 2
    content = nib.Nifti1Image(volume, affine).to_bytes()
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
