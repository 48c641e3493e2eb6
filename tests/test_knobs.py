"""A knob that no config defines is refused with the nearest name; all others go through."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.knobs import check_command, flags

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
TRAIN = str(CONFIGS / "train.json")
INFERENCE = str(CONFIGS / "inference.json")
BOTH = str([TRAIN, str(CONFIGS / "evaluate.json")])
PROGRAM = str(Path(monai.bundle.__file__).with_name("__main__.py"))


# As the documents give them.
GIVEN = [
    *[("train", name) for name in ("bfloat16", "cache", "cpu", "demo", "deterministic", "finetune", "hippocampus")],
    *[("train", name) for name in ("multi_gpu_train", "regions", "synthetic", "teacher")],
    *[("train", "chaos", "chaos_cpu"), ("train", "evaluate", "chaos", "chaos_cpu"), ("train", "evaluate", "regions")],
    *[("train", "evaluate", name) for name in ("demo", "ensemble", "multi_gpu_evaluate", "small_et", "tta")],
    *[("inference", name) for name in ("demo", "ensemble", "multi_gpu_inference", "small_et", "tta")],
    *[("inference", name) for name in ("inference_onnx", "inference_pt2", "inference_ts", "regions_inference")],
    ("inference", "chaos_inference", "chaos_cpu"),
]


def check(monkeypatch: pytest.MonkeyPatch, *arguments: str, program: str = PROGRAM) -> None:
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    check_command()


@pytest.mark.parametrize(
    ("config_file", "flag", "nearest"),
    [
        (INFERENCE, "--modalites", "--modalities"),
        (TRAIN, "--lr", None),
        (TRAIN, "--learning-rat=0.1", "--learning_rate"),
        (TRAIN, "--checkpoint", "--checkpointing"),
        (TRAIN, "--optimizer#epss", "--optimizer#eps"),
        (TRAIN, "--train#trainer#max_epoch", "--train#trainer#max_epochs"),
        (TRAIN, "--trian#trainer#max_epochs", None),
        (BOTH, "--metric", "--metrics"),
    ],
)
def test_an_unknown_knob_is_refused(monkeypatch, config_file, flag, nearest):
    with pytest.raises(InputError) as raised:
        check(
            monkeypatch, "run", "--config_file", config_file, "--seed", "1" if config_file == TRAIN else "", flag, "1"
        )
    said = str(raised.value)
    assert said.startswith(flag.split("=")[0].replace("-", "_").replace("__", "--", 1))
    assert (f"did you mean {nearest}?" in said) if nearest else "did you mean" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "training", "--config_file", TRAIN, "--max_epochs", "3", "--modalities", "['t1','flair']"),
        ("run", "--config_file", BOTH, "--checkpoint=x.pt", "--split", "validation", "--missed-mm", "-1"),
        ("run", "--config_file", TRAIN, "--network_def#num_heads", "4", "--train#handlers#0#print_lr", "True"),
        ("run", "--config_file", TRAIN, "--loss#segmentation#lambda_dice", "0", "--train#trainer#epoch_length", "2"),
        ("run", "--config_file", INFERENCE, "--network_def#num_heads", "4", "--+imports", "['$import os']"),
        (
            "run",
            "--config_file",
            INFERENCE,
            "--meta_file",
            "m.json",
            "--logging_file",
            "l.conf",
        ),
        ("run", "--config_file", INFERENCE, "--init_id", "a", "--final_id", "b", "--_meta_#version", "1"),
        ("verify_net_in_out", "--config_file", INFERENCE, "--net_id", "network_def"),
    ],
)
def test_what_a_config_or_monai_defines_goes_through(monkeypatch, arguments):
    check(monkeypatch, *arguments)


def test_the_knobs_of_a_tracking_go_through_where_it_fits(monkeypatch):
    ours = ["--tracking", str(CONFIGS / "mlflow.json"), "--experiment_name", "a", "--tracking_uri", "http://b"]
    check(monkeypatch, "run", "training", "--config_file", TRAIN, *ours)
    with pytest.raises(InputError, match=r"--tracking should be configs/mlflow\.json"):
        check(monkeypatch, "run", "training", "--config_file", TRAIN, "--tracking", "mlflow")
    with pytest.raises(InputError, match="--experiment is no knob of"):
        check(monkeypatch, "run", "training", "--config_file", TRAIN, *ours[:2], "--experiment", "a")


def test_python_code_is_not_asked(monkeypatch):
    check(monkeypatch, "run", "--config_file", INFERENCE, "--modalites", "t1", program="/app/monailabel/main.py")


@pytest.mark.parametrize("flag", ["--_meta_#versoin", "--_meta_::version_"])
def test_metadata_has_its_names_too(monkeypatch, flag):
    with pytest.raises(InputError, match=r"is no knob of .*, did you mean --_meta_#version\?"):
        check(monkeypatch, "run", "--config_file", INFERENCE, flag, "1")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("inference", "cpu"), "cpu.json changes train, which is not defined by what it is given with, "),
        (("inference", "evaluate"), "evaluate.json changes validate"),
        (("inference", "finetune"), "finetune.json changes recorded"),
        (("train", "multi_gpu_inference"), "multi_gpu_inference.json changes dataset"),
        (("evaluate", "train"), "evaluate.json changes network_def"),
        (("train", "small_et"), "small_et.json uses checkpoint"),
    ],
    ids="-".join,
)
def test_an_overlay_of_another_workflow_is_refused(monkeypatch, names, said):
    with pytest.raises(InputError) as raised:
        check(monkeypatch, "run", "--config_file", str([str(CONFIGS / f"{name}.json") for name in names]))
    assert said in str(raised.value)


def test_what_an_overlay_sets_is_used_by_something(monkeypatch, tmp_path):
    overlay = tmp_path / "mine.json"
    both = str([TRAIN, str(overlay)])
    overlay.write_text('{"max_epcohs": 5}')
    with pytest.raises(InputError, match=r"mine\.json sets max_epcohs, which nothing uses, did you mean max_epochs\?"):
        check(monkeypatch, "run", "--config_file", both)
    overlay.write_text('{"lr": 0.1}')
    with pytest.raises(InputError, match=r"mine\.json sets lr, which nothing uses\."):
        check(monkeypatch, "run", "--config_file", both)
    overlay.write_text('{"_desc_": "mine", "rate": 0.1, "learning_rate": "@rate", "max_epochs": 5, "mine": ["$1 + 1"]}')
    check(monkeypatch, "run", "--config_file", both)


@pytest.mark.parametrize("workflow", [["train"], ["train", "evaluate"], ["inference"]], ids="-".join)
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_any_overlay_on_any_workflow_fits_or_is_refused(monkeypatch, path, workflow):
    """MONAI reads the configs before we are asked: it must not fail."""
    files = [*(str(CONFIGS / f"{name}.json") for name in workflow), str(path)]
    ConfigParser().read_config(files)
    with contextlib.suppress(InputError):
        check(monkeypatch, "run", "--config_file", str(files))


@pytest.mark.parametrize("names", GIVEN, ids="-".join)
def test_an_overlay_of_this_workflow_goes_through(monkeypatch, names):
    check(monkeypatch, "run", "--config_file", str([str(CONFIGS / f"{name}.json") for name in names]))


def test_knobs_in_a_file_of_arguments(monkeypatch, tmp_path):
    file = tmp_path / "args.json"
    file.write_text(f'{{"config_file": "{INFERENCE}", "overlapp": 0.5}}')
    with pytest.raises(InputError, match=r"--overlapp is no knob of .* did you mean --overlap\?"):
        check(monkeypatch, "run", "--args_file", str(file))
    file.write_text(f'{{"config_file": ["{INFERENCE}"], "overlap": 0.5}}')
    check(monkeypatch, "run", "--args_file", str(file))


def test_flags_as_fire_reads_them():
    arguments = ["run", "training", "--a", "-1", "--b=x=y", "--c-d", "-g", "2", "--e", "['f']", "--", "--trace"]
    assert flags(arguments) == {"a": "-1", "b": "x=y", "c_d": "", "g": "2", "e": "['f']"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_workflow_asks_for_its_knobs(path):
    """An overlay that puts another list in the place of a workflow's, too."""
    config = json.loads(path.read_text())
    for name in {"training", "evaluating", "inference"} & config.keys():
        assert {"_target_": "scripts.knobs.check_command"} in config[name]
