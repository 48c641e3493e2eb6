"""Masks on disk are scored by their conventions, all of them or none."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main


@pytest.fixture
def folders(tiny_cases, tmp_path) -> dict[str, Path]:
    """The four labels of the tiny cases (1, 2, 4), and the same as predictions of another convention (1, 2, 3)."""
    shutil.rmtree(tiny_cases / "new")
    (tmp_path / "predicted").mkdir()
    for path in tiny_cases.glob("*/*_seg.nii.gz"):
        label = nib.load(path)
        values = np.asarray(label.dataobj)
        nib.save(nib.Nifti1Image(np.where(values == 4, 3, values), label.affine), tmp_path / "predicted" / path.name)
    return {"truth": tiny_cases, "predicted": tmp_path / "predicted", "output": tmp_path / "eval"}


def score(folders: dict[str, Path], *more: str) -> str | None:
    names = {"truth": "--dataset_dir", "predicted": "--prediction_dir", "output": "--output_dir"}
    paths = [part for name, option in names.items() for part in (option, str(folders[name]))]
    return main(["score", *paths, *more])


CONVENTIONS = ("--label_convention", "brats2018", "--prediction_convention", "brats2023")


def test_the_same_masks_in_two_conventions(folders, capsys):
    (folders["predicted"] / "case_1_seg.nii.gz").rename(folders["predicted"] / "case_1.nii.gz")  # as nnU-Net names them
    assert score(folders, *CONVENTIONS) is None
    rows = list(csv.DictReader((folders["output"] / "metrics.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == ["case_0", "case_1", "case_2", "case_3"]
    for row in rows:
        assert [row[f"dice_{region}"] for region in ("wt", "tc", "et")] == ["1.0000"] * 3
        # 24 voxels each of ED and ET, 48 of NCR/NET, of 1.5 x 1.25 x 2 mm
        volumes = [float(row[f"volume_ml_{region}"]) for region in ("wt", "tc", "et")]
        assert volumes == pytest.approx([0.36, 0.27, 0.09])
    assert "4 cases" in capsys.readouterr().out


def tell(folders: dict[str, Path], convention: str) -> None:
    for path in folders["predicted"].glob("*.nii.gz"):
        record = {"settings": {"label_convention": convention}}
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(record))


def test_the_record_of_a_mask_says_its_convention(folders, capsys):
    tell(folders, "brats2023")
    assert score(folders, *CONVENTIONS[:2]) is None
    rows = list(csv.DictReader((folders["output"] / "metrics.csv").read_text().splitlines()))
    assert {row["dice_tc"] for row in rows} == {"1.0000"}


def test_a_convention_that_the_record_contradicts_is_refused(folders):
    tell(folders, "decathlon")  # the same values, of other meaning
    sentence = str(score(folders, *CONVENTIONS))
    assert "Case case_0: prediction_convention should be decathlon" in sentence
    assert not (folders["output"] / "metrics.csv").exists()


def test_patients_are_those_of_a_table(folders, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\ncase_0,a\ncase_1,a\ncase_2,b\n")
    assert score(folders, *CONVENTIONS, "--patients", str(table)) == (
        f"Error: Case case_3: its patient is missing in {table}."
    )
    table.write_text(table.read_text() + "case_3,b\n")
    assert score(folders, *CONVENTIONS, "--patients", str(table)) is None
    rows = list(csv.DictReader((folders["output"] / "summary.csv").read_text().splitlines()))
    assert {(row["cases"], row["patients"]) for row in rows} == {("4", "2")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--label_convention", "brats2023"), "/case_0/case_0_seg.nii.gz: label_convention brats2023 allows"),
        (("--label_convention", "brats2018"), "/predicted/case_0_seg.nii.gz: label_convention brats2018 allows"),
    ],
    ids=["of the labels", "of the predictions"],
)
def test_a_wrong_convention_is_refused(folders, arguments, sentence):
    error = score(folders, *arguments)
    assert error is not None
    assert error.startswith("Error: Case case_0: ")
    assert sentence in error
    assert not folders["output"].exists()


@pytest.mark.parametrize("name", ["missed_mm", "lesion_dilations", "lesion_min_mm3"])
def test_a_rule_below_zero_is_refused(folders, name):
    assert f"{name} should be 0 or more, it is -1" in str(score(folders, *CONVENTIONS, f"--{name}", "-1"))
    assert not folders["output"].exists()


@pytest.mark.parametrize("side", ["truth", "predicted"])
def test_a_case_is_not_left_out(folders, side):
    path = next(folders[side].rglob("case_2_seg.nii.gz"))
    path.unlink()
    lacking = {"truth": "label", "predicted": "prediction"}[side]
    assert score(folders, *CONVENTIONS) == f"Error: Case case_2: the {lacking} is missing in {folders[side]}."


def test_masks_of_two_spaces(folders):
    path = folders["predicted"] / "case_3_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.eye(4)), path)
    assert "Case case_3: the files should have one affine" in str(score(folders, *CONVENTIONS))


@pytest.mark.parametrize(
    ("more", "expected"), [((), 373.1287), (("--missed_mm", "100"), 100)], ids=["of the convention", "given"]
)
def test_the_distance_of_a_missed_region(folders, more, expected):
    path = folders["predicted"] / "case_3_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 16), np.uint8), nib.load(path).affine), path)
    assert score(folders, *CONVENTIONS, *more) is None
    rows = list(csv.DictReader((folders["output"] / "metrics.csv").read_text().splitlines()))
    assert float(rows[3]["hd95_mm_wt"]) == pytest.approx(expected)


def test_the_id_of_a_mask_may_end_as_a_modality_does(folders, tmp_path):
    """As nnU-Net names labels and masks; beside another whose ID does not."""
    labels = tmp_path / "raw" / "labelsTr"
    labels.mkdir(parents=True)
    for old, new in (("case_1", "case_1_ct"), ("case_2", "case_2")):
        next(folders["truth"].rglob(f"{old}_seg.nii.gz")).rename(labels / f"{new}.nii.gz")
        (folders["predicted"] / f"{old}_seg.nii.gz").rename(folders["predicted"] / f"{new}.nii.gz")
    for name in ("case_0", "case_3"):
        (folders["predicted"] / f"{name}_seg.nii.gz").unlink()
    assert score({**folders, "truth": tmp_path / "raw"}, *CONVENTIONS) is None
    rows = list(csv.DictReader((folders["output"] / "metrics.csv").read_text().splitlines()))
    assert [(row["case"], row["dice_wt"]) for row in rows] == [("case_1_ct", "1.0000"), ("case_2", "1.0000")]


def test_two_masks_of_one_case(folders):
    mask = folders["predicted"] / "case_1_seg.nii.gz"
    shutil.copy(mask, folders["predicted"] / "case_1.nii.gz")
    assert "Case case_1: its mask is doubled" in str(score(folders, *CONVENTIONS))


def test_a_mask_without_a_label_is_not_passed_over(folders):
    """Though its ID ends as a modality does; a scan that lies beside its mask is none."""
    mask = folders["predicted"] / "case_1_seg.nii.gz"
    shutil.copy(mask, folders["predicted"] / "case_1_t1.nii.gz")
    assert score(folders, *CONVENTIONS) is None
    shutil.copy(mask, folders["predicted"] / "case_9_ct.nii.gz")
    assert "Case case_9_ct: the label is missing" in str(score(folders, *CONVENTIONS))
