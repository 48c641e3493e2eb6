"""Weights scored with each subset of their modalities: a table and a picture."""

from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from scripts.__main__ import main
from scripts.evaluation.subsets import draw_subsets, gains, subsets_of
from scripts.networks import MISSU
from scripts.sources.phantom import write_phantoms
from scripts.weights.checkpoints import save_weights
from scripts.weights.record import arguments_of

FOUR = ("t1", "t1ce", "t2", "flair")


def test_fifteen_subsets_of_four():
    subsets = subsets_of(FOUR)
    assert len(subsets) == len(set(subsets)) == 15
    assert subsets[0] == ("t1",)
    assert subsets[-1] == FOUR


def test_what_a_modality_adds_is_a_mean_over_the_subsets_without_it():
    worth = {"t1": 0.05, "t1ce": 0.2, "t2": 0.1, "flair": 0.3}
    scores = {subset: {"wt": sum(worth[name] for name in subset), "et": 0.5} for subset in subsets_of(FOUR)}
    for name, of in gains(scores).items():
        assert of == pytest.approx({"wt": worth[name], "et": 0.0})


def test_the_picture_is_one(tmp_path):
    scores = {subset: {"tc": 0.1 * len(subset), "wt": 0.2 * len(subset)} for subset in subsets_of(FOUR)}
    draw_subsets(scores, tmp_path / "subsets.png")
    picture = imread(tmp_path / "subsets.png")[..., :3]
    assert picture.std() > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["subsets.png"]


@pytest.fixture
def weights(tmp_path):
    """Of two modalities, with their record."""
    torch.manual_seed(0)
    network = MISSU(2, 4, 16, init_filters=4, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2)
    settings = {"modalities": ["t1ce", "flair"], "roi_size": [16, 16, 16], "label_convention": "brats2018"}
    settings |= {"spacing_mm": [-1, -1, -1]}
    settings |= {"network": arguments_of(network), "modality_dropout": 0.5}
    path = tmp_path / "weights.pt"
    save_weights(network, path, {"settings": settings, "cases": [], "metrics": {}, "dataset": "phantoms", "epoch": 1})
    return path


def test_every_subset_is_scored_once(weights, tmp_path, capsys):
    data, output = tmp_path / "phantoms", tmp_path / "subsets"
    write_phantoms(data, 3, (32, 32, 32))
    command = ["subsets", "--checkpoint", str(weights), "--dataset_dir", str(data), "--output_dir", str(output)]
    knobs = ["--", "--split", "training", "--num_workers", "0"]
    assert main([*command, *knobs]) is None
    printed = capsys.readouterr().out
    with open(output / "subsets.csv", newline="") as file:
        rows = {row.pop("modalities"): row for row in csv.DictReader(file)}
    assert list(rows) == ["t1ce", "flair", "t1ce+flair", "mean"]
    for subset, region in product(("t1ce", "flair", "t1ce+flair"), ("tc", "wt", "et")):
        with open(output / subset / "metrics.csv", newline="") as file:
            cases = [float(row[f"dice_{region}"]) for row in csv.DictReader(file)]
        assert float(rows[subset][f"dice_{region}"]) == pytest.approx(np.mean(cases), abs=1e-4)
    assert "flair adds " in printed
    assert (output / "subsets.png").is_file()
    before = (output / "flair" / "metrics.csv").stat().st_mtime_ns
    assert main([*command, *knobs]) is None
    assert (output / "flair" / "metrics.csv").stat().st_mtime_ns == before
    said = main([*command, "--", "--split", "validation", "--num_workers", "0"])
    assert "holds scores of other weights or with other knobs" in str(said)


def test_an_evaluation_that_fails_ends_in_a_sentence(weights, tmp_path):
    (tmp_path / "none").mkdir()
    command = ["subsets", "--checkpoint", str(weights), "--dataset_dir", str(tmp_path / "none")]
    said = str(main([*command, "--output_dir", str(tmp_path / "subsets")]))
    assert said.startswith("Error: The evaluation with t1ce failed, the end of ")
    assert "dataset_dir should hold NIfTI files" in (tmp_path / "subsets" / "t1ce" / "log.txt").read_text()
