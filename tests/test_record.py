"""Weights know how they are used: knobs come from their record, and one that differs is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.errors import InputError, one_sentence
from scripts.networks import MISSU
from scripts.weights.checkpoints import WeightsSaver
from scripts.weights.engines import existing
from scripts.weights.record import arguments_of, check_unseen, read_record, write_record

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
NETWORK = {"init_filters": 8, "blocks_per_stage": [1, 1, 2, 1], "hidden_size": 24, "mlp_dim": 20, "num_layers": 1}
LIVER = {
    "modalities": ["t1in", "t2spir"],
    "label_convention": {"labels": {"background": [0, 2, 3, 4], "liver": 1}},
    "spacing_mm": [2.5, 2.5, -1],
    "intensities": {},
    "roi_size": [16, 24, 16],
    "stretch": 1.0,
    "invert_logits": True,
    "largest_component_of": [1, 2, 3, 4],
}


def write_weights(
    path: Path, case_ids: tuple[str, ...] = ("case_0",), in_channels: int = 2, out_channels: int = 2, **settings: Any
) -> str:
    """Weights of a small liver network as a training leaves them."""
    network = MISSU(in_channels, out_channels, img_size=[16, 24, 16], num_heads=3, **NETWORK)
    data = [{"case_id": case_id, "image": f"/data/{case_id}/{case_id}_t1in.nii.gz"} for case_id in case_ids]
    engine = Engine(lambda *_: None)
    WeightsSaver(str(path), network, only_best=False, data=data, settings={**LIVER, **settings}).attach(engine)
    engine.run([0])
    return str(path)


def parser(workflow: str, **knobs: Any) -> ConfigParser:
    names = {"inference": ["inference.json"], "evaluating": ["train.json", "evaluate.json"]}[workflow]
    config = ConfigParser()
    config.read_config([str(CONFIGS / name) for name in names])
    config.update({"device": "cpu", **knobs})
    return config


def sentence(config: ConfigParser, name: str) -> str:
    with pytest.raises((InputError, RuntimeError)) as raised:  # MONAI wraps it
        config.get_parsed_content(name)
    return one_sentence(raised.value) or ""


def test_the_record_has_every_argument_of_the_network(tmp_path):
    record = read_record(write_weights(tmp_path / "liver.pt"))
    wanted = {"in_channels": 2, "out_channels": 2, "img_size": [16, 24, 16], "num_heads": 3, **NETWORK}
    assert record["settings"]["network"] == wanted
    assert record["settings"] == {**LIVER, "network": wanted}
    assert record["cases"] == ["case_0"]
    assert arguments_of(MISSU(**wanted)) == wanted


@pytest.mark.parametrize("workflow", ["inference", "evaluating"])
def test_weights_alone_say_how_they_are_used(tmp_path, workflow):
    config = parser(workflow, checkpoint=write_weights(tmp_path / "liver.pt"))
    assert {name: config.get_parsed_content(name) for name in LIVER} == LIVER
    network = config.get_parsed_content("network_def")
    assert network.bottleneck.layers[0].attention.num_heads == 3
    assert arguments_of(network) == read_record(tmp_path / "liver.pt")["settings"]["network"]


@pytest.mark.parametrize("workflow", ["inference", "evaluating"])
def test_weights_without_a_record_have_the_defaults(tmp_path, workflow):
    path = write_weights(tmp_path / "liver.pt")
    (tmp_path / "liver.json").unlink()
    config = parser(workflow, checkpoint=path)
    train = json.loads((CONFIGS / "train.json").read_text())
    for name in LIVER.keys() - {"label_convention"}:
        assert config.get_parsed_content(name) == train[name], name
    wanted = {"inference": "brats2023", "evaluating": train["label_convention"]}[workflow]
    assert config.get_parsed_content("label_convention") == wanted
    assert arguments_of(config.get_parsed_content("network_def")) == arguments_of(MISSU())


@pytest.mark.parametrize("workflow", ["inference", "evaluating"])
@pytest.mark.parametrize(
    ("knob", "given", "recorded"),
    [
        ("modalities", ["t1in", "ct"], "['t1in', 't2spir']"),
        ("modalities", ["t1in", "t1in"], "different"),
        ("network_modalities", ["t2spir", "t1in"], "['t1in', 't2spir']"),
        ("spacing_mm", [1, 1, 1], "[2.5, 2.5, -1]"),
        ("roi_size", [16, 16, 16], "[16, 24, 16]"),
        ("label_convention", "brats2018", "'liver': 1"),
        ("intensities", {"t1in": {"low": 0, "high": 1, "mean": 0, "std": 1}}, "{}"),
        ("network_def#num_heads", 8, "3"),
    ],
    ids=["modalities", "doubled", "channels", "spacing", "crop", "convention", "intensities", "heads"],
)
def test_what_differs_from_the_record_is_refused(tmp_path, workflow, knob, given, recorded):
    """The network is what MONAI Label and MONAI Deploy ask for: there they meet the check, too."""
    config = parser(workflow, checkpoint=write_weights(tmp_path / "liver.pt"), **{knob: given})
    said = sentence(config, "network_def")
    for part in (knob, str(given), recorded):
        assert part in said


def test_what_is_the_same_may_be_given(tmp_path):
    knobs = {**LIVER, "spacing_mm": (2.5, 2.5, -1.0), "network_def#num_heads": 3, "network_def#dropout": 0.2}
    config = parser("inference", checkpoint=write_weights(tmp_path / "liver.pt"), **knobs)
    assert config.get_parsed_content("network_def").dropout.p == 0.2  # MONAI Label's active learning sets it


FOUR = ["t1", "t1ce", "t2", "flair"]


def glioma_weights(path: Path, **settings: Any) -> str:
    tumor = {"modalities": FOUR, "label_convention": "brats2018", "largest_component_of": [], **settings}
    return write_weights(path, in_channels=4, out_channels=4, **tumor)


@pytest.mark.parametrize("workflow", ["inference", "evaluating"])
def test_a_missing_modality_is_zero_in_its_channel(tmp_path, workflow, caplog):
    checkpoint = glioma_weights(tmp_path / "m.pt", modality_dropout=0.5)
    config = parser(workflow, checkpoint=checkpoint, modalities=["flair", "t2"])  # any order: they go by name
    assert config.get_parsed_content("network_def").in_channels == 4
    transform = config.get_parsed_content("zero_missing")
    image = MetaTensor(torch.stack([torch.full((2, 3, 4), 5.0), torch.full((2, 3, 4), 6.0)]), meta={"case_id": "a"})
    image = transform({"image": image})["image"]
    assert image[:, 0, 0, 0].tolist() == [0, 0, 6, 5]
    assert image.shape == (4, 2, 3, 4)
    assert image.meta["case_id"] == "a"
    assert image.meta["missing"] == "t1, t1ce"
    said = caplog.text
    assert "Without t1, t1ce: zero in the channels" in said
    assert "below 0.50 Dice for every published method" in said
    assert "never saw" not in said


def test_what_the_weights_never_saw_is_said(tmp_path, caplog):
    config = parser("inference", checkpoint=glioma_weights(tmp_path / "m.pt"), modalities=["t1", "t1ce", "t2"])
    config.get_parsed_content("contract")
    assert "The weights never saw a case without flair" in caplog.text
    assert "below 0.50" not in caplog.text  # t1ce is there


def test_all_modalities_are_no_reason_to_warn(tmp_path, caplog):
    config = parser("inference", checkpoint=glioma_weights(tmp_path / "m.pt"))
    config.get_parsed_content("contract")
    image = {"image": MetaTensor(torch.rand(4, 2, 3, 4))}
    assert config.get_parsed_content("zero_missing")(image)["image"] is image["image"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("trained", "given", "written"),
    [
        ("brats2018", None, "brats2023"),
        ("decathlon", None, "brats2023"),
        ("decathlon", "brats2018", "brats2018"),
        ("brats2024_gli", None, "brats2024_gli"),
        (LIVER["label_convention"], None, LIVER["label_convention"]),
    ],
)
def test_masks_are_written_in_any_convention_of_the_same_regions(tmp_path, trained, given, written):
    given = {} if given is None else {"label_convention": given}
    config = parser("inference", checkpoint=write_weights(tmp_path / "m.pt", label_convention=trained), **given)
    config.get_parsed_content("contract")
    assert config.get_parsed_content("label_convention") == written


def test_members_of_an_ensemble_agree(tmp_path):
    paths = [write_weights(tmp_path / "a.pt"), write_weights(tmp_path / "b.pt", spacing_mm=[1, 1, 1])]
    said = sentence(parser("inference", checkpoint=paths), "contract")
    assert "spacing_mm should be the same" in said
    assert paths[1] in said
    config = parser("inference", checkpoint=[paths[0], write_weights(tmp_path / "c.pt")])
    assert config.get_parsed_content("spacing_mm") == LIVER["spacing_mm"]


def test_cases_of_the_training_are_not_scored(tmp_path):
    path = write_weights(tmp_path / "liver.pt", ("BraTS-GLI-00001-000", "case_7"))

    def check(*case_ids: str, **knobs: Any) -> None:
        entries = [{"case_id": case_id, "image": f"/data/{case_id}.nii.gz"} for case_id in case_ids]
        check_unseen(path, entries, str(tmp_path), **knobs)

    check("case_8", "BraTS-GLI-00002-000")
    for seen in ("case_7", "BraTS-GLI-00001-001"):  # the patient's second examination
        with pytest.raises(InputError, match=rf"1 of the 2 cases.*{seen}.*allow_training_cases"):
            check("case_8", seen)
        check("case_8", seen, allow_training_cases=True)
        with pytest.raises(InputError, match="1 of the 1"):
            check(seen, allow_training_cases="false")
    with pytest.raises(InputError, match="1 of the 1"):  # by any member of an ensemble
        check_unseen([write_weights(tmp_path / "b.pt", ("case_1",)), path], [{"case_id": "case_7", "image": "/x"}], "")


def test_the_evaluation_asks_before_it_runs():
    evaluating = json.loads((CONFIGS / "evaluate.json").read_text())["evaluating"]
    assert evaluating.index("@contract") < evaluating.index("@unseen") < evaluating.index("$@validate#evaluator.run()")


@pytest.mark.parametrize("kind", ["ts", "onnx", "pt2"])
def test_exported_weights_are_used_by_their_own_record(tmp_path, kind):
    weights = Path(write_weights(tmp_path / "liver.pt"))
    exported = tmp_path / f"liver.{kind}"
    exported.write_bytes(b"an exported network")
    write_record(exported, read_record(weights))
    config = ConfigParser()
    config.read_config([str(CONFIGS / "inference.json"), str(CONFIGS / f"inference_{kind}.json")])
    config.update({"device": "cpu", "exported": str(exported)})
    assert {name: config.get_parsed_content(name) for name in LIVER} == LIVER
    exported.write_bytes(b"another")
    assert "the sha256 differs" in sentence(parser("inference", checkpoint=str(exported)), "contract")


def test_an_exported_network_whose_record_is_missing_is_refused(tmp_path):
    write_weights(tmp_path / "liver.pt")
    (tmp_path / "liver.ts").write_bytes(b"an exported network")
    with pytest.raises(InputError, match=r"liver\.ts has no record liver\.ts\.json"):
        existing(tmp_path / "liver.ts")


def test_the_evaluation_takes_patients_from_the_list(tiny_cases, tmp_path):
    entry = {"image": {name: f"case_0/case_0_{name}.nii.gz" for name in ("t1", "t2")}, "patient": "one"}
    entry["label"] = "case_0/case_0_seg.nii.gz"
    (tmp_path / "list.json").write_text(json.dumps({"testing": [{**entry, "case_id": name} for name in "ab"]}))
    config = parser("evaluating", dataset_dir=str(tiny_cases), data_list_file_path=str(tmp_path / "list.json"))
    config.update({"modalities": ["t1", "t2"]})
    assert config.get_parsed_content("validate#handlers#2#patients") == {"a": "one", "b": "one"}
