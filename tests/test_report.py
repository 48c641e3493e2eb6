"""The report of an evaluation: what is written, what is printed, and that each case counts once."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy import stats

from scripts.evaluation.report import EvaluationReport, interval_of_mean

SHAPE = (12, 12, 12)
METRICS = ["dice", "hd95_mm", "lesion_dice", "lesion_hd95_mm", "nsd_1mm", "sensitivity", "specificity", "accuracy"]
METRICS += ["volume_ml", "true_volume_ml"]


def regions(*sides: int, spacing_mm: float = 1.0) -> MetaTensor:
    """One channel per region, each a cube with one side given, in the same corner."""
    masks = torch.zeros(len(sides), *SHAPE, dtype=torch.bool)
    for mask, side in zip(masks, sides):
        mask[:side, :side, :side] = True
    return MetaTensor(masks, affine=torch.diag(torch.tensor([spacing_mm, spacing_mm, spacing_mm, 1.0])))


def run(output_dir: Path, cases: dict[str, tuple[MetaTensor, MetaTensor]], order: list[str] | None = None) -> None:
    """An evaluation of ``wt`` and ``et`` in which each case is a batch of prediction and label."""

    def step(engine, batch):
        return [
            {"pred": cases[batch[0]["image"].meta["case_id"]][0], "label": cases[batch[0]["image"].meta["case_id"]][1]}
        ]

    engine = Engine(step)
    EvaluationReport(output_dir, ["wt", "et"]).attach(engine)
    engine.run([[{"image": MetaTensor(torch.zeros(1), meta={"case_id": name})}] for name in order or cases])


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


PERFECT = (regions(6, 4), regions(6, 4))
MISSED_ET = (regions(6, 0), regions(6, 4))  # a perfect whole tumor beside a missed enhancing one


def test_a_perfect_case_beside_a_missed_one(tmp_path, capsys):
    run(tmp_path / "new", {"case_b": PERFECT, "case_a": MISSED_ET})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["lesions.csv", "metrics.csv", "summary.csv"]
    rows = read(tmp_path / "new" / "metrics.csv")
    assert list(rows[0]) == ["case", *(f"{metric}_{region}" for metric in METRICS for region in ("wt", "et"))]
    assert [row["case"] for row in rows] == ["case_a", "case_b"]
    assert [row["dice_wt"] for row in rows] == ["1.0000", "1.0000"]
    assert [row["dice_et"] for row in rows] == ["0.0000", "1.0000"]
    assert [row["hd95_mm_et"] for row in rows] == ["374.0000", "0.0000"]
    assert [row["true_volume_ml_et"] for row in rows] == ["0.0640", "0.0640"]  # 4 mm cubed
    assert read(tmp_path / "new" / "lesions.csv")[:2] == [
        {
            **{"case": "case_a", "region": "wt", "lesion": "1", "kind": "found", "counts": "yes"},
            **{"true_mm3": "216.0000", "predicted_mm3": "216.0000", "dice": "1.0000", "hd95_mm": "0.0000"},
        },
        {
            **{"case": "case_a", "region": "et", "lesion": "1", "kind": "missed", "counts": "yes"},
            **{"true_mm3": "64.0000", "predicted_mm3": "0.0000", "dice": "0.0000", "hd95_mm": "374.0000"},
        },
    ]
    summary = {(row["metric"], row["region"]): row for row in read(tmp_path / "new" / "summary.csv")}
    expected = ("2", "2", "0.5000", "0.5000", "0.5000", "", "")  # mean and deviation of 0 and 1; no interval of two
    assert tuple(summary["dice", "et"].values())[2:] == expected
    assert summary["hd95_mm", "et"]["mean"] == "187.0000"  # (0 + 374) / 2
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0][:4] == ["2", "cases,", "2", "patients"]
    assert ["ET", "dice", "0.500", "+-", "0.500", "0.500", "-"] in printed


def test_voxels_have_the_size_of_the_label(tmp_path):
    run(tmp_path, {"a": (regions(6, 4, spacing_mm=2), regions(6, 4, spacing_mm=2))})
    assert read(tmp_path / "metrics.csv")[0]["volume_ml_wt"] == "1.7280"  # 12 mm cubed


def test_spacing_is_that_of_a_turned_affine_too(tmp_path):
    prediction, label = regions(1, 1), regions(1, 1)
    prediction = torch.roll(prediction, 3, dims=1)  # 3 voxels of 2 mm along H
    label.affine = torch.tensor([[0.0, -3, 0, 9], [-2, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])  # H has 2 mm, W 3 mm
    run(tmp_path, {"a": (prediction, label)})
    assert float(read(tmp_path / "metrics.csv")[0]["hd95_mm_wt"]) == pytest.approx(6)


def test_a_case_that_fills_up_a_batch_counts_once(tmp_path):
    run(tmp_path, {"a": PERFECT, "b": MISSED_ET}, order=["a", "b", "a"])
    assert [row["case"] for row in read(tmp_path / "metrics.csv")] == ["a", "b"]
    assert read(tmp_path / "summary.csv")[0]["cases"] == "2"


def test_a_second_run_begins_anew(tmp_path):
    engine = Engine(lambda _, batch: [{"pred": PERFECT[0], "label": PERFECT[1]}])
    EvaluationReport(tmp_path, ["wt", "et"]).attach(engine)
    for name in ("a", "b"):
        engine.run([[{"image": MetaTensor(torch.zeros(1), meta={"case_id": name})}]])
    assert [row["case"] for row in read(tmp_path / "metrics.csv")] == ["b"]


def test_interval_by_hand():
    # Means of the patients 0.2, 0.4 .. 1.2: mean 0.7, their standard deviation 0.37417, of the mean 0.15275, and
    # t of 5 degrees 2.5706. Each patient has two cases, 0.1 to either side.
    values = np.repeat(np.arange(1, 7) / 5, 2) + np.tile([0.1, -0.1], 6)
    patients = [name for name in "abcdef" for _ in range(2)]
    assert interval_of_mean(values, patients) == pytest.approx((0.7 - 0.39267, 0.7 + 0.39267), abs=1e-4)
    assert interval_of_mean(values[2:], patients[2:]) is None  # five patients


def test_interval_of_one_case_each_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.8, 0.1, 30)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval_of_mean(values, list(map(str, range(30)))) == pytest.approx((expected.low, expected.high))
    assert interval_of_mean(np.full(6, 0.7), list("abcdef")) == pytest.approx((0.7, 0.7))


def test_interval_holds_the_true_mean_with_several_cases_of_each_patient():
    """12 patients with one to seven examinations that are alike; intervals over cases hold it 55 % of the time."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        patients = np.repeat(np.arange(12), generator.integers(1, 8, 12))
        values = generator.normal(0, 1, 12)[patients] + generator.normal(0, 0.3, len(patients))
        low, high = interval_of_mean(values, patients.astype(str).tolist())
        held += low <= 0 <= high
    assert 0.88 < held / 400 < 0.98


