"""Who is the same patient, by the names of BraTS and by its table."""

from __future__ import annotations

import pytest

from scripts.data.patients import patient_of, patients_of, year_of


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("BraTS19_X_1_1", "BraTS19_X_1_2", True),
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB_2", True),
        ("Brats18_CBICA_AAB_1", "BraTS19_CBICA_AAB_1", True),
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_ABB_1", False),
        ("Brats17_TCIA_101_1", "Brats17_TCIA_102_1", False),
        ("brats_2013_pat0003_1", "brats_2013_pat0003_2", True),
        ("brats_2013_pat0003_1", "brats_2013_pat0004_1", False),
        ("BraTS20_Training_001", "BraTS20_Training_002", False),
        ("BraTS2021_00000", "BraTS2021_00001", False),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", True),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00001-000", False),
        ("phantom_001", "phantom_002", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_examinations_of_one_patient(first, second, is_same):
    assert (patient_of(first) == patient_of(second)) is is_same


def test_the_table_of_brats_2020(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "name_mapping.csv").write_text(
        "Grade,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
        "HGG,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
        "HGG,NA,NA,NA,BraTS20_Training_002\n"
    )
    names = ["Brats18_CBICA_AAB_1", "BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003"]
    patients = patients_of(names, tmp_path)
    assert list(patients.values()) == ["CBICA_AAB", "CBICA_AAB", "BraTS20_Training_002", "BraTS20_Training_003"]
    assert len(set(patients_of(names).values())) == 4  # by the names alone


@pytest.mark.parametrize(
    ("case_id", "year"),
    [
        ("Brats18_CBICA_AAB_1", "brats18"),
        ("BraTS20_Training_001", "brats20"),
        ("BraTS2021_00000", "brats2021"),
        ("brats_2013_pat0003_1", "brats_2013"),
        ("BraTS-GLI-00000-000", "brats-"),
    ],
)
def test_year(case_id, year):
    assert year_of(case_id) == year
