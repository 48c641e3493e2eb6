"""Cross-validation by one command: trains the folds one after another, scores each case by the fold that left it out.

    python -m scripts cross_validation --dataset_dir BraTS2019 --output_dir folds --folds 5

Below ``output_dir``: ``datalist.json`` with the split, ``settings.json`` with what all folds are trained with,
``fold0`` .. with weights and tables, and the tables of all
held-out cases. The last weights of a fold are scored, not those that the held-out cases would choose. What is done is
not done again, and a training goes on from its last checkpoint, so the same command serves after an interruption.
Overlays and knobs of the training go through:
``--config_file "['configs/train.json','configs/cpu.json']" -- --max_epochs 300``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..arguments import listed
from ..data.cases import modalities_of
from ..data.datalist import make_datalist, patients_in, write_new
from ..data.patients import read_patients
from ..errors import InputError
from ..evaluation.report import merge_reports
from ..files import read_json
from ..knobs import flags
from ..weights.record import sha256

__all__ = ["main", "run_fold"]

BUNDLE = Path(__file__).parents[2]
WITHOUT_EFFECT = ("--num_workers", "--cache_rate", "--device")  # on the weights: they may change between runs


def split_of(
    dataset_dir: Path, output_dir: Path, modalities: Sequence[str], folds: int, seed: int, patients: Path | None = None
) -> Path:
    """The datalist of a cross-validation, made at the first run and kept.

    Raises:
        InputError: when it is there with another number of folds, seed, modalities or patients.
    """
    path = output_dir / "datalist.json"
    wanted = {"folds": folds, "seed": seed, "modalities": list(modalities)}
    if not path.exists():
        output_dir.mkdir(parents=True, exist_ok=True)
        made = make_datalist(dataset_dir, modalities, seed=seed, testing_fraction=0.0, folds=folds, patients=patients)
        write_new(path, json.dumps(made, indent=2) + "\n")
    there = read_json(path, "The split of the folds,")
    for name, value in wanted.items():
        if there.get(name) != value:
            raise another(name, there.get(name), value, path)
    table = {} if patients is None else read_patients(patients)
    for case_id, patient in patients_in(there["training"]).items():
        if table and table.get(case_id) != patient:
            raise another(f"The patient of {case_id}", patient, table.get(case_id), path)
    return path


def keep_settings(output_dir: Path, dataset_dir: Path, config_file: Sequence[str], knobs: Sequence[str]) -> None:
    """Writes what the folds are trained with beside them at the first run, and holds later runs to it.

    Raises:
        InputError: when folds are there of another data set, other configs or other knobs.
    """
    path = output_dir / "settings.json"
    given = {f"--{name}": value for name, value in flags(knobs).items()}
    values = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
    wanted: dict[str, Any] = {
        "dataset_dir": str(dataset_dir.resolve()),
        "config_file": list(config_file),
        "contents": {
            str(file): sha256(Path(file))
            for file in config_file
            if Path(file).is_file() and Path(file).resolve().parent != BUNDLE / "configs"
        },
        "knobs": values,
    }
    if not path.exists():
        write_new(path, json.dumps(wanted, indent=2) + "\n")
    there = {"knobs": {}} | read_json(path, "The settings of the folds,")
    for name in ("dataset_dir", "config_file"):
        if there.get(name) != wanted[name]:
            raise another(name, there.get(name), wanted[name], path)
    for file, content in wanted["contents"].items():  # an overlay may change between two runs
        if (was := there.get("contents", {}).get(file, content)) != content:
            raise another(f"The content of {file}", f"sha256 {was}", content, path)
    if not isinstance(there["knobs"], dict):
        raise another("knobs", there["knobs"], wanted["knobs"], path)
    for name in {**there["knobs"], **values}:
        was, is_now = (each["knobs"].get(name, "not given") for each in (there, wanted))
        if was != is_now:
            raise another(name.removeprefix("--"), was, is_now, path)


def another(name: str, was: object, is_now: object, path: Path) -> InputError:
    return InputError(f"{name} should be that of {path}, {was}, got {is_now}: take another output_dir.")


def run_fold(fold: int, config_file: Sequence[str], knobs: Sequence[str], output_dir: Path) -> None:
    """Trains a fold and scores its held-out cases; a fold that has its ``metrics.csv`` is done already.

    Raises:
        InputError: when the training or the evaluation fails; the log of the fold says why.
    """
    folder = output_dir / f"fold{fold}"
    if (folder / "metrics.csv").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    first, *overlays = config_file
    common = [*knobs, "--fold", str(fold), "--ckpt_dir", str(folder), "--output_dir", str(folder)]
    weights = folder / "model_final.pt"
    held_out = ["--split", "validation", "--checkpoint", str(weights)]
    workflows = {
        "training": [str([first, *overlays]), *common, "--resume", "auto"],
        "evaluating": [str([first, str(BUNDLE / "configs" / "evaluate.json"), *overlays]), *common, *held_out],
    }
    with open(folder / "log.txt", "a") as log:
        for workflow, arguments in workflows.items():
            if workflow == "training" and weights.is_file():
                continue  # it is written at the end of a training
            command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", *arguments]
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise InputError(f"The {workflow} of fold {fold} failed, the end of {log.name} says why.")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts cross_validation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases")
    parser.add_argument("--output_dir", type=Path, default=Path("folds"), help="default: %(default)s")
    parser.add_argument("--folds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--fold", type=int, help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--modalities", type=listed(str), help="default: those of dataset.json, else all of BraTS")
    parser.add_argument("--patients", type=Path, help="CSV with the columns case and patient; default: by the names")
    parser.add_argument(
        "--config_file",
        type=listed(str),
        default=[str(BUNDLE / "configs" / "train.json")],
        help="the training's configs",
    )
    parser.add_argument("knobs", nargs="*", help="after --: knobs of the training, such as -- --max_epochs 300")
    arguments = parser.parse_args(argv)
    output_dir = arguments.output_dir
    modalities = arguments.modalities or modalities_of(arguments.dataset_dir)
    datalist = split_of(
        arguments.dataset_dir, output_dir, modalities, arguments.folds, arguments.seed, arguments.patients
    )
    if arguments.fold is not None and arguments.fold not in range(arguments.folds):
        raise InputError(f"fold should be from 0 to {arguments.folds - 1}, got {arguments.fold}.")
    keep_settings(output_dir, arguments.dataset_dir, arguments.config_file, arguments.knobs)
    knobs = [*arguments.knobs, "--bundle_root", str(BUNDLE), "--dataset_dir", str(arguments.dataset_dir)]
    knobs += ["--data_list_file_path", str(datalist), "--modalities", str(modalities)]
    folds = range(arguments.folds) if arguments.fold is None else [arguments.fold]
    for fold in tqdm(folds, desc="folds", disable=None):
        run_fold(fold, arguments.config_file, knobs, output_dir)
    folders = [output_dir / f"fold{fold}" for fold in range(arguments.folds)]
    if all((folder / "metrics.csv").is_file() for folder in folders):
        entries = read_json(datalist, "The split of the folds,")["training"]
        merge_reports(folders, output_dir, patients_in(entries))
