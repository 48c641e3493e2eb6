"""The workflows as users run them, `python -m monai.bundle run ...`, on phantoms and a small network."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.networks import MISSU
from scripts.sources.phantom import write_phantoms

BUNDLE = Path(__file__).parents[1] / "bundle"
REGIONS = {"tc": (1, 3), "wt": (1, 2, 3), "et": (3,)}
SMALL_NETWORK = {"hidden_size": 64, "mlp_dim": 64, "num_layers": 1}
SMALL = ["--roi_size", "[16,16,16]", "--num_workers", "0"] + [
    argument for name, value in SMALL_NETWORK.items() for argument in (f"--network_def#{name}", str(value))
]


def run(*arguments: str, cwd: Path = BUNDLE, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A bundle command in a process of its own."""
    return subprocess.run(
        [sys.executable, *(launcher or ("-m",)), "monai.bundle", "run", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def configs(*names: str) -> str:
    return str([str(BUNDLE / "configs" / f"{name}.json") for name in names])


def training(phantoms: Path, output: Path, *more: str) -> list[str]:
    paths = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(output / "models"), "--output_dir", str(output)]
    knobs = ["--max_epochs", "2", "--val_interval", "1", "--batch_size", "2", "--distillation_weight", "0.3"]
    return [*paths, *SMALL, *knobs, *more]


def small_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MISSU(img_size=16, **SMALL_NETWORK).state_dict()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Five cases: three to train on, one each to validate and to test."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 5, (32, 40, 32))
    return folder


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("trained")
    return output, run("training", "--config_file", configs("train"), *training(phantoms, output))


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(small_weights(), path)
    return path


def test_training_saves_the_inference_network_alone(trained):
    output, result = trained
    assert result.returncode == 0, result.stderr
    for name in ("model.pt", "model_final.pt"):
        weights = torch.load(output / "models" / name, weights_only=True)
        MISSU(img_size=16, **SMALL_NETWORK).load_state_dict(weights)  # strict: all keys, no other
    names = ["checkpoint_iteration=2.pt", "checkpoint_iteration=4.pt"]
    names += ["model.json", "model.pt", "model_final.json", "model_final.pt"]
    assert sorted(path.name for path in (output / "models").iterdir()) == names


def test_the_weights_have_a_record_of_what_they_come_from(trained, phantoms):
    path = trained[0] / "models" / "model.pt"
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["dataset"] == phantoms.name
    assert len(record["cases"]) == 3
    assert set(record["cases"]) <= {f"phantom_{i:03d}" for i in range(5)}
    assert record["settings"]["label_convention"] == "brats2018"
    assert record["settings"]["modalities"] == ["t1", "t1ce", "t2", "flair"]


def test_inference_says_where_the_weights_come_from_and_checks_them(trained, phantoms, tmp_path):
    weights = trained[0] / "models" / "model.pt"
    result = segment(phantoms, weights, tmp_path / "masks")
    assert f"trained on {phantoms.name} (3 cases)" in result.stdout
    copy = shutil.copytree(weights.parent, tmp_path / "models")
    torch.save(small_weights(), copy / "model.pt")
    result = segment(phantoms, copy / "model.pt", tmp_path / "others")
    assert result.returncode != 0
    assert "the sha256 differs" in result.stderr.strip().splitlines()[-1]


def test_training_shows_the_loss_terms_apart(trained):
    output, result = trained
    for term in ("segmentation_loss", "distillation_loss"):
        assert result.stdout.count(f"{term}: ") == 4  # 2 epochs of 3 cases in batches of 2
    tags = []
    for path in output.glob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(path))
        accumulator.Reload()
        tags += accumulator.Tags()["scalars"]
    assert {"loss", "segmentation_loss", "distillation_loss", "dice"} <= set(tags)