def test_an_interval_stays_within_what_a_metric_can_be(tmp_path):
    """Five perfect cases and one that is far off: the plain t intervals reach beyond 1, and below 0 mm."""
    cases = {f"phantom_{number}": PERFECT for number in range(5)} | {"phantom_5": (regions(6, 1), regions(6, 4))}
    run(tmp_path, cases)
    rows = {(row["metric"], row["region"]): row for row in read(tmp_path / "summary.csv")}
    dice, distance = rows["dice", "et"], rows["hd95_mm", "et"]
    assert 0 < float(dice["ci95_low"]) < float(dice["ci95_high"]) == 1
    assert 0 == float(distance["ci95_low"]) < float(distance["mean"]) < float(distance["ci95_high"])
    assert float(rows["volume_ml", "et"]["ci95_high"]) > 0.05  # of an amount no end is known


def test_no_interval_where_patients_are_doubtful(tmp_path, capsys):
    names = [f"P00{patient}_{visit}" for patient in range(4) for visit in "ab"]
    for patients, has_interval in ((None, False), ({name: name[:4] + "x" for name in names}, False), (TABLE, True)):
        report = EvaluationReport(tmp_path, ["wt", "et"], patients=patients)
        for name in names:
            report.add(name, *PERFECT)
        report.write()
        assert all(bool(row["ci95_low"]) is has_interval for row in read(tmp_path / "summary.csv"))
    assert capsys.readouterr().out.count("Cases P000_a and P000_b look like one patient") == 1


TABLE = {f"P00{patient}_{visit}": f"{patient}{visit}" for patient in range(4) for visit in "ab"}


def test_patients_are_those_of_the_names_or_of_a_table(tmp_path):
    names = [f"BraTS-GLI-0000{patient}-00{visit}" for patient in range(3) for visit in range(2)]
    label = regions(6, 4)
    for patients, expected in ((None, "3"), (dict.fromkeys(names[:4], "one"), "2")):
        report = EvaluationReport(tmp_path, ["wt", "et"], patients=patients)
        for name in names:
            report.add(name, label, label)
        report.write()
        assert {(row["cases"], row["patients"]) for row in read(tmp_path / "summary.csv")} == {("6", expected)}
