"""One case by its files, to one mask: a door to ``configs/inference.json``, which does the work.

    python -m scripts segment --t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz --output mask.nii.gz

There is a flag for each modality that the weights were trained on, by their record. Where that was with
``modality_dropout``, some may be left out. Knobs of ``inference.json`` follow after ``--``, such as
``-- --label_convention brats2018``. ``--report page.html`` and ``--picture case.png`` show the case with its mask.

    python -m scripts segment --dicom <study folder> --output mask.nii.gz --seg mask.dcm --sr volumes.dcm

takes the series of a DICOM study, by what they say of themselves, and writes a DICOM SEG and a structured report, too.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import itk
import monai.bundle
import numpy as np

from ..arguments import listed
from ..checks.faults import check_case
from ..data.cases import (
    LABEL,
    MODALITIES,
    MODALITY_OF_CHANNEL,
    NIFTI_EXTENSIONS,
    Case,
    mask_record_of,
    split_file_name,
)
from ..data.labels import regions
from ..errors import InputError
from ..files import check_new, check_writable, read_json, unwound_by_sigterm, whole_file
from ..knobs import check_knobs
from ..pictures.case_report import report_case, write_report
from ..pictures.picture import draw_case
from ..sources.brains import extract_brain
from ..sources.dicom import read_slices, write_image
from ..sources.study import Series, choose_series, describe_choice, read_study
from ..weights.record import convention_to_write, recorded
from .dicom_seg import check_source, write_seg
from .record import KeepsWarnings

__all__ = ["main", "segment"]

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).parents[2]
GRID_TOLERANCE_MM = 1e-2
# Knobs of inference.json that say where the one case and its mask are.
OWN = (
    *("bundle_root", "dataset_dir", "data_list_file_path", "may_leave_dataset_dir", "split", "modalities"),
    *("output_dir", "probabilities_dir", "skip_existing"),
)


def segment(
    files: Mapping[str, Path],
    output: Path,
    checkpoint: Path,
    config_file: Sequence[str],
    knobs: Mapping[str, Any],
    report: Path | None = None,
    picture: Path | None = None,
    seg: Path | None = None,
    sr: Path | None = None,
    probabilities: Path | None = None,
    source: Sequence[Path] = (),
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes the mask of one case, and what shows it, all of them or none.

    Args:
        files: the file of each modality by its name.
        output: the mask, a new file that ends with ``.nii.gz``; its record, a ``.json``, lies beside it.
        checkpoint: the weights.
        config_file: ``inference.json`` and overlays on it.
        knobs: further knobs of the config by their names.
        report: a page of the case, a new file that ends with ``.html``; the same as ``.json`` lies beside it.
        picture: a picture of the case, a new file that ends with ``.png``.
        seg: the mask as a DICOM SEG, a new file that ends with ``.dcm``.
        sr: a structured report with the volumes of the segments of ``seg``, a new file that ends with ``.dcm``.
        probabilities: of the regions, a channel each, a new file that ends with ``.nii.gz``.
        source: the DICOM slices that the mask lies on, in the order of their positions; for ``seg``.
        about: of the study that the files were made of, for the record: ``series`` by modality, and ``warnings``.

    Raises:
        InputError: when a file is missing, one to write is there already, or at the end, or ends otherwise, the
            configs define no such knob, or the case is refused.
    """
    check_new("output", output, NIFTI_EXTENSIONS[0])
    check_new("the record of output", mask_record_of(output), ".json")
    if report is not None:
        check_new("report", report, ".html")
        check_new("report", report.with_suffix(".json"), ".json")
    if picture is not None:
        check_new("picture", picture, ".png")
    if probabilities is not None:
        check_new("probabilities", probabilities, NIFTI_EXTENSIONS[0])
    if sr is not None and seg is None:
        raise InputError("A structured report tells of a DICOM SEG: --sr needs --seg.")
    if seg is not None:
        if not source:
            raise InputError("A DICOM SEG belongs to a series of DICOM: --seg needs --dicom.")
        check_new("seg", seg, ".dcm")
        if sr is not None:
            check_new("sr", sr, ".dcm")
        check_source(source)
    for name, file in files.items():
        if not file.is_file():
            raise InputError(f"{name} should be a file, {file} is not there.")
        if not file.name.lower().endswith(NIFTI_EXTENSIONS):
            raise InputError(f"{name} should be a NIfTI file, {' or '.join(NIFTI_EXTENSIONS)}, it is {file}.")
        if twice := [other for other in files if other != name and files[other].resolve() == file.resolve()]:
            raise InputError(f"{name} and {twice[0]} should be two files, both are {file}.")
    check_knobs(knobs, config_file)
    if own := [name for name in OWN if name in knobs]:
        raise InputError(f"--{own[0]} belongs to this command itself: leave it out after --.")
    written = {"output": output, "report": report, "picture": picture, "seg": seg, "sr": sr}
    written["probabilities"] = probabilities
    paths = [path.resolve() for path in written.values() if path is not None]
    if len(set(paths)) < len(paths):
        raise InputError(f"Each file to write should have a name of its own, they are {', '.join(map(str, paths))}.")
    for name, path in written.items():
        if path is not None:
            check_writable(path.parent, f"the folder of {name}")
    called = [sentence for name, file in files.items() if (sentence := called_otherwise(name, file))]
    for sentence in called:
        logger.warning(sentence)
    about = {**about, "warnings": [*about.get("warnings", ()), *called]}
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
                "probabilities_dir": None if probabilities is None and report is None else f"{folder}/probabilities",
                "checkpoint": str(checkpoint),
                "modalities": list(files),
                "num_workers": 0,
                **knobs,
            },
        )
        seconds = time.perf_counter() - start
        [mask] = Path(folder, "masks").glob(f"*{NIFTI_EXTENSIONS[0]}")
        made[output] = mask
        add_to_record(mask_record_of(mask), about)
        likely = next(Path(folder, "probabilities").glob("*"), None)
        if probabilities is not None and likely is not None:
            made[probabilities] = likely
        convention = knobs.get("label_convention", convention_to_write(str(checkpoint), "brats2023"))
        if seg is not None:
            made[seg] = Path(folder, "mask.dcm")
            volumes = None if sr is None else Path(folder, "volumes.dcm")
            write_seg(source, mask, made[seg], convention, checkpoint, volumes)
            if sr is not None and volumes is not None:
                made[sr] = volumes
        if report is not None or picture is not None:
            case = Case(case_id, output.parent, {name: [file] for name, file in files.items()})
            shown, content = report_case(case, mask, list(files), convention, convention, checkpoint, seconds, likely)
            if report is not None:
                page = Path(folder, "report.html")
                write_report(shown, content, page)
                made |= {report: page, report.with_suffix(".json"): page.with_suffix(".json")}
            if picture is not None:
                made[picture] = draw_case(shown, Path(folder, "picture.png"))
        made.setdefault(mask_record_of(output), mask_record_of(mask))  # a report of that name has it inside
        copy_all(made)


