"""``docs/reference/``: every knob, command and error, read from the configs and the code.

python tools/reference.py    # writes the three files; a test checks that they are up to date
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
SCRIPTS = ROOT / "bundle" / "scripts"
REFERENCE = ROOT / "docs" / "reference"
WORKFLOWS = ("train.json", "evaluate.json", "inference.json")
COMPLETE = ("train.json", "inference.json")
NOT_OVERLAYS = (*WORKFLOWS, "metadata.json", "fl_filters.json", "mlflow.json")
HEAD = "*Made by `make reference` from the {of}: change it there.*"

# What each knob means, in one line. Where a knob is new, its line is added here.
MEANING = {
    "bundle_root": "folder of the bundle",
    "dataset_dir": "folder of cases, see [data](../data.md)",
    "data_list_file_path": "[datalist](../data.md#datalist); without one the folder is split, the same way each time",
    "may_leave_dataset_dir": "`true` lets the paths of a datalist lead out of `dataset_dir`",
    "fold": "fold to validate on, for a datalist with folds",
    "split": "part of the datalist: `training`, `validation`, `testing`; `inference`: cases without a label",
    "ckpt_dir": "where weights and checkpoints go",
    "output_dir": "where masks, tables and TensorBoard files go",
    "checkpoint": "the weights to use",
    "probabilities_dir": "where [probabilities](../evaluate.md#calibration) of regions are kept; by default nowhere",
    "skip_existing": "`true` leaves out the cases that have a mask in `output_dir`, so that a run goes on",
    "modalities": "those of the cases, by name; in a training the channels of the network, in this order",
    "network_modalities": "channels of the network, by name, in this order; `modalities` may be some of them",
    "channel_order": "names of the channels of a 4D file; by default those of its `dataset.json`, else `modalities`",
    "suffixes": "what foreign file names end with, see [another data set](../datasets.md#foreign-file-names)",
    "label_convention": (
        "what the values of labels and masks mean: [of BraTS](../data.md#labels) by name, or a "
        "[dataset.json](../datasets.md#classes-and-regions)"
    ),
    "intensities": "`low`, `high`, `mean`, `std` of channels that have units, such as a CT; the others are z-scored",
    "spacing_mm": "voxel size that images are resampled to, each axis; -1 keeps an axis as it is",
    "roi_size": "crop for training, window for inference, grid of the position table; sides divisible by 8",
    "batch_size": "cases a step, per process; the paper: 4 on 8 GPUs",
    "max_epochs": "epochs; the paper: 1000",
    "learning_rate": "at the start; falls by poly decay of power 0.9 per iteration to 0 at the end; the paper: 0.0004",
    "modality_dropout": (
        "probability with which a sample of the training keeps a random subset of its modalities, the rest zero: for "
        "weights that [do without some](../segment.md)"
    ),
    "distillation_weight": (
        "lambda, the weight of the distillation loss; above 0 the fusion block is trained beside the network. The "
        "paper: 0.3. Off, as [it did not help](../about/experiments.md)"
    ),
    "checkpointing": "`true` computes the fusion's branches twice instead of keeping them in memory, with distillation",
    "val_interval": "epochs between validations",
    "checkpoint_interval": "epochs between checkpoints to [go on](../train.md#stop-and-go-on) from",
    "resume": "`true` goes on from the last checkpoint, `auto` does where there is one",
    "cache_rate": "share of the training cases kept in memory after loading",
    "num_workers": "processes that load data; 0 loads in the main process",
    "seed": "of weights, order and augmentation",
    "device": "the GPU of the process where there is one, else the CPU",
    "amp": "mixed precision, by default on with a GPU; **not tested: there was no GPU**",
    "engine": "`torch`, or `openvino` on a CPU: what computes, see [engines](../about/performance.md#engines)",
    "precision": "`float32` or `bfloat16`, which takes less time where the processor has instructions for it",
    "engine_cache_dir": "where `openvino` keeps compiled networks; default `$XDG_CACHE_HOME/missu` or `~/.cache/missu`",
    "stretch": (
        "how many times as long as `roi_size` a window may be, on each axis; 1 for windows of `roi_size`. "
        "[What it does](../about/performance.md#a-whole-case)"
    ),
    "invert_logits": "`true` brings logits, not classes, back to the grid of the file: borders stay smooth",
    "largest_component_of": "classes of which the largest connected piece alone stays",
    "min_piece": (
        "share of the largest connected piece of a tumor or organ, below which others are left out; 0 keeps all, 1 the "
        "largest alone. The log tells of each"
    ),
    "softmax": "whether the network's channels are classes; `regions.json` and `regions_inference.json` set it",
    "overlap": "of neighboring windows, at least, as a share of `roi_size`",
    "metrics": "columns of the tables, see [scores](../evaluate.md#scores-of-a-case)",
    "allow_training_cases": "`true` lets cases be scored that the weights were trained on",
    "missed_mm": (
        "distance that is written where P or T alone is empty; by default by the "
        "`label_convention`; `null`: the diagonal of the case's own volume"
    ),
    "lesion_dilations": "dilations that make pieces of the truth one [lesion](../evaluate.md#lesions)",
    "lesion_min_mm3": "a lesion of at most this volume does not count",
    "teacher": "the weights that teach, frozen; by their record of the same modalities, voxel size and classes",
    "pretrained": "the weights to begin with; the record beside them gives the voxel size, the crop and the network",
    "freeze_encoder": "`true` leaves the encoder as it is",
    "cache_dir": "folder of the arrays that crops are read from",
    "samples_per_epoch": "cases drawn for an epoch",
    "demo_dir": "folder of all that the demo writes",
    "exported": "the exported network",
    "folds_dir": "folder of `cross_validation`, with `fold0`, `fold1`, ..",
    "of_all_processes": "handlers that run in each process; the others run in the first alone",
    "rotation_range": "largest rotation within a slice, radians",
    "flip_prob": "probability of a flip, each axis",
}

# What to do about an error, where its sentence does not say so itself. Each key is a piece of a sentence in the code.
ADVICE = {
    "fault(s) in": "[Preflight](../data.md#preflight) explains each fault",
    "is missing, there is no": "add the file, or leave the modality out by `--modalities`",
    "is doubled, one file is allowed": "remove one, often `.nii` beside `.nii.gz`",
    "is doubled, one folder is allowed": "two folders hold the same case ID: rename one",
    "of the datalist is not there": "the list belongs to another folder, or a file was moved",
    "should have at least one case for": "another `split`, or a datalist with larger fractions",
    "has folds, got": "add `--fold`",
    "cannot be read as an image": "the file is damaged or not NIfTI: get it again",
    "should have one shape": "bring the modalities to one grid first",
    "holds NaN or infinity": "repair the scan",
    "has no value but": "it is a mask, or damaged: give the scan",
    "their voxels are the same": "one is a copy of the other: give the right file, or leave it out",
    "mm: correct that": "its voxels are in meters or microns, or were never set",
    "is zero everywhere": "the scan is empty: get it again",
    "are of another network": "where no record lies beside the weights, give the knobs of the training",
    "cannot be read as a state_dict": "the file is damaged, or no file of weights",
    "exists: a split is made once": "another name, or delete the old list yourself",
    "should not be a folder of scans": "another `output_dir`: masks would replace labels",
}


def is_knob(key: str, value: Any) -> bool:
    """Whether a line of an overlay is a value for people to set, and not a part, a step or text about the config."""
    values = value if isinstance(value, list) else [value]
    plain = not any(isinstance(each, dict | list) or str(each).startswith(("$", "@", "%")) for each in values)
    return key in MEANING or (plain and "#" not in key and key not in ("_desc_", "imports", "run"))


def is_check(value: Any) -> bool:
    """Whether a line between the knobs of a complete config is made of others, and not a default."""
    return isinstance(value, dict) and "default" not in value


def knobs_of(config: str) -> dict[str, Any]:
    """Knob to default. Those of a complete config stand before its ``network_def``; an overlay's anywhere."""
    content = json.loads((CONFIGS / config).read_text())
    keys = list(content)
    if config in COMPLETE:
        keys = [key for key in keys[: keys.index("network_def")] if key not in ("_desc_", "imports")]
        keys = [key for key in keys if not is_check(content[key])]
    else:
        keys = [key for key in keys if is_knob(key, content[key]) and key not in parts()]
    return {key: content[key] for key in keys}


