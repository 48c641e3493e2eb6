"""Which cases are of one patient, so that none is both trained on and tested on."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError

__all__ = ["looks_repeated", "patient_of", "patients_of", "read_patients", "year_of"]

# Case IDs that end with the number of an examination: the same patient may be there more than once. BraTS 2017 to 2019
# hold many of the same patients, under the same names but for the year.
EXAMINATION = re.compile(
    r"^(?:brats1\d_(?P<of_any_year>.+_.+)_\d+|(?P<patient>brats_2013_pat\d+|brats-\w+-\d+)[_-]\d+)$", re.IGNORECASE
)

# Names that begin with the patient: BIDS, and collections of the TCIA.
BEGINS_WITH_PATIENT = re.compile(
    r"^(sub-[a-z0-9]+(?=[_.-]|$)|upenn-gbm-\d+|ucsf-pdgm-\d+|tcga-\w{2}-\w{4}|patientid[_-]\d+|patient[_-]?\d+)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)
# Whatever comes before, and then a word for one of several times.
TIME = re.compile(r"^(.+?)[_.-](?:ses|session|visit|time|timepoint|tp|week|month|day|scan|fu)[_-]?\d", re.IGNORECASE)


def patient_of(case_id: str) -> str:
    """The patient of a case, by the names of BraTS, BIDS and the TCIA; else each case is a patient."""
    if match := EXAMINATION.match(case_id):
        return match["of_any_year"] or match["patient"]
    match = BEGINS_WITH_PATIENT.match(case_id) or TIME.match(case_id)
    return match[1] if match else case_id


def read_patients(path: str | Path) -> dict[str, str]:
    """The patient of each case by a table, a CSV file with the columns ``case`` and ``patient``.

    Raises:
        InputError: when it cannot be read, lacks a column or a patient, or names two patients for one case.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"patients should be a table in CSV, {path} cannot be read: {error}.") from error
    if not {"case", "patient"} <= set(reader.fieldnames or ()):
        raise InputError(f"patients should have the columns case and patient, {path} has {reader.fieldnames}.")
    patients: dict[str, str] = {}
    for row in rows:
        case_id, patient = ((row[column] or "").strip() for column in ("case", "patient"))
        if not patient or patients.setdefault(case_id, patient) != patient:
            raise InputError(f"Case {case_id}: patients should name one patient, {path} names {patient or 'none'}.")
    return patients


def looks_repeated(case_ids: Sequence[str]) -> tuple[str, str] | None:
    """Two cases that look like one patient where most do, by names that no rule knows: ``p01_a`` and ``p01_b``.

    What comes before the last part of a name has to end with a digit, to be there twice for half of the cases, and to
    differ between them: a common beginning alone is the name of the data set.
    """
    stems = {
        case_id: match[1]
        for case_id in case_ids
        if patient_of(case_id) == case_id and (match := re.match(r"^(.*\d)(?:[_.-]\w+|[a-z])$", case_id, re.IGNORECASE))
    }
    counts = Counter(stems.values())
    repeated = [case_id for case_id, stem in stems.items() if counts[stem] > 1]
    if len({stems[case_id] for case_id in repeated}) < 2 or 2 * len(repeated) < len(case_ids):
        return None
    first, second, *_ = sorted(case_id for case_id in repeated if stems[case_id] == stems[repeated[0]])
    return first, second


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
