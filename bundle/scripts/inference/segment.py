"""One case by its files, to one mask: a door to ``configs/inference.json``, which does the work.

    python -m scripts segment --t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz --output mask.nii.gz

There is a flag for each modality that the weights were trained on, by their record. Where that was with
``modality_dropout``, some may be left out; knobs of ``inference.json`` follow
after ``--``, such as ``-- --label_convention brats2018``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import monai.bundle

from ..arguments import listed
from ..data.cases import MODALITIES, NIFTI_EXTENSIONS
from ..errors import InputError
from ..files import check_writable
from ..knobs import check_knobs
from ..weights.record import recorded

__all__ = ["main", "segment"]

BUNDLE = Path(__file__).parents[2]


def segment(
    files: Mapping[str, Path],
    output: Path,
    checkpoint: Path,
    config_file: Sequence[str],
    knobs: Mapping[str, Any],
) -> None:
    """Writes the mask of one case, whole or not at all.

    Args:
        files: the file of each modality by its name.
        output: the mask, a new file that ends with ``.nii.gz``.
        checkpoint: the weights.
        config_file: ``inference.json`` and overlays on it.
        knobs: further knobs of the config by their names.

    Raises:
        InputError: when a file is missing, ``output`` is there already or ends otherwise, the configs define no such
            knob, or the case is refused.
    """
    if not output.name.endswith(NIFTI_EXTENSIONS[0]):
        raise InputError(f"output should end with {NIFTI_EXTENSIONS[0]}, it is {output}.")
    if output.exists():
        raise InputError(f"output should be a new file, {output} exists.")
    for name, file in files.items():
        if not file.is_file():
            raise InputError(f"{name} should be a file, {file} is not there.")
    check_knobs(knobs, config_file)
    check_writable(output.parent, "the folder of output")
    case_id = output.name.removesuffix(NIFTI_EXTENSIONS[0])
    entry = {"case_id": case_id, "image": {name: str(file.resolve()) for name, file in files.items()}}
    # Beside the mask, so that it moves to its place in one step.
    with tempfile.TemporaryDirectory(prefix=".segment_", dir=output.parent) as folder:
        datalist, scans = Path(folder) / "datalist.json", Path(folder) / "scans"
        scans.mkdir()  # empty: the list has their full paths
        datalist.write_text(json.dumps({"inference": [entry]}))
        monai.bundle.run(
            run_id="run",
            config_file=list(config_file),
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=str(BUNDLE / "configs" / "logging.conf"),
            **{
                "bundle_root": str(BUNDLE),
                "dataset_dir": str(scans),
                "data_list_file_path": str(datalist),
                "may_leave_dataset_dir": True,
                "output_dir": f"{folder}/masks",
                "checkpoint": str(checkpoint),
                "modalities": list(files),
                "num_workers": 0,
                **knobs,
            },
        )
        [mask] = Path(folder, "masks").glob(f"*{NIFTI_EXTENSIONS[0]}")
        os.replace(mask, output)


def parse_knobs(arguments: Sequence[str]) -> dict[str, Any]:
    """Knobs as ``monai.bundle run`` takes them: ``--name value``, Python's literals as such, all else as text.

    Raises:
        InputError: when a name has no value, or a value no name.
    """
    knobs: dict[str, Any] = {}
    for name, value in zip_longest(arguments[::2], arguments[1::2]):
        if not name.startswith("--") or value is None:
            raise InputError(f"Knobs should be pairs of --name and value, got {' '.join(arguments)}.")
        try:
            knobs[name.removeprefix("--")] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            knobs[name.removeprefix("--")] = value
    return knobs


def main(argv: Sequence[str]) -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--checkpoint", type=Path, default=BUNDLE / "models" / "model.pt", help="default: models/model.pt"
    )
    common.add_argument(
        "--config_file",
        type=listed(str),
        default=[str(BUNDLE / "configs" / "inference.json")],
        help="inference.json and overlays on it",
    )
    weights, _ = common.parse_known_args(argv)
    modalities = recorded(str(weights.checkpoint), "modalities", list(MODALITIES))
    may_miss = bool(recorded(str(weights.checkpoint), "modality_dropout", 0.0))
    parser = argparse.ArgumentParser(
        prog="python -m scripts segment", description=(__doc__ or "").split("\n")[0], parents=[common]
    )
    for name in modalities:
        parser.add_argument(f"--{name}", type=Path, required=not may_miss, help=f"the scan of {name}, NIfTI")
    parser.add_argument("--output", type=Path, required=True, help="the mask, a new .nii.gz")
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, knobs = parser.parse_args(argv[:end]), argv[end + 1 :]
    files = {name: file for name in modalities if (file := getattr(arguments, name)) is not None}
    if not files:
        parser.error(f"give a scan by one or more of {', '.join(f'--{name}' for name in modalities)}")
    segment(files, arguments.output, arguments.checkpoint, arguments.config_file, parse_knobs(knobs))
    print(arguments.output)
