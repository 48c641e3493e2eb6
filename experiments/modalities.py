"""Does a teacher that sees all modalities help a network that sees some? On real cases, at 2 mm, by folds of patients.

    python experiments/modalities.py --dataset_dir BraTS --weights model.pt

Goes on from weights, with each variant on each fold: the same crops and the same subsets of the modalities, step by
step. Scores the held-out cases with each of the 15 subsets, at 2 mm. A run that has its CSV is not run again. Without
``--dataset_dir`` it makes the tables of the runs that are there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    CopyItemsd,
    CropForegroundd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SpatialPadd,
)
from scipy.stats import t as student_t
from torch import nn
from tqdm.auto import tqdm

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data import (  # noqa: E402
    LoadImageCased,
    NormalizeChannelsd,
    RandModalityDropoutd,
    SpacingOfKeysd,
    ValuesToClassesd,
    is_nonzero,
    regions,
)
from scripts.data.cases import MODALITIES  # noqa: E402
from scripts.data.datalist import make_datalist  # noqa: E402
from scripts.data.labels import classes_to_regions  # noqa: E402
from scripts.evaluation.report import write_csv  # noqa: E402
from scripts.evaluation.subsets import draw_subsets  # noqa: E402
from scripts.files import whole_file  # noqa: E402
from scripts.inference import AdaptiveInferer  # noqa: E402
from scripts.networks import MISSU, ModalityDistillation  # noqa: E402
from scripts.training import ModalityDistillationLoss, RegionDistillationLoss  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "modalities"
CONVENTION = "brats2018"
REGIONS = regions(CONVENTION)
SUBSETS = [subset for size in range(1, 5) for subset in combinations(range(4), size)]
IMG_SIZE = 64  # of the weights
ROI = (48, 48, 48)
SEGMENTATION = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)


class ClassDistillationLoss(nn.Module):
    """KL over the classes near the tumor, wherever the teacher is right or not: the plain form of distillation."""

    def __init__(self, temperature: float, reach: int = 3) -> None:
        super().__init__()
        self.temperature = temperature
        self.reach = reach

    def forward(self, logits: torch.Tensor, teacher_logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        near = F.max_pool3d((label > 0).float(), 2 * self.reach + 1, stride=1, padding=self.reach)[:, 0]
        student, teacher = ((of.float() / self.temperature).log_softmax(1) for of in (logits, teacher_logits))
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        return self.temperature**2 * (divergence * near).sum() / near.sum().clamp_min(1)


class Plain(nn.Module):
    """The network alone, on what is left of the modalities (or on all), with the loss of the segmentation."""

    def __init__(self, network: MISSU, drops: bool) -> None:
        super().__init__()
        self.network = network
        self.drops = drops

    def forward(self, x: torch.Tensor, complete: torch.Tensor) -> torch.Tensor:
        return self.network(x if self.drops else complete)


def taught(
    of_regions: Callable[[], nn.Module], **weights: float
) -> Callable[[MISSU, int], tuple[nn.Module, nn.Module]]:
    def make(network: MISSU, steps: int) -> tuple[nn.Module, nn.Module]:
        loss = ModalityDistillationLoss(SEGMENTATION, of_regions(), total_steps=steps, **weights)  # type: ignore[arg-type]
        return ModalityDistillation(network), loss

    return make


# By name: what is trained, and its loss.
VARIANTS: dict[str, Callable[[MISSU, int], tuple[nn.Module, nn.Module]]] = {
    "dropout": lambda network, _: (Plain(network, drops=True), SEGMENTATION),
    "teacher": taught(lambda: RegionDistillationLoss(REGIONS)),
    "teacher-classes": taught(lambda: ClassDistillationLoss(temperature=2.0)),
    "teacher-attention": taught(lambda: RegionDistillationLoss(REGIONS), regions_weight=0.0),
    "all": lambda network, _: (Plain(network, drops=False), SEGMENTATION),
}
BASE = "dropout"


def load(dataset_dir: Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cases at 2 mm, cropped to the brain."""
    keys = ["image", "label"]
    transform = Compose(
        [
            LoadImageCased(keys, MODALITIES),
            ValuesToClassesd("label", CONVENTION),
            CropForegroundd(keys, source_key="image", select_fn=is_nonzero, allow_smaller=True),
            Orientationd(keys, axcodes="RAS", labels=None),
            SpacingOfKeysd(keys, pixdim=(2, 2, 2), mode=["bilinear", "nearest"]),
            NormalizeChannelsd("image", MODALITIES, intensities={}),
            SpatialPadd(keys, spatial_size=ROI),
        ]
    )
    cases = []
    for entry in tqdm(entries, desc="cases", disable=None):
        files = {name: str(dataset_dir / path) for name, path in entry["image"].items()}
        case: Any = transform({"case_id": entry["case_id"], "image": files, "label": str(dataset_dir / entry["label"])})
        image, label = case["image"].as_tensor(), case["label"].as_tensor().byte()
        cases.append({"case": entry["case_id"], "fold": entry["fold"], "image": image, "label": label})
    return cases


