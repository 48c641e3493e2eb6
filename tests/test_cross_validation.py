"""Folds by one command, and the overlays that use them: ensemble, test-time flips, the small-ET rule, regions."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_workflows import BUNDLE, SMALL, configs, run

from scripts.errors import InputError
from scripts.sources.phantom import write_phantoms
from scripts.training.cross_validation import keep_settings, split_of
from scripts.weights import fold_checkpoints

MODALITIES = ["t1ce", "flair"]
TRAINING = [*SMALL, "--max_epochs", "1", "--val_interval", "1", "--batch_size", "2"]
FOLDS = 3


def cross_validate(phantoms: Path, output: Path) -> list[str]:
    command = [sys.executable, "-m", "scripts", "cross_validation", "--dataset_dir", str(phantoms)]
    command += ["--output_dir", str(output), "--folds", str(FOLDS), "--modalities", str(MODALITIES)]
    return [*command, "--", *TRAINING]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(BUNDLE), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 3, (32, 32, 32))
    return folder


@pytest.fixture(scope="module")
def folds(phantoms, tmp_path_factory) -> Path:
    """Three folds, undisturbed."""
    output = tmp_path_factory.mktemp("cross_validation") / "folds"
    result = subprocess.run(cross_validate(phantoms, output), env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + "".join(path.read_text() for path in output.glob("fold*/log.txt"))
    assert "WT dice" in result.stdout
    return output


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_case_is_scored_by_the_fold_that_left_it_out(folds, phantoms):
    assert [row["case"] for row in table(folds / "metrics.csv")] == [f"phantom_{number:03d}" for number in range(3)]
    for fold in range(FOLDS):
        [held_out] = [row["case"] for row in table(folds / f"fold{fold}" / "metrics.csv")]
        trained_on = json.loads((folds / f"fold{fold}" / "model_final.json").read_text())["cases"]
        assert held_out not in trained_on
        assert len(trained_on) == FOLDS - 1
    assert {row["cases"] for row in table(folds / "summary.csv")} == {"3"}


def test_killed_in_the_third_fold_and_started_again(folds, phantoms, tmp_path):
    output = tmp_path / "folds"
    process = subprocess.Popen(
        cross_validate(phantoms, output), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not (output / "fold2" / "log.txt").exists():
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "metrics.csv").exists()
    done = (output / "fold1" / "model_final.pt").stat().st_mtime_ns

    again = subprocess.run(cross_validate(phantoms, output), env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (output / "fold1" / "model_final.pt").stat().st_mtime_ns == done
    for name in ("metrics.csv", "lesions.csv", "summary.csv"):
        assert (output / name).read_text() == (folds / name).read_text()


def segment(phantoms: Path, output: Path, *arguments: str, overlays: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    names = configs("inference", *overlays)
    paths = ["--dataset_dir", str(phantoms), "--output_dir", str(output), "--modalities", str(MODALITIES)]
    result = run("--config_file", names, *paths, *SMALL, *arguments)
    assert result.returncode == 0, result.stderr
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(output.glob("*.nii.gz"))}


def test_ensemble_flips_and_the_rule_compose(folds, phantoms, tmp_path):
    checkpoints = [str(folds / f"fold{fold}" / "model_final.pt") for fold in range(FOLDS)]
    plain = segment(phantoms, tmp_path / "plain", "--checkpoint", checkpoints[0])
    command = [sys.executable, "-m", "scripts", "small_et", "--metrics", str(folds / "metrics.csv"), "--checkpoint"]
    chosen = subprocess.run([*command, *checkpoints], env=environment(), capture_output=True, text=True)
    assert chosen.returncode == 0, chosen.stderr

    together = ("ensemble", "tta", "small_et")
    masks = segment(phantoms, tmp_path / "all", "--folds_dir", str(folds), overlays=together)
    assert masks.keys() == plain.keys()
    assert any((masks[name] != plain[name]).any() for name in plain)

    scored = configs("train", "evaluate", *together)
    paths = ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path), "--folds_dir", str(folds), "--fold", "0"]
    more = ["--modalities", str(MODALITIES), "--data_list_file_path", str(folds / "datalist.json")]
    arguments = ["evaluating", "--config_file", scored, *paths, *more, *SMALL, "--split", "validation"]
    result = run(*arguments)
    assert result.returncode == 1  # the other fold was trained on it
    assert "are by their IDs of patients that the weights" in result.stderr
    result = run(*arguments, "--allow_training_cases", "true")
    assert result.returncode == 0, result.stderr
    [row] = table(tmp_path / "metrics.csv")
    truth = np.asarray(nib.load(phantoms / row["case"] / f"{row['case']}_seg.nii.gz").dataobj)
    mask = masks[f"{row['case']}_seg.nii.gz"]
    dice = 2 * ((mask > 0) & (truth > 0)).sum() / ((mask > 0).sum() + (truth > 0).sum())
    assert float(row["dice_wt"]) == pytest.approx(dice, abs=1e-3)


def test_the_rule_without_a_chosen_volume(phantoms, folds, tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes((folds / "fold0" / "model_final.pt").read_bytes())
    paths = ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "masks"), "--checkpoint", str(weights)]
    result = run("--config_file", configs("inference", "small_et"), *paths, "--modalities", str(MODALITIES), *SMALL)
    assert result.returncode == 1
    assert "No volume of small ET was chosen" in result.stderr.strip().splitlines()[-1]


def test_no_folds_to_make_an_ensemble_of(phantoms, tmp_path):
    paths = ["--dataset_dir", str(phantoms), "--folds_dir", str(tmp_path)]
    result = run("--config_file", configs("inference", "ensemble"), *paths, *SMALL)
    assert result.returncode == 1
    assert "folds_dir should hold weights" in result.stderr.strip().splitlines()[-1]


def test_a_fold_that_is_not_trained_yet_is_missed_in_an_ensemble(tmp_path):
    (tmp_path / "datalist.json").write_text(json.dumps({"folds": 3}))
    for fold in (0, 2):
        (tmp_path / f"fold{fold}").mkdir()
        (tmp_path / f"fold{fold}" / "model_final.pt").touch()
    with pytest.raises(InputError, match="has none of fold 1"):
        fold_checkpoints(tmp_path)
    (tmp_path / "datalist.json").unlink()  # weights of somebody's own
    assert len(fold_checkpoints(tmp_path)) == 2


def test_patients_of_a_table_are_in_one_fold(phantoms, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\nphantom_000,a\nphantom_001,a\nphantom_002,b\n")
    datalist = split_of(phantoms, tmp_path / "folds", MODALITIES, 2, 0, table)
    fold_of = {entry["case_id"]: entry["fold"] for entry in json.loads(datalist.read_text())["training"]}
    assert fold_of["phantom_000"] == fold_of["phantom_001"] != fold_of["phantom_002"]
    assert split_of(phantoms, tmp_path / "folds", MODALITIES, 2, 0, table) == datalist
    table.write_text("case,patient\nphantom_000,a\nphantom_001,b\nphantom_002,b\n")
    with pytest.raises(InputError, match=r"patient of phantom_001 should be that of .*, a, got b"):
        split_of(phantoms, tmp_path / "folds", MODALITIES, 2, 0, table)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--folds", "2"], "folds should be that of"), (["--fold", "5", "--folds", "3"], "fold should be from 0 to 2")],
)
def test_bad_arguments(folds, phantoms, arguments, sentence):
    command = [sys.executable, "-m", "scripts", "cross_validation", "--dataset_dir", str(phantoms), *arguments]
    command += ["--output_dir", str(folds), "--modalities", str(MODALITIES)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {sentence}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"knobs": ["--max_epochs", "3", "--num_workers", "0"]}, "max_epochs should be that of .*, 2, got 3"),
        ({"knobs": ["--max_epochs", "2", "--roi_size", "[8,8,8]"]}, "roi_size should be that of .*, not given, got"),
        ({"knobs": []}, "max_epochs should be that of .*, 2, got not given"),
        ({"dataset_dir": Path("other")}, "dataset_dir should be that of .*: take another output_dir"),
        ({"config_file": ["train.json", "cpu.json"]}, "config_file should be that of"),
    ],
    ids=["another knob", "a further knob", "a knob less", "another data set", "other configs"],
)
def test_folds_of_other_settings_are_not_mixed(tmp_path, changes, sentence):
    first = {"dataset_dir": tmp_path, "config_file": ["train.json"], "knobs": ["--max_epochs", "2"]}
    keep_settings(tmp_path, **first)
    keep_settings(tmp_path, **first | {"knobs": ["--num_workers", "1", "--max_epochs", "2"]})
    with pytest.raises(InputError, match=sentence):
        keep_settings(tmp_path, **first | changes)


def test_folds_of_an_overlay_that_changed_are_not_mixed(tmp_path):
    overlay = tmp_path / "plan.json"
    overlay.write_text('{"max_epochs": 100}')
    first = {"dataset_dir": tmp_path, "config_file": ["train.json", str(overlay)], "knobs": []}
    for _ in range(2):
        keep_settings(tmp_path, **first)
    overlay.write_text('{"max_epochs": 300}')
    with pytest.raises(InputError, match=r"The content of \S+plan\.json should be that of \S+settings\.json"):
        keep_settings(tmp_path, **first)


def test_regions_by_sigmoid_from_training_to_masks(phantoms, tmp_path):
    paths = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    paths += ["--modalities", str(MODALITIES)]
    result = run("training", "--config_file", configs("train", "regions"), *paths, *TRAINING)
    assert result.returncode == 0, result.stderr
    result = run("evaluating", "--config_file", configs("train", "evaluate", "regions"), *paths, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "dice_et" in table(tmp_path / "metrics.csv")[0]

    arguments = ["--checkpoint", str(tmp_path / "model.pt")]
    masks = segment(phantoms, tmp_path / "masks", *arguments, overlays=("regions_inference", "tta"))
    assert len(masks) == 3
    assert all(set(np.unique(mask)) <= {0, 1, 2, 3} for mask in masks.values())
