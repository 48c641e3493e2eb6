"""A folder of cases becomes a reproducible list: training, validation, testing, and what has no label.

python -m scripts datalist --dataset_dir BraTS2019 --output configs/datalist.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments import listed, mapped
from ..errors import InputError, flag
from ..files import read_json, whole_file
from .cases import (
    IMAGE_FOLDERS,
    LABEL,
    LABEL_FOLDERS,
    MODALITIES,
    WHOLE,
    Case,
    case_id_of,
    find_cases,
    first_file,
    list_cases,
    modalities_of,
)
from .missing import cases_not_there, cases_without_label
from .patients import looks_repeated, patient_of, patients_of, read_patients

__all__ = ["inference_cases", "load_datalist", "make_datalist", "patients_in", "read_datalist"]

logger = logging.getLogger(__name__)

LABELLED = ("training", "validation", "testing")
UNLABELLED = ("inference", "test")  # ours, and the Decathlon's, which lists the scans alone
TEST_FOLDERS = (IMAGE_FOLDERS[1], LABEL_FOLDERS[1])  # of cases that a data set keeps apart from those to train on
ALL = "all"  # in place of a split: every labelled case


def shuffled_patients(patients: Iterable[str], seed: int) -> list[str]:
    """Patients in a random order that depends on the seed and their names only, not on the order of a listing."""
    return sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def make_datalist(
    dataset_dir: str | Path,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    validation_fraction: float = 0.1,
    testing_fraction: float | None = None,
    folds: int | None = None,
    exclude: Sequence[str] = (),
    patients: str | Path | None = None,
    suffixes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A Decathlon-style datalist of a folder, split by patient.

    Labelled cases that the data set itself keeps apart, in ``imagesTs`` or ``labelsTs``, are for testing; the split is
    made of the others.

    Args:
        dataset_dir: folder of cases; the paths in the list are relative to it.
        modalities: names of the modalities that each case has to have.
        seed: of the split.
        validation_fraction: share of the patients for validation; at least one of two patients.
        testing_fraction: share of the patients for testing; at least one of three patients. 1 is for a data set that
            is only tested on. ``None`` is 0.1, or 0 where the data set has cases for testing of its own.
        folds: instead of a validation set, the number of folds; each training case then has its ``fold``.
        exclude: IDs of cases to leave out.
        patients: a table of cases and their patients, as :func:`scripts.data.patients.read_patients` takes it, in place
            of what their names say.
        suffixes: of foreign file names, as :func:`scripts.data.cases.split_file_name` takes them.

    Returns:
        ``training``, ``validation`` (without folds), ``testing`` and ``inference`` (cases without a label), lists of
        ``{"case_id", "patient", "image": {modality: path}, "label"}``, beside the settings that made them.

    Raises:
        InputError: when a file is missing, or a file or a case doubled (all such cases are named), a case to leave out
            is not there, a table lacks a case, a patient has cases for the training and cases for testing, or the
            patients do not suffice.
    """
    root = Path(dataset_dir)
    cases = list_cases(root, suffixes=suffixes)
    if unknown := sorted(set(exclude) - {case.case_id for case in cases}):
        raise InputError(f"exclude should name cases of dataset_dir, {root} has no {', '.join(unknown)}.")
    for sentence in cases_not_there(cases):
        logger.warning(f"{sentence}.")
    cases = [case for case in cases if case.case_id not in exclude]
    if lacking := cases_without_label(cases):
        logger.warning(
            f"{len(lacking)} case(s) of {IMAGE_FOLDERS[0]} have no label in {LABEL_FOLDERS[0]} and leave the training, "
            f"such as {lacking[0].case_id}."
        )
    table = None if patients is None else read_patients(patients)
    patient_by_case = patients_of((case.case_id for case in cases), root) if table is None else table
    entries: dict[str, dict[str, Any]] = {}
    folder_of: dict[str, Path] = {}
    faults = []
    for case in cases:
        try:
            if folder_of.setdefault(case.case_id, case.folder) != case.folder:
                raise InputError(
                    f"Case {case.case_id} is doubled, one folder is allowed: "
                    f"{folder_of[case.case_id]} and {case.folder}."
                )
            if case.case_id not in patient_by_case:
                raise InputError(f"Case {case.case_id}: its patient is missing in {patients}.")
            entries[case.case_id] = _entry(case, root, modalities, patient_by_case[case.case_id])
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(" ".join(faults))

    labelled = [case for case in cases if LABEL in case.files]
    if table is None and (pair := looks_repeated([case.case_id for case in labelled])):
        logger.warning(
            f"Cases {pair[0]} and {pair[1]} look like one patient, and many others do, but no rule knows these names: "
            "each case counts as a patient. If that is wrong, the same patients are trained and tested on: say who is "
            "who by python -m scripts datalist --patients."
        )
    set_aside = [case for case in labelled if case.lies_in(*TEST_FOLDERS)]
    others = [case for case in labelled if not case.lies_in(*TEST_FOLDERS)]
    check_sides(root, others, set_aside, patient_by_case)
    if testing_fraction is None:
        testing_fraction = 0.0 if set_aside else 0.1
    in_order = shuffled_patients((patient_by_case[case.case_id] for case in others), seed)
    num_testing = _share("testing_fraction", testing_fraction, len(in_order), at_least_from=3)
    num_validation = _share("validation_fraction", validation_fraction, len(in_order), at_least_from=2)
    if folds is None and testing_fraction < 1 and validation_fraction + testing_fraction >= 1:
        raise InputError(
            "validation_fraction and testing_fraction should leave patients to train on, their sum is "
            f"{validation_fraction + testing_fraction:g}."
        )
    rest = in_order[num_testing:]
    testing = {*in_order[:num_testing], *(patient_by_case[case.case_id] for case in set_aside)}

    def of(chosen: Iterable[str]) -> list[dict[str, Any]]:
        of_these = set(chosen)
        return [entries[case.case_id] for case in labelled if patient_by_case[case.case_id] in of_these]

    datalist: dict[str, Any] = {"name": root.resolve().name, "modalities": list(modalities), "seed": seed}
    if folds is None:
        datalist |= {"training": of(rest[num_validation:]), "validation": of(rest[:num_validation])}
    else:
        if not 2 <= folds <= len(rest):
            raise InputError(f"folds should be from 2 to the number of patients to train on, {len(rest)}, got {folds}.")
        fold_of = {patient: index % folds for index, patient in enumerate(rest)}
        training = [entry | {"fold": fold_of[entry["patient"]]} for entry in of(rest)]
        datalist |= {"folds": folds, "training": training}
    datalist["testing"] = of(testing)
    datalist["inference"] = [entries[case.case_id] for case in cases if LABEL not in case.files]
    return datalist