def parts() -> set[str]:
    """The keys of the complete configs that hold parts and steps, which overlays replace, too."""
    found: set[str] = set()
    for config in COMPLETE:
        keys = list(json.loads((CONFIGS / config).read_text()))
        found |= set(keys[keys.index("network_def") :])
    return found


def overlays() -> list[str]:
    return sorted(path.name for path in CONFIGS.glob("*.json") if is_overlay(path))


def is_overlay(path: Path) -> bool:
    """Whether a config belongs to the bundle and patches others; a datalist may lie beside it and has no ``_desc_``."""
    return path.name not in NOT_OVERLAYS and "_desc_" in json.loads(path.read_text())


def written(value: Any) -> str:
    """A default as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, dict) and "default" in value:
        record, default = "the [record](../segment.md#the-record)'s", written(value["default"])
        if value["_target_"].endswith(".convention_to_write"):
            return f"{default}, or {record} where it has other regions"
        return f"{record}, else {default}"
    if isinstance(value, dict) and "_target_" in value:  # made by a function
        return f"by `{value['_target_'].rpartition('.')[2]}`"
    text = value if isinstance(value, str) else json.dumps(value).replace('"', "'")
    if text.startswith("$@") and " + '" in text:
        folder, _, rest = text[2:].partition(" + ")
        text = f"<{folder}>{rest.strip(chr(39))}"
    return f"`{text}`"


def knobs() -> str:
    by_config = {config.partition(".")[0]: knobs_of(config) for config in WORKFLOWS}
    lines = [
        "# Knobs",
        HEAD.format(of="configs"),
        "A [knob](../start.md#words) is a named value at the top of a config. Set it on the command line, "
        "`--batch_size 2`, or many in a JSON file, `--args_file my.json`; the command line wins. What lies deeper is "
        "set by its path, `--network_def#dropout 0.1`. `evaluate` lies on `train`, so the knobs of both hold in an "
        "evaluation.",
        "| Knob | Configs | Default | Meaning |\n|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for values in by_config.values() for name in values):
        defaults = {config: written(values[name]) for config, values in by_config.items() if name in values}
        configs = {value: [config for config in defaults if defaults[config] == value] for value in defaults.values()}
        default = "; ".join(f"{value} ({', '.join(of)})" for value, of in configs.items())
        if len(configs) == 1:
            default = next(iter(configs))
        lines[-1] += f"\n| `{name}` | {', '.join(defaults)} | {default} | {MEANING[name]} |"
    lines += [
        "## Overlays",
        "An [overlay](../start.md#words) is a config that changes others. Name it after them: "
        "`--config_file \"['configs/train.json','configs/cpu.json']\"`.",
    ]
    for config in overlays():
        lines += [f"### {config}", json.loads((CONFIGS / config).read_text())["_desc_"]]
        values, known = knobs_of(config), {name for knobs in by_config.values() for name in knobs}
        if others := [f"`{name}` {written(value)}" for name, value in values.items() if name in known]:
            lines.append(f"Sets {', '.join(others)}.")
        if own := [name for name in values if name not in known]:
            lines.append("| Knob | Default | Meaning |\n|---|---|---|")
            for name in own:
                lines[-1] += f"\n| `{name}` | {written(values[name])} | {MEANING[name]} |"
    return "\n\n".join(lines) + "\n"


def commands() -> str:
    """The help of each command, at a width that depends on no terminal."""
    sys.path.insert(0, str(SCRIPTS.parent))
    from scripts.__main__ import COMMANDS, main

    lines = [
        "# Commands",
        HEAD.format(of="commands"),
        "From inside `bundle/`. Lists are spelled as in the configs: `\"['t1','flair']\"`, `\"[64,64,64]\"`.",
        "| Command | What it does |\n|---|---|"
        + "".join(f"\n| [`{name}`](#{name}) | {about} |" for name, (_, about) in COMMANDS.items()),
    ]
    for name in COMMANDS:
        text = io.StringIO()
        wide = mock.patch.dict(os.environ, {"COLUMNS": "120", "NO_COLOR": "1"})
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit), wide:
            main([name, "--help"])
        lines += [f"## {name}", f"```\n{text.getvalue().strip()}\n```"]
    return "\n\n".join(lines) + "\n"


def placeholder(node: ast.expr) -> str:
    """A word for what is filled in, such as ``modalities`` for ``', '.join(self.modalities)``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower()
        case ast.Call(func=ast.Name(id="map"), args=[_, items]):
            return placeholder(items)
        case ast.Call(args=[first, *_]) | ast.Starred(value=first):
            return placeholder(first)
        case ast.Call(func=inner) | ast.Subscript(value=inner) | ast.FormattedValue(value=inner):
            return placeholder(inner)
        case ast.List(elts=[first, *_]):
            return text_of(first)
        case ast.BinOp(left=left):
            return placeholder(left)
        case ast.GeneratorExp(generators=[first]):
            return placeholder(first.iter)
    return ".."


