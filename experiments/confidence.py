"""Does a number that needs no label rank cases by their Dice? And are the probabilities what they say?

    cd bundle
    python ../experiments/confidence.py predict --checkpoint models/synthetic.pt --dataset_dir BRATS --work_dir work
    python ../experiments/confidence.py tables --work_dir work

``predict`` keeps of each case the logits of the regions in the brain, and three kinds of numbers from what is at hand:
the probabilities of one pass, the mask of the image mirrored from left to right, and the masks without one of the
modalities. A case that has its file is not done again. ``tables`` writes what came out; a number is said to rank where
the interval of its Spearman correlation with the Dice, over patients, is above 0 for every region.
What came out: ``results/confidence/README.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Invertd
from runs import BUNDLE
from runs import RESULTS as ALL_RESULTS
from tqdm.auto import tqdm

from scripts.data import LoadImageCased, ValuesToClassesd, is_nonzero, regions
from scripts.data.cases import LABEL, list_cases
from scripts.data.labels import classes_to_regions
from scripts.data.patients import patients_of
from scripts.data.transforms import log_odds
from scripts.evaluation.calibration import Calibration, rank_correlation
from scripts.evaluation.report import write_csv
from scripts.files import whole_file

RESULTS = ALL_RESULTS / "confidence"
CONVENTION = "brats2018"
REGIONS = regions(CONVENTION)


def region_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits of classes (classes, ...) to those of regions (regions, ...): a sigmoid gives the softmax's sum."""
    return torch.stack([log_odds(logits, of) for of in REGIONS.values()])


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of masks, or of a mask and probabilities; 1 where both are empty."""
    total = float(one.sum() + other.sum())
    return 2 * float((one * other).sum()) / total if total else 1.0


def masks_of(logits: torch.Tensor) -> torch.Tensor:
    return classes_to_regions(logits.argmax(0, keepdim=True), CONVENTION).float()


def numbers_of(logits: torch.Tensor, mirrored: torch.Tensor, without: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    """What may predict the Dice, a value for each region; more is surer."""
    masks, probabilities = masks_of(logits), region_logits(logits).sigmoid()
    sure = torch.where(masks > 0, probabilities, 1 - probabilities)
    near = (masks > 0) | (probabilities > 0.05)
    all_means = [mirrored, *without]
    mean = torch.stack([probabilities, *(region_logits(other).sigmoid() for other in all_means)]).mean(0)
    return {
        "expected_dice": [dice(mask, of) for mask, of in zip(masks, probabilities)],
        "mean_confidence": [float(of[at].mean()) if at.any() else 1.0 for of, at in zip(sure, near)],
        "agreement_mirrored": [dice(mask, of) for mask, of in zip(masks, masks_of(mirrored))],
        "agreement_without_one": np.mean(
            [[dice(mask, of) for mask, of in zip(masks, masks_of(other))] for other in without], axis=0
        ).tolist(),
        "expected_dice_of_mean": [dice(mask, of) for mask, of in zip(masks, mean)],
    }


def predict(checkpoint: Path, dataset_dir: Path, work_dir: Path) -> None:
    work_dir.mkdir(parents=True, exist_ok=True)
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    parser.update({"bundle_root": str(BUNDLE), "checkpoint": str(checkpoint), "device": torch.device("cpu")})
    preprocessing, inferer = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer"))
    network, modalities = (parser.get_parsed_content(name) for name in ("network_def", "modalities"))
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    network.eval()
    invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)
    label_of = ValuesToClassesd("label", CONVENTION)
    load = LoadImageCased(["image", "label"], modalities)
    for case in tqdm(list_cases(dataset_dir), desc="cases", disable=None):
        path = work_dir / f"{case.case_id}.npz"
        if path.is_file():
            continue
        entry = {
            "case_id": case.case_id,
            "image": {name: str(case.files[name][0]) for name in modalities},
            "label": str(case.files[LABEL][0]),
        }
        data: Any = preprocessing({name: entry[name] for name in ("case_id", "image")})
        image = data["image"]
        with torch.no_grad():
            logits = inferer(image[None], network)[0]
            mirrored = inferer(image.flip(1)[None], network)[0].flip(1)
            without = []
            for channel in range(len(modalities)):
                rest = image.clone()
                rest[channel] = 0
                without.append(inferer(rest[None], network)[0])
        numbers = numbers_of(logits, mirrored, without)
        data["pred"] = logits
        fine = invert(data)["pred"].as_tensor()
        truth = load(entry)
        classes = label_of(truth)["label"].as_tensor()
        masks, truths = masks_of(fine), classes_to_regions(classes, CONVENTION)
        brain = is_nonzero(truth["image"].as_tensor()).any(0)
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                logits=region_logits(fine)[:, brain].to(torch.float16).numpy(),
                truth=truths[:, brain].numpy(),
                dice=[dice(mask, of.float()) for mask, of in zip(masks, truths)],
                numbers=json.dumps(numbers),
            )


def tables(work_dir: Path) -> None:
    """What each number is worth over cases; and of the probabilities what ``python -m scripts calibration`` writes."""
    files = sorted(work_dir.glob("*.npz"))
    patients = patients_of([path.stem for path in files])
    calibration = Calibration(tuple(REGIONS))
    dices, numbers = [], []
    for path in tqdm(files, desc="cases", disable=None):
        kept = np.load(path)
        calibration.add(path.stem, 1 / (1 + np.exp(-kept["logits"].astype(np.float32))), kept["truth"])
        dices.append(kept["dice"])
        numbers.append(json.loads(str(kept["numbers"])))
    calibration.report(patients, RESULTS)
    owners = [patients[path.stem] for path in files]
    rows = [["number", "region", "spearman", "ci95_low", "ci95_high", "mean_absolute_error"]]
    for name in numbers[0]:
        values, scores = np.array([each[name] for each in numbers]), np.array(dices)
        for at, region in enumerate(REGIONS):
            ranks = rank_correlation(values[:, at], scores[:, at], owners)
            off = np.abs(values[:, at] - scores[:, at]).mean()
            rows.append([name, region, *(f"{value:.3f}" for value in (*ranks, off))])
    write_csv(RESULTS / "numbers.csv", rows)
    for row in rows:
        print("".join(f"{cell:>24}" for cell in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    predicting = commands.add_parser("predict")
    predicting.add_argument("--checkpoint", type=Path, required=True)
    predicting.add_argument("--dataset_dir", type=Path, required=True)
    predicting.add_argument("--work_dir", type=Path, required=True)
    of_tables = commands.add_parser("tables")
    of_tables.add_argument("--work_dir", type=Path, required=True)
    arguments = vars(parser.parse_args())
    globals()[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
