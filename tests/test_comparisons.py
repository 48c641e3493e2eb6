"""The comparison with nnU-Net and the curves of fine-tuning: their budgets and the numbers of their tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import finetuning
import modalities
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
    (tmp_path / "trials_nnunet_5min.json").write_text(json.dumps({"1": 30, "3": 70}))
    assert comparison.epochs("nnunet") == 14


def test_no_runs_to_compare(tmp_path, capsys):
    empty = ["--results", str(tmp_path / "none")]
    assert str(nnunet.main(empty)).startswith("Error: There should be runs to report")
    assert str(finetuning.main(["hippocampus", *empty])).startswith("Error: There should be runs to report")
    with pytest.raises(InputError, match="There should be runs to report"):
        finetuning.report(finetuning.TASKS["hippocampus"], [0, 1, 2], tmp_path)
    one_side = tmp_path / "nnunet" / "hippocampi_5min"
    one_side.mkdir(parents=True)
    write_scores(one_side / "missu_seed0.csv", {"a": (0.4, 0.6)})
    assert nnunet.main(["--results", str(tmp_path / "nnunet")]) is None
    assert capsys.readouterr().out == "hippocampi_5min\nNo seed has runs of both sides yet.\n"


@pytest.fixture
def comparison(tmp_path, monkeypatch) -> nnunet.Comparison:
    """Of cases a to d, a third of them to test on; nothing is run, but each command is a call."""
    cases = [{"case_id": name} for name in "abcd"]

    def make(*_: object, testing_fraction: float, **__: object) -> dict[str, object]:
        number = round(testing_fraction * len(cases))
        return {"testing": cases[:number], "training": cases[number:]}

    def call(self: nnunet.Comparison, log: Path, command: list[object], **_: object) -> float:
        log.parent.mkdir(parents=True, exist_ok=True)
        assert not [*log.parent.iterdir()], "what another process left is timed"
        log.write_text("done")
        return 60.0 if "trial3" in str(log) else 30.0

    monkeypatch.setattr(nnunet, "make_datalist", make)
    monkeypatch.setattr(nnunet.Comparison, "modalities", lambda _: ["mri"])
    monkeypatch.setattr(nnunet.Comparison, "call", call)
    return nnunet.Comparison(tmp_path / "data", 5, tmp_path / "python", tmp_path / "runs", 0.25)


def test_a_timed_training_begins_with_an_empty_folder(comparison, tmp_path):
    for name in ("missu_5min_seed0", "missu_5min_trial1"):
        (comparison.runs / name).mkdir(parents=True)
        (comparison.runs / name / "checkpoint_iteration=7.pt").touch()
    comparison.run(["trials", "train"], ["missu"], [0], tmp_path / "results")
    record = json.loads((comparison.runs / "missu_5min_seed0" / "trained.json").read_text())
    assert (record["epochs"], record["minutes"]) == (19, 0.5)
    assert json.loads((comparison.runs / "trials_missu_5min.json").read_text()) == {"1": 30.0, "3": 60.0}


def test_a_comparison_is_of_one_split(comparison, tmp_path):
    results = tmp_path / "results"
    comparison.run([], ["missu"], [0], results)
    comparison.testing_fraction = 0.5
    with pytest.raises(InputError, match=r"testing should be that of .*datalist.json.*take the --testing_fraction"):
        comparison.run([], ["missu"], [0], results)
    comparison.testing_fraction = 0.25
    results.mkdir()
    write_scores(results / "missu_seed0.csv", {"a": (0.4, 0.6)})
    comparison.run([], ["missu"], [0], results)
    write_scores(results / "nnunet_seed0.csv", {"b": (0.4, 0.6)})
    with pytest.raises(InputError, match=r"nnunet_seed0.csv should be of the cases to test on, it is of others"):
        comparison.run([], ["missu"], [0], results)


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


def test_the_cases_to_train_on_are_drawn_by_the_seed():
    datalist = {"name": "x", "training": [{"case_id": f"c{number}"} for number in range(9)], "testing": ["x"]}
    drawn = []
    for seed in (0, 0, 1):
        content = finetuning.draw(datalist, 5, seed)
        assert content["testing"] == ["x"]
        drawn.append({entry["case_id"] for entry in content["training"]})
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(of) for of in drawn] == [5, 5, 5]
    with pytest.raises(InputError, match="x should leave 20 cases to train on, has 9"):
        finetuning.draw(datalist, 20, 0)


def test_a_curve_is_of_one_data_set_and_weights(tmp_path, monkeypatch):
    entries = [{"case_id": f"c{number}"} for number in range(30)]
    monkeypatch.setattr(
        finetuning, "make_datalist", lambda root, *_, **__: {"name": str(root), "training": entries, "testing": []}
    )
    monkeypatch.setattr(finetuning, "RUNS", tmp_path / "runs")
    for name in ("train", "score"):
        monkeypatch.setattr(finetuning.Training, name, lambda *_: {"training_hours": 0})
    scores = {"a": (0.4, 0.6)}
    monkeypatch.setattr(finetuning, "keep", lambda results, name, *_: write_scores(results / f"{name}.csv", scores))
    weights = tmp_path / "liver.pt"
    weights.write_bytes(b"1")
    command = ["hippocampus", "--results", str(tmp_path), "--dataset_dir", "x", "--seeds", "0", "1"]
    assert str(finetuning.main(command)).startswith("Error: --pretrained should be a file of weights, got None")
    command += ["--pretrained", str(weights)]
    assert finetuning.main(command) is None
    assert finetuning.main(["hippocampus", "--results", str(tmp_path)]) is None  # the table alone
    weights.write_bytes(b"2")
    assert "Error: pretrained_sha256 should be that of" in str(finetuning.main(command))
    weights.write_bytes(b"1")
    entries.append({"case_id": "another"})
    assert "Error: num_cases should be that of" in str(finetuning.main(command))
    (tmp_path / "liver_to_hippocampus_80" / "settings.json").unlink()
    assert "settings.json should say what fine-tuned_20_seed0.csv was made with" in str(finetuning.main(command))


def test_a_table_of_modalities_is_of_one_data_set_and_weights(tmp_path, monkeypatch):
    entries = [{"case_id": f"c{number}", "fold": number} for number in range(3)]
    monkeypatch.setattr(modalities, "make_datalist", lambda *_, **__: {"training": entries})
    monkeypatch.setattr(modalities, "load", lambda *_: [{"case": "x"}])
    monkeypatch.setattr(modalities, "run", lambda *_: None)
    monkeypatch.setattr(modalities, "report", lambda _: "")
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    command = ["--dataset_dir", "x", "--results", str(tmp_path / "a"), "--runs", str(tmp_path / "b")]
    assert str(modalities.main(command)).startswith("Error: --weights should be a file")
    command += ["--weights", str(weights)]
    assert modalities.main(command) is None
    assert modalities.main(command) is None
    assert "learning_rate should be that of" in str(modalities.main([*command, "--learning_rate", "0.1"]))
    weights.write_bytes(b"2")
    assert "weights_sha256 should be that of" in str(modalities.main(command))
    (tmp_path / "a" / "settings.json").unlink()
    (tmp_path / "a" / "frozen_fold0_seed0.csv").touch()
    message = str(modalities.main(command))
    assert "settings.json should say what frozen_fold0_seed0.csv was made with" in message
    assert "name another folder by --results" in message
