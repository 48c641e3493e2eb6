"""Fine-tuning begins with what fits of other weights, by the names of modalities and classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.networks import MISSU
from scripts.weights.checkpoints import save_weights
from scripts.weights.pretrained import frozen_teacher, load_pretrained, parent_of
from scripts.weights.record import arguments_of, describe

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
SIZE = {"init_filters": 8, "hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
GLIOMAS = {"modalities": ["t1", "t1ce", "t2", "flair"], "label_convention": "brats2018"}


def network(in_channels: int, out_channels: int, img_size: int = 16, seed: int = 0, **size: int) -> MISSU:
    torch.manual_seed(seed)
    return MISSU(in_channels, out_channels, img_size, **{**SIZE, **size})


@pytest.fixture
def parent(tmp_path: Path) -> tuple[MISSU, str]:
    """Weights of gliomas with their record."""
    path = tmp_path / "parent.pt"
    made = network(4, 4, seed=1)
    settings = {**GLIOMAS, "spacing_mm": [1, 1, 1], "roi_size": [16, 16, 16]}
    save_weights(made, path, {"settings": settings, "cases": ["case_0"], "metrics": {}, "dataset": "x", "epoch": 1})
    return made, str(path)


def test_the_same_task_begins_with_all_of_it(parent):
    old, path = parent
    new = network(4, 4)
    assert load_pretrained(new, path, **GLIOMAS) == []
    assert all(torch.equal(weight, old.state_dict()[key]) for key, weight in new.state_dict().items())
    assert parent_of(path)["file"] == "parent.pt"
    assert len(parent_of(path)["sha256"]) == 64
    assert parent_of(path)["cases"] == ["case_0"]


def test_terms_go_on_with_the_weights(parent, tmp_path):
    made, path = parent
    record = json.loads(Path(path).with_suffix(".json").read_text())
    save_weights(made, path, record | {"license": "CC BY-NC-SA 4.0"})
    child, settings = str(tmp_path / "child.pt"), record["settings"] | {"parent": parent_of(path)}
    save_weights(made, child, record | {"settings": settings})
    assert "Terms: CC BY-NC-SA 4.0." in describe(child)
    assert parent_of(child)["license"] == "CC BY-NC-SA 4.0"


def test_modalities_and_classes_are_taken_by_name(parent):
    old, path = parent
    new, untouched = network(3, 5, img_size=24), network(3, 5, img_size=24)
    lacking = load_pretrained(new, path, ["flair", "t1", "dwi"], "brats2024_gli")
    first, of_old = new.encoder[0][0][0].weight, old.encoder[0][0][0].weight
    assert torch.equal(first[:, 0], of_old[:, 3])
    assert torch.equal(first[:, 1], of_old[:, 0])
    assert torch.equal(first[:, 2], untouched.encoder[0][0][0].weight[:, 2])  # unknown to the old one
    assert torch.equal(new.head.weight[:4], old.head.weight)
    assert torch.equal(new.head.bias[4:], untouched.head.bias[4:])
    positions = F.interpolate(old.bottleneck.position_embedding, size=(3, 3, 3), mode="trilinear")
    torch.testing.assert_close(new.bottleneck.position_embedding, positions)
    assert "encoder.0.0.0.weight: dwi is new" in lacking
    assert "encoder.0.0.0.weight: t1ce is left out" in lacking
    assert "head.weight: rc is new" in lacking


def test_another_organ_takes_the_background_alone_from_the_head(parent):
    old, path = parent
    new = network(1, 3)
    load_pretrained(new, path, ["t1"], {"labels": {"background": 0, "anterior": 1, "posterior": 2}})
    assert torch.equal(new.head.weight[0], old.head.weight[0])
    assert not torch.equal(new.head.weight[1], old.head.weight[1])


def test_a_frozen_encoder_stays_and_the_rest_learns(parent):
    new = network(4, 4)
    load_pretrained(new, parent[1], **GLIOMAS, freeze_encoder=True)
    new(torch.rand(1, 4, 16, 16, 16)).sum().backward()
    assert all(weight.grad is None for weight in new.encoder.parameters())
    assert all(weight.grad is not None for weight in new.decoder.parameters())


def test_an_encoder_is_not_frozen_where_it_would_stay_random(parent):
    new = network(2, 4)
    with pytest.raises(InputError, match=r"freeze_encoder needs .* encoder\.0\.0\.0\.weight: dwi is new"):
        load_pretrained(new, parent[1], ["flair", "dwi"], "brats2018", freeze_encoder=True)
    assert all(weight.requires_grad for weight in new.parameters())
    fewer = network(2, 4)
    load_pretrained(fewer, parent[1], ["flair", "t1"], "brats2018", freeze_encoder=True)
    assert not any(weight.requires_grad for weight in fewer.encoder.parameters())


def test_channels_of_regions_are_not_begun_with_those_of_classes(parent, tmp_path):
    """Three of both, by other names: of BraTS the classes are the background, NCR, ED, ET, the regions TC, WT, ET."""
    _, path = parent
    new, untouched = network(4, 3), network(4, 3)
    lacking = load_pretrained(new, path, **GLIOMAS, softmax=False)
    assert torch.equal(new.head.weight, untouched.head.weight)
    assert "head.weight: its channels are classes, not regions" in lacking
    of_regions = str(tmp_path / "regions.pt")
    record = json.loads(Path(path).with_suffix(".json").read_text())
    made = network(4, 3, seed=2)
    save_weights(made, of_regions, record | {"settings": record["settings"] | {"softmax": False}})
    assert load_pretrained(new, of_regions, **GLIOMAS, softmax=False) == []
    assert torch.equal(new.head.weight, made.head.weight)


def test_fine_tuning_normalizes_a_ct_as_the_weights_were_trained(parent, tmp_path):
    made, path = parent
    record = json.loads(Path(path).with_suffix(".json").read_text())
    numbers = {"low": -50.0, "high": 250.0, "mean": 100.0, "std": 40.0}
    settings = record["settings"] | {"modalities": ["ct", "pet", "t1", "t2"], "intensities": {"ct": numbers}}
    settings |= {"stretch": 1.0, "invert_logits": True}
    save_weights(made, str(tmp_path / "ct.pt"), record | {"settings": settings})
    for modalities, intensities in ((["pet", "ct"], {"ct": numbers}), (["t1"], {})):
        config = ConfigParser()
        config.read_config([str(CONFIGS / name) for name in ("train.json", "finetune.json")])
        config.update({"pretrained": str(tmp_path / "ct.pt"), "modalities": modalities})
        assert config.get_parsed_content("intensities") == intensities
        assert config.get_parsed_content("stretch") == 1.0
        assert config.get_parsed_content("invert_logits") is True


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"init_filters": 16}, r"pretrained should be weights of such a network, \d+% of it could be loaded"),
        ({"hidden_size": 512, "mlp_dim": 512}, r"bottleneck\.\S+: its shape is"),
    ],
)
def test_weights_of_something_else_are_refused_and_nothing_is_loaded(parent, size, sentence):
    new, untouched = network(4, 4, **size), network(4, 4, **size)
    with pytest.raises(InputError, match=sentence):
        load_pretrained(new, parent[1], **GLIOMAS)
    assert all(torch.equal(weight, untouched.state_dict()[key]) for key, weight in new.state_dict().items())


def test_weights_without_a_record_are_refused(parent, tmp_path):
    (tmp_path / "parent.json").unlink()
    with pytest.raises(InputError, match=r"have no record, parent\.json"):
        load_pretrained(network(4, 4), parent[1], **GLIOMAS)
    with pytest.raises(InputError, match=r"nowhere\.pt is not there"):
        load_pretrained(network(4, 4), str(tmp_path / "nowhere.pt"), **GLIOMAS)


def test_a_record_that_names_other_channels_than_the_weights_have(parent):
    _, path = parent
    record = Path(path).with_suffix(".json")
    content = json.loads(record.read_text())
    content["settings"]["modalities"] = ["t1", "t2", "flair"]
    record.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"encoder\.0\.0\.0\.weight has 4, it names t1, t2, flair"):
        load_pretrained(network(4, 4), path, **GLIOMAS)


def teach(path: str, **other: Any) -> MISSU:
    knobs = {**GLIOMAS, "spacing_mm": [2, 2, 2], "intensities": {}, "out_channels": 4, **other}
    return frozen_teacher(path, **knobs)


def save_teacher(path: Path) -> MISSU:
    made = network(4, 4, seed=1)
    settings = {**GLIOMAS, "spacing_mm": [2, 2, 2], "roi_size": [16, 16, 16], "network": arguments_of(made)}
    save_weights(made, path, {"settings": settings, "cases": [], "metrics": {}, "dataset": "gliomas", "epoch": 1})
    return made


def test_a_teacher_is_the_network_of_its_weights(tmp_path):
    made = save_teacher(tmp_path / "teacher.pt")
    taken = teach(str(tmp_path / "teacher.pt"))
    assert all(torch.equal(weight, made.state_dict()[key]) for key, weight in taken.state_dict().items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"spacing_mm": [1, 1, 1]}, r"spacing_mm should be \[2, 2, 2\]"),
        ({"modalities": ["flair", "t1ce", "t2", "t1"]}, "modalities should be"),
        ({"label_convention": "brats2024_gli"}, "label_convention should have the regions"),
        ({"out_channels": 3}, "out_channels should be 4"),
    ],
    ids=["voxels", "order of modalities", "classes", "regions"],
)
def test_a_teacher_of_something_else_is_refused(tmp_path, other, message):
    save_teacher(tmp_path / "teacher.pt")
    with pytest.raises(InputError, match=message):
        teach(str(tmp_path / "teacher.pt"), **other)


def test_a_teacher_needs_its_record(tmp_path):
    with pytest.raises(InputError, match="teacher should be a file of weights"):
        teach(str(tmp_path / "none.pt"))
    torch.save(network(4, 4).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(InputError, match=r"have no record.*teacher needs it"):
        teach(str(tmp_path / "bare.pt"))
