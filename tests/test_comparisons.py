"""The comparison with nnU-Net and the curves of fine-tuning: their budgets and the numbers of their tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import finetuning
import nnunet
import pytest
from scipy import stats

from scripts.errors import InputError


def write_scores(path: Path, dice: dict[str, tuple[float, float]]) -> None:
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "dice_anterior", "dice_posterior", "hd95_mm_anterior"])
        rows.writerows([case, *values, 99.0] for case, values in dice.items())
    path.with_suffix(".json").write_text(json.dumps({"minutes": 5.0, "training_hours": 0.1}))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_beside_nnunet_by_hand(tmp_path):
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        write_scores(tmp_path / f"nnunet_seed{seed}.csv", {"a": (0.5, 0.6), "b": (0.6, 0.4), "c": (0.4, 0.5)})
        ours = {"c": (0.4 + gain, 0.5), "a": (0.5 + gain, 0.6), "b": (0.6 + gain, 0.4)}  # in another order
        write_scores(tmp_path / f"missu_seed{seed}.csv", ours)
    write_scores(tmp_path / "missu_seed7.csv", {"a": (0.0, 0.0), "b": (0.0, 0.0), "c": (0.0, 0.0)})  # without a pair
    nnunet.report(tmp_path)
    anterior, posterior, mean = rows_of(tmp_path / "table.csv")
    assert [row["region"] for row in (anterior, posterior, mean)] == ["anterior", "posterior", "mean"]
    assert (anterior["seeds"], anterior["cases"], anterior["missu_minutes"]) == ("3", "3", "5.00")
    assert float(anterior["missu_dice"]) == pytest.approx(0.7)
    assert float(anterior["missu_std_of_seeds"]) == pytest.approx(0.1)
    assert float(anterior["nnunet_std_of_seeds"]) == 0
    assert float(anterior["difference"]) == pytest.approx(0.2)
    interval = stats.ttest_1samp([0.1, 0.2, 0.3], 0).confidence_interval(0.95)
    assert float(anterior["seeds_ci95_low"]) == pytest.approx(interval.low, abs=1e-4)
    assert float(anterior["cases_ci95_low"]) == pytest.approx(0.2, abs=1e-4)  # each case gains as much
    assert float(posterior["difference"]) == 0
    assert float(mean["difference"]) == pytest.approx(0.1)


def test_the_epochs_of_a_budget(tmp_path):
    """Of trials of one and three epochs, 30 and 70 s: a start of 10 s, epochs of 20 s; 14 of them in five minutes."""
    comparison = nnunet.Comparison(tmp_path / "data", 5, tmp_path / "python", tmp_path, 0.3)
    (tmp_path / "trials_nnunet.json").write_text(json.dumps({"1": 30, "3": 70}))
    assert comparison.epochs("nnunet") == 14


def test_no_runs_to_compare(tmp_path):
    with pytest.raises(InputError, match="There should be runs of both sides to report"):
        nnunet.report(tmp_path)
    with pytest.raises(InputError, match="There should be runs to report"):
        finetuning.report(finetuning.TASKS["hippocampus"], [0, 1, 2], tmp_path)


def test_the_curve_of_fine_tuning_by_hand(tmp_path):
    task = finetuning.TASKS["hippocampus"]
    for seed in range(3):
        write_scores(tmp_path / f"scratch_5_seed{seed}.csv", {"a": (0.4, 0.6), "b": (0.5, 0.7)})
        write_scores(tmp_path / f"fine-tuned_5_seed{seed}.csv", {"a": (0.6, 0.8), "b": (0.5, 0.7 + 0.1 * seed)})
    write_scores(tmp_path / "scratch_20_seed0.csv", {"a": (0.4, 0.6), "b": (0.5, 0.7)})  # its pair is not done
    finetuning.report(task, [0, 1, 2], tmp_path)
    scratch, tuned = rows_of(tmp_path / "table.csv")
    assert (scratch["cases"], scratch["way"], scratch["test_cases"]) == ("5", "scratch", "2")
    assert float(scratch["dice"]) == pytest.approx(0.55)
    # Case a gains 0.2, case b 0, 0.05 and 0.1: 0.1, 0.125 and 0.15 in the mean.
    assert float(tuned["difference"]) == pytest.approx(0.125)
    assert float(tuned["ci95_high"]) == pytest.approx(
        stats.ttest_1samp([0.1, 0.125, 0.15], 0).confidence_interval(0.95).high, abs=1e-4
    )
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_cases_to_train_on_are_drawn_by_the_seed(tmp_path, monkeypatch):
    entries = [{"case_id": f"c{number}"} for number in range(9)]
    monkeypatch.setattr(finetuning, "make_datalist", lambda *_, **__: {"training": list(entries), "testing": ["x"]})
    task = finetuning.TASKS["hippocampus"]
    drawn = []
    for seed in (0, 0, 1):
        finetuning.write_datalist(task, tmp_path, 5, seed, tmp_path / "list.json")
        content = json.loads((tmp_path / "list.json").read_text())
        assert content["testing"] == ["x"]
        drawn.append({entry["case_id"] for entry in content["training"]})
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(of) for of in drawn] == [5, 5, 5]
    with pytest.raises(InputError, match="should leave 20 cases to train on, has 9"):
        finetuning.write_datalist(task, tmp_path, 20, 0, tmp_path / "list.json")
