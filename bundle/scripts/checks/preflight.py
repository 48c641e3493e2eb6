"""What is wrong with a folder of cases, before a run finds out: one table of faults.

    python -m scripts preflight --dataset_dir BraTS2019 --deep

Reads the headers of all cases, with ``--deep`` their voxels, too. The exit code is 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..arguments import listed, mapped
from ..data.cases import LABEL, LABEL_FOLDERS, Case, case_id_of, case_of, list_cases, modalities_of
from ..data.labels import Convention, convention_table
from ..data.missing import cases_not_there, cases_without_label
from ..data.patients import patients_of, year_of
from ..errors import InputError
from ..files import whole_file
from ..memory import free_memory, gib
from .faults import CaseCheck, Fault, check_case

__all__ = ["Preflight", "check_before_run", "main", "preflight"]

logger = logging.getLogger(__name__)


@dataclass
class Preflight:
    """The faults of a folder, and what it takes to cache its labelled cases."""

    num_cases: int
    faults: list[Fault]
    cache_bytes: int
    memory_bytes: int | None
    disk_bytes: int

    def __str__(self) -> str:
        rows = [("Case", "Fault", "Detail"), *((fault.case, fault.fault, fault.detail) for fault in self.faults)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{case:<{widths[0]}}  {fault:<{widths[1]}}  {detail}" for case, fault, detail in rows]
        lines = lines if self.faults else []
        memory = "unknown" if self.memory_bytes is None else gib(self.memory_bytes)
        lines.append(
            f"To cache all labelled cases: {gib(self.cache_bytes)} of memory ({memory} free) "
            f"or disk ({gib(self.disk_bytes)} free)."
        )
        return "\n".join([*lines, f"{self.num_cases} cases, {len(self.faults) or 'no'} fault(s)."])


def preflight(
    cases: Sequence[Case],
    modalities: Sequence[str],
    channel_order: Sequence[str] | None = None,
    label_convention: Convention | None = None,
    cache_rate: float = 0.0,
    dataset_dir: Path | None = None,
) -> Preflight:
    """Checks cases side by side on all cores, then against each other.

    Args:
        cases: from :func:`scripts.data.list_cases`.
        modalities: those that each case has to have.
        channel_order: names of the channels of 4D files.
        label_convention: of the labels; ``None`` reads the headers only.
        cache_rate: share of the labelled cases that is to be cached.
        dataset_dir: folder of all the cases, whose ``name_mapping*.csv`` tell which patients are there twice, and whose
            ``dataset.json`` which cases are not there; ``None`` where they are only some.
    """
    check = partial(check_case, modalities=modalities, channel_order=channel_order, label_convention=label_convention)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decompressing and hashing leave the interpreter free
        bar = tqdm(pool.map(check, cases), total=len(cases), desc="preflight", leave=False, disable=None)
        checks = list(bar)
    faults = [fault for found in checks for fault in found.faults]
    if dataset_dir is not None:
        faults += [
            Fault(case.case_id, "missing label", f"none in {LABEL_FOLDERS[0]}") for case in cases_without_label(cases)
        ]
        faults += [Fault("all", "missing cases", sentence) for sentence in cases_not_there(cases)]
    faults = said_once(faults, len(cases))
    faults += [*doubled_cases(cases), *other_orientations(checks), *same_voxels(checks)]
    patients = patients_of((found.case_id for found in checks), dataset_dir)
    faults += same_patients(patients, {fault.case for fault in faults})

    labelled = [found for found in checks if found.is_labelled]
    cache_bytes = sum(found.num_voxels for found in labelled) * (4 * len(modalities) + 1)  # float32, and a uint8 label
    memory_bytes = free_memory()
    if memory_bytes is not None and cache_rate * cache_bytes > memory_bytes:
        detail = f"cache_rate {cache_rate:g} needs {gib(round(cache_rate * cache_bytes))}, {gib(memory_bytes)} are free"
        faults.append(Fault("all", "memory", detail))
    folder = cases[0].folder if cases else Path()
    return Preflight(
        num_cases=len(cases),
        faults=sorted(faults, key=lambda fault: (fault.case, fault.fault)),
        cache_bytes=cache_bytes,
        memory_bytes=memory_bytes,
        disk_bytes=shutil.disk_usage(folder if folder.is_dir() else Path()).free,
    )


def said_once(faults: Sequence[Fault], num_cases: int) -> list[Fault]:
    """What is the same in all cases is one fault of all."""
    counts = Counter((fault.fault, fault.detail) for fault in faults)
    merged = {fault: fault for fault in faults}
    for fault in faults:
        if counts[fault.fault, fault.detail] == num_cases > 1:
            merged[fault] = Fault("all", fault.fault, fault.detail)
    return list(dict.fromkeys(merged.values()))


def doubled_cases(cases: Iterable[Case]) -> list[Fault]:
    folders = defaultdict(list)
    for case in cases:
        folders[case.case_id].append(str(case.folder))
    return [Fault(name, "doubled case", " and ".join(of)) for name, of in folders.items() if len(of) > 1]


def other_orientations(checks: Iterable[CaseCheck]) -> list[Fault]:
    """Cases that are stored in another orientation than most; BraTS's own where two are as frequent."""
    known = [check for check in checks if check.orientation]
    counts = Counter(check.orientation for check in known)
    usual = max(counts, key=lambda orientation: (counts[orientation], orientation == "LPS"), default=None)
    return [
        Fault(check.case_id, "orientation", f"{check.orientation}, where most cases are {usual}")
        for check in known
        if check.orientation != usual
    ]


