"""Probabilities: what they are, what is expected of a mask by them, and a temperature that makes them likeliest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.special import expit
from test_segment import MODALITIES, flags, write_weights

from scripts.__main__ import main
from scripts.data import RegionProbabilitiesd
from scripts.evaluation.calibration import (
    LOGIT_EDGES,
    Calibration,
    expected_dice,
    fit_temperature,
    made_with,
    rank_correlation,
)
from scripts.weights import temperature_of


def test_expected_dice_by_hand():
    mask = np.array([True, True, False, False])
    assert expected_dice(mask, np.array([1.0, 0.5, 0.5, 0])) == pytest.approx(2 * 1.5 / (2 + 2))
    assert expected_dice(mask, mask.astype(float)) == 1
    assert expected_dice(~mask & mask, np.zeros(4)) == 1
    assert expected_dice(~mask & mask, np.ones(4)) == 0


def test_probabilities_of_regions():
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]).reshape(4, 2, 1, 1)
    chosen = RegionProbabilitiesd("pred", "probabilities", "brats2018", True, {})
    found = chosen({"pred": MetaTensor(logits)})["probabilities"]
    softmax = logits.softmax(0)
    expected = torch.stack([softmax[[1, 3]].sum(0), softmax[[1, 2, 3]].sum(0), softmax[3]])  # tc, wt, et
    assert torch.allclose(found[:, 0].as_tensor(), expected[:, 0])
    assert not found[:, 1].any()  # around a crop
    of_regions = RegionProbabilitiesd("pred", "probabilities", "brats2018", False, {"wt": 2.0})
    found = of_regions({"pred": MetaTensor(logits[:3])})["probabilities"][:, 0, 0, 0]
    assert found.tolist() == pytest.approx(expit([2, 0.5, 0]).tolist())


def test_the_temperature_that_made_the_truth_is_found():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 4, 200_000)
    truth = generator.random(logits.shape) < expit(logits / 2)
    histograms = np.array([np.histogram(logits[truth == side], LOGIT_EDGES)[0] for side in (False, True)])
    assert fit_temperature(histograms) == pytest.approx(2, rel=0.03)


def test_ranks_over_patients():
    numbers = np.arange(8.0)
    assert rank_correlation(numbers, numbers**2, list("abcdefgh")) == pytest.approx((1, 1, 1))
    rho, low, high = rank_correlation(numbers, np.array([0, 1, 2, 3, 4, 6, 5, 7.0]), list("abcdefgh"))
    assert low < rho < high
    assert np.isnan(rank_correlation(numbers, numbers, list("aabbccdd"))[1])  # too few patients


def test_errors_are_less_at_the_temperature_of_the_others(tmp_path):
    generator = np.random.default_rng(0)
    calibration = Calibration(["wt"])
    for case in range(6):
        logits = generator.normal(-1, 4, (1, 20_000))
        calibration.add(f"case_{case}", expit(logits), generator.random(logits.shape) < expit(logits / 3))
    heading, row = calibration.report({f"case_{case}": f"case_{case}" for case in range(6)}, tmp_path)
    of = dict(zip(heading, row))
    assert float(of["temperature"]) == pytest.approx(3, rel=0.1)
    for name in ("ece", "ace", "mce"):
        assert float(of[f"{name}_at_temperature"]) < 0.5 * float(of[name])
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.csv", "cases.csv", "reliability.png"}


@pytest.mark.parametrize("invert_logits", [True, False])
def test_probabilities_are_kept_on_demand(tiny_case, tmp_path, invert_logits):
    weights = write_weights(tmp_path / "weights.pt", invert_logits=invert_logits, temperature={"wt": 3.0})
    out = tmp_path / "out"
    written = {"--output": out / "m.nii.gz", "--probabilities": out / "p.nii.gz", "--report": out / "m.html"}
    arguments = ["--checkpoint", str(weights), *flags(tiny_case, *MODALITIES)]
    assert main(["segment", *arguments, *(str(each) for pair in written.items() for each in pair)]) is None
    kept, mask = nib.load(out / "p.nii.gz"), nib.load(out / "m.nii.gz")
    assert made_with({"m": out / "p.nii.gz"}) == {"wt": 3.0}
    assert kept.shape == (*mask.shape, 3)
    assert np.allclose(kept.affine, mask.affine)
    _, wt, _ = np.moveaxis(kept.get_fdata(), -1, 0)
    assert not wt[0].any()  # air
    brain = nib.load(tiny_case["flair"]).get_fdata() > 0
    assert 0.2 < wt[brain].mean() < 0.95  # random weights, and a temperature
    tumor = np.asarray(mask.dataobj) > 0
    # Below a half the background is the likeliest class; masks inverted by the nearest voxel differ at borders.
    assert (tumor & (wt < 0.5))[brain].mean() <= (0 if invert_logits else 0.15)
    assert tumor[brain].any()
    told = json.loads((out / "m.json").read_text())["expected_dice"]
    assert told["wt"] == pytest.approx(2 * wt[tumor].sum() / (tumor.sum() + wt.sum()), abs=1e-3)


def likely_case(files: dict[str, Path], path: Path, slope: float) -> None:
    """Probabilities that are right more often than they say."""
    label = nib.load(files["seg"])
    classes = np.asarray(label.dataobj)
    generator = np.random.default_rng(1)
    channels = []
    for of in ((1, 4), (1, 2, 4), (4,)):
        logits = np.where(np.isin(classes, of), 1.0, -1.0) + generator.normal(0, 0.3, classes.shape)
        channels.append(expit(slope * logits))
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.stack(channels, -1).astype(np.float32), label.affine), path)


def test_the_command_keeps_a_temperature(write_case, tmp_path, capsys):
    weights = write_weights(tmp_path / "weights.pt")
    for number in range(2):
        files = write_case(tmp_path / "data" / f"case_{number}", f"case_{number}")
        likely_case(files, tmp_path / "probabilities" / f"case_{number}.nii.gz", 2.0)
    arguments = ["--dataset_dir", tmp_path / "data", "--probabilities_dir", tmp_path / "probabilities"]
    arguments += ["--checkpoint", weights, "--output_dir", tmp_path / "out", "--keep"]
    assert main(["calibration", *map(str, arguments)]) is None
    kept = temperature_of(str(weights))
    assert all(0.1 <= kept[name] < 0.5 for name in ("tc", "wt", "et"))  # all were right
    assert temperature_of([str(weights), str(weights)]) == {}
    assert main(["calibration", *map(str, arguments)]) is None  # by the same probabilities once more
    assert temperature_of(str(weights)) == kept
    with open(tmp_path / "out" / "calibration.csv") as file:
        assert [row["spearman"] for row in csv.DictReader(file)] == ["nan"] * 3  # both cases are alike
    assert "Kept in the record" in capsys.readouterr().out
    (tmp_path / "data" / "case_1" / "case_1_seg.nii.gz").rename(tmp_path / "kept.nii.gz")
    assert "Case case_1: the label is missing" in str(main(["calibration", *map(str, arguments)]))
    (tmp_path / "probabilities" / "case_1.nii.gz").unlink()
    assert "should hold cases of two patients or more" in str(main(["calibration", *map(str, arguments)]))


def likely_logits(path: Path, value: float) -> None:
    """Puts one value into a file of probabilities that is none."""
    image = nib.load(path)
    content = np.asarray(image.dataobj).copy()
    content[0, 0, 0, 0] = value
    nib.save(nib.Nifti1Image(content, image.affine), path)


@pytest.mark.parametrize("value", [-3.0, 1.5, np.nan])
def test_what_is_no_probability_is_refused(write_case, tmp_path, value):
    weights = write_weights(tmp_path / "weights.pt")
    for number in range(2):
        files = write_case(tmp_path / "data" / f"case_{number}", f"case_{number}")
        likely_case(files, tmp_path / "probabilities" / f"case_{number}.nii.gz", 2.0)
    likely_logits(tmp_path / "probabilities" / "case_1.nii.gz", value)
    arguments = ["--dataset_dir", tmp_path / "data", "--probabilities_dir", tmp_path / "probabilities"]
    arguments += ["--checkpoint", weights, "--output_dir", tmp_path / "out", "--keep"]
    message = str(main(["calibration", *map(str, arguments)]))
    assert f"case_1.nii.gz holds {value:g}" in message
    assert temperature_of(str(weights)) == {}
    assert not list((tmp_path / "out").iterdir())


def test_pages_say_what_is_expected(write_case, tmp_path):
    for number in range(2):
        files = write_case(tmp_path / "data" / f"case_{number}", f"case_{number}")
        label = nib.load(files["seg"])
        mask = np.asarray(label.dataobj).astype(np.uint8)
        mask[mask == 4] = 3
        (tmp_path / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, label.affine), tmp_path / "masks" / f"case_{number}_seg.nii.gz")
        likely_case(files, tmp_path / "probabilities" / f"case_{number}.nii.gz", 3.0 + 3 * number)
    arguments = ["--dataset_dir", tmp_path / "data", "--prediction_dir", tmp_path / "masks", "--output_dir"]
    likely = ["--probabilities_dir", tmp_path / "probabilities"]
    assert main(["report", *map(str, [*arguments, tmp_path / "pages", *likely])]) is None
    told = [json.loads((tmp_path / "pages" / f"case_{number}.json").read_text()) for number in range(2)]
    assert told[0]["expected_dice"]["wt"] < told[1]["expected_dice"]["wt"] < 1
    assert "expected Dice WT" in (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert f"{told[1]['expected_dice']['wt']:.2f}" in (tmp_path / "pages" / "case_1.html").read_text(encoding="utf-8")
    likely_logits(tmp_path / "probabilities" / "case_1.nii.gz", np.nan)
    message = str(main(["report", *map(str, [*arguments, tmp_path / "bad", *likely])]))
    assert "Case case_1: probabilities should be from 0 to 1" in message
    (tmp_path / "probabilities" / "case_1.nii.gz").unlink()
    message = str(main(["report", *map(str, [*arguments, tmp_path / "others", *likely])]))
    assert "Case case_1: its probabilities are missing" in message
    assert not (tmp_path / "others").exists()


def test_an_id_may_end_as_a_modality_does(write_case, tmp_path, capsys):
    """Its probabilities and masks are called as the case alone, as inference and nnU-Net call them."""
    names = ["case_0", "case_1_ct"]
    for name in names:
        files = write_case(tmp_path / "data" / name, name)
        likely_case(files, tmp_path / "probabilities" / f"{name}.nii.gz", 2.0)
        label = nib.load(files["seg"])
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask = np.where(np.asarray(label.dataobj) == 4, 3, np.asarray(label.dataobj)).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, label.affine), tmp_path / "masks" / f"{name}.nii.gz")
    given = ["--dataset_dir", tmp_path / "data", "--probabilities_dir", tmp_path / "probabilities"]
    arguments = [*given, "--checkpoint", write_weights(tmp_path / "weights.pt"), "--output_dir", tmp_path / "out"]
    assert main(["calibration", *map(str, arguments)]) is None
    with open(tmp_path / "out" / "cases.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == names
    arguments = [*given, "--prediction_dir", tmp_path / "masks", "--output_dir", tmp_path / "pages"]
    assert main(["report", *map(str, arguments)]) is None
    assert sorted(path.stem for path in (tmp_path / "pages").glob("case*.html")) == names