def text_of(node: ast.expr) -> str:
    """The sentence that an expression makes, with what is filled in between braces."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(map(text_of, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=[first, *_])]):
            return text_of(first)  # the line that stands before a list of faults
    return f"{{{placeholder(node)}}}"


def sentences(file: Path) -> Iterator[str]:
    """Those that a file raises; not what only hands on the sentences of others."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id="InputError" | "ValueError"), args=[sentence])):
                text = text_of(sentence)
                if re.search("[a-z]{2}", re.sub(r"\{[^}]*\}|Case", "", text)):
                    yield text.replace("\n", " ").replace("|", "\\|")


def errors() -> str:
    lines = [
        "# Errors",
        HEAD.format(of="code"),
        "Bad input ends with `Error: ` and one of these sentences, exit code 1, and nothing is written for that case. "
        "What stands in braces is filled in: the case, the file, the value. Search this page for a few words of the "
        "sentence. A full disk or shared memory, a missing permission and a loading process that died have sentences, "
        "too, which say what to do. A traceback means something else.",
    ]
    table = "| Sentence | What to do | From |\n|---|---|---|"
    for file in sorted(SCRIPTS.rglob("*.py")):
        for sentence in dict.fromkeys(sentences(file)):
            advice = next((f" {advice} |" for piece, advice in ADVICE.items() if piece in sentence), " |")
            table += f"\n| `{sentence}` |{advice} `{file.relative_to(SCRIPTS).as_posix()}` |"
    lines.append(table)
    return "\n\n".join(lines) + "\n"


PAGES = {"knobs.md": knobs, "commands.md": commands, "errors.md": errors}


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())


if __name__ == "__main__":
    main()
