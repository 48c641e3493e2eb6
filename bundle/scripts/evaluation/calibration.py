"""Whether the probabilities of regions are what they say, and whether they rank cases by their Dice.

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir BraTS --split testing \
        --data_list_file_path datalist.json --output_dir eval --probabilities_dir probabilities
    python -m scripts calibration --dataset_dir BraTS --probabilities_dir probabilities --checkpoint models/model.pt

On cases that the weights were not trained on. One temperature per region (Guo et al., ICML 2017) makes the truth
likeliest; ``--keep`` puts it into the record beside the weights, and inference divides the logits by it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.metrics import CalibrationErrorMetric, calibration_binning
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from ..data.cases import LABEL, WHOLE, find_cases
from ..data.labels import regions
from ..data.loading import check_same_space, image_loader, read
from ..data.patients import patients_of
from ..errors import InputError
from ..files import check_writable, whole_file
from ..weights.record import check_unseen, keep_setting, recorded
from .report import MIN_PATIENTS, write_csv
from .score import load_regions

__all__ = ["Calibration", "check_probabilities", "expected_dice", "rank_correlation"]

ERRORS = {"ece": "expected", "ace": "average", "mce": "maximum"}
NUM_BINS = 20
# Logits beyond say the same: a probability of 1 less 1e-7 is the last below 1 in float32.
LOGIT_EDGES = np.linspace(-16, 16, 641)
TEMPERATURES = (0.1, 10.0)
NUM_RESAMPLES = 2000
COMMENT = 6  # code of a NIfTI header's extension


def expected_dice(mask: np.ndarray, probabilities: np.ndarray) -> float:
    """The Dice of a mask with a truth of which each voxel is drawn by its probability, in the mean, nearly.

    2 sum(m p) / (sum(m) + sum(p)); 1 where the mask is empty and no voxel is likely.

    Args:
        mask: bool (H, W, D).
        probabilities: of the region, likewise.
    """
    total = float(mask.sum() + probabilities.sum(dtype=np.float64))
    return 2 * float(probabilities[mask].sum(dtype=np.float64)) / total if total >= 1 else 1.0


def check_probabilities(case_id: str, file: Path, probabilities: np.ndarray) -> None:
    """Refuses what are no probabilities, such as logits.

    Raises:
        InputError: when a value is not from 0 to 1.
    """
    wrong = ~((probabilities >= 0) & (probabilities <= 1))  # NaN is neither
    if wrong.any():
        raise InputError(
            f"Case {case_id}: probabilities should be from 0 to 1, {file} holds {float(probabilities[wrong][0]):g}."
        )


def rank_correlation(numbers: np.ndarray, scores: np.ndarray, patients: Sequence[str]) -> tuple[float, float, float]:
    """Spearman's correlation over cases, and its 95 % interval by resampling patients (percentiles, seed 0).

    The ends are NaN below ``MIN_PATIENTS``.
    """
    rho = float(spearmanr(numbers, scores).statistic)
    names, groups = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < MIN_PATIENTS:
        return rho, float("nan"), float("nan")
    generator = np.random.default_rng(0)
    resampled = []
    for drawn in generator.integers(0, len(names), (NUM_RESAMPLES, len(names))):
        cases = np.concatenate([np.flatnonzero(groups == group) for group in drawn])
        if np.ptp(numbers[cases]) and np.ptp(scores[cases]):
            resampled.append(spearmanr(numbers[cases], scores[cases]).statistic)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return rho, float(low), float(high)


def fit_temperature(histograms: np.ndarray) -> float:
    """The temperature at which voxels are likeliest.

    Args:
        histograms: how many voxels of each bin of ``LOGIT_EDGES`` are outside of and inside of the truth, (2, bins).
    """
    centers = (LOGIT_EDGES[:-1] + LOGIT_EDGES[1:]) / 2

    def surprise(log_temperature: float) -> float:
        logits = centers / np.exp(log_temperature)
        return float(histograms[0] @ np.logaddexp(0, logits) + histograms[1] @ np.logaddexp(0, -logits))

    found = minimize_scalar(surprise, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


class Calibration:
    """Takes the probabilities of cases one by one, and tells at the end.

    Errors are those of MONAI's ``CalibrationErrorMetric`` over the voxels of a case whose probability is not 0, as it
    is outside of what was segmented, then the mean over cases. What comes out with a temperature is told of each
    patient by the temperature of all others.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.case_ids: list[str] = []
        self.dice: list[list[float]] = []
        self.expected: list[list[float]] = []
        self.histograms: list[np.ndarray] = []
        self.voxels: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def add(self, case_id: str, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """A case: probabilities of the regions (regions, ...), and where they are, bool, likewise."""
        self.case_ids.append(case_id)
        dice, expected, histograms, voxels = [], [], [], []
        for of, true in zip(probabilities, truth):
            mask = of > 0.5
            total = int(mask.sum() + true.sum())
            dice.append(2 * int((mask & true).sum()) / total if total else 1.0)
            expected.append(expected_dice(mask, of))
            inside = of > 0
            logits = logits_of(of[inside])
            histograms.append([np.histogram(logits[true[inside] == side], LOGIT_EDGES)[0] for side in (False, True)])
            voxels.append((logits.astype(np.float16), true[inside]))
        self.dice.append(dice)
        self.expected.append(expected)
        self.histograms.append(np.array(histograms))
        self.voxels.append(voxels)

    def temperatures(self, without: str | None = None, patients: Mapping[str, str] | None = None) -> dict[str, float]:
        """Of each region, from all cases, or from those of all other patients."""
        kept = [
            of for case_id, of in zip(self.case_ids, self.histograms) if not patients or patients[case_id] != without
        ]
        return {name: fit_temperature(sum(of[at] for of in kept)) for at, name in enumerate(self.names)}

    def report(self, patients: Mapping[str, str], output_dir: Path) -> list[list[str]]:
        """Writes ``cases.csv``, ``calibration.csv`` and ``reliability.png``; gives the rows of the second."""
        owners = [patients[case_id] for case_id in self.case_ids]
        others = {owner: self.temperatures(owner, patients) for owner in dict.fromkeys(owners)}
        fitted = self.temperatures()
        own = [*ERRORS, "expected_dice", "spearman", "ci95_low", "ci95_high"]
        rows = [["region", "dice", *own, "temperature", *(f"{name}_at_temperature" for name in own)]]
        figure = Figure(figsize=(3.4 * len(self.names), 3.6), dpi=150, layout="constrained")
        dice = np.array(self.dice)
        for at, (name, axes) in enumerate(zip(self.names, figure.subplots(1, len(self.names), squeeze=False)[0])):
            row = [name, f"{dice[:, at].mean():.4f}"]
            for label, divisors in (
                ("as they are", [1.0] * len(owners)),
                ("at the others' temperature", [others[owner][name] for owner in owners]),
            ):
                pairs = []
                for (logits, true), divisor in zip((voxels[at] for voxels in self.voxels), divisors):
                    pairs.append((1 / (1 + np.exp(-logits.astype(np.float32) / divisor)), true.astype(np.float32)))
                predicted = np.array([expected_dice(of > 0.5, of) for of, _ in pairs])
                ranks = rank_correlation(predicted, dice[:, at], owners)
                row += [f"{value:.4f}" for value in (*errors_of(pairs), predicted.mean(), *ranks)]
                row += [f"{fitted[name]:.4f}"] if label == "as they are" else []
                mean, share = reliability(pairs)
                axes.plot(mean, share, marker="o", markersize=3, label=label)
            rows.append(row)
            axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
            axes.set(title=name.upper() if len(name) < 4 else name, xlabel="probability", ylabel="share that is true")
            axes.legend(fontsize=7, frameon=False)
        heading = ["case", *(f"{kind}_{name}" for kind in ("dice", "expected_dice") for name in self.names)]
        cases = [
            [case_id, *(f"{value:.4f}" for value in [*of, *predicted])]
            for case_id, of, predicted in zip(self.case_ids, self.dice, self.expected)
        ]
        write_csv(output_dir / "cases.csv", [heading, *cases])
        write_csv(output_dir / "calibration.csv", rows)
        with whole_file(output_dir / "reliability.png") as temporary:
            FigureCanvasAgg(figure).print_png(temporary)
        return rows


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """The inverse of the sigmoid, within ``LOGIT_EDGES``."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probabilities) - np.log1p(-probabilities), LOGIT_EDGES[0], LOGIT_EDGES[-1])


def errors_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """The mean over cases of each of ``ERRORS``."""
    metrics = [CalibrationErrorMetric(NUM_BINS, calibration_reduction=kind) for kind in ERRORS.values()]
    for pair in pairs:
        predicted, true = (torch.from_numpy(each)[None, None] for each in pair)
        for metric in metrics:
            metric(y_pred=predicted, y=true)
    return [float(metric.aggregate()) for metric in metrics]  # type: ignore[arg-type]


def reliability(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each bin over all cases: the mean probability, and the share of voxels that are in the truth."""
    sums = np.zeros((3, NUM_BINS))
    for predicted, true in pairs:
        binned = calibration_binning(
            torch.from_numpy(predicted)[None, None], torch.from_numpy(true)[None, None], NUM_BINS
        )
        mean, share, count = (np.nan_to_num(each[0, 0].numpy().astype(np.float64)) for each in binned)
        sums += [mean * count, share * count, count]
    with np.errstate(invalid="ignore"):
        return sums[0] / sums[2], sums[1] / sums[2]


def made_with(paths: Mapping[str, Path]) -> dict[str, float]:
    """The temperature by which probabilities were made, as inference wrote it into their files; empty for none.

    Raises:
        InputError: when two files differ.
    """
    of_files: dict[str, dict[str, float]] = {}
    for path in paths.values():
        header: Any = nib.load(path).header
        texts = [extension.text for extension in header.extensions if extension.get_code() == COMMENT]
        of_files[str(path)] = json.loads(texts[0]) if texts else {}
    first, temperature = next(iter(of_files.items()))
    for file, other in of_files.items():
        if other != temperature:
            raise InputError(
                f"All probabilities should be made with one temperature, {first} has {temperature or 'none'}, {file} "
                f"has {other or 'none'}: make them anew."
            )
    return temperature


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts calibration", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--probabilities_dir", type=Path, required=True, help="what inference wrote of them")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the weights that made the probabilities")
    parser.add_argument("--output_dir", type=Path, default=Path("calibration"), help="default: %(default)s")
    parser.add_argument("--label_convention", help="of the labels; default: that of the weights' training")
    parser.add_argument("--keep", action="store_true", help="put the temperatures into the record of the weights")
    arguments = parser.parse_args(argv)
    checkpoint = str(arguments.checkpoint)
    if not arguments.checkpoint.is_file():
        raise InputError(f"checkpoint should be a file of weights, {checkpoint} is not there.")
    convention: Any = arguments.label_convention or recorded(checkpoint, "label_convention", "brats2018")
    names = tuple(regions(convention))
    truths = {case.case_id: case.file(LABEL) for case in find_cases(arguments.dataset_dir) if LABEL in case.files}
    cases = find_cases(arguments.probabilities_dir, knob="probabilities_dir", known=truths)
    found = {case.case_id: case.file(WHOLE) for case in cases}
    for case_id in sorted(found.keys() - truths.keys()):
        raise InputError(f"Case {case_id}: the label is missing in {arguments.dataset_dir}.")
    check_unseen(checkpoint, [{"case_id": case_id} for case_id in found], str(arguments.dataset_dir))
    patients = patients_of(found, arguments.dataset_dir)
    if len(set(patients.values())) < 2:
        raise InputError(
            f"{arguments.probabilities_dir} should hold cases of two patients or more: a temperature is that of others."
        )
    check_writable(arguments.output_dir, "output_dir")
    calibration = Calibration(names)
    for case_id, path in tqdm(sorted(found.items()), desc="cases", leave=False, disable=None):
        truth = load_regions(case_id, truths[case_id], convention, convention)
        probabilities = read(image_loader(), case_id, path, channels=list(names))
        check_same_space(case_id, probabilities, truth)
        check_probabilities(case_id, path, np.asarray(probabilities))
        calibration.add(case_id, np.asarray(probabilities), np.asarray(truth).astype(bool))
    rows = calibration.report(patients, arguments.output_dir)
    for column in zip(*rows):
        print(f"{column[0]:<30}" + "".join(f"{cell:>10}" for cell in column[1:]))
    print(f"Each case: {arguments.output_dir / 'cases.csv'}. As a picture: {arguments.output_dir / 'reliability.png'}.")
    if arguments.keep:
        before = made_with(found)
        kept = {name: round(before.get(name, 1.0) * value, 4) for name, value in calibration.temperatures().items()}
        keep_setting(arguments.checkpoint, "temperature", kept)
        print(f"Kept in the record: temperature {kept}.")
