"""Whether a scan looks like those of the training: how much of it is no air, and how much of its box is.

    python -m scripts scan_range --dataset_dir BraTS2018 --checkpoint models/model.pt

measures the cases of a folder and stores the range in the record beside the weights. Inference warns of a case that
lies outside: a head with its skull is larger than a brain, another organ is of another size or fills its box. An organ
of the size of a brain, cut out as a brain is, looks the same to this.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor, affine_to_spacing
from monai.utils import ensure_tuple

from ..arguments import listed
from ..data.cases import cases_of_batch
from ..errors import InputError
from ..weights.record import read_record, write_record
from .cases import FAULT

__all__ = ["ScanRangeWarning", "main", "measure", "outside"]

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).parents[2]
KEY = "scan_range"
# How far outside of the range of the training a scan may lie: few cases do not show all that there are.
VOLUME_FACTOR = 1.3
AIR_MARGIN = 0.1


def measure(image: torch.Tensor, spacing_mm: Sequence[float]) -> dict[str, float]:
    """What is no air in an image (C, H, W, D), which is zero in its air and cut to the box of the rest.

    Returns:
        ``volume_ml`` of the voxels that are not zero in all channels, and ``air``, the share of the others.
    """
    shown = (image != 0).any(0)
    voxel_ml = float(torch.tensor(spacing_mm, dtype=torch.float64).prod()) / 1000
    return {"volume_ml": float(shown.sum()) * voxel_ml, "air": 1 - float(shown.float().mean())}


def outside(found: Mapping[str, float], known: Mapping[str, Sequence[float]], is_brain: bool) -> str | None:
    """One sentence where a scan is unlike those of a training.

    Args:
        found: of the scan, by :func:`measure`.
        known: lowest and highest of each number over the cases of the training.
        is_brain: whether the training's scans are brains without their skull.
    """
    (least_ml, most_ml), (least_air, most_air) = known["volume_ml"], known["air"]
    volume_ml, air = found["volume_ml"], found["air"]
    large, small = volume_ml > most_ml * VOLUME_FACTOR, volume_ml < least_ml / VOLUME_FACTOR
    full = air < least_air - AIR_MARGIN
    if not (large or small or full or air > most_air + AIR_MARGIN):
        return None
    sentence = (
        f"The scan looks like none of the training: {volume_ml:.0f} ml of it are no air, and {air:.0%} of its box are; "
        f"there {least_ml:.0f} to {most_ml:.0f} ml and {least_air:.0%} to {most_air:.0%}. "
        "The mask is likely to be wrong."
    )
    return f"{sentence} Is the skull still there?" if is_brain and (large or full) and not small else sentence


class ScanRangeWarning:
    """Handler that warns of a case outside of the range in the record of the weights; silent without one.

    Args:
        checkpoint: the weights; those of each member of an ensemble.
        regions: of the masks; gliomas are looked for in brains without their skull.
    """

    def __init__(self, checkpoint: str | Sequence[str], regions: Mapping[str, Any]) -> None:
        self.checkpoint = ensure_tuple(checkpoint)
        self.is_brain = "wt" in regions

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self.iteration_started)

    def started(self, _: Engine) -> None:
        records = [read_record(path) or {} for path in self.checkpoint]
        self.ranges = [record[KEY] for record in records if KEY in record]

    def iteration_started(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        if FAULT in batch:
            return
        for name, image, affine in zip(cases_of_batch(batch), batch["image"], batch["image"].affine, strict=True):
            found = measure(image, affine_to_spacing(affine).tolist())
            for known in self.ranges:
                if sentence := outside(found, known, self.is_brain):
                    logger.warning(f"Case {name}: {sentence}")
                    break


def store(dataset_dir: str, paths: Sequence[str], config_file: Sequence[str]) -> str:
    """Measures the cases of a folder as inference sees them, and stores the range beside weights.

    Raises:
        InputError: when weights have no record, or a case cannot be read.
    """
    parser = ConfigParser()
    parser.read_config(list(config_file))
    parser.update({"bundle_root": str(BUNDLE), "dataset_dir": dataset_dir, "checkpoint": paths[0]})
    records = {}
    for path in paths:
        record = read_record(path)
        if record is None:
            raise InputError(
                f"The weights {path} should have a record, {Path(path).with_suffix('.json')} is not there."
            )
        records[path] = record
    preprocessing = parser.get_parsed_content("preprocessing")
    found = []
    for entry in parser.get_parsed_content("datalist"):
        image: MetaTensor = preprocessing(entry)["image"]
        found.append(measure(image, image.pixdim.tolist()))
    known: dict[str, Any] = {
        name: [round(bound(each[name] for each in found), 3) for bound in (min, max)] for name in found[0]
    }
    known["num_cases"] = len(found)
    for path, record in records.items():
        write_record(Path(path), {**record, KEY: known})
    return json.dumps(known)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts scan_range", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", required=True, help="folder of cases, best those of the training")
    parser.add_argument("--checkpoint", nargs="+", required=True, help="the weights, which have a record")
    parser.add_argument(
        "--config_file",
        type=listed(str),
        default=[str(BUNDLE / "configs" / "inference.json")],
        help="inference.json and overlays on it",
    )
    arguments = parser.parse_args(argv)
    print(store(arguments.dataset_dir, arguments.checkpoint, arguments.config_file))
