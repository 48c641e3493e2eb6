"""The importer of CHAOS: what goes in as DICOM and PNG comes out as NIfTI, voxel for voxel and in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from dicom_files import OBLIQUE, write_series
from scipy import ndimage

from scripts.__main__ import main
from scripts.data.datalist import load_datalist
from scripts.data.labels import class_names

GREY = np.array([0, 63, 126, 189, 252], np.uint8)  # background, liver, right kidney, left kidney, spleen
SHAPE = (6, 12, 16)  # slices, rows, columns
NAMES = [f"IMG-0004-{number:05d}" for number in (4, 1, 6, 2, 5, 3)]  # that do not tell the order of the slices


def organs(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Labels 0 to 4, no slice like another and no side like the other."""
    labels = np.zeros(shape, np.uint8)
    labels[:4, 2:7, 2:6], labels[1:3, 8:10, 3:5], labels[2:4, 8:11, 10:12], labels[3:, 3:6, 12:15] = 1, 2, 3, 4
    return labels


def texture(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def write_masks(folder: Path, grey: np.ndarray, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(names, grey, strict=True):
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(mask)), str(folder / f"{name}.png"))


def write_mr(source: Path, orientation=OBLIQUE, **of_t1) -> tuple[np.ndarray, np.ndarray]:
    """A case of Train_Sets/MR on one grid, or T1 elsewhere; gives T2-SPIR and the labels."""
    write_series(source / "T2SPIR/DICOM_anon", texture(), orientation, NAMES)
    write_masks(source / "T2SPIR/Ground", GREY[organs()], NAMES)
    for number, phase in enumerate(("InPhase", "OutPhase"), 1):
        write_series(
            source / "T1DUAL/DICOM_anon" / phase, texture(seed=number), of_t1.pop("orientation", orientation), **of_t1
        )
    write_masks(source / "T1DUAL/Ground", GREY[organs()], [str(index) for index in range(SHAPE[0])])
    return texture(), organs()


def read(path: Path) -> np.ndarray:
    return itk.array_from_image(itk.imread(str(path)))


def run(source: Path, output: Path, *more: str) -> str | None:
    return main(["chaos", "--source", str(source), "--output", str(output), *more])


def test_mr_voxel_for_voxel(tmp_path, capsys):
    image, labels = write_mr(tmp_path / "MR" / "7")
    assert run(tmp_path / "MR", tmp_path / "cases") is None
    assert "1 cases imported, 0 were there already, 0 skipped." in capsys.readouterr().out
    case = tmp_path / "cases" / "chaos_mr_7"
    assert {path.name for path in case.iterdir()} == {
        f"chaos_mr_7_{name}.nii.gz" for name in ("t1in", "t1out", "t2spir", "seg")
    }
    assert (read(case / "chaos_mr_7_t2spir.nii.gz") == image).all()
    assert (read(case / "chaos_mr_7_seg.nii.gz") == labels).all()
    assert np.allclose(read(case / "chaos_mr_7_t1in.nii.gz"), texture(seed=1), atol=0.1)  # the same grid
    affines = [nib.load(path).affine for path in case.iterdir()]
    # By hand: columns of 1.5 mm along (0.8, 0.6, 0) from (-20, 30, 10) in LPS; RAS turns x and y round.
    assert affines[0][:3, 0] == pytest.approx([-1.2, -0.9, 0], abs=1e-4)
    assert affines[0][:3, 3] == pytest.approx([20, -30, 10], abs=1e-3)
    assert all(np.allclose(affine, affines[0], atol=1e-4) for affine in affines)
    content = json.loads((tmp_path / "cases" / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "t1in", "1": "t1out", "2": "t2spir"}
    assert class_names(content) == ["background", "liver", "right-kidney", "left-kidney", "spleen"]


def test_t1_is_brought_onto_the_grid_of_t2(tmp_path):
    # T1 lies 3 mm (two columns) to the right of T2: its column k is T2's column k + 2.
    write_mr(tmp_path / "MR" / "1", (1, 0, 0, 0, 1, 0), origin_mm=(-17.0, 30.0, 10.0))
    assert run(tmp_path / "MR", tmp_path / "cases") is None
    moved = read(tmp_path / "cases/chaos_mr_1/chaos_mr_1_t1in.nii.gz")
    assert np.allclose(moved[:, :, 2:], texture(seed=1)[:, :, :-2], atol=0.1)
    assert (moved[:, :, :2] == 0).all()


def test_rigid_registration(tmp_path):
    shape = (20, 48, 48)
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), (2, 4, 4))
    blobs = (1000 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.int16)
    source = tmp_path / "MR" / "1"
    size = {"spacing_mm": (1.5, 1.5, 3.0)}
    write_series(source / "T2SPIR/DICOM_anon", blobs, **size)
    for phase in ("InPhase", "OutPhase"):  # the same body, which the file says lies 4 mm farther
        write_series(source / "T1DUAL/DICOM_anon" / phase, 1000 - blobs, origin_mm=(-16.0, 30.0, 10.0), **size)
    correlation = []
    for output, more in (("plain", []), ("registered", ["--register"])):
        assert run(tmp_path / "MR", tmp_path / output, *more) is None
        inner = read(tmp_path / output / "chaos_mr_1/chaos_mr_1_t1in.nii.gz")[4:-4, 8:-8, 8:-8]
        correlation.append(np.corrcoef(inner.ravel(), blobs[4:-4, 8:-8, 8:-8].ravel())[0, 1])
    assert correlation[0] > -0.95
    assert correlation[1] < -0.99


