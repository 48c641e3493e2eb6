"""CHAOS as it is distributed, DICOM and PNG, to cases in NIfTI.

    python -m scripts chaos --source <CHAOS>/Train_Sets/MR --output_dir <folder of cases>

MR: case ``chaos_mr_<N>`` with ``t1in``, ``t1out`` and ``t2spir`` on the grid of T2-SPIR, and its mask: 1 liver, 2 right
kidney, 3 left kidney, 4 spleen. CT: ``chaos_ct_<N>`` with ``ct`` and the mask of the liver. A ``dataset.json``
beside the cases names the channels and the labels.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from tqdm.auto import tqdm

from ..data.cases import LABEL, find_cases
from ..errors import InputError
from ..files import whole_file
from .dicom import read_series, sorted_slices, write_image

__all__ = ["import_case", "read_masks", "register"]

# Grey values of the MR masks by class, as the challenge gives them: liver, right kidney, left kidney, spleen.
GREY_OF_CLASS = {1: range(55, 71), 2: range(110, 136), 3: range(175, 201), 4: range(240, 256)}

LABELS = {"background": 0, "liver": 1, "right-kidney": 2, "left-kidney": 3, "spleen": 4}
CHANNELS = ("t1in", "t1out", "t2spir", "ct")


def read_masks(folder: Path, series: Path, organs: bool) -> np.ndarray:
    """Classes (slices, rows, columns) of the PNG masks of a series, in the order of its slices.

    A mask belongs to the slice of its name (MR), else to the slice at its place in the order of names (CT). Row 0 of
    the picture is row 0 of the slice.

    Args:
        folder: of the PNG files.
        series: folder of the DICOM files.
        organs: whether the grey values tell four organs apart (MR); else all that is not zero is the liver (CT).

    Raises:
        InputError: when their counts differ, or a mask has another size or a value that means nothing.
    """
    slices = sorted_slices(series)
    masks = sorted(folder.glob("*.png"))
    if len(masks) != len(slices):
        raise InputError(
            f"{folder} should hold a mask for each slice of {series}, it holds {len(masks)} for {len(slices)}."
        )
    names = sorted(slices)
    if {file.stem for file in masks} == {file.stem for file in slices}:
        names = [series / file.with_suffix(slices[0].suffix).name for file in masks]
    mask_of = dict(zip(names, masks))
    return np.stack([read_mask(mask_of[file], organs) for file in slices])


def read_mask(file: Path, organs: bool) -> np.ndarray:
    try:
        grey = itk.array_from_image(itk.imread(str(file)))
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read as a PNG.") from error
    if grey.ndim != 2:
        raise InputError(f"{file} should hold grey values, its shape is {grey.shape}.")
    if not organs:
        if len(found := np.unique(grey[grey > 0])) > 1:
            raise InputError(f"{file} should hold 0 and one value for the liver, it holds {found[:3].tolist()}.")
        return (grey > 0).astype(np.uint8)
    classes, known = np.zeros(grey.shape, np.uint8), grey == 0
    for index, values in GREY_OF_CLASS.items():
        inside = (grey >= values.start) & (grey < values.stop)
        classes[inside] = index
        known |= inside
    if not known.all():
        ranges = ", ".join(f"{values.start} to {values.stop - 1}" for values in GREY_OF_CLASS.values())
        raise InputError(f"{file} should hold 0 and the grey values {ranges}, it holds {grey[~known][0]}.")
    return classes


def with_geometry_of(image: Any, voxels: np.ndarray, what: str) -> Any:
    """An ITK image of voxels (slices, rows, columns) that lies where another image lies."""
    shape = itk.array_view_from_image(image).shape
    if voxels.shape != shape:
        raise InputError(
            f"{what} should have the shape {shape} of its series (slices, rows, columns), not {voxels.shape}."
        )
    made = itk.image_from_array(np.ascontiguousarray(voxels))
    made.CopyInformation(image)
    return made


def resample(image: Any, grid: Any, transform: Any | None = None) -> Any:
    """An image on the grid of another, linearly, by physical position; 0 outside of it."""
    more = {} if transform is None else {"transform": transform}
    return itk.resample_image_filter(image, reference_image=grid, use_reference_image=True, **more)


def register(moving: Any, fixed: Any) -> Any:
    """The rigid transform that brings ``moving`` onto ``fixed``, by mutual information (Mattes et al., 2003).

    It starts from the positions in the files, which are near already, and uses every fourth voxel.

    Raises:
        InputError: when the package itk-registration is missing.
    """
    if not hasattr(itk, "ImageRegistrationMethodv4"):
        raise InputError("A registration needs the package itk-registration: pip install itk-registration.")
    kind, transform = type(fixed), itk.Euler3DTransform[itk.D].New()
    centre = fixed.TransformIndexToPhysicalPoint([int(size) // 2 for size in itk.size(fixed)])
    transform.SetCenter(centre)
    metric = itk.MattesMutualInformationImageToImageMetricv4[kind, kind].New(NumberOfHistogramBins=32)
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(Metric=metric)
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New(
        LearningRate=2.0, MinimumStepLength=0.01, NumberOfIterations=200, ScalesEstimator=scales
    )
    method = itk.ImageRegistrationMethodv4[kind, kind].New(
        FixedImage=fixed, MovingImage=moving, Metric=metric, Optimizer=optimizer, InitialTransform=transform
    )
    method.InPlaceOn()
    method.SetNumberOfLevels(2)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 0.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetMetricSamplingStrategy(itk.ImageRegistrationMethodv4Enums.MetricSamplingStrategy_REGULAR)
    method.SetMetricSamplingPercentage(0.25)
    method.Update()
    return transform


def read_case(source: Path, registered: bool) -> dict[str, Any]:
    """The images of one case by modality, and its mask as ``seg`` where the challenge gives one; all on one grid."""
    if (source / "DICOM_anon").is_dir():
        grid_of, ground, organs = source / "DICOM_anon", source / "Ground", False
        images = {"ct": read_series(grid_of)}
    else:
        phases = {"t1in": source / "T1DUAL/DICOM_anon/InPhase", "t1out": source / "T1DUAL/DICOM_anon/OutPhase"}
        organs = True
        if (source / "T2SPIR").is_dir():
            grid_of, ground = source / "T2SPIR/DICOM_anon", source / "T2SPIR/Ground"
            images = {"t2spir": read_series(grid_of)}
        else:
            grid_of, ground = phases.pop("t1in"), source / "T1DUAL/Ground"
            images = {"t1in": read_series(grid_of)}
        if (source / "T1DUAL").is_dir():
            grid, transform = next(iter(images.values())), None
            for name, folder in phases.items():
                image = read_series(folder)
                if registered and transform is None:  # both phases are of one breath
                    transform = register(image, grid)
                images[name] = resample(image, grid, transform)
    if ground.is_dir():
        grid = next(iter(images.values()))
        images[LABEL] = with_geometry_of(grid, read_masks(ground, grid_of, organs), f"{ground}")
    return images


def import_case(source: Path, output: Path, registered: bool = False) -> None:
    """Writes one case, ``<output>/<case>_<modality>.nii.gz``; the folder appears whole or not at all.

    Args:
        source: folder of the case as the challenge distributes it.
        output: folder of the case, which is not there yet; its name is the case ID.
        registered: whether T1-DUAL is brought onto T2-SPIR by a rigid registration, not by the positions in the
            files alone.

    Raises:
        InputError: naming the folder or file, when something is missing, mixed or damaged.
    """
    write_images(read_case(source, registered), output)


def write_images(images: Mapping[str, Any], output: Path) -> None:
    unfinished = output.with_name(f".{output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        for name, image in images.items():
            path = unfinished / f"{output.name}_{name}.nii.gz"
            if name == LABEL:
                path.parent.mkdir(parents=True, exist_ok=True)
                itk.imwrite(image, str(path), compression=True)
            else:
                write_image(image, path)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_sources(source: Path) -> dict[str, Path]:
    """Folder of each case by its ID, in the order of their numbers."""
    found = {}
    for folder in source.iterdir() if source.is_dir() else ():
        if (folder / "DICOM_anon").is_dir():
            found[f"chaos_ct_{folder.name}"] = folder
        elif (folder / "T2SPIR").is_dir() or (folder / "T1DUAL").is_dir():
            found[f"chaos_mr_{folder.name}"] = folder
    if not found:
        raise InputError(
            f"source should hold folders such as 1/T2SPIR/DICOM_anon (MR) or 1/DICOM_anon (CT), {source} holds none."
        )
    return dict(sorted(found.items(), key=lambda item: (item[1].name.zfill(9), item[0])))


def write_dataset_json(output_dir: Path) -> None:
    """Writes the ``dataset.json`` of imported cases in nnU-Net's words, where there is none: what all cases have."""
    path = output_dir / "dataset.json"
    if path.exists():
        return
    cases = find_cases(output_dir)
    common = set.intersection(*(set(case.files) for case in cases))
    has_organs = any(set(case.files) - {"ct", LABEL} for case in cases)
    content = {
        "channel_names": {str(number): name for number, name in enumerate(n for n in CHANNELS if n in common)},
        "labels": LABELS if has_organs else {name: LABELS[name] for name in ("background", "liver")},
        "file_ending": ".nii.gz",
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="Train_Sets/MR, Train_Sets/CT or the like")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of cases; cases that are there stay")
    parser.add_argument("--register", action="store_true", help="bring T1-DUAL onto T2-SPIR by a rigid registration")
    arguments = parser.parse_args(argv)
    sources = find_sources(arguments.source)
    done, there, faults = 0, 0, []
    for case_id, folder in tqdm(sources.items(), desc="import", disable=None):
        if (arguments.output_dir / case_id).exists():
            there += 1
            continue
        try:
            import_case(folder, arguments.output_dir / case_id, arguments.register)
            done += 1
        except (InputError, OSError) as error:
            faults.append(f"Case {case_id}: {error}")
    print(f"{done} cases imported, {there} were there already, {len(faults)} skipped.")
    if done:
        write_dataset_json(arguments.output_dir)
    if faults:
        raise InputError("\n".join(faults))
