"""What ``metadata.json`` says of the task, from the record of weights: MONAI Label shows a label by the name there.

    python -m scripts metadata --checkpoint models/model.pt

is for a copy of the bundle that has weights for another task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.labels import class_names, classes_to_values
from ..data.loading import is_ct
from ..errors import InputError
from ..files import whole_file
from .record import convention_to_write, read_record

__all__ = ["metadata_of"]


def metadata_of(metadata: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """A ``metadata.json`` for other weights: names and numbers of channels and classes, data and scores.

    The output's channels are named by the values in masks, as MONAI Label takes them.

    Args:
        metadata: that of the bundle; what tells of the network's software stays as it is.
        checkpoint: the weights, with their record beside them.

    Raises:
        InputError: when there are no such weights, or they have no record.
    """
    if not checkpoint.is_file():
        raise InputError(f"checkpoint should be a file of weights, {checkpoint} is not there.")
    record = read_record(checkpoint)
    if record is None:
        raise InputError(f"The weights {checkpoint} have no record that names their modalities and classes.")
    settings = record["settings"]
    modalities = settings["modalities"]
    convention = convention_to_write(str(checkpoint), "brats2023")
    of_classes = class_names(convention)
    values = classes_to_values(np.arange(len(of_classes)), convention)
    names = {int(value): name for value, name in zip(values, of_classes)}
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    classes = ", ".join(f"{value} {name}" for value, name in names.items())
    of = ", ".join(modalities)
    return {
        **metadata,
        "name": f"MISSU segmentation of {record['dataset']}",
        "task": f"Segmentation of {', '.join(name for value, name in names.items() if value)}",
        "description": f"{metadata['description'].split('. ')[0]}. Trained on {record['dataset']}.",
        "data_source": record["dataset"],
        "image_classes": f"{len(modalities)} channels, by name: {of}",
        "label_classes": f"single channel: {classes}",
        "pred_classes": f"single channel: {classes}",
        "eval_metrics": {"validation": record["metrics"]},
        "network_data_format": {
            "inputs": {
                "image": {
                    **image,
                    "modality": "CT" if all(map(is_ct, modalities)) else "MR",
                    "num_channels": len(modalities),
                    "channel_def": {str(number): name for number, name in enumerate(modalities)},
                }
            },
            "outputs": {
                "pred": {
                    **pred,
                    "num_channels": (settings["network"] or {}).get("out_channels", len(names)),
                    "channel_def": {str(value): name for value, name in names.items()},
                }
            },
        },
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts metadata", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("models/model.pt"), help="default: models/model.pt")
    parser.add_argument(
        "--metadata", type=Path, default=Path("configs/metadata.json"), help="to change; default: configs/metadata.json"
    )
    arguments = parser.parse_args(argv)
    try:
        metadata = json.loads(arguments.metadata.read_text())
        metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    except OSError as error:
        raise InputError(f"metadata {arguments.metadata} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"metadata should be that of a bundle, {arguments.metadata} is not.") from error
    changed = metadata_of(metadata, arguments.checkpoint)
    with whole_file(arguments.metadata) as temporary:
        temporary.write_text(json.dumps(changed, indent=4) + "\n")
    channels = changed["network_data_format"]["outputs"]["pred"]["channel_def"]
    print(f"{arguments.metadata}: {', '.join(f'{value} {name}' for value, name in channels.items())}")
    values = [int(value) for value in channels]
    if values != list(range(len(values))):
        print(f"The values in masks leave a gap, {values}: 3D Slicer shows them by their order and saves 1, 2, ...")