def test_ct_by_the_order_of_names(tmp_path):
    source = tmp_path / "CT" / "3"
    names = [f"i{number:04d},0000b" for number in range(10, 10 + SHAPE[0])]
    write_series(source / "DICOM_anon", texture(), names=names[::-1])  # slice 0 has the last name
    liver = (organs() == 1).astype(np.uint8)
    write_masks(source / "Ground", 255 * liver, [f"liver_GT_{number:03d}" for number in range(SHAPE[0])][::-1])
    assert run(tmp_path / "CT", tmp_path / "cases") is None
    assert (read(tmp_path / "cases/chaos_ct_3/chaos_ct_3_ct.nii.gz") == texture()).all()
    assert (read(tmp_path / "cases/chaos_ct_3/chaos_ct_3_seg.nii.gz") == liver).all()
    content = json.loads((tmp_path / "cases" / "dataset.json").read_text())
    assert (content["channel_names"], content["labels"]) == ({"0": "ct"}, {"background": 0, "liver": 1})


def test_a_case_without_masks(tmp_path):
    write_series(tmp_path / "MR/2/T2SPIR/DICOM_anon", texture())
    assert run(tmp_path / "MR", tmp_path / "cases") is None
    assert [path.name for path in (tmp_path / "cases/chaos_mr_2").iterdir()] == ["chaos_mr_2_t2spir.nii.gz"]


def ground(source: Path) -> list[Path]:
    return sorted((source / "T2SPIR/Ground").iterdir())


def one_grey(source: Path, value: int) -> None:
    mask = np.zeros(SHAPE[1:], np.uint8)
    mask[0, 0] = value
    itk.imwrite(itk.image_from_array(mask), str(ground(source)[2]))