def same_voxels(checks: Iterable[CaseCheck]) -> list[Fault]:
    """Cases that hold the same scan, under two IDs or as two modalities: one fault for each group of them."""
    holders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for check in checks:
        for fingerprint, modalities in check.fingerprints.items():
            holders[fingerprint] += [(check.case_id, modality) for modality in modalities]
    shared: dict[str, list[str]] = defaultdict(list)
    for of in holders.values():
        case_ids = sorted({case_id for case_id, _ in of})
        names = list(dict.fromkeys(modality for _, modality in of))
        if len(case_ids) > 1:
            shared[", ".join(case_ids)].append(" and ".join(names))
        elif len(names) > 1:
            shared[case_ids[0]].append(" and ".join(names))
    return [Fault(case, "same voxels", ", ".join(names)) for case, names in shared.items()]


def same_patients(patients: Mapping[str, str], reported: set[str]) -> list[Fault]:
    """Patients who are there in the naming of several years."""
    cases_of = defaultdict(set)
    for case_id, patient in patients.items():
        cases_of[patient].add(case_id)
    groups = {", ".join(sorted(case_ids)): patient for patient, case_ids in cases_of.items()}
    return [
        Fault(case_ids, "same patient", f"{patient} in several years")
        for case_ids, patient in groups.items()
        if len({year_of(case_id) for case_id in cases_of[patient]}) > 1 and case_ids not in reported
    ]


def check_before_run(
    entries: Iterable[Mapping[str, Any]],
    modalities: Sequence[str],
    channel_order: Sequence[str] | None = None,
    stop: bool = True,
    splits: Sequence[str] = (),
) -> list[Fault]:
    """The header part, on the entries of datalists, before a run; faults are logged, and given back.

    Args:
        entries: of datalists: ``image`` and, where there is one, ``label``.
        modalities: those that each case has to have.
        channel_order: names of the channels of 4D files.
        stop: whether a case that cannot be used ends the run; inference goes on with the others.
        splits: names of the splits that the entries are of: no other is looked at.

    Raises:
        InputError: when ``stop`` is set and a case cannot be used: one line each.
    """
    unique = {str(entry["image"]): entry for entry in entries}
    result = preflight([case_of_entry(entry) for entry in unique.values()], modalities, channel_order)
    of = f" of {' and '.join(splits)} (no other split is looked at)" if splits else ""
    stopping = [fault for fault in result.faults if fault.stops]
    if stop and stopping:
        lines = [f"Case {fault.case}: {fault.fault}: {fault.detail}." for fault in stopping]
        raise InputError("\n".join([f"{len(lines)} fault(s) in {result.num_cases} cases.", *lines]))
    if result.faults:
        logger.warning(f"Preflight{of}:\n{result}")
    else:
        logger.info(f"Preflight{of}: {result.num_cases} cases, no fault in the headers.")
    return result.faults


def case_of_entry(entry: Mapping[str, Any]) -> Case:
    """The case of a datalist's entry, with the files that it names."""
    image = entry["image"]
    if isinstance(image, Mapping):
        files = {name: [Path(path)] for name, path in image.items()}
        case = Case(case_id_of(entry), files[next(iter(files))][0].parent, files)
    else:
        case = case_of(image)
        case.case_id = entry.get("case_id") or case.case_id
        case.files.pop(LABEL, None)
    if "label" in entry:
        case.files[LABEL] = [Path(entry["label"])]
    return case


def main(argv: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m scripts preflight", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases, in subfolders or flat")
    parser.add_argument("--deep", action="store_true", help="read the voxels, too")
    parser.add_argument("--json", type=Path, help="write the faults to this file, too")
    parser.add_argument(
        "--modalities",
        type=listed(str),
        help="those that each case has to have; default: those of dataset.json, else all of BraTS",
    )
    parser.add_argument("--suffixes", type=mapped, help="ends of foreign file names: \"{'T1w':'t1','dseg':'seg'}\"")
    parser.add_argument("--channel_order", type=listed(str), help="names of the channels of 4D files, in their order")
    parser.add_argument(
        "--label_convention",
        help="with --deep: of BraTS by name, or the path of a dataset.json; default: the folder's, else brats2018",
    )
    parser.add_argument("--cache_rate", type=float, default=0.0, help="share of the cases to keep in memory")
    arguments = parser.parse_args(argv)
    of_folder = arguments.dataset_dir / "dataset.json"
    default = of_folder if of_folder.is_file() else "brats2018"
    convention = (arguments.label_convention or default) if arguments.deep else None
    if convention is not None:
        convention_table(convention)  # an unknown one is no fault of the cases
    result = preflight(
        list_cases(arguments.dataset_dir, suffixes=arguments.suffixes),
        arguments.modalities or modalities_of(arguments.dataset_dir),
        arguments.channel_order,
        convention,
        arguments.cache_rate,
        arguments.dataset_dir,
    )
    if arguments.json:
        with whole_file(arguments.json) as temporary:
            temporary.write_text(json.dumps({"deep": arguments.deep, **asdict(result)}, indent=2) + "\n")
    print(result)
    return 1 if result.faults else 0
