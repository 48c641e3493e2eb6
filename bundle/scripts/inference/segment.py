"""One case by its files, to one mask: a door to ``configs/inference.json``, which does the work.

    python -m scripts segment --t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz --output mask.nii.gz

There is a flag for each modality that the weights were trained on, by their record. Where that was with
``modality_dropout``, some may be left out. Knobs of ``inference.json`` follow after ``--``, such as
``-- --label_convention brats2018``. ``--report page.html`` and ``--picture case.png`` show the case with its mask.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import monai.bundle

from ..arguments import listed
from ..data.cases import MODALITIES, NIFTI_EXTENSIONS, Case
from ..errors import InputError
from ..files import check_writable, whole_file
from ..knobs import check_knobs
from ..pictures.case_report import report_case, write_report
from ..pictures.picture import draw_case
from ..weights.record import convention_to_write, recorded

__all__ = ["main", "segment"]

BUNDLE = Path(__file__).parents[2]


def segment(
    files: Mapping[str, Path],
    output: Path,
    checkpoint: Path,
    config_file: Sequence[str],
    knobs: Mapping[str, Any],
    report: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Writes the mask of one case, and what shows it, all of them or none.

    Args:
        files: the file of each modality by its name.
        output: the mask, a new file that ends with ``.nii.gz``.
        checkpoint: the weights.
        config_file: ``inference.json`` and overlays on it.
        knobs: further knobs of the config by their names.
        report: a page of the case, a new file that ends with ``.html``; the same as ``.json`` lies beside it.
        picture: a picture of the case, a new file that ends with ``.png``.

    Raises:
        InputError: when a file is missing, one to write is there already or ends otherwise, the configs define no such
            knob, or the case is refused.
    """
    check_new("output", output, NIFTI_EXTENSIONS[0])
    if report is not None:
        check_new("report", report, ".html")
        check_new("report", report.with_suffix(".json"), ".json")
    if picture is not None:
        check_new("picture", picture, ".png")
    for name, file in files.items():
        if not file.is_file():
            raise InputError(f"{name} should be a file, {file} is not there.")
    check_knobs(knobs, config_file)
    for name, path in (("output", output), ("report", report), ("picture", picture)):
        if path is not None:
            check_writable(path.parent, f"the folder of {name}")
    case_id = output.name.removesuffix(NIFTI_EXTENSIONS[0])
    entry = {"case_id": case_id, "image": {name: str(file.resolve()) for name, file in files.items()}}
    # Not beside the mask: where the scans lie there, too, their folder would be refused as that of masks.
    with tempfile.TemporaryDirectory(prefix="segment_") as folder:
        datalist, scans = Path(folder) / "datalist.json", Path(folder) / "scans"
        scans.mkdir()  # empty: the list has their full paths
        made: dict[Path, Path] = {}
        start = time.perf_counter()
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
        seconds = time.perf_counter() - start
        [mask] = Path(folder, "masks").glob(f"*{NIFTI_EXTENSIONS[0]}")
        made[output] = mask
        if report is not None or picture is not None:
            convention = knobs.get("label_convention", convention_to_write(str(checkpoint), "brats2023"))
            case = Case(case_id, output.parent, {name: [file] for name, file in files.items()})
            shown, content = report_case(case, mask, list(files), convention, convention, checkpoint, seconds)
            if report is not None:
                page = Path(folder, "report.html")
                write_report(shown, content, page)
                made |= {report: page, report.with_suffix(".json"): page.with_suffix(".json")}
            if picture is not None:
                made[picture] = draw_case(shown, Path(folder, "picture.png"))
        for path, unfinished in made.items():
            with whole_file(path) as temporary:
                shutil.copyfile(unfinished, temporary)


def check_new(name: str, path: Path, extension: str) -> None:
    """Refuses a file to write that ends otherwise, or is there already."""
    if not path.name.endswith(extension):
        raise InputError(f"{name} should end with {extension}, it is {path}.")
    if path.exists():
        raise InputError(f"{name} should be a new file, {path} exists.")


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
    parser.add_argument("--report", type=Path, help="a page of the case, a new .html; the same as .json beside it")
    parser.add_argument("--picture", type=Path, help="a picture of the case, a new .png")
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, knobs = parser.parse_args(argv[:end]), argv[end + 1 :]
    files = {name: file for name in modalities if (file := getattr(arguments, name)) is not None}
    if not files:
        parser.error(f"give a scan by one or more of {', '.join(f'--{name}' for name in modalities)}")
    shown = (arguments.report, arguments.picture)
    segment(files, arguments.output, arguments.checkpoint, arguments.config_file, parse_knobs(knobs), *shown)
    print(*(path for path in (arguments.output, *shown) if path is not None), sep="\n")
