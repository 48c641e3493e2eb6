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
from scripts.weights.checkpoints import WeightsSaver, load_weights
from scripts.weights.engines import existing
from scripts.weights.pretrained import parent_of
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
    base = {"in_channels": 1, "out_channels": 3, "init_filters": 8, "blocks_per_stage": [1, 1, 1, 1], "num_layers": 0}
    assert arguments_of(MISSU(**base)) == base


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
        ("modalities", "t1in", "['t1in']"),
        ("network_modalities", ["t2spir", "t1in"], "['t1in', 't2spir']"),
        ("spacing_mm", [1, 1, 1], "[2.5, 2.5, -1]"),
        ("roi_size", [16, 16, 16], "[16, 24, 16]"),
        ("label_convention", "brats2018", "'liver': 1"),
        ("intensities", {"t1in": {"low": 0, "high": 1, "mean": 0, "std": 1}}, "{}"),
        ("network_def#num_heads", 8, "3"),
    ],
    ids=["modalities", "doubled", "no list", "channels", "spacing", "crop", "convention", "intensities", "heads"],
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


def test_patients_that_a_list_tells_are_in_the_record(tmp_path):
    """As ``--patients`` has them: the names say nothing."""
    network = MISSU(2, 2, img_size=[16, 24, 16], num_heads=3, **NETWORK)
    data = [{"case_id": name, "patient": patient, "image": f"/data/{name}_t1.nii.gz"} for name, patient in TOLD.items()]
    saver = WeightsSaver(str(tmp_path / "m.pt"), network, only_best=False, data=data, settings=LIVER)
    engine = Engine(lambda *_: None)
    saver.attach(engine)
    engine.run([0])
    assert read_record(tmp_path / "m.pt")["patients"] == {
        "anna": "one",
        "berta": "one",
    }  # of the third the name says it
    for entry in ({"case_id": "clara", "patient": "one"}, {"case_id": "anna"}, {"case_id": "sub-7_ses-2"}):
        with pytest.raises(InputError, match=f"such as {entry['case_id']}, are by their IDs of patients"):
            check_unseen(str(tmp_path / "m.pt"), [{**entry, "image": "/x"}], "")
    check_unseen(str(tmp_path / "m.pt"), [{"case_id": "clara", "patient": "two", "image": "/x"}], "")


TOLD = {"anna": "one", "berta": "one", "sub-7_ses-1": "sub-7"}


def test_cases_of_the_weights_that_a_fine_tuning_began_with_are_not_scored(tmp_path):
    parent = parent_of(write_weights(tmp_path / "parent.pt", ("case_1", "BraTS-GLI-00001-000")))
    grandparent = parent_of(write_weights(tmp_path / "child.pt", ("case_2",), parent=parent))
    teacher = parent_of(write_weights(tmp_path / "teacher.pt", ("case_5",)))
    path = write_weights(tmp_path / "grandchild.pt", ("case_3",), parent=grandparent, teacher=teacher)
    for seen in ("case_1", "case_2", "case_3", "case_5", "BraTS-GLI-00001-001"):
        with pytest.raises(InputError, match=seen):
            check_unseen(path, [{"case_id": seen, "image": "/x"}], "")
    check_unseen(path, [{"case_id": "case_4", "image": "/x"}], "")


