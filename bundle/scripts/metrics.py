"""Distances as the BraTS challenge counts them, and the report of an evaluation."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric
from monai.utils import string_list_all_gather

from .files import whole_file

__all__ = ["BratsHausdorffDistanceMetric", "EvaluationReport"]

MISSED_MM = 373.13  # the diagonal of a BraTS volume, 240 x 240 x 155 mm: the challenge's distance for a missed region


class BratsHausdorffDistanceMetric(HausdorffDistanceMetric):
    """95th percentile of the Hausdorff distance in mm, where an empty region counts as in the BraTS challenge.

    Both empty: 0 mm. One of them empty: 373.13 mm. (MONAI's metric is NaN and infinite there and leaves these cases
    out of its mean, so that missing a tumor improves the score.)
    """

    def __init__(self) -> None:
        super().__init__(include_background=True, percentile=95)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **_: Any) -> torch.Tensor:  # type: ignore[override]
        spacing_mm = y.pixdim.tolist() if isinstance(y, MetaTensor) else None
        distances_mm = super()._compute_tensor(y_pred, y, spacing=spacing_mm)
        # Not by what MONAI returns there: NaN for both empty, and NaN or infinity for one, depending on which.
        is_empty, is_empty_truth = ~y_pred.flatten(2).any(dim=-1), ~y.flatten(2).any(dim=-1)
        distances_mm[is_empty != is_empty_truth] = MISSED_MM
        distances_mm[is_empty & is_empty_truth] = 0.0
        return distances_mm


class EvaluationReport:
    """Handler that writes a CSV with a row per case and prints the table of means, when an evaluation is completed.

    Args:
        path: CSV file to write: ``case`` and, for each metric and region, ``<metric>_<region>``.
        regions: names of the metrics' channels, such as ``tc``, ``wt``, ``et``.
    """

    def __init__(self, path: str, regions: Sequence[str]) -> None:
        self.path = Path(path)
        self.regions = tuple(regions)
        self.case_ids: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: Engine) -> None:
        self.case_ids = []

    def iteration_completed(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        self.case_ids += [item["image"].meta["case_id"] for item in batch]

    def completed(self, engine: Engine) -> None:
        case_ids = string_list_all_gather(self.case_ids) if idist.get_world_size() > 1 else self.case_ids
        if idist.get_rank() != 0:
            return
        state: Any = engine.state
        # Several processes repeat cases to fill up the last batch.
        row_of = dict(sorted({case_id: row for row, case_id in enumerate(case_ids)}.items()))
        columns = {
            f"{metric}_{region}": values[list(row_of.values()), channel].cpu().numpy()
            for metric, values in state.metric_details.items()
            for channel, region in enumerate(self.regions)
        }
        rows = [[case_id, *(f"{column[row]:.4f}" for column in columns.values())] for row, case_id in enumerate(row_of)]
        write_csv(self.path, [["case", *columns], *rows])
        print(table(self.regions, columns, num_cases=len(rows)))
        print(f"Each case: {self.path}")


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes a CSV file whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue())


def table(regions: Sequence[str], columns: dict[str, np.ndarray], num_cases: int) -> str:
    """Mean and standard deviation over the cases: a row per region, a column per metric."""
    metrics = list(dict.fromkeys(name.rsplit("_", 1)[0] for name in columns))
    lines = [f"{f'{num_cases} cases':<10}" + "".join(f"{metric:>20}" for metric in metrics)]
    for region in regions:
        cells = [columns[f"{metric}_{region}"] for metric in metrics]
        lines.append(
            f"{region.upper():<10}" + "".join(f"{f'{cell.mean():.3f} +- {cell.std():.3f}':>20}" for cell in cells)
        )
    return "\n".join(lines)