AUGMENT = Compose(
    [
        RandCropByPosNegLabeld(["image", "label"], "label", ROI, pos=4, neg=1, num_samples=1),
        *(RandFlipd(["image", "label"], prob=prob, spatial_axis=axis) for axis, prob in enumerate((0.5, 0.1, 0.1))),
        RandScaleIntensityd("image", prob=1.0, factors=0.15, channel_wise=True),
        RandShiftIntensityd("image", prob=1.0, offsets=0.15, channel_wise=True),
        CopyItemsd("image", names="complete"),
        RandModalityDropoutd("image", prob=0.75),
    ]
)


def train(variant: str, weights: Path, cases: Sequence[Mapping[str, Any]], steps: int, rate: float, seed: int) -> MISSU:
    torch.manual_seed(seed)
    network = MISSU(in_channels=4, out_channels=4, img_size=IMG_SIZE)
    network.load_state_dict(torch.load(weights, weights_only=True))
    trained, loss = VARIANTS[variant](network, steps)
    optimizer = torch.optim.Adam(trained.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    order = np.random.default_rng(seed).integers(len(cases), size=steps)
    for step, case in enumerate(tqdm(order, desc=f"{variant} {seed}", disable=None)):
        AUGMENT.set_random_state(seed=1_000_003 * seed + step)
        [drawn] = AUGMENT(dict(cases[case]))  # type: ignore[misc]
        image, complete, label = (
            monai.utils.convert_to_tensor(drawn[key], track_meta=False)[None] for key in ("image", "complete", "label")
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = trained(image, complete)
        if isinstance(output, torch.Tensor):
            output = output.float()
        else:
            output = output._replace(logits=output.logits.float(), teacher_logits=output.teacher_logits.float())
        optimizer.zero_grad()
        loss(output, label.long()).backward()
        optimizer.step()
        scheduler.step()
    return network.eval()


def score(network: MISSU, cases: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Dice of each region, case and subset: rows of ``case, modalities, region, dice``."""
    infer = AdaptiveInferer(ROI, stretch=2.0, overlap=0.25)
    rows = []
    for case in cases:
        label = classes_to_regions(case["label"], CONVENTION)
        for subset in SUBSETS:
            image = torch.zeros_like(case["image"])
            image[list(subset)] = case["image"][list(subset)]
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                logits = infer(image[None], network)
            masks = classes_to_regions(logits[0].argmax(0, keepdim=True), CONVENTION)
            for region, mask, truth in zip(REGIONS, masks, label):
                total = int(mask.sum() + truth.sum())
                dice = 2 * int((mask & truth).sum()) / total if total else 1.0
                rows.append([case["case"], "+".join(MODALITIES[i] for i in subset), region, f"{dice:.4f}"])
    return rows


def read(results: Path, name: str) -> dict[Key, float]:
    with open(results / f"{name}.csv", newline="") as file:
        return {(row["case"], row["modalities"], row["region"]): float(row["dice"]) for row in csv.DictReader(file)}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t interval of a mean."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


Key = tuple[str, str, str]  # case, modalities, region
NAMES = ["+".join(MODALITIES[i] for i in subset) for subset in SUBSETS]
MEAN = "mean of 15"


def mean_of_cases(scores: Mapping[Key, float], modalities: str, region: str) -> dict[str, float]:
    """The Dice of each case, with some of the modalities or the mean of the subsets, of a region or the mean of all."""
    cases: dict[str, list[float]] = {}
    for (case, subset, name), dice in scores.items():
        if modalities in (MEAN, subset) and region in ("mean", name):
            cases.setdefault(case, []).append(dice)
    return {case: float(np.mean(values)) for case, values in cases.items()}


def row_of(folds: Mapping[int, Mapping[Key, float]], base: Mapping[int, Mapping[Key, float]], *which: str) -> list[str]:
    """Cases, mean Dice, and the paired difference to the base, with its t intervals over cases and over folds."""
    dice = [value for of in folds.values() for value in mean_of_cases(of, *which).values()]
    differences: dict[int, list[float]] = {}
    for fold in sorted(folds.keys() & base.keys()):
        own, other = (mean_of_cases(of[fold], *which) for of in (folds, base))
        differences[fold] = [own[case] - other[case] for case in own]
    of_cases = [value for of in differences.values() for value in of]
    numbers = [float(np.mean(dice)), float(np.mean(of_cases)) if of_cases else float("nan")]
    numbers += [*interval(of_cases), *interval([float(np.mean(of)) for of in differences.values()])]
    return [*which, str(len(dice)), *(f"{number:.4f}" for number in numbers)]


def report(results: Path) -> str:
    """Writes ``table.csv`` and a picture of each variant, and gives the most of the table for reading."""
    scores: dict[str, dict[int, dict[Key, float]]] = {}
    for path in sorted(results.glob("*_fold*.csv")):
        variant, fold = path.stem.rsplit("_fold", 1)
        scores.setdefault(variant, {})[int(fold)] = read(results, path.stem)
    rows = [
        [variant, *row_of(folds, scores.get(BASE, {}), modalities, region)]
        for variant, folds in scores.items()
        for modalities in (MEAN, *NAMES)
        for region in ("mean", *REGIONS)
    ]
    columns = ["variant", "modalities", "region", "cases", "dice", "difference"]
    columns += ["low_of_cases", "high_of_cases", "low_of_folds", "high_of_folds"]
    write_csv(results / "table.csv", [columns, *rows])
    for variant in scores:
        dice = {(row[1], row[2]): float(row[4]) for row in rows if row[0] == variant}
        of_subsets = {tuple(name.split("+")): {region: dice[name, region] for region in REGIONS} for name in NAMES}
        draw_subsets(of_subsets, results / f"{variant}.png")
    shown = [columns, *(row for row in rows if row[1] in (MEAN, NAMES[-1]))]
    return "\n".join("  ".join(f"{cell:<16}" for cell in row) for row in shown)


def run(variant: str, fold: int, cases: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Trains and scores a variant on a fold; its CSV goes to the results at the end."""
    name = f"{variant}_fold{fold}"
    seen, held_out = ([case for case in cases if (case["fold"] == fold) == held] for held in (False, True))
    started = time.process_time()
    network = train(variant, arguments.weights, seen, arguments.steps, arguments.learning_rate, seed=fold)
    record = {
        "variant": variant,
        "fold": fold,
        "steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "weights": arguments.weights.name,
        "crop": list(ROI),
        "cpu_seconds": round(time.process_time() - started),
        "threads": torch.get_num_threads(),
        "machine": f"{os.uname().machine}, {os.cpu_count()} CPU cores",
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }
    with whole_file(arguments.results / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    write_csv(arguments.results / f"{name}.csv", [["case", "modalities", "region", "dice"], *score(network, held_out)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, help="folder of BraTS cases; without it, only the table is made")
    parser.add_argument("--weights", type=Path, help="of a MISSU of 64^3 at 2 mm, four modalities and four classes")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    todo = [
        (fold, variant)
        for fold in range(arguments.folds)
        for variant in arguments.variants
        if not (arguments.results / f"{variant}_fold{fold}.csv").is_file()
    ]
    if arguments.dataset_dir is not None and todo:
        entries = make_datalist(arguments.dataset_dir, MODALITIES, testing_fraction=0.0, folds=arguments.folds)
        cases = load(arguments.dataset_dir, entries["training"])
        for fold, variant in todo:
            run(variant, fold, cases, arguments)
    print(report(arguments.results))


if __name__ == "__main__":
    main()