def test_a_teacher_of_all_modalities_leaves_a_network_for_any(phantoms, trained, tmp_path):
    """Trained by the overlay, used and scored without T1ce; the mask and the scores say so."""
    teacher = trained[0] / "models" / "model_final.pt"
    more = ["--max_epochs", "1", "--distillation_weight", "1.0", "--teacher", str(teacher)]
    taught = run("training", "--config_file", configs("train", "teacher"), *training(phantoms, tmp_path, *more))
    assert taught.returncode == 0, taught.stderr
    assert taught.stdout.count("distillation_loss: ") == 2
    path = tmp_path / "models" / "model_final.pt"
    MISSU(img_size=16, **SMALL_NETWORK).load_state_dict(torch.load(path, weights_only=True))  # no teacher in it
    settings = json.loads(path.with_suffix(".json").read_text())["settings"]
    assert settings["modality_dropout"] == 0.75
    assert settings["teacher"]["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()

    some = ["--modalities", "['t1','t2','flair']"]
    segmented = segment(phantoms, path, tmp_path / "masks", *some)
    assert segmented.returncode == 0, segmented.stderr
    assert "Without t1ce" in segmented.stdout + segmented.stderr
    mask = nib.load(tmp_path / "masks" / "phantom_000_seg.nii.gz")
    assert mask.header["descrip"] == b"without t1ce"
    assert json.loads((tmp_path / "masks" / "phantom_000_seg.json").read_text())["missing"] == ["t1ce"]

    scores = {}
    for name, chosen in (("some", some), ("all", [])):
        paths = ["--dataset_dir", str(phantoms), "--checkpoint", str(path), "--output_dir", str(tmp_path / name)]
        scored = run("evaluating", "--config_file", configs("train", "evaluate"), *paths, "--num_workers", "0", *chosen)
        assert scored.returncode == 0, scored.stderr
        scores[name] = (tmp_path / name / "metrics.csv").read_text()
    assert scores["some"] != scores["all"]
    assert json.loads((tmp_path / "some" / "evaluation.json").read_text())["missing"] == ["t1ce"]
    assert json.loads((tmp_path / "all" / "evaluation.json").read_text())["missing"] == []


def test_no_bar_gets_into_a_log(trained):
    _, result = trained
    assert "\r" not in result.stdout + result.stderr
    assert "%|" not in result.stdout + result.stderr


def test_plain_run_trains_too_and_the_rate_decays_per_iteration(phantoms, tmp_path):
    # The rate after the last but one of 2 iterations of 1 epoch: (1 - 1/2)^0.9.
    probe = "--train#handlers#0#print_lr"
    arguments = training(phantoms, tmp_path, "--max_epochs", "1", "--learning_rate", "0.1", probe, "True")
    arguments += ["--distillation_weight", "0"]
    result = run("--config_file", configs("train"), *arguments)
    assert result.returncode == 0, result.stderr
    rates = [line.split()[-1] for line in result.stdout.splitlines() if "Current learning rate" in line]
    assert [float(rate) for rate in rates] == pytest.approx([0.1 * 0.5**0.9, 0.0])
    assert "distillation_loss" not in result.stdout


def segment(phantoms: Path, weights: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    paths = ["--dataset_dir", phantoms, "--checkpoint", weights, "--output_dir", output]
    return run("--config_file", configs("inference"), *paths, *SMALL, *more)


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_masks_have_the_geometry_of_the_input(phantoms, weights, tmp_path):
    result = segment(phantoms, weights, tmp_path / "masks")
    assert result.returncode == 0, result.stderr
    names = [f"phantom_{i:03d}_seg.nii.gz" for i in range(5)]
    records = [name.replace(".nii.gz", ".json") for name in names]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == sorted(names + records)
    for i, name in enumerate(names):
        mask = nib.load(tmp_path / "masks" / name)
        scan = nib.load(phantoms / f"phantom_{i:03d}" / f"phantom_{i:03d}_flair.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine)
        assert mask.get_data_dtype() == np.uint8
        air = np.all([read(path) == 0 for path in sorted((phantoms / f"phantom_{i:03d}").glob("*_t*.nii.gz"))], axis=0)
        box = [slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(~air)]
        outside = np.asarray(mask.dataobj).copy()
        outside[tuple(box)] = 0
        assert not outside.any()


def test_label_convention_decides_the_values(phantoms, weights, tmp_path):
    for convention in ("brats2018", "brats2023"):
        assert segment(phantoms, weights, tmp_path / convention, "--label_convention", convention).returncode == 0
    old, new = (read(tmp_path / name / "phantom_000_seg.nii.gz") for name in ("brats2018", "brats2023"))
    assert set(np.unique(new)) <= {0, 1, 2, 3}
    assert len(np.unique(new)) > 1
    np.testing.assert_array_equal(old, np.where(new == 3, 4, new))


def test_a_convention_with_a_class_of_its_own_trains_scores_and_segments(phantoms, tmp_path):
    """Phantoms with a cavity, 4 in BraTS 2024: one knob for all, and weights of four classes do not fit."""
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    for path in data.glob("*/*_seg.nii.gz"):
        label = read(path)
        label = np.where(label == 4, 3, label).astype(np.uint8)
        label[:2, :2, :2] = 4
        nib.save(nib.Nifti1Image(label, nib.load(path).affine), path)
    convention = ["--label_convention", "brats2024_gli"]
    arguments = training(data, tmp_path, "--max_epochs", "1", *convention)
    result = run("training", "--config_file", configs("train"), *arguments)
    assert result.returncode == 0, result.stderr
    weights = tmp_path / "models" / "model.pt"
    paths = ["--dataset_dir", data, "--checkpoint", weights, "--output_dir", tmp_path / "eval"]
    result = run("evaluating", "--config_file", configs("train", "evaluate"), *paths, *SMALL, *convention)
    assert result.returncode == 0, result.stderr
    assert "dice_rc" in (tmp_path / "eval" / "metrics.csv").read_text().splitlines()[0].split(",")
    result = segment(data, weights, tmp_path / "masks", *convention)
    assert result.returncode == 0, result.stderr
    assert set(np.unique(read(tmp_path / "masks" / "phantom_000_seg.nii.gz"))) <= {0, 1, 2, 3, 4}
    result = segment(data, weights, tmp_path / "others", "--label_convention", "brats2023")
    assert "label_convention should have the regions of brats2024_gli" in result.stderr.strip().splitlines()[-1]


def test_an_image_turned_in_memory_gives_the_same_mask(phantoms, weights, tmp_path):
    """Another storage order of the same head: what is where in the patient stays the same."""
    turned = tmp_path / "turned" / "phantom_000"
    turned.mkdir(parents=True)
    for path in (phantoms / "phantom_000").iterdir():
        nib.save(nib.as_closest_canonical(nib.load(path)), turned / path.name)
    shutil.copytree(phantoms / "phantom_000", tmp_path / "plain" / "phantom_000")
    masks = []
    for name in ("plain", "turned"):
        assert segment(tmp_path / name, weights, tmp_path / f"{name}_mask").returncode == 0
        masks.append(nib.as_closest_canonical(nib.load(tmp_path / f"{name}_mask" / "phantom_000_seg.nii.gz")))
    np.testing.assert_array_equal(masks[0].dataobj, masks[1].dataobj)
    np.testing.assert_allclose(masks[0].affine, masks[1].affine)


def test_evaluation_scores_the_mask_that_inference_saves(phantoms, weights, tmp_path):
    paths = ["--dataset_dir", phantoms, "--checkpoint", weights, "--output_dir", tmp_path / "eval"]
    result = run("evaluating", "--config_file", configs("train", "evaluate"), *paths, *SMALL)
    assert result.returncode == 0, result.stderr
    [row] = csv.DictReader((tmp_path / "eval" / "metrics.csv").read_text().splitlines())
    assert segment(phantoms, weights, tmp_path / "masks").returncode == 0
    prediction = read(tmp_path / "masks" / f"{row['case']}_seg.nii.gz")
    label = read(phantoms / row["case"] / f"{row['case']}_seg.nii.gz")
    truth = np.where(label == 4, 3, label)
    for region, classes in REGIONS.items():
        a, b = np.isin(prediction, classes), np.isin(truth, classes)
        assert float(row[f"dice_{region}"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-4)
        assert float(row[f"hd95_mm_{region}"]) >= 0
    assert all(region.upper() in result.stdout for region in REGIONS)
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {
        "evaluation.json",
        "lesions.csv",
        "metrics.csv",
        "summary.csv",
    }


def test_one_bad_case_does_not_keep_the_others(phantoms, weights, tmp_path):
    mixed = tmp_path / "mixed"
    for i in range(3):
        shutil.copytree(phantoms / f"phantom_{i:03d}", mixed / f"phantom_{i:03d}")
    bad = mixed / "phantom_001" / "phantom_001_t2.nii.gz"
    bad.write_bytes(bad.read_bytes()[:1000])
    (mixed / "phantom_002" / "phantom_002_flair.nii.gz").unlink()
    result = segment(mixed, weights, tmp_path / "masks")
    assert result.returncode != 0
    assert [path.name for path in (tmp_path / "masks").glob("*.nii.gz")] == ["phantom_000_seg.nii.gz"]
    count, first, second = result.stderr.strip().splitlines()[-3:]
    assert "2 of 3 cases failed" in count
    assert first.startswith("Case phantom_001")
    assert str(bad) in first
    assert second.startswith("Case phantom_002: flair is missing")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--dataset_dir", "/no/such/folder"],
            "dataset_dir should be a folder of cases, /no/such/folder is not there.",
        ),
        (["--checkpoint", "/no/model.pt"], "The weights /no/model.pt are not there"),
        (["--modalities", "['flair']"], "are of another network"),
        (["--roi_size", "[20,16,16]"], "img_size should be a positive multiple of 8 on each axis, H is 20."),
        (["--label_convention", "brats"], "label_convention should be one of "),
    ],
    ids=["dataset_dir", "no weights", "other weights", "roi_size", "convention"],
)
def test_bad_input_ends_inference_with_one_sentence(phantoms, weights, tmp_path, arguments, sentence):
    result = segment(phantoms, weights, tmp_path / "masks", *arguments)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert sentence in result.stderr.strip().splitlines()[-1]
    assert not list((tmp_path / "masks").glob("*"))


def test_a_bad_label_ends_training_with_one_sentence(phantoms, tmp_path):
    """In a worker process, where the error reaches the main process as text."""
    bad = tmp_path / "bad"
    shutil.copytree(phantoms, bad)
    for path in bad.glob("*/*_seg.nii.gz"):
        nib.save(nib.Nifti1Image(np.full((32, 40, 32), 3, np.uint8), nib.load(path).affine), path)
    result = run("training", "--config_file", configs("train"), *training(bad, tmp_path, "--num_workers", "1"))
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "Case phantom_" in last
    assert "_seg.nii.gz" in last
    assert "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds 3" in last
    assert not list((tmp_path / "models").iterdir())


def test_the_bundle_runs_from_elsewhere(phantoms, weights, tmp_path):
    root = ["--bundle_root", BUNDLE]
    paths = ["--dataset_dir", phantoms, "--checkpoint", weights, "--output_dir", "masks"]
    result = run("--config_file", BUNDLE / "configs" / "inference.json", *root, *paths, *SMALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 5
    output = ["--ckpt_dir", "models", "--output_dir", "logs", "--max_epochs", "1", "--val_interval", "1"]
    more = ["--dataset_dir", phantoms, *output, "--batch_size", "3"]
    result = run("training", "--config_file", BUNDLE / "configs" / "train.json", *root, *more, *SMALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "models" / "model.pt").is_file()


def test_two_processes_train_log_once_and_save_one_checkpoint(phantoms, tmp_path, trained):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    arguments = training(phantoms, tmp_path, "--batch_size", "1")
    result = run("training", "--config_file", configs("train", "multi_gpu_train"), *arguments, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Epoch: 1/2, Iter: 1/2") == 1
    one_process = torch.load(trained[0] / "models" / "model.pt", weights_only=True)
    two_processes = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert two_processes.keys() == one_process.keys()
    evaluate = ["--dataset_dir", phantoms, "--checkpoint", tmp_path / "models" / "model.pt", "--output_dir", tmp_path]
    names = ("train", "evaluate", "multi_gpu_evaluate")
    # Three cases and two processes: one process has two, and each case is in the table once.
    split = ["--split", "training", "--allow_training_cases", "true"]
    result = run("evaluating", "--config_file", configs(*names), *evaluate, *SMALL, *split, launcher=launcher)
    assert result.returncode == 0, result.stderr
    alone = tmp_path / "alone"
    result = run(
        "evaluating", "--config_file", configs("train", "evaluate"), *evaluate, "--output_dir", alone, *SMALL, *split
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
