"""The report of an evaluation: a table of all cases, one of all lesions, and the summary."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from scipy import stats

from ..data.patients import looks_repeated, patients_of
from ..errors import InputError
from ..files import whole_file
from .metrics import SHARES, score_region

__all__ = ["EvaluationReport", "merge_reports"]

LESION_COLUMNS = ["case", "region", "lesion", "kind", "true_mm3", "predicted_mm3", "dice", "hd95_mm", "counts"]
SUMMARY_COLUMNS = ["metric", "region", "cases", "patients", "mean", "std", "median", "ci95_low", "ci95_high"]

# Below six patients the interval reaches further than one standard deviation of the patients to either side: it would
# say less than the cases themselves do.
MIN_PATIENTS = 6


class EvaluationReport:
    """Handler that scores each case of an evaluation, writes three CSV files at its end and prints the summary.

    ``metrics.csv`` has a row per case with ``<metric>_<region>``, ``lesions.csv`` a row per lesion, ``summary.csv`` a
    row per metric and region.

    Args:
        output_dir: folder to write to.
        regions: names of the channels of ``pred`` and ``label``, such as ``tc``, ``wt``, ``et``.
        rules: ``metrics``, ``missed_mm``, ``lesion_dilations`` and ``lesion_min_mm3`` of
            :func:`scripts.evaluation.score_region`, where they are not its defaults.
        patients: the patient of each case, by case ID; by default as the names of the cases say. The intervals of the
            means are over patients.
        about: what else there is to tell, such as the modalities that were missing, for ``evaluation.json``.

    Raises:
        InputError: when a distance, a number or a volume of ``rules`` is below 0.
    """

    def __init__(
        self,
        output_dir: str | Path,
        regions: Sequence[str],
        rules: Mapping[str, Any] | None = None,
        patients: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.regions = tuple(regions)
        self.rules = dict(rules or {})
        for name in ("missed_mm", "lesion_dilations", "lesion_min_mm3"):
            if (value := self.rules.get(name)) is not None and not value >= 0:
                raise InputError(f"{name} should be 0 or more, it is {value}.")
        self.patients = patients
        self.about = about
        self.scored: list[tuple[str, dict[str, float], list[list[str]]]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: Engine) -> None:
        self.scored = []

    def iteration_completed(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, output in zip(state.batch, state.output):
            self.add(item["image"].meta["case_id"], output["pred"], output["label"])

    def add(self, case_id: str, pred: torch.Tensor, label: MetaTensor) -> None:
        """Scores one case: both (regions, H, W, D), the label with the affine."""
        spacing_mm = label.pixdim.tolist()
        columns: dict[str, dict[str, float]] = {}
        lesion_rows = []
        for region, predicted, true in zip(self.regions, pred, label):
            prediction, truth = (np.asarray(mask.detach().cpu()).astype(bool) for mask in (predicted, true))
            scores, lesions = score_region(prediction, truth, spacing_mm, **self.rules)
            for metric, score in scores.items():
                columns.setdefault(metric, {})[region] = score
            for number, lesion in enumerate(lesions, start=1):
                kind, *numbers, counts = asdict(lesion).values()
                formatted = [kind, *(f"{number:.4f}" for number in numbers), "yes" if counts else "no"]
                lesion_rows.append([case_id, region, str(number), *formatted])
        row = {f"{metric}_{region}": score for metric, of in columns.items() for region, score in of.items()}
        self.scored.append((case_id, row, lesion_rows))

    def completed(self, _: Engine) -> None:
        self.write()

    def write(self) -> None:
        """Writes the files and prints the summary of all cases scored so far, by all processes."""
        scored = gather(self.scored)
        if idist.get_rank() != 0 or not scored:
            return
        # Several processes repeat cases to fill up the last batch.
        cases = sorted({case_id: (case_id, row, lesions) for case_id, row, lesions in scored}.values())
        rows = [[case_id, *(f"{score:.4f}" for score in row.values())] for case_id, row, _ in cases]
        lesions = [row for _, _, rows in cases for row in rows]
        if self.about is not None:
            with whole_file(self.output_dir / "evaluation.json") as temporary:
                temporary.write_text(json.dumps(self.about, indent=2, default=str) + "\n")
        write_report(self.output_dir, [["case", *cases[0][1]], *rows], [LESION_COLUMNS, *lesions], self.patients)


def write_report(
    output_dir: Path,
    metrics: list[list[str]],
    lesions: list[list[str]],
    patients: Mapping[str, str] | None = None,
) -> None:
    """Writes the three files from the rows of two of them, headings first, and prints the summary."""
    case_ids = [row[0] for row in metrics[1:]]
    scores = np.array([row[1:] for row in metrics[1:]], float)
    patient_of_case = patients_of(case_ids) | dict(patients or {})
    groups = [patient_of_case[case_id] for case_id in case_ids]
    pair = looks_repeated(case_ids) if groups == case_ids else None
    summary = [
        summarize(name, values, groups, with_interval=not pair) for name, values in zip(metrics[0][1:], scores.T)
    ]
    write_csv(output_dir / "lesions.csv", lesions)
    write_csv(output_dir / "summary.csv", [SUMMARY_COLUMNS, *summary])
    write_csv(output_dir / "metrics.csv", metrics)  # last: it says that the evaluation is done
    print(table(summary))
    if pair:
        print(
            f"Cases {pair[0]} and {pair[1]} look like one patient, and many others do, but no rule knows these names: "
            "an interval over patients needs to know who is who, by --patients of python -m scripts score or datalist."
        )
    elif not summary[0][-1]:
        print(f"Fewer than {MIN_PATIENTS} patients say too little of others for an interval.")
    print(f"Each case: {output_dir / 'metrics.csv'}. Each lesion: {output_dir / 'lesions.csv'}.")


def merge_reports(folders: Sequence[Path], output_dir: Path, patients: Mapping[str, str] | None = None) -> None:
    """One report of the cases of several, such as the held-out cases of each fold; ``patients`` as in a report."""
    tables: dict[str, list[list[str]]] = {}
    for name in ("metrics.csv", "lesions.csv"):
        for folder in folders:
            with open(folder / name, newline="") as file:
                heading, *rows = csv.reader(file)
            tables.setdefault(name, [heading]).extend(rows)
        tables[name][1:] = sorted(tables[name][1:])
    write_report(output_dir, tables["metrics.csv"], tables["lesions.csv"], patients)


def gather(items: list[Any]) -> list[Any]:
    """The items of all processes."""
    if idist.get_world_size() == 1:
        return items
    of_processes: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(of_processes, items)
    return [item for items in of_processes for item in items]


def summarize(name: str, values: np.ndarray, patients: Sequence[str], with_interval: bool) -> list[str]:
    metric, region = name.rsplit("_", 1)
    numbers = [values.mean(), values.std(), np.median(values)]
    interval = interval_of_mean(values, patients) if with_interval else None
    if interval:  # t intervals know no bounds, a Dice and a distance do
        interval = max(interval[0], 0.0), min(interval[1], 1.0 if metric in SHARES else math.inf)
    counts = [str(len(values)), str(len(set(patients)))]
    formatted = [f"{number:.4f}" for number in (*numbers, *(interval or ()))]
    return [metric, region, *counts, *formatted, *([] if interval else ["", ""])]


def interval_of_mean(values: np.ndarray, patients: Sequence[str]) -> tuple[float, float] | None:
    """95 % t interval of the mean over cases, where cases of one patient are not taken for independent.

    It is that of the patients' influence on the mean (a linearized ratio estimator: Cochran, Sampling Techniques, 3rd
    edition, section 9A.1); with one case each, or equally many, that of the patients' means.

    Args:
        values: of the cases (cases,).
        patients: of the cases, in the same order.

    Returns:
        Its ends; ``None`` below ``MIN_PATIENTS``.
    """
    _, groups = np.unique(np.asarray(patients), return_inverse=True)
    num_cases = np.bincount(groups)
    if len(num_cases) < MIN_PATIENTS:
        return None
    mean = float(values.mean())
    influence = mean + len(num_cases) / len(values) * np.bincount(groups, values - mean)
    if np.ptp(influence) < 1e-12:
        return mean, mean
    interval = stats.ttest_1samp(influence, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes a CSV file whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue())


def table(summary: Sequence[Sequence[str]]) -> str:
    """The summary for reading: a row per metric and region."""
    first, interval = f"{summary[0][2]} cases, {summary[0][3]} patients", "95 % interval of the mean"
    width = max(len(first), *(len(f"{region} {metric}") for metric, region, *_ in summary)) + 1
    lines = [f"{first:<{width}}{'mean +- std':>21}{'median':>12}{interval:>30}"]
    for metric, region, _, _, *numbers in summary:
        mean, std, median, low, high = (f"{float(number):.3f}" if number else "" for number in numbers)
        name = f"{region.upper()} {metric}"
        lines.append(f"{name:<{width}}{f'{mean} +- {std}':>21}{median:>12}{f'{low} to {high}' if low else '-':>30}")
    return "\n".join(lines)
