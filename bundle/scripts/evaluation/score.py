"""Scores masks that are there already, of this network or any other, against the truth.

    python -m scripts score --dataset_dir BraTS2023 --prediction_dir eval --label_convention brats2023

Labels are ``<case>_seg.nii.gz`` or in one of the layouts of a data set, predictions ``<case>_seg.nii.gz`` or
``<case>.nii.gz``. Every prediction needs its label, and the other way round: a case left out would improve the mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from tqdm.auto import tqdm

from ..arguments import listed, mapped
from ..data.cases import LABEL, WHOLE, files_below, find_cases, nifti_stem, split_file_name
from ..data.labels import (
    Convention,
    classes_to_regions,
    given_or_found,
    regions,
    values_to_classes,
)
from ..data.loading import check_same_space, image_loader, read
from ..data.patients import patients_of, read_patients
from ..errors import InputError
from ..weights.origin import convention_of_mask
from .metrics import CHAOS_METRICS, METRICS
from .report import EvaluationReport
from .surfaces import missed_mm_of

__all__ = ["main", "score_masks"]


def score_masks(
    dataset_dir: str | Path,
    prediction_dir: str | Path,
    output_dir: str | Path,
    label_convention: Convention,
    prediction_convention: Convention | None = None,
    suffixes: Mapping[str, str] | None = None,
    patients: str | Path | None = None,
    **rules: Any,
) -> None:
    """Writes and prints the report of ``configs/evaluate.json`` for masks on disk.

    Args:
        dataset_dir: folder with the labels.
        prediction_dir: folder with the predictions.
        output_dir: folder for the three CSV files.
        label_convention: of the labels; its regions are scored.
        prediction_convention: of the predictions, by default what the record beside each says, else that of the labels.
        suffixes: of foreign file names of the labels, as :func:`scripts.data.cases.split_file_name` takes them.
        patients: a table of cases and their patients, as :func:`scripts.data.patients.read_patients` takes it, in place
            of what their names say.
        rules: as in :class:`scripts.evaluation.EvaluationReport`.

    Raises:
        InputError: when a label or a prediction is missing, cannot be read, lies elsewhere or holds another value, or a
            prediction's record tells of another convention.
    """
    truths = {
        case.case_id: case.file(LABEL) for case in find_cases(dataset_dir, suffixes=suffixes) if LABEL in case.files
    }
    predictions = find_masks(prediction_dir, truths)
    for case_id in sorted(truths.keys() ^ predictions.keys()):
        lacking, folder = ("prediction", prediction_dir) if case_id in truths else ("label", dataset_dir)
        raise InputError(f"Case {case_id}: the {lacking} is missing in {folder}.")
    if rules.get("missed_mm") is None:
        rules["missed_mm"] = missed_mm_of(label_convention)
    patient_of_case = patients_of(truths, dataset_dir) if patients is None else read_patients(patients)
    for case_id in sorted(truths.keys() - patient_of_case.keys()):
        raise InputError(f"Case {case_id}: its patient is missing in {patients}.")
    report = EvaluationReport(output_dir, tuple(regions(label_convention)), rules, patient_of_case)
    for case_id, path in tqdm(sorted(truths.items()), desc="scoring", leave=False, disable=None):
        truth = load_regions(case_id, path, label_convention, label_convention)
        knob = f"Case {case_id}: prediction_convention"
        predicted_by = convention_of_mask(predictions[case_id], prediction_convention, knob) or label_convention
        prediction = load_regions(case_id, predictions[case_id], predicted_by, label_convention)
        check_same_space(case_id, prediction, truth)
        report.add(case_id, prediction, truth)
    report.write()


def find_masks(folder: str | Path, case_ids: Collection[str]) -> dict[str, Path]:
    """The mask of each case of a folder: ``<case>.nii.gz``, whatever the ID of a known case ends with, or as our own.

    Raises:
        InputError: when there is no such folder, no mask in it, two of one case, or one without a label.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"prediction_dir should be a folder of masks, {root} is not there.")
    masks: dict[str, Path] = {}
    scans: dict[str, Path] = {}
    for path in files_below(root):
        name, stem = split_file_name(path), nifti_stem(path)
        if name is None or stem is None:
            continue
        if stem not in case_ids and name.modality not in (LABEL, WHOLE):
            scans[name.case_id] = path
            continue
        case_id = stem if stem in case_ids else name.case_id
        if case_id in masks:
            raise InputError(f"Case {case_id}: its mask is doubled, one file is allowed: {masks[case_id]} and {path}.")
        masks[case_id] = path
    if alone := [path for case_id, path in scans.items() if case_id not in masks]:  # no scan beside its mask
        raise InputError(f"Case {nifti_stem(alone[0])}: the label is missing, which {alone[0]} would be a mask of.")
    if not masks:
        raise InputError(f"prediction_dir should hold masks such as <case>_{LABEL}.nii.gz, {root} holds none.")
    return masks


def load_regions(case_id: str, path: Path, convention: Convention, label_convention: Convention) -> MetaTensor:
    """The regions of one mask (regions, H, W, D)."""
    mask = read(image_loader(), case_id, path, channels=[LABEL])
    try:
        classes = values_to_classes(mask, convention)
    except ValueError as error:
        raise InputError(f"Case {case_id}: {path}: {error}") from error
    return MetaTensor(classes_to_regions(torch.as_tensor(classes), label_convention), meta=mask.meta)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts score", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with the labels")
    parser.add_argument("--prediction_dir", type=Path, required=True, help="folder with the masks to score")
    parser.add_argument("--output_dir", type=Path, default=Path("eval"), help="folder for the CSV files")
    parser.add_argument(
        "--label_convention",
        help="of the labels: of BraTS by name, or the path of a dataset.json; default: the dataset.json of the folder",
    )
    parser.add_argument("--prediction_convention", help="of the predictions; default: their records', else the labels'")
    parser.add_argument("--suffixes", type=mapped, help="ends of foreign file names: \"{'T1w':'t1','dseg':'seg'}\"")
    parser.add_argument(
        "--metrics", type=listed(str), default=METRICS, help=f"of {', '.join((*METRICS, *CHAOS_METRICS))}"
    )
    parser.add_argument(
        "--missed_mm", type=float, help="distance where one mask is empty; default: that of the label_convention"
    )
    parser.add_argument("--patients", type=Path, help="CSV with the columns case and patient; default: by the names")
    parser.add_argument("--lesion_dilations", type=int, default=3)
    parser.add_argument("--lesion_min_mm3", type=float, default=50.0)
    arguments = parser.parse_args(argv)
    arguments.label_convention = given_or_found(arguments.label_convention, arguments.dataset_dir)
    score_masks(**vars(arguments))
