"""Which cases are of one patient, so that none is both trained on and tested on."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["patient_of", "patients_of", "year_of"]

# Case IDs that end with the number of an examination: the same patient may be there more than once. BraTS 2017 to 2019
# hold many of the same patients, under the same names but for the year.
EXAMINATION = re.compile(
    r"^(?:brats1\d_(?P<of_any_year>.+_.+)_\d+|(?P<patient>brats_2013_pat\d+|brats-\w+-\d+)[_-]\d+)$", re.IGNORECASE
)


def patient_of(case_id: str) -> str:
    """The patient of a case: BraTS names of 2013, 2017-2019 and 2023 end with the number of the examination."""
    match = EXAMINATION.match(case_id)
    return match["of_any_year"] or match["patient"] if match else case_id


def patients_of(case_ids: Iterable[str], dataset_dir: str | Path | None = None) -> dict[str, str]:
    """The patient of each case, by its name and by the tables ``name_mapping*.csv`` of BraTS in a folder.

    BraTS 2020 numbers its cases anew; its table has a row per case with the names of the years before.
    """
    patients: dict[str, str] = {}
    for path in sorted(Path(dataset_dir).rglob("name_mapping*.csv")) if dataset_dir else ():
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            for row in csv.reader(file):
                names = [cell.strip() for cell in row if re.match(r"brats\d\d", cell.strip(), re.IGNORECASE)]
                known = [patient_of(name) for name in names if patient_of(name) != name]
                patients |= dict.fromkeys(names, (known or names or [""])[0])
    return {case_id: patients.get(case_id) or patient_of(case_id) for case_id in case_ids}


def year_of(case_id: str) -> str:
    """What tells the year in a BraTS name: ``brats18``, ``brats2021``, ``brats-`` from 2023 on."""
    match = re.match(r"[a-z]+[-_]?\d*", case_id.lower())
    return match[0] if match else ""