def check_sides(root: Path, others: Sequence[Case], set_aside: Sequence[Case], patients: Mapping[str, str]) -> None:
    """Refuses a data set that has cases of one patient on both sides, where no split can be by patient."""
    trained = {patients[case.case_id]: case for case in others}
    tested = {patients[case.case_id]: case for case in set_aside}
    if shared := sorted(trained.keys() & tested.keys()):
        more = f", and {len(shared) - 1} more such patient(s)" if shared[1:] else ""
        raise InputError(
            f"Patient {shared[0]} should be trained on or tested on, {root} has case {trained[shared[0]].case_id} to "
            f"train on and {tested[shared[0]].case_id} in {TEST_FOLDERS[0]}{more}: leave cases out by --exclude, or "
            "say by --patients who is who."
        )


def _share(name: str, fraction: float, num_patients: int, at_least_from: int) -> int:
    if not 0 <= fraction <= 1:
        raise InputError(f"{name} should be from 0 to 1, got {fraction}.")
    at_least = 1 if fraction > 0 and num_patients >= at_least_from else 0
    return max(at_least, round(fraction * num_patients))


def _entry(case: Case, root: Path, modalities: Sequence[str], patient: str) -> dict[str, Any]:
    image = case.image(modalities)
    relative: str | dict[str, str]
    if isinstance(image, dict):
        relative = {name: path.relative_to(root).as_posix() for name, path in image.items()}
    else:
        relative = image.relative_to(root).as_posix()
    entry: dict[str, Any] = {"case_id": case.case_id, "patient": patient, "image": relative}
    if LABEL in case.files:
        entry["label"] = case.file(LABEL).relative_to(root).as_posix()
    return entry


