"""A plan for a data set: what its headers and voxels say, each number with its reason, and an overlay that works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from test_workflows import BUNDLE, SMALL, configs, run

from scripts.__main__ import main
from scripts.errors import InputError
from scripts.training.plan import check_classes, ordered_axes, plan_crop, plan_spacing
from scripts.training.schedule import Speed, bytes_of, fit_memory, plan_schedule, plan_validations

TRAIN = str(BUNDLE / "configs" / "train.json")
SHAPE = np.array([[256, 256, 36]] * 4)
LABELS = {"background": 0, "liver": 1, "spleen": 2}


@pytest.mark.parametrize(
    ("spacing_mm", "knob", "target", "said"),
    [
        ([[1.25, 1.25, 7.7], [1.3, 1.25, 7.7]], [-1, -1, -1], [1.275, 1.25, 7.7], "within 10 %"),
        ([[0.6, 0.6, 5.0], [0.8, 0.8, 5.0], [0.9, 0.9, 5.2]], [0.8, 0.8, -1], [0.8, 0.8, 5.0], "The median of 3"),
        # nnU-Net: the 10th percentile of 3, 5, 5, 5, between the first two at 0.3 of the way: 3.6 mm.
        ([[1, 1, 3], [1, 1, 5], [1, 1, 5], [1, 1, 5]], [-1, -1, 3.6], [1, 1, 3.6], "The slices are thick"),
    ],
    ids=["as it is", "median", "thick slices"],
)
def test_spacing(spacing_mm, knob, target, said):
    wanted, of_most, reason = plan_spacing(np.array(spacing_mm, float), SHAPE[: len(spacing_mm)])
    assert wanted == pytest.approx(knob)
    assert of_most.tolist() == pytest.approx(target)
    assert said in reason


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ([139, 170, 137], [128, 128, 128]),  # BraTS, skull-stripped
        ([256, 249, 35], [128, 128, 32]),  # CHAOS
        ([35, 49, 36], [32, 48, 32]),  # hippocampus
        ([10, 100, 300], [16, 96, 128]),
    ],
    ids=["BraTS", "CHAOS", "hippocampus", "thin"],
)
def test_the_crop_is_that_of_the_papers_and_of_the_recipes(box, crop):
    assert plan_crop(np.array([box])) == crop


def test_what_does_not_fit_gets_smaller():
    assert fit_memory([128, 128, 32], 4, bytes_of([128, 128, 32], 4)) == ([128, 128, 32], 4)
    assert fit_memory([128, 128, 32], 4, bytes_of([128, 128, 32], 2)) == ([128, 128, 32], 2)
    assert fit_memory([128, 128, 32], 4, bytes_of([64, 128, 32], 2)) == ([64, 128, 32], 2)
    assert fit_memory([128, 128, 48], 2, bytes_of([16, 16, 16], 1)) == ([16, 16, 16], 1)
    with pytest.raises(InputError, match=r"A training needs 0\.4 GiB of memory or more, 0\.0 GiB are free"):
        fit_memory([32, 32, 32], 2, 1000.0)


@pytest.mark.parametrize(
    ("num_cases", "per_case", "most_crops", "hours", "expected"),
    [
        (300, 1, 4, None, (4, 1000, 10, 75)),  # the paper's, on BraTS
        (13, 1, 4, None, (4, 1000, 10, 4)),  # few steps, but no hours that would hold more small ones
        (1000, 1, 2, None, (2, 500, 10, 500)),  # nnU-Net's 250 000 steps
        (300, 1, 4, 50, (4, 600, 10, 75)),  # a step of four takes 4 s: 45 000 of them
        (300, 2, 4, 50, (4, 300, 10, 150)),  # two crops of each case
        (80, 1, 4, 10, (2, 450, 10, 40)),  # 9000 steps of four would fit, or 18 000 of two
        (80, 1, 1, 10, (1, 450, 10, 80)),
        (80, 1, 2, 0.5, (2, 22 - 1, 7, 40)),  # 22 epochs; after 21 the last of three validations
    ],
    ids=["paper", "few cases", "many cases", "hours", "crops on classes", "few hours", "no memory", "validated last"],
)
def test_batch_and_epochs(num_cases, per_case, most_crops, hours, expected):
    schedule = plan_schedule(num_cases, per_case, most_crops, Speed(of_crop=1.0, of_update=0.0, how=""), hours)
    assert schedule[:4] == expected


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, (1, 1)), (10, (10, 10)), (13, (12, 6)), (15, (15, 5)), (97, (96, 8))]
)
def test_the_last_epoch_is_validated(epochs, expected):
    assert plan_validations(epochs) == expected


def test_a_class_that_no_case_has(caplog):
    names = ["background", "liver", "spleen"]
    check_classes([{1: np.zeros(3)}, {}], names)
    assert "No label of 2 cases holds spleen: it will not be learned." in caplog.text


def test_classes_that_keep_their_order_are_not_flipped():
    generator = np.random.default_rng(0)
    centers = [{1: generator.uniform(0, 9, 3), 2: generator.uniform([0, 20, 0], [9, 29, 9])} for _ in range(20)]
    names = ["background", "liver", "spleen"]
    assert ordered_axes(centers, names) == {1: "spleen lies further forward than liver in 20 of 20 cases"}
    assert ordered_axes(centers[:9], names) == {}  # chance would do


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Six CTs in nnU-Net's layout, two of them with slices of another thickness: a liver at 60, a spleen at 100 HU."""
    root = tmp_path_factory.mktemp("Dataset007_Tiny")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for number in range(6):
        label = np.zeros((40, 36, 20), np.uint8)
        label[8:20, 10:24, 4:14], label[26:32, 20:28, 6:12] = 1, 2
        generator = np.random.default_rng(number)
        image = generator.normal(-100, 10, label.shape) + 160 * (label == 1) + 200 * (label == 2)
        affine = np.diag([-1.0, -1.0, 1.5 if number < 2 else 2.0, 1.0])
        for folder, name, array in (("imagesTr", "_0000", image.astype(np.int16)), ("labelsTr", "", label)):
            nib.save(nib.Nifti1Image(array, affine), root / folder / f"case_{number}{name}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def planned(scans, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("plan") / "plan.json"
    assert main(["plan", "--dataset_dir", str(scans), "--output", str(output)]) is None
    return output


def test_a_plan_says_why(planned):
    plan = json.loads(planned.read_text())
    reasons = plan.pop("_desc_")
    assert {name for name in plan if not name.startswith("+")} | {"plan"} == set(reasons)
    assert plan["modalities"] == ["ct"]
    assert plan["label_convention"] == {"labels": LABELS}
    assert plan["spacing_mm"] == [-1, -1, 2.0]
    assert plan["invert_logits"] is True
    assert plan["roi_size"] == [32, 32, 16]
    numbers = plan["intensities"]["ct"]
    # 12 * 14 * 10 voxels at 60 HU, 6 * 8 * 6 at 100, with a spread of 10: their mean is 65.9.
    assert numbers["mean"] == pytest.approx((1680 * 60 + 288 * 100) / 1968, abs=1)
    assert 30 < numbers["low"] < 45
    assert 105 < numbers["high"] < 125
    assert "40 x 36 x 20" in reasons["stretch"]
    assert "hours" in reasons["max_epochs"]


def test_the_overlay_is_one_of_train_json(planned):
    parser = ConfigParser()
    parser.read_config([TRAIN, str(planned)])
    assert parser.get_parsed_content("recorded#label_convention") == {"labels": LABELS}
    assert parser.get_parsed_content("normalize").numbers[0]["low"] > 30


def test_plan_train_score_and_segment(scans, planned, tmp_path):
    paths = ["--dataset_dir", str(scans), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path / "eval")]
    small = [*SMALL[2:], "--max_epochs", "1", "--roi_size", "[16,16,16]"]
    overlay = str([TRAIN, str(planned)])
    result = run("training", "--config_file", overlay, *paths, *small)
    assert result.returncode == 0, result.stderr
    settings = json.loads((tmp_path / "model.json").read_text())["settings"]
    assert settings["label_convention"] == {"labels": LABELS}
    assert settings["intensities"] == json.loads(planned.read_text())["intensities"]

    result = run("evaluating", "--config_file", configs("train", "evaluate"), *paths, "--metrics", "['dice']")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "eval" / "metrics.csv").read_text().startswith("case,dice_liver,dice_spleen\n")

    # The weights alone say what they need; the data set with its dataset.json is elsewhere.
    elsewhere = tmp_path / "new"
    elsewhere.mkdir()
    (elsewhere / "a_ct.nii.gz").write_bytes((scans / "imagesTr" / "case_0_0000.nii.gz").read_bytes())
    weights = ["--checkpoint", str(tmp_path / "model.pt"), "--output_dir", str(tmp_path / "masks")]
    result = run("--config_file", configs("inference"), "--dataset_dir", str(elsewhere), *weights, "--num_workers", "0")
    assert result.returncode == 0, result.stderr
    mask = nib.load(tmp_path / "masks" / "a_seg.nii.gz")
    assert mask.shape == (40, 36, 20)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (None, [], "{root} should have a dataset.json that names the channels, or files such as <case>_t1.nii.gz"),
        (None, ["--modalities", "ct"], "What the values of labels mean is not guessed, and {root}/dataset.json is not"),
        (
            {"channel_names": {"0": "CT", "1": "ct"}, "labels": LABELS},
            [],
            "{root}/dataset.json should name each channel once, it names ct, ct.",
        ),
        (
            {"channel_names": {"0": "CT", "2": "PET"}, "labels": LABELS},
            [],
            '{root}/dataset.json should name the channels as {{"0": "FLAIR", ..}}, it does not: it has',
        ),
        (
            {"channel_names": {"0": "$run"}, "labels": LABELS},
            [],
            "dataset.json should name channels by letters and digits, it names one '$run'.",
        ),
        (
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}},
            [],
            "allows the values 0, 1, the label holds 2.",
        ),
        (
            {"channel_names": ["CT"], "labels": LABELS},
            [],
            '{root}/dataset.json should name the channels as {{"0": "FLAIR", ..}}, it does not: it has ["CT"].',
        ),
        (
            {"channel_names": {"0": "MRI"}, "labels": {"background": [0, 1, 2], "liver": 5}},
            [],
            "The labels should hold liver, those of 1 cases are empty.",
        ),
        ({"channel_names": {"0": "CT"}, "labels": LABELS}, ["--hours", "1e-9"], "hours should be "),
        ({"channel_names": {"0": "CT"}, "labels": LABELS}, ["--hours", "nan"], "hours should be above 0, got nan."),
        ({"channel_names": {"0": "CT"}, "labels": LABELS}, ["--memory_gib", "0"], "memory_gib should be above 0"),
        ({"channel_names": {"0": "CT"}, "labels": LABELS}, ["--fold", "1"], "fold belongs to a datalist with folds"),
        (
            {"channel_names": {"0": "CT"}, "labels": LABELS},
            ["--modalities", "['ct','ct']"],
            "modalities should be different ones, got ct, ct.",
        ),
    ],
    ids=[
        *("no channels", "no labels", "doubled channel", "missing channel", "code", "beyond labels", "list", "empty"),
        *("no time", "no hours", "no memory", "no folds", "modality twice"),
    ],
)
def test_what_keeps_a_plan_from_being_made(tmp_path, content, more, sentence):
    root = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    ending = "" if content is None or len(content["channel_names"]) > 1 else "_0000"
    for number in range(3):
        label = np.zeros((16, 16, 16), np.uint8)
        label[:4], label[4:6] = 1, 2
        nib.save(
            nib.Nifti1Image(label.astype(np.int16) + number, np.eye(4)), root / f"imagesTr/c{number}{ending}.nii.gz"
        )
        nib.save(nib.Nifti1Image(label, np.eye(4)), root / f"labelsTr/c{number}.nii.gz")
    if content is not None:
        (root / "dataset.json").write_text(json.dumps(content))
    error = main(["plan", "--dataset_dir", str(root), "--output", str(tmp_path / "plan.json"), *more])
    assert error is not None
    assert sentence.format(root=root) in str(error)
    assert not (tmp_path / "plan.json").exists()


def test_a_plan_of_slices(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": LABELS}))
    for number in range(3):
        nib.save(nib.Nifti1Image(np.ones((48, 48), np.int16), np.eye(4)), tmp_path / f"imagesTr/c{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(np.ones((48, 48), np.uint8), np.eye(4)), tmp_path / f"labelsTr/c{number}.nii.gz")
    error = str(main(["plan", "--dataset_dir", str(tmp_path), "--output", str(tmp_path / "plan.json")]))
    assert re.search(r"Case c\d: .*_0000\.nii\.gz cannot be read .*should have 3 axes, its shape is \[48, 48\]", error)


def test_a_plan_for_an_empty_folder_and_one_that_is_there(scans, tmp_path):
    error = main(["plan", "--dataset_dir", str(tmp_path), "--output", str(tmp_path / "plan.json")])
    assert error == f"Error: dataset_dir should hold NIfTI files such as <case>_flair.nii.gz, {tmp_path} holds none."
    (tmp_path / "mine.json").write_text("{}")
    error = main(["plan", "--dataset_dir", str(scans), "--output", str(tmp_path / "mine.json")])
    assert error == f"Error: output should be a new file, {tmp_path / 'mine.json'} exists."
