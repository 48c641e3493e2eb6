"""Masks that appear whole or not at all, where their scans lie."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import SaveImage

from scripts.data import LoadImageCased, name_by_case
from scripts.errors import one_sentence
from scripts.inference import AtomicNibabelWriter, MaskLayout


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
        with pytest.raises(RuntimeError) as raised:  # by SaveImage
            save(torch.zeros(1, 4, 5, 6), meta_data={"filename_or_obj": "case.nii.gz", "affine": np.eye(4)})
        assert one_sentence(raised.value) == f"{path} cannot be written: No space left on device."
        assert [file.name for file in tmp_path.iterdir()] == ([path.name] if existing else [])
        assert not existing or path.read_text() == "the old mask"

    @pytest.mark.parametrize(
        ("qform_code", "sform_code"), [(1, 1), (0, 2), (2, 0), (1, 4), (0, 0)], ids=lambda code: str(code)
    )
    def test_a_mask_lies_where_its_scan_lies_for_every_reader(self, tmp_path, qform_code, sform_code):
        """Unit, and qform and sform each with its code, here of another place than the other."""
        scan = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), None)
        scan.set_qform(np.array([[0, -2, 0, 5], [2, 0, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]]), qform_code)
        scan.header["pixdim"][1:4] = 2
        scan.header.set_xyzt_units("micron")
        if sform_code:
            scan.set_sform(np.array([[-2, 0, 0, 1], [0, 2, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1.0]]), sform_code)
        path = tmp_path / "a.b_t1.nii.gz"
        nib.save(scan, path)
        image = LoadImageCased("image", ["t1"])({"image": str(path)})["image"]
        save = SaveImage(
            output_dtype="uint8",
            resample=False,
            writer=AtomicNibabelWriter,
            output_name_formatter=name_by_case,
            folder_layout=MaskLayout(str(tmp_path)),
        )
        save(image)
        mask, scan = nib.load(tmp_path / "a.b_seg.nii.gz"), nib.load(path)
        assert mask.get_data_dtype() == np.uint8
        assert mask.header.get_xyzt_units() == scan.header.get_xyzt_units()
        for form in ("get_qform", "get_sform"):
            (expected, code), (got, got_code) = (getattr(each, form)(coded=True) for each in (scan, mask))
            assert got_code == code
            assert got is expected is None or np.allclose(got, expected, atol=1e-5)
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)

    def test_a_mask_on_another_grid_has_its_own_place(self, tmp_path, save):
        header = dict(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)).header)
        moved = np.diag([2.0, 2, 2, 1])
        save(torch.zeros(1, 4, 5, 6), meta_data={**header, "filename_or_obj": "case.nii.gz", "affine": moved})
        stored = nib.load(tmp_path / "case_trans.nii.gz")
        np.testing.assert_allclose(stored.affine, moved)
        assert (int(stored.header["qform_code"]), int(stored.header["sform_code"])) == (1, 1)
