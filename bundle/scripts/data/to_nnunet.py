"""Our cases and our split as nnU-Net v2's raw folder, so that it trains and is scored on the same cases.

    python -m scripts to_nnunet --dataset_dir BraTS2019 --label_convention brats2018 \
        --data_list_file_path configs/datalist.json --output_dir nnUNet_raw/Dataset001_BraTS

nnU-Net looks for ``splits_final.json`` in its ``nnUNet_preprocessed/<data set>``: copy it there before it trains.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm.auto import tqdm

from ..arguments import listed, mapped
from ..errors import InputError
from .cases import case_of, modalities_of
from .datalist import load_datalist, read_datalist
from .labels import (
    LABEL_CONVENTIONS,
    Convention,
    given_or_found,
    painting_order,
    regions,
    values_to_classes,
)
from .loading import LoadImageCased

__all__ = ["dataset_json", "write_raw_folder"]

ENDING = ".nii.gz"


def dataset_json(modalities: Sequence[str], label_convention: Convention, num_training: int) -> dict[str, Any]:
    """nnU-Net's ``dataset.json``: overlapping regions as lists, larger ones first, else a value for each class.

    The values are the classes of the network, which are consecutive, as nnU-Net wants them.
    """
    of = regions(label_convention)
    labels: dict[str, Any] = {"background": 0}
    more = {}
    if all(len(classes) == 1 for classes in of.values()):
        labels |= {name: number for name, [number] in of.items()}
    else:
        order = painting_order(label_convention)
        labels |= {name: list(of[name]) if len(of[name]) > 1 else of[name][0] for name in order}
        more = {"regions_class_order": list(order.values())}
    return {
        "channel_names": {str(number): name for number, name in enumerate(modalities)},
        "labels": labels,
        **more,
        "numTraining": num_training,
        "file_ending": ENDING,
    }


def write_raw_folder(
    dataset_dir: str | Path,
    output_dir: str | Path,
    modalities: Sequence[str],
    label_convention: Convention,
    data_list_file_path: str | Path | None = None,
    suffixes: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Writes the folder, whole or not at all.

    Args:
        dataset_dir: folder of cases.
        output_dir: a new folder, ``nnUNet_raw/Dataset<three digits>_<name>``.
        modalities: names of the channels, in their order.
        label_convention: of the labels.
        data_list_file_path: the split, from ``python -m scripts datalist``; ``None`` for the one that a training makes.
        suffixes: of foreign file names, where there is no list.

    Returns:
        How many cases are there to train on and to test on.

    Raises:
        InputError: when the output exists, the convention does not tell regions apart, or a case lacks a file, has
            files that do not fit each other, or a value that the convention does not define.
    """
    output = Path(output_dir)
    if output.exists():
        raise InputError(f"output_dir should be a new folder, {output} exists.")
    if output.resolve().is_relative_to(Path(dataset_dir).resolve()):
        raise InputError(f"output_dir should lie outside of dataset_dir, {output} lies in {dataset_dir}.")
    content = dataset_json(modalities, label_convention, 0)  # refused before cases are listed and read

    def split(name: str, fold: int | None = None) -> list[dict[str, Any]]:
        return load_datalist(dataset_dir, name, modalities, data_list_file_path, fold, suffixes=suffixes)

    datalist = read_datalist(dataset_dir, modalities, data_list_file_path, suffixes)
    folds = datalist.get("folds")
    pairs = [
        (split("training", fold), split("validation", fold)) for fold in ([None] if folds is None else range(folds))
    ]
    testing = split("testing") if datalist.get("testing") else []
    training = {entry["case_id"]: entry for pair in pairs for of in pair for entry in of}
    unfinished = output.with_name(f".{output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        for entries, end in ((list(training.values()), "Tr"), (testing, "Ts")):
            for entry in tqdm(entries, desc=f"cases{end}", leave=False, disable=None):
                write_case(entry, unfinished, end, modalities, label_convention)
        splits = [
            {"train": sorted(map(case_id, train)), "val": sorted(map(case_id, validation))}
            for train, validation in pairs
        ]
        for name, value in (("dataset.json", content | {"numTraining": len(training)}), ("splits_final.json", splits)):
            (unfinished / name).write_text(json.dumps(value, indent=4) + "\n")
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"training": len(training), "testing": len(testing)}


def case_id(entry: Mapping[str, Any]) -> str:
    return str(entry["case_id"])


def write_case(
    entry: Mapping[str, Any], root: Path, end: str, modalities: Sequence[str], label_convention: Convention
) -> None:
    """Writes ``images<end>/<case>_0000.nii.gz`` and so on, and ``labels<end>/<case>.nii.gz``."""
    name = case_id(entry)
    checked = LoadImageCased(["image", "label"], modalities)(dict[Hashable, Any](entry.items()))
    images, labels = root / f"images{end}", root / f"labels{end}"
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (file, index) in enumerate(channels_of(entry, modalities).values()):
        target = images / f"{name}_{number:04d}{ENDING}"
        if index is None and file.name.endswith(ENDING):
            shutil.copyfile(file, target)
            continue
        image: Any = nib.load(file)
        voxels = np.asanyarray(image.dataobj)  # as they are, while what is checked has no air
        if index is not None and voxels.ndim == 4:
            voxels = voxels[..., index]
        nib.save(nib.Nifti1Image(voxels.reshape(voxels.shape[:3]), image.affine, dtype=voxels.dtype), target)
    label = checked["label"]
    try:
        classes = values_to_classes(label[0].numpy(), label_convention)
    except ValueError as error:
        raise InputError(f"Case {name}: {entry['label']}: {error}") from error
    nib.save(nib.Nifti1Image(classes.astype(np.uint8), label.affine.numpy()), labels / f"{name}{ENDING}")


def channels_of(entry: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, tuple[Path, int | None]]:
    """The file of each modality, and its place in there where one file holds all."""
    image = entry["image"]
    if isinstance(image, Mapping):
        return {name: (Path(image[name]), None) for name in modalities}
    order = case_of(image).channels or tuple(modalities)
    if missing := [name for name in modalities if name not in order]:
        raise InputError(
            f"Case {entry['case_id']}: {missing[0]} is missing, {image} has the channels {', '.join(order)}."
        )
    return {name: (Path(image), order.index(name)) for name in modalities}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts to_nnunet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder, nnUNet_raw/Dataset001_Name")
    parser.add_argument("--modalities", type=listed(str), help="default: those of dataset.json, else all of BraTS")
    parser.add_argument(
        "--label_convention",
        help=f"of the labels: one of {', '.join(LABEL_CONVENTIONS)}, or the path of a dataset.json; "
        "default: the dataset.json of the folder",
    )
    parser.add_argument("--data_list_file_path", type=Path, help="the split; default: the one that a training makes")
    parser.add_argument("--suffixes", type=mapped, help="ends of foreign file names: \"{'T1w':'t1','dseg':'seg'}\"")
    arguments = parser.parse_args(argv)
    arguments.modalities = arguments.modalities or modalities_of(arguments.dataset_dir)
    arguments.label_convention = given_or_found(arguments.label_convention, arguments.dataset_dir)
    counts = write_raw_folder(**vars(arguments))
    output = arguments.output_dir
    print(
        f"{output}: {counts['training']} cases to train and validate on, {counts['testing']} to test on. "
        f"Before nnU-Net trains, copy {output / 'splits_final.json'} to nnUNet_preprocessed/{output.name}."
    )