FAULTS = {
    "a mask is missing": (lambda source: ground(source)[2].unlink(), "it holds 5 for 6"),
    "a slice is missing": (lambda source: (source / f"T2SPIR/DICOM_anon/{NAMES[2]}.dcm").unlink(), "6.00 mm apart"),
    "a phase is missing": (lambda source: shutil.rmtree(source / "T1DUAL/DICOM_anon/OutPhase"), "OutPhase should be"),
    "a grey value": (lambda source: one_grey(source, 100), "IMG-0004-00003.png should hold 0 and the grey values"),
    "no PNG": (lambda source: ground(source)[2].write_text("-"), "IMG-0004-00003.png cannot be read as a PNG"),
    "another size": (
        lambda source: write_masks(source / "T2SPIR/Ground", GREY[organs()][:, :6], NAMES),
        "should have the shape (6, 12, 16)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_case_does_not_keep_the_others(tmp_path, capsys, fault):
    for number in ("1", "2", "3"):
        write_mr(tmp_path / "MR" / number)
    plant, sentence = FAULTS[fault]
    plant(tmp_path / "MR" / "2")
    message = run(tmp_path / "MR", tmp_path / "cases")
    assert str(message).startswith("Error: Case chaos_mr_2: ")
    assert "\n" not in str(message)
    assert sentence in str(message)
    assert sorted(path.name for path in (tmp_path / "cases").glob("chaos_*")) == ["chaos_mr_1", "chaos_mr_3"]
    assert "2 cases imported, 0 were there already, 1 skipped." in capsys.readouterr().out


def test_a_second_run_takes_what_is_new(tmp_path, capsys):
    write_mr(tmp_path / "MR" / "1")
    assert run(tmp_path / "MR", tmp_path / "cases") is None
    mine = tmp_path / "cases/chaos_mr_1/chaos_mr_1_seg.nii.gz"
    mine.write_text("corrected by hand")
    write_mr(tmp_path / "MR" / "2")
    assert run(tmp_path / "MR", tmp_path / "cases") is None
    assert mine.read_text() == "corrected by hand"
    assert "1 cases imported, 1 were there already, 0 skipped." in capsys.readouterr().out


def test_a_folder_without_cases(tmp_path):
    (tmp_path / "1").mkdir()
    assert str(run(tmp_path, tmp_path / "cases")).startswith("Error: source should hold folders such as")


def test_a_real_ct(real_data, tmp_path):
    assert run(real_data / "dicom/chaos_ct", tmp_path) is None
    hounsfield = read(tmp_path / "chaos_ct_1/chaos_ct_1_ct.nii.gz")
    liver = read(tmp_path / "chaos_ct_1/chaos_ct_1_seg.nii.gz") == 1
    assert liver.sum() > 1e5
    inside = hounsfield[liver]
    assert 60 < np.median(inside) < 200  # a liver with contrast agent
    assert inside.std() < 40  # and little else


def test_real_mr_there_and_back(real_data, tmp_path):
    """A tree of the challenge rebuilt from real T2-SPIR, through the importer, and found by the datalist."""
    files = sorted((real_data / "chaos_t2spir/imagesTr").iterdir())[:2]
    for number, file in enumerate(files, 1):
        image, label = (read(file.parents[1] / folder / file.name) for folder in ("imagesTr", "labelsTr"))
        names = [f"IMG-0002-{k:05d}" for k in np.random.default_rng(number).permutation(len(image))]
        source, spacing_mm = tmp_path / "MR" / str(number), itk.spacing(itk.imread(str(file)))
        voxels = np.rint(image).astype(np.int16)
        write_series(source / "T2SPIR/DICOM_anon", voxels, names=names, spacing_mm=spacing_mm)
        write_masks(source / "T2SPIR/Ground", GREY[label.astype(int)], names)
        for phase in ("InPhase", "OutPhase"):
            write_series(source / "T1DUAL/DICOM_anon" / phase, voxels, spacing_mm=spacing_mm)
    assert run(tmp_path / "MR", tmp_path / "cases") is None
    for number, file in enumerate(files, 1):
        case = tmp_path / f"cases/chaos_mr_{number}"
        image, label = (read(file.parents[1] / folder / file.name) for folder in ("imagesTr", "labelsTr"))
        assert (read(case / f"{case.name}_t2spir.nii.gz") == np.rint(image)).all()
        assert (read(case / f"{case.name}_seg.nii.gz") == label).all()
        assert np.allclose(
            nib.load(case / f"{case.name}_seg.nii.gz").header.get_zooms(), nib.load(file).header.get_zooms()
        )
    cases = load_datalist(tmp_path / "cases", "training", ["t1in", "t2spir"])
    assert {item["case_id"] for item in cases} <= {"chaos_mr_1", "chaos_mr_2"}
