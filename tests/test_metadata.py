"""metadata.json for the task of other weights: the names that MONAI Label shows, by the values in masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts.__main__ import main
from scripts.networks import MISSU
from scripts.weights.checkpoints import save_weights
from scripts.weights.record import arguments_of

METADATA = Path(__file__).parents[1] / "bundle" / "configs" / "metadata.json"


def write_weights(path: Path, modalities: list[str], convention: object, classes: int) -> Path:
    network = MISSU(len(modalities), classes, 16, init_filters=4, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2)
    settings = {"modalities": modalities, "label_convention": convention, "network": arguments_of(network)}
    settings |= {"spacing_mm": [-1, -1, -1], "roi_size": [16, 16, 16]}
    record = {"settings": settings, "cases": [], "metrics": {"dice": 0.8}, "dataset": "Task05_Prostate", "epoch": 1}
    save_weights(network, path, record)
    return path


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return Path(shutil.copy(METADATA, tmp_path / "metadata.json"))


def test_names_come_from_the_record(metadata, tmp_path, capsys):
    labels = {"background": 0, "peripheral-zone": 1, "transition-zone": 2}
    weights = write_weights(tmp_path / "model.pt", ["t2", "adc"], {"labels": labels}, 3)
    assert main(["metadata", "--checkpoint", str(weights), "--metadata", str(metadata)]) is None
    assert "gap" not in capsys.readouterr().out
    changed, before = json.loads(metadata.read_text()), json.loads(METADATA.read_text())
    image, pred = (
        changed["network_data_format"][key][name] for key, name in (("inputs", "image"), ("outputs", "pred"))
    )
    assert image["channel_def"] == {"0": "t2", "1": "adc"}
    assert (image["num_channels"], pred["num_channels"]) == (2, 3)
    assert pred["channel_def"] == {"0": "background", "1": "peripheral-zone", "2": "transition-zone"}
    assert changed["task"] == "Segmentation of peripheral-zone, transition-zone"
    assert changed["data_source"] == "Task05_Prostate"
    assert changed["eval_metrics"] == {"validation": {"dice": 0.8}}
    for key in ("schema", "version", "monai_version", "required_packages_version", "intended_use"):
        assert changed[key] == before[key]
    assert changed.keys() == before.keys()


def test_values_of_masks_are_those_of_the_data_set(metadata, tmp_path, capsys):
    weights = write_weights(tmp_path / "ct.pt", ["ct"], {"labels": {"background": 0, "liver": 2, "spleen": 7}}, 3)
    assert main(["metadata", "--checkpoint", str(weights), "--metadata", str(metadata)]) is None
    assert "gap, [0, 2, 7]" in capsys.readouterr().out
    changed = json.loads(metadata.read_text())["network_data_format"]
    assert changed["inputs"]["image"]["modality"] == "CT"
    assert changed["outputs"]["pred"]["channel_def"] == {"0": "background", "2": "liver", "7": "spleen"}


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda weights, metadata: weights.unlink(), "checkpoint should be a file of weights"),
        (lambda weights, metadata: weights.with_suffix(".json").unlink(), "have no record that names their modalities"),
        (lambda weights, metadata: metadata.write_text("{}"), "metadata should be that of a bundle"),
        (lambda weights, metadata: metadata.unlink(), "cannot be read"),
    ],
    ids=["no weights", "no record", "another file", "no file"],
)
def test_what_is_refused(metadata, tmp_path, break_it, sentence):
    weights = write_weights(tmp_path / "model.pt", ["t2"], {"labels": {"background": 0, "gland": 1}}, 2)
    break_it(weights, metadata)
    before = metadata.read_bytes() if metadata.exists() else None
    error = main(["metadata", "--checkpoint", str(weights), "--metadata", str(metadata)])
    assert sentence in str(error)
    assert (metadata.read_bytes() if metadata.exists() else None) == before