def test_what_weights_without_a_record_were_trained_on_is_said_to_be_unknown(tmp_path, caplog):
    path = write_weights(tmp_path / "liver.pt")
    (tmp_path / "liver.json").unlink()
    check_unseen(path, [{"case_id": "case_0", "image": "/x"}], "")
    assert f"Whether the weights {path} were trained on these cases is unknown" in caplog.text


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *[((name,), None) for name in ("sha256", "dataset", "cases", "settings", "epoch", "metrics")],
        *[(("settings", name), None) for name in ("modalities", "label_convention", "spacing_mm", "roi_size")],
        (("cases",), "case_0"),
        (("settings",), []),
        (("metrics",), {"dice": "high"}),
        (("settings", "modalities"), "t1in"),
        (("settings", "modalities"), ["t1in", "t1in"]),
        (("settings", "modalities"), ["t1in"]),  # of a network with two channels
        (("settings", "spacing_mm"), [1, 1]),
        (("settings", "roi_size"), [16, 24, 16.5]),
        (("settings", "stretch"), "wide"),
        (("settings", "largest_component_of"), "liver"),
        (("settings", "intensities"), {"ct": 3}),
        (("settings", "network"), {"in_channels": 2, "depth": 4}),
        (("settings", "invert_logits"), "perhaps"),
        (("settings", "parent"), {"cases": "case_0"}),
        (("settings", "temperature"), {"wt": 0}),
        (("settings", "temperature"), 2.0),
        (("settings", "modality_dropout"), "half"),
        (("patients",), ["case_0"]),
        (("small_et_mm3",), "small"),
        (("scan_range",), {"air": [0.1, 0.2]}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value)[:12],
)
def test_a_record_that_was_edited_by_hand_is_refused(tmp_path, part, value):
    """``None``: the part is taken away."""
    path = write_weights(tmp_path / "liver.pt")
    record = json.loads((tmp_path / "liver.json").read_text())
    of = record["settings"] if len(part) > 1 else record
    if value is None:
        del of[part[-1]]
    else:
        of[part[-1]] = value
    (tmp_path / "liver.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"The record .*liver\.json should have .*{part[-1].rstrip('ies')}"):
        read_record(path)
    for config in (parser("inference", checkpoint=path), parser("evaluating", checkpoint=path)):
        assert str(tmp_path / "liver.json") in sentence(config, "contract")


@pytest.mark.parametrize(
    ("name", "value"), [("spacing_mm", 2.0), ("roi_size", 64), ("modalities", "t1"), ("largest_component_of", 1)]
)
def test_a_setting_that_no_record_could_have_is_refused_before_the_training(tmp_path, name, value):
    with pytest.raises(InputError, match=f"^{name} should be .*, got "):
        write_weights(tmp_path / "liver.pt", **{name: value})


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"', "null"])
def test_a_record_that_is_none(tmp_path, text):
    path = write_weights(tmp_path / "liver.pt")
    (tmp_path / "liver.json").write_text(text)
    with pytest.raises(InputError, match=r"liver\.json should (be JSON|hold an object)"):
        read_record(path)


def test_members_of_an_ensemble_all_have_a_record_or_none(tmp_path):
    paths = [write_weights(tmp_path / "a.pt"), write_weights(tmp_path / "b.pt")]
    (tmp_path / "b.json").unlink()
    assert f"{paths[1]} have no record b.json, {paths[0]} has one" in sentence(
        parser("inference", checkpoint=paths), "contract"
    )
    (tmp_path / "a.json").unlink()
    config = parser("inference", checkpoint=paths)
    assert config.get_parsed_content("spacing_mm") == [-1, -1, -1]
    other = [write_weights(tmp_path / "a.pt"), write_weights(tmp_path / "b.pt", invert_logits=False)]
    assert "invert_logits should be the same" in sentence(parser("inference", checkpoint=other), "contract")


def test_weights_that_are_not_finite_are_not_loaded(tmp_path):
    path = Path(write_weights(tmp_path / "liver.pt"))
    weights = torch.load(path, weights_only=True)
    network = MISSU(**read_record(path)["settings"]["network"])
    load_weights(network, path)
    weights["head.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt should be finite, head\.bias holds NaN"):
        load_weights(network, tmp_path / "bad.pt")


def test_half_precision_weights_give_nearly_the_same_logits(tmp_path):
    path = Path(write_weights(tmp_path / "liver.pt"))
    weights = torch.load(path, weights_only=True)
    networks = []
    for name, dtype in (("full.pt", torch.float32), ("half.pt", torch.float16)):
        torch.save({key: value.to(dtype) for key, value in weights.items()}, tmp_path / name)
        networks.append(MISSU(**read_record(path)["settings"]["network"]).eval())
        load_weights(networks[-1], tmp_path / name)
        assert all(value.dtype == torch.float32 for value in networks[-1].state_dict().values())
    image = torch.rand(1, 2, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(networks[0](image), networks[1](image), atol=0.05, rtol=0)


@pytest.mark.parametrize("workflow", ["inference", "evaluating"])
def test_channels_of_regions_are_not_taken_for_classes(tmp_path, workflow):
    """A data set may have as many regions as classes: their numbers do not tell."""
    labels = {"background": 0, "a": 1, "b": 2, "both": [1, 2]}
    settings = {"label_convention": {"labels": labels}, "largest_component_of": []}
    config = parser(
        workflow, checkpoint=write_weights(tmp_path / "regions.pt", out_channels=3, softmax=False, **settings)
    )
    assert "have a channel for each region, their record says so" in sentence(config, "network_def")
    config.update({"softmax": False})
    config.get_parsed_content("network_def")


@pytest.mark.parametrize("workflow", ["inference", "evaluating"])
@pytest.mark.parametrize(
    ("knob", "value", "said"),
    [
        ("network_def#in_channels", 3, "in_channels should be 4, one for each of t1, t1ce, t2, flair, it is 3"),
        ("network_def#out_channels", 5, "out_channels should be 4, the classes of label_convention, it is 5"),
    ],
)
def test_other_channels_than_the_data_has(workflow, knob, value, said):
    """Of weights without a record; one with a record says it before."""
    config = parser(workflow, checkpoint="/no/weights.pt", **{knob: value})
    assert said in sentence(config, "channels")
    training = ConfigParser()
    training.read_config(str(CONFIGS / "train.json"))
    training.update({"device": "cpu", knob: value})
    assert said in sentence(training, "channels")


@pytest.mark.parametrize("names", [("train", "regions"), ("inference", "regions_inference")])
def test_channels_may_be_regions(names):
    config = ConfigParser()
    config.read_config([str(CONFIGS / f"{name}.json") for name in names])
    config.update({"device": "cpu", "checkpoint": "/no/weights.pt"})
    assert config.get_parsed_content("channels") is None
    config = ConfigParser()
    config.read_config([str(CONFIGS / f"{name}.json") for name in names])
    config.update({"device": "cpu", "checkpoint": "/no/weights.pt", "network_def#out_channels": 4})
    assert "out_channels should be 3, the regions of label_convention, it is 4" in sentence(config, "channels")


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
