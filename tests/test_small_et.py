"""The rule of small enhancing tumors: what it does to a mask, which volume is chosen, where it is kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORD, SETTINGS
from monai.data import MetaTensor
from torch import nn

from scripts.__main__ import main
from scripts.errors import InputError
from scripts.evaluation.small_et import SmallEnhancingToCored, choose_mm3, chosen_mm3, left_out_dice
from scripts.weights.checkpoints import save_weights
from scripts.weights.record import read_record


def prediction(num_et: int, spacing_mm: float = 1.0) -> MetaTensor:
    classes = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    classes.flatten()[:num_et] = 3
    classes[0, 3, 3, 3] = 2
    return MetaTensor(classes, affine=torch.diag(torch.tensor([spacing_mm, spacing_mm, spacing_mm, 1.0])))


@pytest.mark.parametrize(
    ("num_et", "spacing_mm", "is_core"), [(9, 1, True), (10, 1, False), (1, 2, True), (2, 2, False), (0, 1, False)]
)
def test_small_et_becomes_core(num_et, spacing_mm, is_core):
    before = prediction(num_et, spacing_mm)
    after = SmallEnhancingToCored("pred", min_mm3=10)({"pred": before})["pred"]
    assert int((after == 1).sum()) == (num_et if is_core else 0)
    assert int((after == 3).sum()) == (0 if is_core else num_et)
    assert int((after == 2).sum()) == 1
    assert int((before == 3).sum()) == num_et


@pytest.mark.parametrize(
    ("volumes", "dices", "without", "expected"),
    [
        # 20 and 30 mm3 where there is none: below 65 (halfway to 100) both become right, 2 of 4 wrong ones less.
        ([20, 100, 30, 400], [0, 0.5, 0, 0.9], [True, False, True, False], (65, 0.85)),
        # Only small tumors that are there: the rule would not help.
        ([20, 100], [0.4, 0.8], [False, False], (0, 0.6)),
        # A true 20 and a false 30: taking back both gains 1 and loses 0.4.
        ([20, 30, 500], [0.4, 0, 0.8], [False, True, False], (265, 0.6)),
        # Equal volumes are taken back together.
        ([20, 20, 500], [0.9, 0, 0.8], [False, True, False], (260, 0.6)),
        # A case that is predicted empty counts 1 already.
        ([0, 500], [1, 0.8], [True, False], (0, 0.9)),
    ],
)
def test_the_best_volume_by_hand(volumes, dices, without, expected):
    chosen = choose_mm3(np.array(volumes, float), np.array(dices, float), np.array(without))
    assert chosen == pytest.approx(expected)


def test_what_a_left_out_case_gains_by_hand():
    # False 20 and 30 mm3, true 100 and 400. Without 20: below 65 (halfway from 30 to 100), so 20 becomes right. Without
    # 30: below 60, 30 too. Without 100: below 215, so that 100 is lost. Without 400: below 65, 400 stays.
    volumes, dices = np.array([20, 30, 100, 400.0]), np.array([0, 0, 0.5, 0.9])
    without = np.array([True, True, False, False])
    assert choose_mm3(volumes, dices, without) == pytest.approx((65, 0.85))
    assert left_out_dice(volumes, dices, without) == pytest.approx((1 + 1 + 0 + 0.9) / 4)
    assert left_out_dice(volumes[:1], dices[:1], without[:1]) == 0


def write_metrics(path: Path, cases: dict[str, tuple[float, float, float]]) -> Path:
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "dice_et", "volume_ml_et", "true_volume_ml_et"])
        rows.writerows([case, *values] for case, values in cases.items())
    return path


def save(path: Path, cases: list[str]) -> str:
    save_weights(nn.Conv1d(1, 1, 1), path, {**RECORD, "cases": cases, "settings": SETTINGS})
    return str(path)


HELD_OUT = {"a": (0.0, 0.02, 0.0), "b": (0.9, 0.4, 0.5)}


def test_chosen_on_held_out_cases_and_kept_beside_the_weights(tmp_path, capsys):
    # Each case was held out of one of the folds.
    folds = [save(tmp_path / "fold0.pt", ["a", "c"]), save(tmp_path / "fold1.pt", ["b", "c"])]
    metrics = write_metrics(tmp_path / "metrics.csv", HELD_OUT)
    assert main(["small_et", "--metrics", str(metrics), "--checkpoint", *folds]) is None
    printed = capsys.readouterr().out
    assert "ET below 210 mm3 becomes core. Mean Dice of ET on 2 cases: 0.4500 without the rule, " in printed
    # a by b alone: no rule, 0; b by a alone: below 40 mm3, 0.9.
    assert "0.4500 where each case gets the volume that the others choose, 0.9500 on the cases that chose it" in printed
    assert chosen_mm3(folds) == chosen_mm3(folds[0]) == 210
    record = read_record(folds[0])  # which checks the sha256, too
    assert record is not None
    assert record["cases"] == ["a", "c"]
    assert record["small_et_cases"] == ["a", "b"]


def test_cases_of_the_training_are_refused(tmp_path):
    weights = save(tmp_path / "model.pt", ["a", "c"])
    before = (tmp_path / "model.json").read_text()
    message = main(["small_et", "--metrics", str(write_metrics(tmp_path / "m.csv", HELD_OUT)), "--checkpoint", weights])
    assert str(message).endswith("should hold cases that the weights were not trained on, it holds a.")
    assert (tmp_path / "model.json").read_text() == before


def test_bad_input(tmp_path):
    weights = save(tmp_path / "model.pt", ["c"])
    with pytest.raises(InputError, match=r"No volume of small ET was chosen for the weights .*model.pt"):
        chosen_mm3(weights)
    other = tmp_path / "other.csv"
    other.write_text("case,dice_wt\na,1\n")
    assert "other.csv should be a table of cases" in str(
        main(["small_et", "--metrics", str(other), "--checkpoint", weights])
    )
    (tmp_path / "model.json").unlink()
    metrics = write_metrics(tmp_path / "m.csv", HELD_OUT)
    assert "should have a record" in str(main(["small_et", "--metrics", str(metrics), "--checkpoint", weights]))


def test_members_that_differ(tmp_path):
    for name, mm3 in (("a", 10.0), ("b", 20.0)):
        save(tmp_path / f"{name}.pt", [])
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "small_et_mm3": mm3}))
    with pytest.raises(InputError, match=r"small_et_mm3 should be the same for all weights, .*b.pt has 20"):
        chosen_mm3([str(tmp_path / "a.pt"), str(tmp_path / "b.pt")])