def called_otherwise(name: str, file: Path) -> str | None:
    """One sentence where the name of a modality's file says that it is another one of BraTS, or a label."""
    told, known = split_file_name(file), MODALITY_OF_CHANNEL.get(name.lower(), name)
    others = {LABEL, *(MODALITIES if known in MODALITIES else ())} - {known}
    if told is None or told.modality not in others:
        return None
    return f"{name} is given as {file}, which is called as {told.modality} is: look again."


def copy_all(made: Mapping[Path, Path]) -> None:
    """Puts what was made to its place, all files or none: the first, the mask, appears last, when its record is there.

    Raises:
        InputError: when a file came to be there meanwhile.
    """
    with ExitStack() as files:
        for path, unfinished in made.items():
            shutil.copyfile(unfinished, files.enter_context(whole_file(path)))
        for path in made:
            if path.exists():
                raise InputError(f"{path} should be a new file, it came since the start: from another run?")


def add_to_record(file: Path, about: Mapping[str, Any]) -> None:
    """Puts what is known of a study into the record of a mask, and the warnings of it before those of the case."""
    record = read_json(file, "The record of the mask")
    record |= {**about, "warnings": [*about["warnings"], *record["warnings"]]}
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def convert(chosen: Mapping[str, Series], folder: Path, label_convention: Any) -> dict[str, Path]:
    """Writes the series of a study as NIfTI files, and prepares a brain where it has to be.

    Returns:
        The file of each modality, all on the grid of the first one's series.

    Raises:
        InputError: when they lie on several grids, or a brain with its skull is to be searched for a tumor, and
            :func:`scripts.sources.brains.extract_brain` cannot help.
    """
    files, images = {}, {}
    for name, series in chosen.items():
        images[name] = read_slices(series.files, series.folder)
        files[name] = folder / f"{name}.nii.gz"
        write_image(images[name], files[name])
    first, *others = images
    why = None
    for name in others:
        if not same_grid(images[name], images[first]):
            why = f"{first} and {name} lie on two grids, {chosen[first]} and {chosen[name]}"
            break
    if "wt" not in regions(label_convention):
        if why is not None:
            raise InputError(f"{why}: resample them to one grid first.")
        return files
    # Gliomas, of which all data sets are without a skull.
    if why is None:
        why = skull_of(files, folder, label_convention)
    if why is None:
        logger.warning(
            "The brain is taken to be without its skull: there is much air around it, nothing else was checked."
        )
        return files
    files = extract_brain(files, folder, why)
    why = skull_of(files, folder, label_convention)
    if why is not None:
        raise InputError(f"{why}, after it was stripped: look at the series.")
    return files


