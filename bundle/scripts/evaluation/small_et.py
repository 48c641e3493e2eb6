"""The rule of small enhancing tumors: below a volume they are taken for necrotic core, as in many BraTS entries.

    python -m scripts small_et --metrics folds/metrics.csv --checkpoint folds/fold*/model_final.pt

An enhancing tumor (ET) of a few voxels, where the truth has none, scores 0 instead of 1. The volume is chosen on cases
that the weights were not trained on, and stored in the record beside the weights.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..data.patients import patients_of
from ..errors import InputError
from ..files import whole_file
from ..weights.record import is_number, read_record, trained_patients

__all__ = ["SmallEnhancingToCored", "choose_mm3", "chosen_mm3"]

CORE, ENHANCING = 1, 3  # classes of the network
KEY, CASES_KEY = "small_et_mm3", "small_et_cases"
COLUMNS = ("volume_ml_et", "true_volume_ml_et", "dice_et")


class SmallEnhancingToCored(MapTransform):
    """Class 3 (ET) becomes class 1 (NCR) in a prediction (1, H, W, D) that holds less than ``min_mm3`` of it."""

    def __init__(self, keys: KeysCollection, min_mm3: float) -> None:
        super().__init__(keys)
        self.min_mm3 = min_mm3

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            classes = d[key].clone()
            enhancing = classes == ENHANCING
            if float(enhancing.sum()) * float(classes.pixdim.prod()) < self.min_mm3:
                classes[enhancing] = CORE
            d[key] = classes
        return d


def choose_mm3(volumes_mm3: np.ndarray, dices: np.ndarray, are_without: np.ndarray) -> tuple[float, float]:
    """The volume with the best mean Dice of ET over cases, and that Dice.

    Where several are equal it is the smallest, so 0 where the rule does not help; else halfway between the largest ET
    that is taken back and the smallest one that stays.

    Args:
        volumes_mm3: predicted ET of each case.
        dices: its Dice as it was predicted.
        are_without: whether the truth has no ET; without a prediction its Dice is 1, else 0.
    """
    order = np.argsort(volumes_mm3, kind="stable")
    volumes = volumes_mm3[order]
    # Mean Dice when the first n predictions are taken back.
    taken_back = np.concatenate([[0.0], np.cumsum(are_without[order].astype(float))])
    kept = np.concatenate([np.cumsum(dices[order][::-1])[::-1], [0.0]])
    means = (taken_back + kept) / len(volumes)
    bounds = [0.0, *((volumes[1:] + volumes[:-1]) / 2), 2 * volumes[-1]]
    possible = [0, *(n for n in range(1, len(volumes)) if volumes[n - 1] < volumes[n]), len(volumes)]
    best = max(possible, key=lambda n: (round(means[n], 9), -n))
    return float(bounds[best]), float(means[best])


def left_out_dice(volumes_mm3: np.ndarray, dices: np.ndarray, are_without: np.ndarray) -> float:
    """Mean Dice where each case gets the volume that all other cases choose: what a new case may hope for.

    Arguments as in :func:`choose_mm3`; with one case no volume can be chosen, and it keeps its Dice.
    """
    if len(dices) == 1:
        return float(dices[0])
    results = []
    for left_out in range(len(dices)):
        others = np.arange(len(dices)) != left_out
        mm3, _ = choose_mm3(volumes_mm3[others], dices[others], are_without[others])
        taken_back = volumes_mm3[left_out] < mm3
        results.append(float(are_without[left_out]) if taken_back else float(dices[left_out]))
    return float(np.mean(results))


def chosen_mm3(checkpoint: str | Sequence[str]) -> float:
    """The volume that was chosen for weights, by their record; of an ensemble, that of all members.

    Raises:
        InputError: when none was chosen, or members differ.
    """
    paths = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
    chosen: dict[str, Any] = {path: (read_record(path) or {}).get(KEY) for path in paths}
    for path, mm3 in chosen.items():
        if not is_number(mm3):
            raise InputError(
                f"No volume of small ET was chosen for the weights {path}: run python -m scripts small_et first."
            )
        if mm3 != chosen[paths[0]]:
            raise InputError(f"{KEY} should be the same for all weights, {path} has {mm3}, not {chosen[paths[0]]}.")
    return float(chosen[paths[0]])


def store(paths: Sequence[Path], metrics: Path) -> str:
    """Chooses the volume on the cases of a table, stores it beside the weights, and says so."""
    try:
        with open(metrics, newline="") as file:
            rows = list(csv.DictReader(file))
        volumes, true_volumes, dices = (np.array([float(row[column]) for row in rows]) for column in COLUMNS)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{metrics} should be a table of cases with {', '.join(COLUMNS)}, it is not.") from error
    if not rows:
        raise InputError(f"{metrics} should have cases, it has none.")
    records = {}
    for path in paths:
        record = read_record(path)
        if record is None:
            raise InputError(f"The weights {path} should have a record, {path.with_suffix('.json')} is not there.")
        records[path] = record
    trained = [trained_patients(record) for record in records.values()]
    of_all = set.intersection(*(set(patients.values()) for patients in trained))
    cases = sorted(row["case"] for row in rows)
    patients = patients_of(cases) | {case_id: patient for each in trained for case_id, patient in each.items()}
    if seen := [case_id for case_id in cases if patients[case_id] in of_all]:
        raise InputError(f"{metrics} should hold cases that the weights were not trained on, it holds {seen[0]}.")
    mm3, best = choose_mm3(1000 * volumes, dices, true_volumes == 0)
    left_out = left_out_dice(1000 * volumes, dices, true_volumes == 0)
    for path, record in records.items():
        with whole_file(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps({**record, KEY: mm3, CASES_KEY: cases}, indent=2) + "\n")
    return (
        f"ET below {mm3:g} mm3 becomes core. Mean Dice of ET on {len(rows)} cases: "
        f"{dices.mean():.4f} without the rule, "
        f"{left_out:.4f} where each case gets the volume that the others choose, "
        f"{best:.4f} on the cases that chose it (optimistic)."
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts small_et", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.csv of the held-out cases")
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="the weights; of a fold each")
    arguments = parser.parse_args(argv)
    print(store(arguments.checkpoint, arguments.metrics))
