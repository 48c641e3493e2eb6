"""Names that shells trip over, grids of every kind: by the plain workflow each mask is where it belongs."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
SHAPE, MODALITIES = (44, 40, 36), ("t1", "t1ce", "t2", "flair")
SHEARED = np.array([[1, 0.25, 0], [0, 1, 0.1], [0, 0, 1]])
CASES = {
    "a b": np.eye(3),
    "ü-nïcode_中": np.diag([-1, -1, 1]),
    "it's": np.diag([1, -1, 1]),
    'quo"te': np.array([[0, 0, 1.2], [1, 0, 0], [0, 1, 0]]),
    "-dash": Rotation.from_euler("xy", [0.3, 0.2]).as_matrix() @ np.diag([-1, -1, 1.2]),
    "semi;colon$x": SHEARED,
    "per%cent": np.diag([1, 1, 3]),
    "br[ac]ket*": Rotation.from_euler("xy", [-0.4, 0.5]).as_matrix() @ np.diag([1, -1, 0.8]),
    "linked": np.eye(3),
}


class Threshold(nn.Module):
    """Class 2, which is edema, where the first modality is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = 4 * (x[:, :1] - 1.5)
        low = torch.full_like(logit, -5.0)
        return torch.cat([torch.zeros_like(logit), low, logit, low], dim=1)


def write_ball(folder: Path, case_id: str, axes: np.ndarray) -> np.ndarray:
    """A case in which a ball of 7 mm shines in one of 17 mm, off the middle; gives where it is, in voxels."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (5, -7, 3)
    from_middle = np.indices(SHAPE).reshape(3, -1) - np.array(SHAPE)[:, None] / 2
    places_mm = (axes @ from_middle).T.reshape(*SHAPE, 3)
    brain = np.linalg.norm(places_mm, axis=-1) < 17
    ball = np.linalg.norm(places_mm - [5, -4, 3], axis=-1) < 7
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for modality in MODALITIES:
        noise = random.normal(0, 3, SHAPE)
        image = nib.Nifti1Image((brain * (100 + noise) + 120 * (ball & brain)).astype(np.float32), affine)
        nib.save(image, folder / f"{case_id}_{modality}.nii.gz")
    return ball & brain


@pytest.mark.parametrize("spacing_mm", [[-1, -1, -1], [2.0, 2.0, 2.0]], ids=["as it is", "2 mm"])
def test_each_mask_lies_where_the_bright_ball_is(tmp_path, spacing_mm):
    """At 2 mm the way back is tested, too."""
    data, output = tmp_path / "data", tmp_path / "masks"
    balls = {name: write_ball(tmp_path / "elsewhere" / name, name, axes) for name, axes in CASES.items()}
    data.mkdir()
    for name in CASES:
        if name == "linked":
            (data / name).symlink_to(tmp_path / "elsewhere" / name)
        else:
            (tmp_path / "elsewhere" / name).rename(data / name)
    monai.bundle.run(
        config_file=str(CONFIGS / "inference.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        **{"dataset_dir": str(data), "output_dir": str(output), "checkpoint": str(tmp_path / "none.pt")},
        **{"network_def": Threshold(), "handlers": [], "roi_size": [16, 16, 16], "num_workers": 0, "device": "cpu"},
        **{"spacing_mm": spacing_mm, "invert_logits": True},
    )
    assert sorted(path.name for path in output.iterdir()) == sorted(f"{name}_seg.nii.gz" for name in CASES)
    for name, ball in balls.items():
        mask, scan = nib.load(output / f"{name}_seg.nii.gz"), nib.load(data / name / f"{name}_flair.nii.gz")
        for form in ("get_sform", "get_qform"):
            np.testing.assert_allclose(getattr(mask, form)(), getattr(scan, form)(), atol=1e-4, err_msg=name)
        assert set(np.unique(mask.dataobj)) == {0, 2}
        found = np.asarray(mask.dataobj) > 0
        # A grid that is not rectangular is made so and back; two voxels on each side at 2 mm.
        exact = spacing_mm[0] < 0 and name != "semi;colon$x"
        assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > (0.9999 if exact else 0.97), name