def load_datalist(
    dataset_dir: str | Path,
    split: str,
    modalities: Sequence[str],
    data_list_file_path: str | Path | None = None,
    fold: int | None = None,
    may_leave_dataset_dir: bool = False,
    suffixes: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The cases of one split, with absolute paths, for the dataset of a workflow.

    Args:
        dataset_dir: folder that the paths of the list are relative to.
        split: ``training``, ``validation``, ``testing`` or ``inference``; ``all`` for every labelled case.
        modalities: names of the modalities to read, in the order of the network's channels.
        data_list_file_path: a list that ``python -m scripts datalist`` wrote; ``None`` splits the folder anew, the
            same way each time.
        fold: of a list with folds, the one to validate on.
        may_leave_dataset_dir: whether paths of the list may lead out of ``dataset_dir``.
        suffixes: of foreign file names, where there is no list.

    Raises:
        InputError: when the list or one of its files is not there, leads out of ``dataset_dir``, lacks a modality,
            has no case in this split, or has a case or a patient both for the training and for a test.
    """
    if data_list_file_path is not None:
        check_apart(Path(data_list_file_path), Path(dataset_dir), fold)
    entries = _entries(Path(dataset_dir), split, modalities, data_list_file_path, may_leave_dataset_dir, fold, suffixes)
    for entry in entries:
        labels = {"label": entry["label"]} if "label" in entry else {}
        for name, path in (_image_files(entry) | labels).items():
            if not Path(path).is_file():
                raise InputError(f"Case {entry['case_id']}: {name} of the datalist is not there, {path}.")
    return entries


def read_datalist(
    dataset_dir: str | Path,
    modalities: Sequence[str],
    data_list_file_path: str | Path | None,
    suffixes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The list as it stands in the file, or without one the split that is made of the folder."""
    if data_list_file_path is None:
        return make_datalist(dataset_dir, modalities, suffixes=suffixes)
    return _read(Path(data_list_file_path))


def _image_files(entry: dict[str, Any]) -> dict[str, str]:
    return entry["image"] if isinstance(entry["image"], dict) else {WHOLE: entry["image"]}


def _entries(
    root: Path,
    split: str,
    modalities: Sequence[str],
    data_list_file_path: str | Path | None,
    may_leave: bool,
    fold: int | None = None,
    suffixes: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The cases of one split with absolute paths, whether or not there is a file."""
    if not root.is_dir():
        raise InputError(f"dataset_dir should be a folder of cases, {root} is not there.")
    name = "the split of dataset_dir" if data_list_file_path is None else str(data_list_file_path)
    datalist = read_datalist(root, modalities, data_list_file_path, suffixes)
    labelled = {case: datalist.get(case, []) for case in LABELLED}
    entries = [entry for of in labelled.values() for entry in of] if split == ALL else datalist.get(split, [])
    if "folds" in datalist and split in ("training", "validation"):
        if fold not in range(datalist["folds"]):
            raise InputError(f"fold should be from 0 to {datalist['folds'] - 1}, as {name} has folds, got {fold}.")
        entries = [entry for entry in datalist["training"] if (entry["fold"] == fold) == (split == "validation")]
    elif fold is not None and split in ("training", "validation"):
        raise InputError(f"fold belongs to a datalist with folds, {name} has none, got {fold}.")
    if not entries:
        raise InputError(f"The datalist should have at least one case for {split}, {name} has none.")
    if split in (ALL, *LABELLED):
        num_labelled = sum(map(len, labelled.values()))
        message = f"{split}: {len(entries)} of the {num_labelled} labelled cases of {name}"
        if split == "testing" and data_list_file_path is None and len(entries) < num_labelled:
            logger.warning(f"{message} {root}; --split all takes all of them.")
        else:
            logger.info(f"{message}.")
    may_leave = flag("may_leave_dataset_dir", may_leave)
    absolute = [_absolute(entry, root, modalities, split not in UNLABELLED, may_leave) for entry in entries]
    check_cases_once(name, split, [entry["case_id"] for entry in absolute])
    return absolute


def check_cases_once(name: str, split: str, case_ids: Sequence[str]) -> None:
    doubled = [case_id for case_id, count in Counter(case_ids).items() if count > 1]
    if doubled:
        raise InputError(
            f"Case {doubled[0]} should be in {split} once, {name} has it {case_ids.count(doubled[0])} times."
        )


def check_apart(path: Path, root: Path, fold: int | None) -> None:
    """Refuses a list, as it may be written by hand, that trains and tests on one case, one scan or one patient.

    Raises:
        InputError: naming the first.
    """
    datalist = _read(path)
    splits = {
        split: [{**entry, "image": root / first_file(entry)} for entry in datalist.get(split, []) if entry.get("image")]
        for split in LABELLED
    }
    if "folds" in datalist and fold is not None:
        splits["validation"] = [entry for entry in splits["training"] if entry.get("fold") == fold]
        splits["training"] = [entry for entry in splits["training"] if entry.get("fold") != fold]
    for what, of in {"case": case_id_of, "scan": first_file, "patient": _patient}.items():
        trained = set(map(of, splits["training"]))
        for split in LABELLED[1:]:
            if shared := sorted(trained & set(map(of, splits[split]))):
                raise InputError(
                    f"{path}: {what} {shared[0]} should be in training or in {split}, it is in both"
                    f"{f', and {len(shared) - 1} more' if shared[1:] else ''}: what is measured on {split} would be "
                    "too good. Whom a name takes for one patient wrongly, say who it is by patient in the list."
                )


def _patient(entry: dict[str, Any]) -> str:
    return str(entry.get("patient") or patient_of(case_id_of(entry)))


def patients_in(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The patient of each case of a list, by case ID."""
    return {case_id_of(entry): _patient(entry) for entry in entries}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"data_list_file_path should be a datalist, {path} is not there.")
    datalist = read_json(path, "data_list_file_path")
    folds = datalist.get("folds", 0)
    if type(folds) is not int:
        raise InputError(f"{path}: folds should be a whole number, it is {json.dumps(folds)}.")
    for split in (*LABELLED, *UNLABELLED):
        if split not in datalist:
            continue
        entries = datalist[split]
        if not isinstance(entries, list):
            raise InputError(f"{path}: {split} should be a list of cases, it is {json.dumps(entries)[:80]}.")
        datalist[split] = entries = [{"image": entry} if isinstance(entry, str) else entry for entry in entries]
        for entry in entries:
            if not _is_case(entry):
                raise InputError(
                    f'{path}: {split} should hold cases such as {{"image": "a.nii.gz", "label": "b.nii.gz"}}, it holds '
                    f"{json.dumps(entry)[:80]}."
                )
            if split == "training" and folds and entry.get("fold") not in range(folds):
                raise InputError(
                    f"{path}: fold should be from 0 to {folds - 1} for each case of training, "
                    f"{case_id_of(entry)} has {entry.get('fold')}."
                )
    return datalist


def _is_case(entry: Any) -> bool:
    """Whether an entry of a list has what its names ask for, where they are there."""
    if not isinstance(entry, dict):
        return False
    image = entry.get("image") or ""
    files = [*image.values()] if isinstance(image, dict) else [image]
    texts = all(isinstance(file, str) for file in [*files, entry.get("label") or ""])
    return texts and all(isinstance(entry.get(name) or "", str | int) for name in ("case_id", "patient"))


def _absolute(
    entry: dict[str, Any], root: Path, modalities: Sequence[str], labelled: bool, may_leave: bool
) -> dict[str, Any]:
    image = entry.get("image")
    if not isinstance(image, str | dict) or not image:
        raise InputError(f"Case {entry.get('case_id')}: image is missing in the datalist.")
    named = image if isinstance(image, str) else next(iter(image.values()))
    case_id = case_id_of({"case_id": entry.get("case_id"), "image": root / str(named)})

    def absolute(name: str, relative: str | None) -> str:
        if relative is None:
            raise InputError(f"Case {case_id}: {name} is missing in the datalist.")
        path = root / relative
        # By name: links in dataset_dir are its owner's, a list may be anybody's.
        if not may_leave and not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
            raise InputError(
                f"Case {case_id}: {name} should lie in dataset_dir {root}, the datalist says {relative}: "
                "allow it by --may_leave_dataset_dir true."
            )
        return str(path)

    result: dict[str, Any] = {"case_id": case_id, "patient": str(entry.get("patient") or patient_of(case_id))}
    if isinstance(image, dict):
        result["image"] = {name: absolute(name, image.get(name)) for name in modalities}
    else:
        result["image"] = absolute(WHOLE, image)
    if labelled:
        result["label"] = absolute("label", entry.get("label"))
    return result


def inference_cases(
    dataset_dir: str | Path,
    modalities: Sequence[str],
    output_dir: str | Path,
    data_list_file_path: str | Path | None = None,
    split: str = "inference",
    may_leave_dataset_dir: bool = False,
    suffixes: Mapping[str, str] | None = None,
    probabilities_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """The cases to segment: those of a datalist's split, or without a list every case of the folder.

    A case that lacks a file is reported by the loader, so that it does not keep the others from being segmented:
    without a list, such a case is given by one of its files, and the loader looks for the siblings.

    Raises:
        InputError: when there is no such list or folder, or no case in it; when ``output_dir`` or ``probabilities_dir``
            lies where cases are looked for: masks are named as labels are, and probabilities as scans, they would
            replace them or be taken for them.
    """
    if data_list_file_path is not None:
        entries = _entries(Path(dataset_dir), split, modalities, data_list_file_path, may_leave_dataset_dir)
        entries = [{"case_id": entry["case_id"], "image": entry["image"]} for entry in entries]
    else:
        cases = [case for case in find_cases(dataset_dir, suffixes=suffixes) if set(case.files) - {LABEL}]
        entries = [{"case_id": case.case_id, "image": _files_to_load(case, modalities, suffixes)} for case in cases]
    if not entries:
        raise InputError(f"dataset_dir should hold scans, {dataset_dir} holds labels only.")
    check_outside("output_dir", output_dir, Path(dataset_dir), entries, "masks would be taken for labels")
    if probabilities_dir is not None:
        confused = "probabilities would be taken for scans"
        check_outside("probabilities_dir", probabilities_dir, Path(dataset_dir), entries, confused)
    return entries


def check_outside(
    knob: str, folder: str | Path, dataset_dir: Path, entries: Sequence[dict[str, Any]], confused: str
) -> None:
    """Refuses a folder to write to that lies where cases are looked for."""
    output = Path(folder).resolve()
    if output.is_relative_to(dataset_dir.resolve()):
        raise InputError(f"{knob} should lie outside of dataset_dir, where {confused}: {folder} lies in {dataset_dir}.")
    for entry in entries:
        if any(output.is_relative_to(Path(file).resolve().parent) for file in _image_files(entry).values()):
            raise InputError(f"{knob} should not be a folder of scans, {folder} holds case {entry['case_id']}.")


def _files_to_load(case: Case, modalities: Sequence[str], suffixes: Mapping[str, str] | None) -> str | dict[str, str]:
    """The files of a case that is whole, else one of them; those that are there once where only suffixes tell them."""
    try:
        image = case.image(modalities)
    except InputError:
        if suffixes:
            return {name: str(paths[0]) for name, paths in case.files.items() if name != LABEL and len(paths) == 1}
        return str(next(paths[0] for name, paths in case.files.items() if name != LABEL))
    return {name: str(path) for name, path in image.items()} if isinstance(image, dict) else str(image)


def write_new(path: Path, text: str) -> None:
    """Writes a file that must not exist yet, whole or not at all.

    Raises:
        InputError: when it exists, or its folder does not.
    """
    if not path.parent.is_dir():
        raise InputError(f"output should lie in a folder that exists, {path.parent} does not.")
    try:
        # Takes the name, which fails where the file exists; a hard link would do, but some file systems have none.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError as error:
        raise InputError(f"output should be a new file, {path} exists: a split is made once.") from error
    try:
        with whole_file(path) as temporary:
            temporary.write_text(text)
    except BaseException:
        path.unlink()
        raise


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts datalist", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases, in subfolders or flat")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--modalities", type=listed(str), help="default: those of dataset.json, else all of BraTS")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--validation_fraction", type=float, default=0.1)
    parser.add_argument(
        "--testing_fraction", type=float, help="default: 0.1, or 0 where the data set has test cases of its own"
    )
    parser.add_argument("--folds", type=int, help="make folds for cross-validation instead of a validation set")
    parser.add_argument("--exclude", type=listed(str), default=[], help="IDs of cases to leave out")
    parser.add_argument("--patients", type=Path, help="CSV table with the columns case and patient")
    parser.add_argument("--suffixes", type=mapped, help="ends of foreign file names: \"{'T1w':'t1','dseg':'seg'}\"")
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")
    arguments["modalities"] = arguments["modalities"] or modalities_of(arguments["dataset_dir"])
    datalist = make_datalist(**arguments)
    write_new(output, json.dumps(datalist, indent=2) + "\n")
    counts = ", ".join(
        f"{len(datalist[split])} {split}"
        for split in datalist
        if isinstance(datalist[split], list) and split != "modalities"
    )
    print(f"{output}: {counts}")
