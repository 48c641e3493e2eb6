"""Who is the same patient, by the names of BraTS and by its table."""

from __future__ import annotations

import pytest

from scripts.data.patients import looks_repeated, patient_of, patients_of, year_of


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
        ("sub-01_ses-01", "sub-01_ses-02", True),
        ("sub-01_ses-01", "sub-02_ses-01", False),
        ("sub-01", "sub-01_ses-02_run-1", True),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21", True),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00002_11", False),
        ("UCSF-PDGM-0409", "UCSF-PDGM-0409_FU003d", True),
        ("UCSF-PDGM-0004", "UCSF-PDGM-0005", False),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006_1997.01.02", True),
        ("TCGA-02-0006", "TCGA-02-0009", False),
        ("PatientID_0003_Timepoint_1", "PatientID_0003_Timepoint_2", True),
        ("Patient-001_week-000-1", "Patient-001_week-010", True),
        ("kim_visit1", "kim_visit2", True),
        ("kim_visit1", "lee_visit1", False),
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


@pytest.mark.parametrize(
    ("case_ids", "pair"),
    [
        (["p01_a", "p01_b", "p02_a", "p02_b", "p03_a"], ("p01_a", "p01_b")),
        (["7a", "7b", "8a", "8b"], ("7a", "7b")),
        (["phantom_001", "phantom_002", "phantom_003"], None),
        (["HGG_001", "HGG_002", "LGG_001", "LGG_002"], None),
        (["BraTS2021_00000", "BraTS2021_00001"], None),
        (["sub-01_ses-01", "sub-01_ses-02", "sub-02_ses-01", "sub-02_ses-02"], None),  # a rule knows them
    ],
)
def test_names_that_look_like_examinations(case_ids, pair):
    assert looks_repeated(case_ids) == pair
