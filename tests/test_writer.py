"""Masks that appear whole or not at all."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import SaveImage

from scripts.inference import AtomicNibabelWriter


class TestWriter:
    @pytest.fixture
    def save(self, tmp_path):
        return SaveImage(
            output_dir=tmp_path, output_dtype="uint8", separate_folder=False, writer=AtomicNibabelWriter, resample=False
        )

    def test_a_whole_file(self, save, tmp_path):
        mask = torch.zeros(1, 4, 5, 6)
        mask[0, 1, 2, 3] = 3
        save(mask, meta_data={"filename_or_obj": "case.nii.gz", "affine": np.diag([2.0, 3, 4, 1])})
        [path] = tmp_path.iterdir()
        assert path.name == "case_trans.nii.gz"
        stored = nib.load(path)
        assert stored.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(stored.dataobj, mask[0])
        assert stored.header.get_zooms() == (2, 3, 4)

    @pytest.mark.parametrize("existing", [False, True], ids=["new", "in place of another"])
    def test_none_where_saving_fails(self, save, tmp_path, monkeypatch, existing):
        path = tmp_path / "case_trans.nii.gz"
        if existing:
            path.write_text("the old mask")

        def fail_midway(_, filename):
            with open(filename, "wb") as file:
                file.write(b"half a file")
            raise OSError("No space left on device")

        monkeypatch.setattr(nib, "save", fail_midway)
        with pytest.raises(RuntimeError, match="No space left"):  # by SaveImage
            save(torch.zeros(1, 4, 5, 6), meta_data={"filename_or_obj": "case.nii.gz", "affine": np.eye(4)})
        assert [file.name for file in tmp_path.iterdir()] == ([path.name] if existing else [])
        assert not existing or path.read_text() == "the old mask"
