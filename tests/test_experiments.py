"""The experiments: what is run, what is not run again, the numbers of tables, the figures."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import challenge
import document
import figures
import ideas
import modalities
import nibabel as nib
import numpy as np
import pytest
import rivals
import run as runner
import runs
import sizes
import tables
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imread
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from runs import InputError, Run, Setting, Study, read_methods

from scripts.networks import MISSU, MultiScaleFusion
from scripts.networks.missu import SelfAttention
from scripts.sources.phantom import write_phantoms

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
METHODS = read_methods()
TINY = {"init_filters": 4, "hidden_size": 8, "mlp_dim": 8, "num_layers": 1, "num_heads": 2}


def write_setting(folder: Path, **changes: object) -> str:
    content = {
        "config_file": ["configs/train.json", "configs/hippocampus.json"],
        "overlay": {"roi_size": [16, 16, 16], **{f"network_def#{name}": value for name, value in TINY.items()}},
        "split": {"seed": 0, "validation_fraction": 0.1, "testing_fraction": 0.3},
        "iterations": 2,
        "seeds": [0],
        **changes,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(content))
    return str(path)


def write_experiment(folder: Path, rows: dict[str, object], **changes: object) -> str:
    path = folder / "few.json"
    content = {"title": "Few", "kind": "scores", "base": "plain", "rows": rows, **changes}
    path.write_text(json.dumps(content))
    return str(path)


def write_scores(study: Study, run: Run, dice: dict[str, tuple[float, ...]], regions: tuple[str, ...]) -> None:
    study.results.mkdir(parents=True, exist_ok=True)
    with open(study.results / f"{run.name}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        columns = [f"{metric}_{region}" for metric in ("dice", "accuracy", "mssd_mm") for region in regions]
        rows.writerow(["case", *columns])
        rows.writerows([case, *of, *[0.99] * len(of), *[12.0] * len(of)] for case, of in dice.items())
    record = {"definition": study.definition(run), "training_hours": 0.5, "machine": "a machine", "threads": "1"}
    record |= {"versions": {"torch": "2"}}
    (study.results / f"{run.name}.json").write_text(json.dumps(record))


def table(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_the_table_by_hand(tmp_path, capsys):
    setting = write_setting(tmp_path, seeds=[0, 1])
    study = Study("hippocampi", Setting.read(setting), METHODS, tmp_path)
    parts = ("anterior", "posterior")
    write_scores(study, Run("plain", None, 0), {"a": (0.8, 0.6), "b": (0.9, 0.9)}, parts)  # cases 0.7 and 0.9
    write_scores(study, Run("plain", None, 1), {"a": (0.7, 0.7), "b": (1.0, 1.0)}, parts)  # 0.7 and 1.0
    write_scores(study, Run("taught", None, 0), {"b": (0.9, 0.9), "a": (0.8, 0.8)}, parts)  # 0.8 and 0.9
    write_scores(study, Run("taught", None, 1), {"a": (0.8, 0.8), "b": (1.0, 1.0)}, parts)  # 0.8 and 1.0
    rows = {
        "one": {"method": "plain"},
        "other": {"method": "taught", "paper": {"tc": 80, "wt": 90.5}},
        "the same": {"method": "taught"},
        "later": {"method": "literal"},
        "never": {"method": "metrans"},
    }
    experiment = write_experiment(tmp_path, rows, paper="The paper's")
    common = ["--setting", setting, "--dataset", "hippocampi", "--results", str(tmp_path)]
    assert runner.main([experiment, *common]) is None
    printed = capsys.readouterr().out
    assert (study.results / "few.md").read_text() == printed[:-1]
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in printed.split("\n")
        if "|" in line
    }
    assert lines["one"] == ["", "85.0 / 80.0", "99.00 / 99.00", "12.0 / 12.0", "", "", "", "2 of 2", "30"]
    assert lines["other"][:2] == ["90.50 / 80.00", "87.5 / 87.5"]
    assert lines["other"][5:] == ["+5.0", "", "2 of 2", "30"]  # 0.1 for a, 0 for b, with both seeds; no interval of two
    assert lines["the same"][1:7] == lines["other"][1:7]
    assert lines["the same"][7] == "2 of 2, those of other"
    assert "Paper's (WT / TC)" in printed.replace("The paper's", "Paper's")
    assert "of the bundle's versions" not in printed
    assert lines["later"][1] == "not run"
    assert lines["never"][1] == "see below"
    assert METHODS["metrans"]["why_not"] in printed
    assert "2 steps" in printed
    plain = table(study.results / "few.csv")["one"]
    assert float(plain["std_of_runs"]) == pytest.approx(0.05 / 2**0.5, abs=1e-4)  # means 0.8 and 0.85
    assert plain["difference"] == "nan"
    assert imread(study.results / "few.png").shape[1] > 1000


def test_a_metric_that_some_runs_lack(tmp_path, capsys):
    setting = write_setting(tmp_path, seeds=[0, 1])
    study = Study("hippocampi", Setting.read(setting), METHODS, tmp_path)
    for seed in (0, 1):
        for method in ("plain", "taught"):
            write_scores(study, Run(method, None, seed), {"a": (0.8,), "b": (0.9,)}, ("part",))
    old = study.results / "taught_seed0.csv"  # made before accuracy was scored
    old.write_text("case,dice_part,mssd_mm_part\na,0.8,12\nb,0.9,12\n")
    record = json.loads(old.with_suffix(".json").read_text())
    for name, version in (("taught_seed0", "0.1.0"), ("taught_seed1", "0.2.0")):
        record["versions"]["bundle"] = version
        (study.results / f"{name}.json").write_text(json.dumps(record))
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}, "other": {"method": "taught"}})
    common = ["--setting", setting, "--dataset", "hippocampi", "--results", str(tmp_path)]
    assert runner.main([experiment, *common]) is None
    printed = capsys.readouterr().out
    assert "| one | 85.0 | 99.00 | 12.0 |" in printed
    assert "| other | 85.0 |  | 12.0 |" in printed
    assert "Accuracy: blank where a run was made before that was scored." in printed
    assert "Runs are of the bundle's versions 0.1.0, 0.2.0, unknown." in printed
    assert table(study.results / "few.csv")["other"]["accuracy_part"] == "nan"


def test_a_few_seeds_are_compared_over_the_patients_of_the_split(tmp_path, capsys):
    setting = write_setting(tmp_path)
    study = Study("gliomas", Setting.read(setting), METHODS, tmp_path)
    gains = {f"BraTS20_Training_{number:03d}": number / 100 for number in range(8)}
    for method, times in (("plain", 0), ("taught", 1)):
        dice = {case: (0.5 + times * gain,) for case, gain in gains.items()}
        write_scores(study, Run(method, None, 0), dice, ("part",))
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}, "other": {"method": "taught"}})
    common = [experiment, "--setting", setting, "--dataset", "gliomas", "--results", str(tmp_path)]
    assert runner.main(common) is None
    # 0.00 to 0.07: mean 0.035, standard error 0.024495 / 8**0.5, t of 7 degrees 2.3646.
    assert "| +3.5 | +1.5 to +5.5 (patients) | 1 of 1 |" in capsys.readouterr().out
    assert table(study.results / "few.csv")["other"]["ci95_over"] == "patients"
    # By the table of the split, these are five patients: too few.
    patients = {case: f"p{number % 5}" for number, case in enumerate(gains)}
    (study.results / "settings.json").write_text(json.dumps({"patients": patients}))
    assert runner.main(common) is None
    assert "| +3.5 |  | 1 of 1 |" in capsys.readouterr().out


def test_results_know_the_patients_of_the_split(tmp_path, hippocampi):
    patients = tmp_path / "patients.csv"
    patients.write_text("case,patient\n" + "".join(f"hippocampus_{n:03d},p{n // 2}\n" for n in range(6)))
    split = {"seed": 0, "folds": 2, "testing_fraction": 0.0, "patients": str(patients)}
    study = Study("data", Setting.read(write_setting(tmp_path, split=split)), METHODS, tmp_path / "t", tmp_path / "r")
    study.prepare(hippocampi)
    assert study.patients(["hippocampus_003", "other"]) == {
        **{f"hippocampus_{number:03d}": f"p{number // 2}" for number in range(6)},
        "other": "other",
    }


def test_foreign_file_names_are_read_with_their_suffixes(tmp_path):
    write_phantoms(tmp_path / "data", 3, (32, 32, 32))
    for path in (tmp_path / "data").rglob("*_t1ce.nii.gz"):
        path.rename(path.with_name(path.name.replace("_t1ce", "_gadolinium")))
    setting = write_setting(tmp_path, config_file=["configs/train.json"])
    suffixes = {"t1": "t1", "gadolinium": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}
    knobs = {"suffixes": suffixes, "modalities": ["t1", "t1ce", "t2", "flair"]}
    study = Study("data", Setting.read(setting, knobs=knobs), METHODS, tmp_path / "t", tmp_path / "r")
    study.prepare(tmp_path / "data")
    [entry] = figures.cases_to_show(study, None, tmp_path / "data", 1)[1]
    assert entry["image"]["t1ce"].endswith("_gadolinium.nii.gz")


def test_the_interval_is_over_the_seeds_by_hand():
    # The seeds' differences are 0.01, 0.02, 0.03: mean 0.02, standard deviation 0.01, t of 2 degrees 4.3027.
    runs = {(None, seed): {"a": {"dice_x": 0.5 + seed / 100}, "b": {"dice_x": 0.7 + seed / 100}} for seed in (1, 2, 3)}
    base = {(None, seed): {"a": {"dice_x": 0.5}, "b": {"dice_x": 0.7}} for seed in (1, 2, 3)}
    half = 4.3027 * 0.01 / 3**0.5
    *found, over = tables.difference(runs, base, by_folds=False, patients={"a": "a", "b": "b"})
    assert found == pytest.approx((0.02, 0.02 - half, 0.02 + half), abs=1e-5)
    assert over == "seeds"


def test_with_folds_the_interval_is_over_patients():
    # Six patients, 0.00 to 0.05 better: mean 0.025, standard error 0.018708 / 6**0.5, t of 5 degrees 2.5706.
    of_case = {f"case{number}": number / 100 for number in range(6)}
    folds = [dict(list(of_case.items())[:3]), dict(list(of_case.items())[3:])]
    runs, base = (
        {
            (fold, 0): {case: {"dice_x": 0.5 + times * value} for case, value in of.items()}
            for fold, of in enumerate(folds)
        }
        for times in (1, 0)
    )
    half = 2.5706 * 0.018708 / 6**0.5
    patients = {case: case for case in of_case}
    *found, over = tables.difference(runs, base, True, patients)
    assert found == pytest.approx((0.025, 0.025 - half, 0.025 + half), abs=1e-5)
    assert over == "patients"
    mean, low, high, over = tables.difference({(0, 0): runs[0, 0]}, base, True, patients)  # one fold: three patients
    assert mean == pytest.approx(0.01)
    assert np.isnan([low, high]).all()
    assert not over


def test_another_budget_data_set_or_method_is_another_result(tmp_path):
    setting = write_setting(tmp_path)
    study = Study("hippocampi", Setting.read(setting), METHODS, tmp_path)
    run = Run("plain", None, 0)
    write_scores(study, run, {"a": (0.8,)}, ("part",))
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}})
    common = [experiment, "--setting", setting, "--results", str(tmp_path)]
    assert runner.main([*common, "--dataset", "hippocampi"]) is None
    for other in (["--dataset", "hippocampi", "--iterations", "1"], ["--dataset", "livers"]):
        assert str(runner.main([*common, *other])).startswith("Error: There should be runs to report")
    changed = {**METHODS, "plain": {"distillation_weight": 1}}
    with pytest.raises(InputError, match="is of another plain than that of methods"):
        Study("hippocampi", study.setting, changed, tmp_path).scores(run)


@pytest.fixture
def hippocampi(tmp_path) -> Path:
    root = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        generator = np.random.default_rng(number)
        label = np.zeros((20, 24, 18), np.uint8)
        label[6:14, 12:20, 6:12], label[6:14, 4:12, 6:12] = 1, 2
        image = (generator.normal(50, 10, label.shape) + 40 * label).astype(np.float32)
        for folder, volume in (("imagesTr", image), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(volume, np.eye(4)), root / folder / f"hippocampus_{number:03d}.nii.gz")
    return root


def test_runs_once_goes_on_and_draws(tmp_path, hippocampi, capsys):
    setting = write_setting(tmp_path)
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}, "other": {"method": "taught"}})
    folders = ["--setting", setting, "--results", str(tmp_path / "tables"), "--runs", str(tmp_path / "runs")]
    command = [experiment, "--dataset_dir", str(hippocampi), *folders]
    results, run_dirs = tmp_path / "tables" / "data" / "tiny_2", tmp_path / "runs" / "data" / "tiny_2"

    assert runner.main([*command, "--methods", "plain"]) is None, capsys.readouterr().err
    assert set(table(results / "few.csv")) == {"one"}
    before = (results / "plain_seed0.csv").stat()

    assert runner.main(command) is None, (run_dirs / "taught_seed0" / "log.txt").read_text()
    rows = table(results / "few.csv")
    assert set(rows) == {"one", "other"}
    assert (results / "plain_seed0.csv").stat().st_mtime_ns == before.st_mtime_ns
    record = json.loads((results / "taught_seed0.json").read_text())
    assert (record["iterations"], record["seed"], record["definition"]["distillation_weight"]) == (2, 0, 0.3)
    assert int(rows["one"]["cases"]) == 2  # 30 % of six
    assert "teacher_loss" in (run_dirs / "taught_seed0" / "log.txt").read_text()
    weights = [json.loads((run_dirs / f"{name}_seed0" / "overlay.json").read_text()) for name in ("plain", "taught")]
    assert all(of["network_def#hidden_size"] == 8 for of in weights)

    for kind in ("cases", "cam"):
        figure = write_experiment(tmp_path, {"one": {"method": "plain"}}, kind=kind)
        picture = tmp_path / f"{kind}.png"
        arguments = [figure, "--dataset_dir", str(hippocampi), *folders, "--output", str(picture), "--num_cases", "1"]
        assert runner.main(arguments) is None
        assert imread(picture).std() > 0.05

    write_setting(tmp_path, split={"seed": 1, "validation_fraction": 0.1, "testing_fraction": 0.3})
    assert str(runner.main(command)).startswith("Error: split#seed should be that of")


@pytest.fixture
def workflows(monkeypatch) -> list[str]:
    """Those that were run; none is, but their files are there."""
    calls = []

    def run(workflow: str, config_file: list[object], knobs: dict[str, object], log: object, name: str) -> None:
        calls.append(f"{workflow} {name}")
        folder = Path(str(knobs["output_dir"]))
        if workflow == "training":
            (folder / "model_final.pt").write_bytes(b"weights")
            (folder / "model_final.json").write_text(json.dumps({"versions": {"torch": "2", "bundle": "1"}}))
        else:
            (folder / "metrics.csv").write_text("case,dice_anterior,accuracy_anterior\na,0.5,0.9\n")

    monkeypatch.setattr(runs, "bundle", run)
    return calls


def test_weights_are_scored_as_what_they_were_trained_as(tmp_path, hippocampi, workflows, monkeypatch):
    setting = write_setting(tmp_path)
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}})
    common = [experiment, "--dataset_dir", str(hippocampi), "--setting", setting, "--runs", str(tmp_path / "runs")]
    run_dir = tmp_path / "runs" / "data" / "tiny_2" / "plain_seed0"
    assert runner.main([*common, "--results", str(tmp_path / "a")]) is None
    assert workflows == ["training plain_seed0", "evaluating plain_seed0"]
    record = json.loads((tmp_path / "a" / "data" / "tiny_2" / "plain_seed0.json").read_text())
    assert record["trained_with_sha256"] == runs.sha256(run_dir / "trained_with.json")

    overlay = {"roi_size": [16, 16, 16], **{f"network_def#{name}": value for name, value in TINY.items()}}
    write_setting(tmp_path, overlay={**overlay, "metrics": ["dice"]})  # says nothing of the weights
    assert runner.main([*common, "--results", str(tmp_path / "b")]) is None
    assert workflows[2:] == ["evaluating plain_seed0"]

    write_setting(tmp_path, overlay={**overlay, "learning_rate": 0.1})
    message = runner.main([*common, "--results", str(tmp_path / "c")])
    path = run_dir / "trained_with.json"
    assert f"overlay#learning_rate should be that of {path}, nothing, got 0.1: delete {run_dir}" in str(message)
    write_setting(tmp_path, split={"seed": 1, "validation_fraction": 0.1, "testing_fraction": 0.3})
    message = runner.main([*common, "--results", str(tmp_path / "d")])
    assert "datalist_sha256 should be that of" in str(message)
    config = tmp_path / "own.json"
    for value in (2, 3):
        config.write_text(json.dumps({"batch_size": value, "_desc_": f"Of {value}."}))
        files = ["configs/train.json", "configs/hippocampus.json", str(config)]
        write_setting(tmp_path, config_file=files, seeds=[1])
        message = runner.main([*common, "--results", str(tmp_path / str(value))])
    assert f"configs#{config}#batch_size should be that of" in str(message)

    write_setting(tmp_path)
    changed = {**METHODS, "plain": {"distillation_weight": 0.7}}
    monkeypatch.setattr(runner, "read_methods", lambda: changed)
    (tmp_path / "a" / "data" / "tiny_2" / "plain_seed0.csv").unlink()
    message = runner.main([*common, "--results", str(tmp_path / "a")])
    assert "overlay#distillation_weight should be that of" in str(message)
    path.unlink()
    message = runner.main([*common, "--results", str(tmp_path / "a")])
    assert f"{path} should say what model_final.pt was made with, it is not there: delete {run_dir}" in str(message)
    assert len([call for call in workflows if call.startswith("training plain_seed0")]) == 1


def test_minutes_are_those_of_all_processes(tmp_path, workflows, monkeypatch):
    datalist = tmp_path / "datalist.json"
    datalist.write_text("{}")
    training = runs.Training("x", [], {}, tmp_path, datalist, tmp_path / "run")
    training.check()
    now = 1_000_000.0
    # A process of 100 s is done; another began, saved a checkpoint after 30 s, and was cut.
    runs.write(tmp_path / "run" / "time.json", {"seconds": 100.0, "since": now})
    checkpoint = tmp_path / "run" / "checkpoint_iteration=3.pt"
    checkpoint.touch()
    os.utime(checkpoint, (now + 30, now + 30))
    clock = iter([50.0, 70.0])
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(runs, "bundle", lambda *_: training.weights.touch())
    training.train()
    assert json.loads((tmp_path / "run" / "time.json").read_text()) == {"seconds": 150.0, "since": None}
    training.train()  # is done


def test_a_run_that_fails_is_named_and_the_table_is_made(tmp_path, hippocampi, capsys):
    overlay = {"config_file": ["configs/train.json", "configs/hippocampus.json"]}
    setting = write_setting(tmp_path, overlay={"optimizer#_target_": "no.Such"}, **overlay)
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}, "other": {"method": "literal"}})
    folders = ["--setting", setting, "--results", str(tmp_path / "tables"), "--runs", str(tmp_path / "runs")]
    done = Study("data", Setting.read(setting), METHODS, tmp_path / "tables")
    done.prepare(hippocampi)
    write_scores(done, Run("plain", None, 0), {"a": (0.8,)}, ("part",))
    message = runner.main([experiment, "--dataset_dir", str(hippocampi), *folders])
    assert str(message).startswith("Error: The training of literal_seed0 failed, the end of")
    assert "80.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such_experiment"], "The file"),
        (["table4"], "--dataset_dir should be given"),
        (["table4", "--dataset", "x", "--methods", "none"], "--methods should be some of base, base, base-literal"),
        (["table4", "--dataset", "x", "--methods", "unet"], "--methods should be some of base, base, base-literal"),
        (["table4", "--dataset", "x", "--setting", "brats_2mm", "--folds", "3"], "--folds should be some of 0, 1, 2, "),
        (["table4", "--dataset", "x", "--", "--distillation_weight", "0.3"], "distillation_weight should be a method"),
        (["table4", "--dataset", "x", "--setting", "none"], "The file"),
        (["figure4", "--dataset", "x", "--setting", "phantoms", "--cases_dir", "x"], "The weights of"),
    ],
    ids=["experiment", "data set", "method", "method of another", "fold", "distillation", "setting", "weights"],
)
def test_bad_input(tmp_path, arguments, sentence, monkeypatch):
    monkeypatch.setattr(figures, "make_datalist", lambda *_, **__: {"testing": [{}]})
    message = runner.main([*arguments, "--runs", str(tmp_path), "--results", str(tmp_path)])
    assert str(message).startswith(f"Error: {sentence}")


def test_a_figure_makes_the_weights_that_it_shows_and_no_more(tmp_path, hippocampi, workflows):
    split = {"seed": 0, "folds": 2, "testing_fraction": 0.0}
    setting = write_setting(tmp_path, split=split, seeds=[0, 1])
    rows = {"one": {"method": "plain"}, "other": {"method": "taught"}, "again": {"method": "plain"}}
    folders = ["--setting", setting, "--results", str(tmp_path / "tables"), "--runs", str(tmp_path / "runs")]
    scores = write_experiment(tmp_path, {"one": {"method": "plain"}})
    command = ["--dataset_dir", str(hippocampi), *folders, "--folds", "0"]
    assert runner.main([scores, *command, "--seeds", "0"]) is None
    workflows.clear()
    figure = write_experiment(tmp_path, rows, kind="cam")
    message = runner.main([figure, "--dataset_dir", str(hippocampi), *folders])
    assert "plain_fold0_seed0/model_final.pt" in str(message)  # it holds no weights
    assert workflows == ["training taught_fold0_seed0"]


def test_what_went_wrong_is_said_where_nothing_is_done(tmp_path, hippocampi, monkeypatch, workflows):
    def fails(workflow: str, *_: object) -> None:
        raise InputError(f"The {workflow} failed.")

    setting = write_setting(tmp_path, iterations=10, steps_per_epoch=4)
    folders = ["--setting", setting, "--results", str(tmp_path / "tables"), "--runs", str(tmp_path / "runs")]
    for kind in ("scores", "cam"):
        experiment = write_experiment(tmp_path, {"one": {"method": "plain"}, "two": {"method": "taught"}}, kind=kind)
        command = [experiment, "--dataset_dir", str(hippocampi), *folders]
        message = runner.main([*command, "--iterations", "10"])
        assert message == "Error: iterations should be a multiple of steps_per_epoch, got 10 and 4."
        with monkeypatch.context() as patch:
            patch.setattr(runs, "bundle", fails)
            assert runner.main([*command, "--iterations", "8"]) == "Error: The training failed. The training failed."
    assert not workflows


def test_what_a_method_needs_comes_first(tmp_path):
    setting = Setting.read("hippocampus_bfloat16", seeds=[0, 1])
    spec = json.loads((EXPERIMENTS / "self_distillation.json").read_text())
    study = Study("x", setting, METHODS)
    todo = [run.name for run in study.with_needed(study.all_runs(runner.methods_of(spec)))]
    assert len(todo) == len(set(todo))
    first = todo.index("ensemble-taught_seed0")
    assert all(todo.index(f"ms-output_seed{seed}") < first for seed in range(3))
    by_folds = Study("x", Setting.read("brats_2mm"), METHODS)
    needed = by_folds.with_needed([Run("ensemble-taught", 1, 0)])
    assert [run.name for run in needed[:-1]] == [f"ms-output_fold1_seed{seed}" for seed in range(3)]
    for of, fold, path in ((study, None, "ms-output_seed2"), (by_folds, 1, "ms-output_fold1_seed2")):
        parser = parser_of(of, Run("ensemble-taught", fold, 0), {"ckpt_dir": "runs/x", "fold": fold})
        weights = parser.get_parsed_content("self_distillation#teacher#weights")
        assert weights[2] == f"runs/x/../{path}/model_final.pt"


def parser_of(study: Study, run: Run, knobs: dict[str, object]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(study.setting.configs)
    for name, value in {**study.overlay(run), **knobs}.items():
        merge_kv(parser, name, value)
    return parser


def test_what_cannot_be_run_is_said_before(monkeypatch, tmp_path, hippocampi, workflows):
    study = Study("x", Setting.read("hippocampus"), METHODS)
    assert study.why_not("kd-net") == "It needs the modality t1ce, this setting has mri."
    for name in ("dynunet-6", "swinunetr"):
        assert "multiples of 32, this setting's are [32, 48, 32]" in str(study.why_not(name))
    assert study.all_runs(["kd-net", "swinunetr", "dynunet-6"]) == []
    brats = Study("x", Setting.read("brats_2mm"), METHODS)
    assert [brats.why_not(name) for name in ("kd-net", "dynunet-6", "swinunetr", "unetr")] == [None] * 4
    monkeypatch.setattr(runs, "find_spec", lambda _: None)
    experiment = write_experiment(tmp_path, {"one": {"method": "plain"}, "UNETR": {"method": "unetr"}})
    folders = ["--setting", write_setting(tmp_path), "--results", str(tmp_path / "t"), "--runs", str(tmp_path / "r")]
    message = runner.main([experiment, "--dataset_dir", str(hippocampi), *folders])
    assert message == "Error: unetr_seed0 was not run: it needs the package einops."
    assert workflows == ["training plain_seed0", "evaluating plain_seed0"]


def test_schedules_are_of_all_steps_and_methods_without_distillation_have_none(tmp_path):
    overlay = Setting.read("hippocampus").overlay
    setting = write_setting(tmp_path, iterations=12, steps_per_epoch=4, overlay=overlay)
    study = Study("x", Setting.read(setting, iterations=3000), METHODS)
    expected = {
        ("missu-warm-up", "lr_scheduler#warm_up_iters"): 300,
        ("taught-ramp", "loss#ramp_steps"): 1000,
        ("repaired", "loss#start"): 2000,
        ("repaired", "loss#ramp_steps"): 300,
        ("averaged", "average#momentum"): 10 / 3000,
        ("averaged-taught", "average#momentum"): 10 / 3000,
    }
    for (method, name), value in expected.items():
        assert parser_of(study, Run(method, None, 0), {}).get_parsed_content(name) == value, method
    for method, content in METHODS.items():
        if "why_not" not in content:
            weight = study.overlay(Run(method, None, 0))["distillation_weight"]
            assert bool(weight) == ("distillation_weight" in content and method not in NOTHING_DISTILLED), method
    handlers = parser_of(study, Run("averaged", None, 0), {})["train"]["handlers"]
    [state] = [of for of in handlers if isinstance(of, dict) and of["_target_"].endswith("TrainingState")]
    assert state["objects"] == {**state["objects"], "network": "@self_distillation", "average": "@average"}


NOTHING_DISTILLED = ("plain", "ms-output", "ms-output-identity", "deep-supervision", "averaged")


def test_confidence_starts_as_its_first_lines_say():
    command = [sys.executable, EXPERIMENTS / "confidence.py", "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    cwd = EXPERIMENTS.parent / "bundle"
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_knobs_come_behind_two_dashes(tmp_path):
    knobs = runner.values(["--label_convention", "brats2023", "--modalities", "['t1ce']", "--batch_size=3"])
    overlay = Setting.read(write_setting(tmp_path), knobs=knobs).overlay
    assert (overlay["label_convention"], overlay["modalities"], overlay["batch_size"]) == ("brats2023", ["t1ce"], 3)
    assert overlay["roi_size"] == [16, 16, 16]


def test_steps_are_cut_into_epochs(tmp_path):
    study = Study("x", Setting.read(write_setting(tmp_path, iterations=12, steps_per_epoch=4)), METHODS)
    overlay = study.overlay(Run("plain", None, 7))
    assert (overlay["max_epochs"], overlay["train#trainer#epoch_length"], overlay["lr_scheduler#total_iters"]) == (
        3,
        4,
        12,
    )
    assert (overlay["val_interval"], overlay["seed"]) == (4, 7)
    with pytest.raises(InputError, match="iterations should be a multiple of steps_per_epoch, got 10 and 4"):
        Study("x", Setting.read(write_setting(tmp_path, iterations=10, steps_per_epoch=4)), METHODS).overlay(
            Run("plain", None, 0)
        )


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_experiments_name_what_there_is(path):
    if path.stem == "methods":
        return
    spec = json.loads(path.read_text())
    assert {row["method"] for row in spec["rows"].values()} <= set(METHODS)
    if spec["kind"] == "scores":
        assert spec["base"] in {row["method"] for row in spec["rows"].values()}
    if "setting" in spec:
        setting = Setting.read(spec["setting"])
        Study("x", setting, METHODS).overlay(Run("plain", None, 0))
        assert all(Path(config).is_file() for config in setting.configs)


@pytest.mark.parametrize(
    "method", ["base", "base-ms-output", "skips-1", "unet", "vnet", "dynunet-6", "transbts", "kd-net"]
)
def test_networks_of_methods_give_logits_of_the_size_of_the_image(method):
    knobs = {"modalities": ["t1", "t1ce", "t2", "flair"], "label_convention": "brats2018", "roi_size": [64, 64, 64]}
    with torch.device("meta"):
        network = sizes.network_of(METHODS[method], knobs).eval()
        assert network(torch.empty(1, 4, 64, 64, 64)).shape == (1, 4, 64, 64, 64)


def test_sizes_by_hand():
    # A 3x3x3 convolution of 2 to 3 channels on 4^3 voxels, then a linear layer of 4 to 5 on the last axis.
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3, padding=1), torch.nn.Linear(4, 5))
    size = sizes.size_of(network, 2, [4, 4, 4])
    assert size.parameters_m * 1e6 == pytest.approx(27 * 2 * 3 + 3 + 4 * 5 + 5)
    assert size.gmac * 1e9 == pytest.approx(27 * 2 * 3 * 64 + 3 * 64 * 5)
    assert size.attention_gmac == 0


def test_attention_is_counted_apart():
    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = SelfAttention(hidden_size=8, num_heads=2, dropout=0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x.flatten(2).transpose(1, 2))

    size = sizes.size_of(Tokens(), 8, [2, 2, 4])  # 16 tokens
    assert size.gmac * 1e9 == pytest.approx(16 * 8 * 8 * 4)  # query, key, value, projection
    assert size.attention_gmac * 1e9 == pytest.approx(2 * 16 * 16 * 8)


def test_the_third_table_has_the_papers_network(tmp_path):
    spec = json.loads((EXPERIMENTS / "table3.json").read_text())
    spec["rows"] = {name: row for name, row in spec["rows"].items() if "MISSU" in name}
    lines = sizes.report_sizes(spec, METHODS, tmp_path / "table3").splitlines()
    # 4 layers of 2 products of 4096 x 4096 x 512: 68.7 GMAC; what MS-output has more is the fusion's. Its 1x1x1
    # convolutions are multiplied into those before them, 3 C^2 per voxel of each stage: 316.85 with them.
    assert lines[2] == "| MISSU | 10.40 | 130.63 | 68.72 | 10.50 | 132.11 |"
    assert lines[3] == "| MISSU, MS-output | 11.51 | 314.06 | 68.72 | 17.38 | 196.61 |"


def test_what_needs_a_package_that_is_not_there_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "find_spec", lambda _: None)
    spec = json.loads((EXPERIMENTS / "table3.json").read_text())
    spec["rows"] = {name: row for name, row in spec["rows"].items() if name in ("UNETR", "KD-Net (T1ce)")}
    lines = sizes.report_sizes(spec, METHODS, tmp_path / "table3").splitlines()
    assert lines[2] == "| UNETR | not counted: needs einops |  |  |  |  |"
    assert lines[3].startswith("| KD-Net (T1ce) | 10.40 |")


def test_the_deepest_skips_stay():
    skips = [torch.ones(1, 2, 4, 4, 4), torch.ones(1, 4, 2, 2, 2), torch.ones(1, 8, 1, 1, 1)]
    assert [bool(skip.any()) for skip in ideas.DeepestSkips(1)(skips)] == [False, False, True]
    assert [bool(skip.any()) for skip in ideas.DeepestSkips(0)(skips)] == [False, False, False]


def test_a_student_of_one_modality_learns_from_a_teacher_that_it_does_not_move():
    torch.manual_seed(0)
    student = rivals.OneChannel(1, MISSU(1, 2, 16, **TINY))
    taught = rivals.TaughtByAllModalities(student, MISSU(2, 2, 16, **TINY))
    x, label = torch.randn(1, 2, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    other = x.clone()
    other[:, 0] = 0
    assert torch.equal(student(x), student(other))  # it sees channel 1 alone

    def nothing(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 0 * logits.sum()

    loss = rivals.KDNetLoss(nothing, weight=0.5, temperature=2.0)
    output = taught(x)
    loss(output, label).backward()
    assert all(not weight.grad.any() for weight in taught.teacher.parameters())
    assert any(weight.grad.any() for weight in student.parameters())
    # At equal logits nothing is left; of two classes at odds e^2 : 1 to 1 : 1, at T = 2, by hand.
    assert loss(output._replace(teacher_logits=output.logits), label).item() == pytest.approx(0, abs=1e-6)
    teacher, student_logits = torch.tensor([2.0, 0.0]), torch.zeros(2)
    odds = np.e / (np.e + 1)  # softmax of (1, 0)
    expected = 0.5 * 4 * (odds * np.log(odds / 0.5) + (1 - odds) * np.log((1 - odds) / 0.5))
    shape = (1, 2, 1, 1, 1)
    by_hand = output._replace(logits=student_logits.view(shape), teacher_logits=teacher.view(shape))
    assert loss(by_hand, label).item() == pytest.approx(expected, rel=1e-5)


def test_grad_cam_is_the_positive_logit_less_its_bias():
    torch.manual_seed(0)
    network = MISSU(2, 3, 16, **TINY)
    with torch.no_grad():
        network.head.weight[2] = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1, 1)
    image = torch.randn(2, 16, 16, 16)
    logit = network.eval()(image[None])[0, 2] - network.head.bias[2]
    expected = logit.relu().detach().numpy()
    assert expected.any()
    assert not expected.all()
    np.testing.assert_allclose(figures.cam(network, image, 2), expected, atol=1e-5)


def test_errors_of_a_prediction():
    truth, prediction = np.array([[[0, 0, 1, 1, 2, 2]]]), np.array([[[0, 1, 0, 1, 1, 2]]])
    assert figures.errors(prediction, truth).tolist() == [[[0, 2, 1, 0, 3, 0]]]


def test_a_crop_stays_within_the_volume():
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[1, 10, 19] = True
    assert figures.crop_on(mask, [8, 8, 8]) == (slice(0, 8), slice(6, 14), slice(12, 20))


MADE = [
    path
    for path in sorted((EXPERIMENTS / "results").glob("*/*_*/*.md"))
    if (EXPERIMENTS / path.name).with_suffix(".json").is_file()
]


@pytest.mark.parametrize("path", MADE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_tables_are_those_of_the_runs(tmp_path, path):
    setting, _, iterations = path.parent.name.rpartition("_")
    seeds = sorted({record.stem.rpartition("seed")[2] for record in path.parent.glob("*_seed*.json")})
    shutil.copytree(path.parent, tmp_path / path.parent.parent.name / path.parent.name)
    command = [path.stem, "--setting", setting, "--dataset", path.parent.parent.name, "--iterations", iterations]
    assert runner.main([*command, "--seeds", *seeds, "--results", str(tmp_path)]) is None
    for name in (path, path.with_suffix(".csv")):
        made = tmp_path / name.relative_to(EXPERIMENTS / "results")
        assert made.read_text() == name.read_text(), " ".join(["python experiments/run.py", *command, "makes it anew"])


@pytest.mark.parametrize("page", document.PAGES, ids=lambda page: page.stem)
def test_pages_have_the_tables_as_they_are(page):
    text = page.read_text()
    assert text.count("<!-- results/") == len(document.BLOCK.findall(text)) >= 1
    assert document.with_tables(text) == text, "python experiments/document.py puts them there"


def test_a_table_takes_the_place_that_was_left_for_it_alone(tmp_path):
    (tmp_path / "results").mkdir()
    for name in ("one", "two"):
        (tmp_path / "results" / f"{name}.md").write_text(f"table {name}\n")
    places = [f"<!-- results/{name}.md -->\n\n{{}}\n<!-- end -->\n" for name in ("one", "two")]
    text = "## Next\n".join(places)
    made = document.with_tables(text.replace("{}\n", ""), tmp_path)
    assert made == text.format("table one\n", "table two\n")
    assert document.with_tables(made, tmp_path) == made


def test_a_challenge_by_one_command(tmp_path, capsys):
    write_phantoms(tmp_path / "training", 3, (32, 32, 32))
    write_phantoms(tmp_path / "validation", 2, (40, 36, 32), seed=1)
    for label in (tmp_path / "validation").glob("*/*_seg.nii.gz"):
        label.unlink()
    overlay = tmp_path / "tiny.json"
    settings = {"roi_size": [16, 16, 16], "batch_size": 1, "max_epochs": 1, "num_workers": 0}
    overlay.write_text(json.dumps(settings | {f"network_def#{name}": value for name, value in TINY.items()}))
    output = tmp_path / "submission"
    command = ["--dataset_dir", str(tmp_path / "training"), "--validation_dir", str(tmp_path / "validation")]
    command += ["--output_dir", str(output), "--config_file", f"['{overlay}']"]
    assert challenge.main(command) is None, (output / "work" / "log.txt").read_text()
    assert capsys.readouterr().out == f"2 masks written to {output}, brats2018.\n"
    cases = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert sorted(path.name for path in output.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in cases]
    for case in cases:
        mask, flair = (
            nib.load(path) for path in (output / f"{case}.nii.gz", tmp_path / f"validation/{case}/{case}_flair.nii.gz")
        )
        assert mask.shape == flair.shape
        np.testing.assert_allclose(mask.affine, flair.affine)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
    record = json.loads((output / "work" / "model_final.json").read_text())
    assert record["cases"] == sorted(path.name for path in (tmp_path / "training").iterdir())
    assert "all: 3 of the 3 labelled cases" in (output / "work" / "log.txt").read_text()
    assert record["settings"]["distillation_weight"] == 0.3  # the paper's

    overlay.write_text(json.dumps({**settings, "max_epochs": 2}))
    message = challenge.main(command)
    assert f"config_file#{overlay}#max_epochs should be that of {output}/work/arguments.json, 1, got 2" in str(message)


def test_no_overlay_of_a_challenge_sets_cases_aside(tmp_path, monkeypatch):
    def run(workflow: str, config_file: list[object], knobs: dict[str, object], log: object, name: str) -> None:
        called.append((workflow, [*map(str, config_file)], knobs))
        (tmp_path / "out" / "work" / "model_final.pt").write_bytes(b"weights")

    called: list[tuple[str, list[str], dict[str, object]]] = []
    monkeypatch.setattr(challenge, "bundle", run)
    write_phantoms(tmp_path / "training", 1, (32, 32, 32))
    command = ["--dataset_dir", str(tmp_path / "training"), "--validation_dir", str(tmp_path / "training")]
    command += ["--output_dir", str(tmp_path / "out"), "--config_file", "['configs/cpu.json']"]
    assert str(challenge.main(command)).startswith("Error: 1 of 1 cases have no mask")
    (_, configs, _), (_, _, knobs) = called
    parser = ConfigParser()
    parser.read_config(configs)
    assert parser["val_interval"] == "$@max_epochs + 1"
    assert "brats2018" in str(knobs["output_dir"])
    message = challenge.main([*command, "--label_convention", "brats2023"])
    assert "label_convention should be that of" in str(message)
    (tmp_path / "out" / "work" / "arguments.json").unlink()
    message = challenge.main(command)
    assert "arguments.json should say what model_final.pt was made with, it is not there: delete" in str(message)


def test_a_fusion_that_begins_as_the_identity():
    skips = [torch.randn(1, 4, 16, 16, 16), torch.randn(1, 8, 8, 8, 8), torch.randn(1, 16, 4, 4, 4)]
    fusion = MultiScaleFusion([4, 8, 16])
    assert not torch.allclose(fusion(skips)[2], skips[2], atol=0.1)
    fusion.begin_as_identity()
    assert all(torch.equal(fused, skip) for fused, skip in zip(fusion(skips), skips))
    sum(fused.square().sum() for fused in fusion(skips)).backward()
    last = fusion.branches[0].branches[3][-1].weight
    assert last.grad.abs().sum() > 0  # it can leave the identity


def test_an_encoder_of_fused_features_begins_as_the_plain_one():
    torch.manual_seed(0)
    network = MISSU(img_size=16, **TINY)
    x = torch.randn(1, 4, 16, 16, 16)
    output = ideas.FusedEncoding(network)(x)
    assert torch.equal(output.logits, network(x))
    output.logits.square().sum().backward()
    assert all(
        stage.weight.grad.abs().sum() > 0 for stage in network.encoder[3][0].modules() if hasattr(stage, "dilation")
    )


def test_logits_of_each_resolution_and_their_loss():
    torch.manual_seed(0)
    network = MISSU(img_size=16, **TINY)
    x, label = torch.randn(1, 4, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    label[..., :8] = 2
    logits = ideas.DeepSupervision(network)(x)
    assert [tuple(of.shape) for of in logits] == [(1, 4, side, side, side) for side in (16, 8, 4)]
    assert torch.equal(logits[0], network(x))

    def cross_entropy(of: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(of, truth[:, 0].long())

    expected = sum(
        weight * cross_entropy(of, label[..., ::step, ::step, ::step])
        for weight, of, step in zip((4 / 7, 2 / 7, 1 / 7), logits, (1, 2, 4))
    )
    loss = ideas.DeepSupervisedLoss(cross_entropy, distillation_weight=0.0)
    assert loss(logits, label).item() == pytest.approx(float(expected), rel=1e-5)
    loss = ideas.DeepSupervisedLoss(cross_entropy, distillation_weight=0.5)
    assert loss([torch.ones_like(of) for of in logits], label).item() == pytest.approx(np.log(4), rel=1e-5)
    assert loss(logits, label).item() > float(expected)


def test_a_network_ends_as_the_average_of_its_steps():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    averaged = ideas.AverageOfSteps(network, momentum=0.25)
    taught = ideas.TaughtByAnother(network, averaged.average)
    seen = []

    def step(_: Engine, x: float) -> None:
        seen.append(taught(torch.ones(1, 1)).teacher_logits.item())
        with torch.no_grad():
            network.weight += x

    engine = Engine(step)
    averaged.attach(engine)
    engine.run([4.0, 4.0], max_epochs=1)
    # Weights 4 and 8: a quarter of 4, then three quarters of that and a quarter of 8.
    assert seen == [0.0, 1.0]
    assert network.weight.item() == 2.75
    assert not any(parameter.requires_grad for parameter in taught.teacher.parameters())


@pytest.mark.parametrize("first", [True, False], ids=["before the average", "behind it"])
def test_an_average_of_steps_goes_on(first):
    def run(state: list[dict[str, torch.Tensor]] | None = None) -> tuple[torch.nn.Module, dict[int, object]]:
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        averaged = ideas.AverageOfSteps(network, momentum=0.25)
        engine, saved = Engine(lambda *_: network.weight.data.add_(4)), {}

        def save(engine: Engine) -> None:
            saved[engine.state.iteration] = copy.deepcopy([network.state_dict(), averaged.state_dict()])

        events = [lambda: engine.add_event_handler(Events.ITERATION_COMPLETED, save), lambda: averaged.attach(engine)]
        for attach in events if first else reversed(events):
            attach()
        if state is not None:
            engine.load_state_dict({"iteration": 2, "epoch_length": 4, "max_epochs": 1})
            network.load_state_dict(state[0])
            averaged.load_state_dict(state[1])
        engine.run([0] * 4, max_epochs=1)
        return network, saved

    whole, saved = run()
    gone_on, _ = run(saved[2])
    assert gone_on.weight.item() == whole.weight.item() != 0


def test_a_teacher_of_several_networks(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16, 16, 16)
    probabilities, weights = [], []
    for seed in range(2):
        network = MISSU(img_size=16, skips=MultiScaleFusion([4, 8, 16]), **TINY).eval()
        weights.append(str(tmp_path / f"{seed}.pt"))
        torch.save(network.state_dict(), weights[-1])
        with torch.no_grad():
            probabilities.append(network(x).softmax(1))
    teacher = ideas.MeanOfFused(weights, img_size=16, **TINY)
    student = MISSU(img_size=16, **TINY)
    output = ideas.TaughtByAnother(student, teacher)(x)
    assert torch.allclose(output.teacher_logits.exp(), sum(probabilities) / 2, atol=1e-6)
    assert torch.equal(output.logits, student(x))
    assert not output.teacher_logits.requires_grad
    with pytest.raises(InputError, match=r"The teacher should be .*2\.pt, it is not there: run ms-output"):
        ideas.MeanOfFused([str(tmp_path / "2.pt")], img_size=16, **TINY)


def test_residual_stages_skip_a_convolution_that_gives_nothing():
    torch.manual_seed(0)
    network = ideas.ResidualMISSU(img_size=16, **TINY).eval()
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in MISSU(img_size=16, **TINY).parameters()
    )
    first, second = network.encoder[1]
    x = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(network.encoder[1](x), first(x) + second(first(x)))
    torch.nn.init.constant_(second[1].weight, 0)
    assert torch.equal(network.encoder[1](x), first(x))


def test_norms_of_eight_groups():
    network = ideas.GroupNormMISSU(img_size=16)
    groups = [module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert groups == [8] * 12  # nine convolutions in the encoder, three in the decoder
    assert network(torch.randn(1, 4, 16, 16, 16)).shape == (1, 4, 16, 16, 16)


def test_warm_up_ends_in_the_poly_decay_of_torch():
    def rates(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = make(optimizer)
        of_steps = []
        for _ in range(20):
            of_steps.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return np.array(of_steps)

    poly = rates(lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9))
    warm = rates(lambda optimizer: ideas.warm_up_poly(optimizer, total_iters=20, power=0.9, warm_up_iters=4))
    assert warm[4:] == pytest.approx(poly[4:])
    assert warm[:4] / poly[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.slow
def test_self_distillation_at_a_tenth_of_the_budget(real_data, tmp_path):
    """The command of docs/about/experiments.md with 40 steps instead of 400."""
    folders = ["--results", str(tmp_path / "tables"), "--runs", str(tmp_path / "runs")]
    arguments = ["--dataset_dir", str(real_data / "hippocampus"), "--iterations", "40", *folders]
    assert runner.main(["self_distillation", *arguments]) is None
    rows = table(tmp_path / "tables" / "hippocampus" / "hippocampus_40" / "self_distillation.csv")
    assert list(rows) == list(json.loads((EXPERIMENTS / "self_distillation.json").read_text())["rows"])
    assert all((row["runs"], row["cases"]) == ("3", "60") for row in rows.values())
    assert all(0.2 < float(row["dice_anterior"]) < 0.95 for row in rows.values())


def write_subsets(results: Path, variant: str, fold: int, seed: int, dice: dict[str, float]) -> None:
    """The same Dice with each subset and of each region, but 0.2 more of WT with all four."""
    rows = [
        [case, name, region, value + 0.2 * (name == modalities.NAMES[-1] and region == "wt")]
        for case, value in dice.items()
        for name in modalities.NAMES
        for region in ("tc", "wt", "et")
    ]
    modalities.write_csv(
        results / f"{variant}_fold{fold}_seed{seed}.csv", [["case", "modalities", "region", "dice"], *rows]
    )


def test_the_table_of_modalities_pairs_cases(tmp_path):
    write_subsets(tmp_path, "dropout", 0, 0, {"a": 0.3, "b": 0.5})
    write_subsets(tmp_path, "dropout", 0, 1, {"a": 0.4, "b": 0.4})
    write_subsets(tmp_path, "frozen", 0, 0, {"a": 0.5, "b": 0.7})
    write_subsets(tmp_path, "frozen", 0, 1, {"a": 0.4, "b": 0.8})
    write_subsets(tmp_path, "frozen", 1, 0, {"c": 0.6})  # without a base: it counts for the mean alone
    modalities.report(tmp_path)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {(row["variant"], row["modalities"], row["region"]): row for row in csv.DictReader(file)}
    row = rows["frozen", "t1ce", "et"]
    assert (row["seeds"], row["cases"], float(row["dice"])) == ("2", "3", pytest.approx(3.0 / 5, abs=1e-4))
    # a: the mean of 0.2 and 0, b: of 0.2 and 0.4; mean 0.2, standard error 0.1; t of one degree of freedom is 12.706
    assert float(row["difference"]) == pytest.approx(0.2)
    assert float(row["low_of_cases"]) == pytest.approx(0.2 - 1.2706, abs=1e-4)
    assert row["low_of_folds"] == "nan"  # one fold alone
    assert float(rows["dropout", modalities.NAMES[-1], "wt"]["dice"]) == pytest.approx(0.6)
    assert float(rows["dropout", modalities.MEAN, "mean"]["dice"]) == pytest.approx(0.4 + 0.2 / 45, abs=1e-4)
    assert {path.name for path in tmp_path.glob("*.png")} == {"dropout.png", "frozen.png"}


def test_a_fused_network_begins_as_the_plain_one(tmp_path):
    weights = modalities.BUNDLE / "models" / "synthetic.pt"
    plain, fused = (modalities.network_of(weights, fused=of).eval() for of in (False, True))
    image = torch.randn(1, 4, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(plain(image), fused(image))
    state = modalities.mean_state(fused, modalities.network_of(weights, fused=True))
    assert all(torch.equal(weight, state[name]) for name, weight in fused.state_dict().items() if "skips" not in name)
