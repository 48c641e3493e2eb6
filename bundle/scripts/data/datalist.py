"""A folder of cases becomes a reproducible list: training, validation, testing, and what has no label.

python -m scripts datalist --dataset_dir BraTS2019 --output configs/datalist.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..arguments import listed
from ..errors import InputError, flag
from .cases import LABEL, MODALITIES, WHOLE, Case, find_cases
from .patients import patients_of

__all__ = ["inference_cases", "load_datalist", "make_datalist"]


def shuffled_patients(patients: Iterable[str], seed: int) -> list[str]:
    """Patients in a random order that depends on the seed and their names only, not on the order of a listing."""
    return sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def make_datalist(
    dataset_dir: str | Path,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    validation_fraction: float = 0.1,
    testing_fraction: float = 0.1,
    folds: int | None = None,
) -> dict[str, Any]:
    """A Decathlon-style datalist of a folder, split by patient.

    Args:
        dataset_dir: folder of cases; the paths in the list are relative to it.
        modalities: names of the modalities that each case has to have.
        seed: of the split.
        validation_fraction: share of the patients for validation; at least one of two patients.
        testing_fraction: share of the patients for testing; at least one of three patients.
        folds: instead of a validation set, the number of folds; each training case then has its ``fold``.

    Returns:
        ``training``, ``validation`` (without folds), ``testing`` and ``inference`` (cases without a label), lists of
        ``{"case_id", "image": {modality: path}, "label"}``, beside the settings that made them.

    Raises:
        InputError: when a file is missing or doubled (all such cases are named), or the patients do not suffice.
    """
    root = Path(dataset_dir)
    cases = find_cases(root)
    entries, faults = {}, []
    for case in cases:
        try:
            entries[case.case_id] = _entry(case, root, modalities)
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(" ".join(faults))

    labelled = [case for case in cases if LABEL in case.files]
    patient_of = patients_of((case.case_id for case in labelled), root)
    patients = shuffled_patients(patient_of.values(), seed)
    num_testing = _share(testing_fraction, len(patients), at_least_from=3)
    testing, rest = patients[:num_testing], patients[num_testing:]

    def of(chosen: Sequence[str]) -> list[dict[str, Any]]:
        return [entries[case.case_id] for case in labelled if patient_of[case.case_id] in chosen]

    datalist: dict[str, Any] = {"name": root.resolve().name, "modalities": list(modalities), "seed": seed}
    if folds is None:
        num_validation = _share(validation_fraction, len(patients), at_least_from=2)
        datalist |= {"training": of(rest[num_validation:]), "validation": of(rest[:num_validation])}
    else:
        if not 2 <= folds <= len(rest):
            raise InputError(f"folds should be from 2 to the number of patients to train on, {len(rest)}, got {folds}.")
        fold_of = {patient: index % folds for index, patient in enumerate(rest)}
        training = [entry | {"fold": fold_of[patient_of[entry["case_id"]]]} for entry in of(rest)]
        datalist |= {"folds": folds, "training": training}
    datalist["testing"] = of(testing)
    datalist["inference"] = [entries[case.case_id] for case in cases if LABEL not in case.files]
    return datalist


def _share(fraction: float, num_patients: int, at_least_from: int) -> int:
    if not 0 <= fraction < 1:
        raise InputError(f"A fraction of the patients should be in [0, 1), got {fraction}.")
    at_least = 1 if fraction > 0 and num_patients >= at_least_from else 0
    return max(at_least, round(fraction * num_patients))


def _entry(case: Case, root: Path, modalities: Sequence[str]) -> dict[str, Any]:
    image = case.image(modalities)
    relative: str | dict[str, str]
    if isinstance(image, dict):
        relative = {name: path.relative_to(root).as_posix() for name, path in image.items()}
    else:
        relative = image.relative_to(root).as_posix()
    entry: dict[str, Any] = {"case_id": case.case_id, "image": relative}
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
) -> list[dict[str, Any]]:
    """The cases of one split, with absolute paths, for the dataset of a workflow.

    Args:
        dataset_dir: folder that the paths of the list are relative to.
        split: ``training``, ``validation``, ``testing`` or ``inference``.
        modalities: names of the modalities to read, in the order of the network's channels.
        data_list_file_path: a list that ``python -m scripts datalist`` wrote; ``None`` splits the folder anew, the
            same way each time.
        fold: of a list with folds, the one to validate on.
        may_leave_dataset_dir: whether paths of the list may lead out of ``dataset_dir``.

    Raises:
        InputError: when the list or one of its files is not there, leads out of ``dataset_dir``, lacks a modality,
            or has no case in this split.
    """
    entries = _entries(Path(dataset_dir), split, modalities, data_list_file_path, may_leave_dataset_dir, fold)
    for entry in entries:
        labels = {"label": entry["label"]} if "label" in entry else {}
        for name, path in (_image_files(entry) | labels).items():
            if not Path(path).is_file():
                raise InputError(f"Case {entry['case_id']}: {name} of the datalist is not there, {path}.")
    return entries


def _image_files(entry: dict[str, Any]) -> dict[str, str]:
    return entry["image"] if isinstance(entry["image"], dict) else {WHOLE: entry["image"]}


def _entries(
    root: Path,
    split: str,
    modalities: Sequence[str],
    data_list_file_path: str | Path | None,
    may_leave: bool,
    fold: int | None = None,
) -> list[dict[str, Any]]:
    """The cases of one split with absolute paths, whether or not there is a file."""
    if not root.is_dir():
        raise InputError(f"dataset_dir should be a folder of cases, {root} is not there.")
    if data_list_file_path is None:
        name, datalist = "the split of dataset_dir", make_datalist(root, modalities)
    else:
        name, datalist = str(data_list_file_path), _read(Path(data_list_file_path))
    entries = datalist.get(split, [])
    if "folds" in datalist and split in ("training", "validation"):
        if fold not in range(datalist["folds"]):
            raise InputError(f"fold should be from 0 to {datalist['folds'] - 1}, as {name} has folds, got {fold}.")
        entries = [entry for entry in datalist["training"] if (entry["fold"] == fold) == (split == "validation")]
    if not entries:
        raise InputError(f"The datalist should have at least one case for {split}, {name} has none.")
    may_leave = flag("may_leave_dataset_dir", may_leave)
    return [_absolute(entry, root, modalities, split != "inference", may_leave) for entry in entries]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"data_list_file_path should be a datalist, {path} is not there.")
    try:
        datalist = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"data_list_file_path should be JSON, {path} is not: {error}.") from error
    if not isinstance(datalist, dict):
        raise InputError(
            f"data_list_file_path should hold an object of splits, {path} holds a {type(datalist).__name__}."
        )
    return datalist


def _absolute(
    entry: dict[str, Any], root: Path, modalities: Sequence[str], labelled: bool, may_leave: bool
) -> dict[str, Any]:
    case_id, image = entry.get("case_id", entry.get("image")), entry.get("image")

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

    result: dict[str, Any] = {"case_id": case_id}
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
) -> list[dict[str, Any]]:
    """The cases to segment: those of a datalist's split, or without a list every case of the folder.

    A case that lacks a file is reported by the loader, so that it does not keep the others from being segmented:
    without a list, each case is given by one of its files, and the loader finds the siblings.

    Raises:
        InputError: when there is no such list or folder, or no case in it; when
            ``output_dir`` holds scans: masks are named as labels are, and would replace them.
    """
    if data_list_file_path is not None:
        entries = _entries(Path(dataset_dir), split, modalities, data_list_file_path, may_leave_dataset_dir)
        entries = [{"case_id": entry["case_id"], "image": entry["image"]} for entry in entries]
    else:
        first_file = {
            case.case_id: paths[0]
            for case in find_cases(dataset_dir)
            for name, paths in case.files.items()
            if name != LABEL
        }
        entries = [{"case_id": case_id, "image": str(path)} for case_id, path in first_file.items()]
    if not entries:
        raise InputError(f"dataset_dir should hold scans, {dataset_dir} holds labels only.")
    for entry in entries:
        if any(Path(file).resolve().parent == Path(output_dir).resolve() for file in _image_files(entry).values()):
            raise InputError(f"output_dir should not be a folder of scans, {output_dir} holds case {entry['case_id']}.")
    return entries


def write_new(path: Path, text: str) -> None:
    """Writes a file that must not exist yet, whole or not at all.

    Raises:
        InputError: when it exists, or its folder does not.
    """
    if not path.parent.is_dir():
        raise InputError(f"output should lie in a folder that exists, {path.parent} does not.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    try:
        os.link(temporary, path)  # fails where the file exists, unlike a rename
    except FileExistsError as error:
        raise InputError(f"output should be a new file, {path} exists: a split is made once.") from error
    finally:
        temporary.unlink()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts datalist", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases, in subfolders or flat")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--modalities", type=listed(str), default=MODALITIES, help="default: all four of BraTS")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--validation_fraction", type=float, default=0.1)
    parser.add_argument("--testing_fraction", type=float, default=0.1)
    parser.add_argument("--folds", type=int, help="make folds for cross-validation instead of a validation set")
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")
    datalist = make_datalist(**arguments)
    write_new(output, json.dumps(datalist, indent=2) + "\n")
    counts = ", ".join(
        f"{len(datalist[split])} {split}"
        for split in datalist
        if isinstance(datalist[split], list) and split != "modalities"
    )
    print(f"{output}: {counts}")
