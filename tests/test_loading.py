"""What lies in one place and what does not, and files that say nothing of it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.data.loading import LoadImageCased, corner_distance
from scripts.errors import InputError

SHAPE = (4, 5, 6)
VOLUME = np.arange(120, dtype=np.int16).reshape(SHAPE)


def test_corners_and_not_entries_tell_how_far_apart_grids_lie():
    """A scale of 1.001 moves the last of 241 voxels by 0.24 mm; a rotation of 0.01 by about 2.4 mm."""
    affine = np.eye(4)
    affine[0, 0] = 1.001
    distance, allowed = corner_distance(affine, np.eye(4), (241, 2, 2))
    assert (distance, allowed) == (pytest.approx(0.24), pytest.approx(0.1))
    assert corner_distance(affine, np.eye(4), (4, 4, 4))[0] == pytest.approx(0.003)
    rotated = np.eye(4)
    rotated[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    assert corner_distance(rotated, np.eye(4), (241, 1, 1))[0] == pytest.approx(2.4, abs=1e-3)


@pytest.mark.parametrize(("shift_mm", "fits"), [(0.19, True), (0.21, False), (float("nan"), False)])
def test_files_of_one_case_lie_within_a_tenth_of_a_voxel(tmp_path, shift_mm, fits):
    affine = np.diag([2.0, 2, 3, 1])
    for name, x, volume in (("t1", 0.0, VOLUME), ("t2", shift_mm, VOLUME**2)):
        affine[0, 3] = x
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"a_{name}.nii")
    load = LoadImageCased("image", ["t1", "t2"])
    if fits:
        assert load({"image": str(tmp_path / "a_t1.nii")})["image"].shape == (2, *SHAPE)
    else:
        with pytest.raises(InputError, match=r"Case a: .*a_t2.nii.* "):
            load({"image": str(tmp_path / "a_t1.nii")})


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_lone_file_says_where_it_lies(tmp_path, value):
    image = nib.Nifti1Image(VOLUME, np.eye(4))
    image.header["srow_x"] = value
    image.header["sform_code"] = 1
    with open(tmp_path / "a_t1.nii", "wb") as file:  # as it is: nibabel would mend it
        file.write(image.header.binaryblock + bytes(4) + VOLUME.tobytes(order="F"))
    with pytest.raises(InputError, match="Case a: "):
        LoadImageCased("image", ["t1"])({"image": str(tmp_path / "a_t1.nii")})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "f4", ">f4", "f8"])
def test_a_file_of_each_type_is_read_as_nibabel_reads_it(tmp_path, dtype, suffix):
    path = tmp_path / f"a_t1{suffix}"
    nib.save(nib.Nifti1Image(VOLUME.astype(dtype), np.diag([2.0, 3, 4, 1]), dtype=np.dtype(dtype)), path)
    image = LoadImageCased("image", ["t1"])({"image": str(path)})["image"]
    np.testing.assert_array_equal(image.numpy()[0], nib.load(path).get_fdata())
    assert image.is_contiguous()


def test_one_file_packed_and_unpacked_is_doubled(tmp_path):
    for extension in (".nii", ".nii.gz"):
        nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), tmp_path / f"a{extension}")
    with pytest.raises(InputError, match="Case a: image is doubled"):
        LoadImageCased("image", ["t1"])({"image": str(tmp_path / "a.nii")})


@pytest.mark.parametrize("qform_code", [0, 1])
def test_the_affine_is_that_of_the_coded_sform(tmp_path, qform_code):
    """Though voxel sizes are rounded in the header, and a qform, which may be none, says another place."""
    affine = np.diag([-2.0004, -2.0004, 2.0004, 1])
    affine[:3, 3] = [80, 95, -80]
    image = nib.Nifti1Image(VOLUME, None)
    header = image.header
    header["pixdim"][1:4], header["sform_code"], header["qform_code"] = 2, 2, qform_code
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    nib.save(nib.Nifti1Image(VOLUME, None, header), tmp_path / "a_t1.nii.gz")
    loaded = LoadImageCased("image", ["t1"])({"image": str(tmp_path / "a_t1.nii.gz")})["image"]
    np.testing.assert_allclose(loaded.affine, nib.load(tmp_path / "a_t1.nii.gz").affine)
    np.testing.assert_allclose(loaded.affine, affine, rtol=1e-6)
