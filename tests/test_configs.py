"""The configs as code: they parse, agree with each other, and metadata.json is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.handlers import CheckpointLoader
from monai.transforms import Compose
from torch import nn

from scripts.data.cases import MODALITIES
from scripts.data.labels import LABEL_CONVENTIONS
from scripts.weights import WeightsSaver

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
RECORDED = (
    *("modalities", "network_modalities", "spacing_mm", "intensities", "roi_size", "stretch"),
    *("invert_logits", "largest_component_of", "min_piece", "contract"),
)


def load(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


def without(config: dict | list, *dropped: str) -> dict | list:
    """A config without some keys, at any depth."""
    if isinstance(config, dict):
        return {key: without(value, *dropped) for key, value in config.items() if key not in dropped}
    return [without(item, *dropped) for item in config] if isinstance(config, list) else config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_config_is_data(path):
    text = path.read_text()
    assert not re.search(r"\blambda\b[^\"]*:", text)
    config = json.loads(text)
    # Except for metadata.json, whose schema forbids it, each says first what it is for and how to run it.
    assert path.name == "metadata.json" or next(iter(config)) == "_desc_"


@pytest.mark.parametrize(
    ("workflow_type", "names"),
    [
        ("train", ["train.json"]),
        ("train", ["train.json", "demo.json"]),
        ("train", ["train.json", "evaluate.json"]),
        ("infer", ["inference.json"]),
        ("infer", ["inference.json", "demo.json"]),
        ("train", ["train.json", "chaos.json", "chaos_cpu.json"]),
        ("infer", ["inference.json", "chaos_inference.json", "chaos_cpu.json"]),
        ("train", ["train.json", "hippocampus.json"]),
    ],
    ids=["train", "train demo", "evaluate", "inference", "inference demo", "chaos", "chaos inference", "hippocampus"],
)
def test_monai_finds_every_property(workflow_type, names, tiny_cases):
    modalities = ["t1", "t2"] if "chaos.json" in names else load("train.json")["modalities"]
    workflow = ConfigWorkflow(
        workflow_type=workflow_type,
        config_file=[str(CONFIGS / name) for name in names],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        dataset_dir=str(tiny_cases),
        modalities=modalities,
        data_list_file_path=None,
        split="training",
        cache_rate=0.0,
        num_workers=0,
        output_dir=str(tiny_cases.parent / "eval"),
    )
    workflow.initialize()
    assert not workflow.check_properties()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_steps_are_patched_by_name(path):
    """A position in a list means another step as soon as one is put in between."""
    content = without(json.loads(path.read_text()), "_desc_")
    for text in [*content, *strings(content)]:
        assert not re.search(r"#\d|\bhandlers\[|transforms\[", text), text


@pytest.mark.parametrize(("probabilities_dir", "num_steps"), [(None, 7), ("kept", 10)])
def test_steps_that_are_left_out_are_not_missed(probabilities_dir, num_steps):
    """MONAI builds what they are made of all the same."""
    config = ConfigParser()
    config.read_config(CONFIGS / "inference.json")
    config.update({"bundle_root": str(CONFIGS.parent), "probabilities_dir": probabilities_dir})
    assert len(config.get_parsed_content("postprocessing").transforms) == num_steps


def test_what_all_processes_do_is_there():
    steps = {handler["_target_"].split(".")[-1] for handler in load("train.json")["train"]["handlers"]}
    of_all = set(load("multi_gpu_train.json")["of_all_processes"])
    assert of_all & steps == of_all - {"CheckpointLoader"}


def test_all_processes_begin_with_the_weights_that_monai_label_loads():
    """It puts a CheckpointLoader before the handlers; what one process alone loads, the others do not get."""
    overlay = load("multi_gpu_train.json")
    loader, saver = CheckpointLoader("model.pt", {"model": nn.Identity()}), WeightsSaver("m.pt", nn.Identity(), True)
    for rank, chosen in ((0, [loader, saver]), (1, [loader])):
        content = {"train": {"handlers": [loader, saver]}, "of_all_processes": overlay["of_all_processes"]}
        content["chosen"] = overlay["train#trainer#train_handlers"]
        parser = ConfigParser(content, globals={"dist": SimpleNamespace(get_rank=lambda rank=rank: rank)})
        assert parser.get_parsed_content("chosen") == chosen


def test_the_last_epoch_is_validated_whatever_their_number():
    """Without a validation there is no model.pt."""
    for overlay in ("cpu.json", "chaos_cpu.json", "hippocampus.json", "demo.json"):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / name) for name in ("train.json", overlay)])
        parser["max_epochs"] = 3
        assert parser.get_parsed_content("val_interval") <= 3, overlay


STEPS = (
    *("crop", "orient", "respace", "normalize", "zero_missing"),
    *("discretize", "largest_component", "small_pieces", "refine"),
)


def test_what_stands_twice_is_the_same():
    train, inference, evaluate = load("train.json"), load("inference.json"), load("evaluate.json")
    for key in ("device", "amp", "network", *STEPS):
        assert train[key] == inference[key], key
    network = {key.split("#")[1]: value for key, value in evaluate.items() if key.startswith("network_def#")}
    assert train["network_def"] | network == inference["network_def"]
    # What the record of the weights decides, for both of those that use weights.
    for key in RECORDED:
        assert evaluate[key] == inference[key], key
    # Validation scores what inference saves. It reads a label too, and inference alone shows a bar over the windows.
    labelled = [
        transform
        for transform in train["validate"]["preprocessing"]["transforms"]
        if isinstance(transform, str) or transform["_target_"] != "scripts.data.ValuesToClassesd"
    ]
    ignored = ("_desc_", "keys", "dtype")
    assert without(labelled, *ignored) == without(inference["preprocessing"]["transforms"], *ignored)
    assert train["validate"]["inferer"] == without(inference["inferer"], "progress")


def test_metadata_names_channels_and_classes_as_the_code_does():
    formats = load("metadata.json")["network_data_format"]
    channels = formats["inputs"]["image"]["channel_def"]
    assert [channels[str(i)].lower() for i in range(4)] == list(MODALITIES) == load("train.json")["modalities"]
    # The keys are the values in our masks: MONAI Label shows the name of the key that it finds in a voxel.
    classes = formats["outputs"]["pred"]["channel_def"]
    convention = load("inference.json")["label_convention"]["default"]
    assert {int(value) for value in classes} - {0} == set(LABEL_CONVENTIONS[convention])
    assert all(value == label for value, label in LABEL_CONVENTIONS[convention].items())


def test_metadata_describes_the_network():
    formats = load("metadata.json")["network_data_format"]
    parser = ConfigParser(load("inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        logits = network(torch.zeros(1, formats["inputs"]["image"]["num_channels"], 16, 16, 16))
    assert logits.shape[1] == formats["outputs"]["pred"]["num_channels"]
    assert logits.dtype == torch.float32


def test_the_defaults_are_the_papers():
    train = load("train.json")
    wanted = {"roi_size": [128, 128, 128], "batch_size": 4, "max_epochs": 1000, "learning_rate": 4e-4}
    assert {key: train[key] for key in wanted} == wanted
    assert train["distillation_weight"] == 0.0  # the paper: 0.3; docs/about/experiments.md says why
    assert (train["optimizer"]["betas"], train["optimizer"]["eps"]) == ([0.9, 0.999], 1e-5)
    assert train["lr_scheduler"]["power"] == 0.9


def test_chaos_is_segmented_as_it_is_trained():
    training, inference = load("chaos.json"), load("chaos_inference.json")
    for key in inference.keys() - {"_desc_"}:
        assert training[key] == inference[key], key


def test_regions_are_segmented_as_they_are_trained():
    training, inference = load("regions.json"), load("regions_inference.json")
    for key in ("regions", "softmax", "network_def#out_channels", "discretize"):
        assert training[key] == inference[key], key


def strings(content: object) -> list[str]:
    if isinstance(content, dict):
        return [text for value in content.values() for text in strings(value)]
    if isinstance(content, list):
        return [text for value in content for text in strings(value)]
    return [content] if isinstance(content, str) else []


def targets(content: object) -> list[str]:
    if isinstance(content, dict):
        own = [content["_target_"]] if "_target_" in content else []
        return own + [target for value in content.values() for target in targets(value)]
    return [target for value in content for target in targets(value)] if isinstance(content, list) else []


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_what_docs_security_says_of_the_configs(path):
    """Expressions compute and call run(); they open no file, no process and no connection."""
    content = json.loads(path.read_text())
    allowed = {
        "atexit",
        "gc",
        "logging",
        "os",
        "sys",
        "monai",
        "torch",
        "torch.distributed",
        "ignite.distributed",
    }
    for expression in (text for text in strings(content) if text.startswith("$")):
        imported = re.match(r"\$import ([\w.]+)", expression)
        assert imported is None or imported.group(1) in allowed
        calls = re.findall(r"(\w+)\(", expression)
        assert not {"open", "exec", "eval", "compile", "__import__", "system", "popen", "load", "getattr"} & set(calls)
    for target in targets(content):
        assert "." not in target or target.split(".")[0] in {"monai", "torch", "scripts"}


def test_nothing_unpickles():
    for path in (CONFIGS.parent / "scripts").rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|cloudpickle|marshal|shelve)", source, re.MULTILINE)
        for call in re.findall(r"torch\.load\(.*", source):
            assert "weights_only=True" in call
        assert "allow_pickle=True" not in source


@pytest.mark.parametrize(
    ("files", "prefix"),
    [
        (("train", "chaos", "regions"), "validate#"),
        (("inference", "chaos_inference", "regions_inference"), ""),
    ],
    ids=["evaluation", "inference"],
)
def test_what_was_cropped_away_is_in_no_region(files, prefix, tiny_case, tmp_path):
    """Around the crop no class is chosen at all."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{name}.json" for name in files])
    parser.update({"modalities": ["t1", "t2"], "output_dir": str(tmp_path / "masks"), "device": "cpu"})
    case = {"image": {name: str(tiny_case[name]) for name in ("t1", "t2")}, "label": str(tiny_case["seg"])}
    item = parser.get_parsed_content(f"{prefix}preprocessing")(case | {"case_id": "case_1"})
    assert item["image"].shape[1:] == (12, 17, 11)  # of 20 x 24 x 16
    logits = torch.full_like(item["image"][:1], -1)
    logits[:, 6:] = 1
    after = parser.get_parsed_content(f"{prefix}postprocessing").transforms
    last = [type(step).__name__ for step in after].index("InvertRestd")
    mask = Compose(after[: last + 1])(item | {"pred": logits})["pred"]
    assert mask.shape[1:] == (20, 24, 16)
    assert mask.sum() == 6 * 17 * 11