def skull_of(files: Mapping[str, Path], folder: Path, label_convention: Any) -> str | None:
    """How preflight sees the skull of a brain; none where it does not."""
    case = Case(folder.name, folder, {name: [file] for name, file in files.items()})
    found = check_case(case, list(files), label_convention=label_convention).found
    skull = found.get("not skull-stripped")
    return f"The brain has its skull, {'; '.join(skull)}" if skull else None


def same_grid(image: Any, other: Any) -> bool:
    """Whether two ITK images have their voxels at the same places."""
    if itk.size(image) != itk.size(other):
        return False
    last = [side - 1 for side in itk.size(image)]
    corners = [[last[axis] * (at == axis) for axis in range(3)] for at in range(4)]  # the ends of each axis, and 0
    places, others = (
        [list(each.TransformIndexToPhysicalPoint(corner)) for corner in corners] for each in (image, other)
    )
    return np.allclose(places, others, atol=GRID_TOLERANCE_MM)


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
    # No abbreviations: --t1 would be taken for --t1ce.
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--checkpoint", type=Path, default=BUNDLE / "models" / "model.pt", help="default: models/model.pt"
    )
    common.add_argument(
        "--config_file",
        type=listed(str),
        default=[str(BUNDLE / "configs" / "inference.json")],
        help="inference.json and overlays on it",
    )
    common.add_argument("--dicom", type=Path, help="folder of a DICOM study, instead of a file of each modality")
    end = argv.index("--") if "--" in argv else len(argv)
    known, _ = common.parse_known_args(argv[:end])
    if not known.checkpoint.is_file() and not {"-h", "--help"} & set(argv):
        # Its modalities would be taken for those of BraTS else.
        raise InputError(f"checkpoint should be a file of weights, {known.checkpoint} is not there.")
    modalities = recorded(str(known.checkpoint), "modalities", list(MODALITIES))
    may_miss = bool(recorded(str(known.checkpoint), "modality_dropout", 0.0))
    parser = argparse.ArgumentParser(
        prog="python -m scripts segment",
        description=(__doc__ or "").split("\n")[0],
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="the mask, a new .nii.gz")
    parser.add_argument("--report", type=Path, help="a page of the case, a new .html; the same as .json beside it")
    parser.add_argument("--picture", type=Path, help="a picture of the case, a new .png")
    parser.add_argument("--probabilities", type=Path, help="those of the regions, a channel each, a new .nii.gz")
    parser.add_argument("--seg", type=Path, help="with --dicom: the mask as a DICOM SEG, a new .dcm")
    parser.add_argument("--sr", type=Path, help="with --seg: a structured report with the volumes, a new .dcm")
    for name in modalities:
        about = f"the scan of {name}, NIfTI; with --dicom number or UID of its series, where it cannot be told"
        flag = f"--{name.replace(' ', '-')}"
        try:
            parser.add_argument(
                flag, dest=name, required=known.dicom is None and not may_miss, metavar="SCAN", help=about
            )
        except argparse.ArgumentError as error:
            raise InputError(
                f"{known.checkpoint} has a channel {name}, and {flag} means something else here: take "
                "configs/inference.json with a folder of cases."
            ) from error
    arguments, knobs = parser.parse_args(argv[:end]), parse_knobs(argv[end + 1 :])
    given = {name: getattr(arguments, name) for name in modalities}
    with unwound_by_sigterm(), tempfile.TemporaryDirectory(prefix="study_") as folder:
        source: Sequence[Path] = ()
        of_study: dict[str, Any] = {}
        if arguments.dicom is None:
            files = {name: Path(file) for name, file in given.items() if file is not None}
            if not files:
                parser.error(f"give a scan by one or more of {', '.join(f'--{name}' for name in modalities)}")
        else:
            convention = knobs.get("label_convention", convention_to_write(str(arguments.checkpoint), "brats2023"))
            with KeepsWarnings() as warnings:
                study = read_study(arguments.dicom)
                chosen = choose_series(study, modalities, given, may_miss)
                print(describe_choice(study, chosen))
                files = convert(chosen, Path(folder), convention)
            of_study = {
                "series": {name: f"{series}, {series.attributes['uid']}" for name, series in chosen.items()},
                "warnings": warnings.sentences,
            }
            source = chosen[next(iter(files))].files
        shown = (arguments.report, arguments.picture, arguments.seg, arguments.sr, arguments.probabilities)
        segment(files, arguments.output, arguments.checkpoint, arguments.config_file, knobs, *shown, source, of_study)
    print(*(path for path in (arguments.output, *shown) if path is not None), sep="\n")
