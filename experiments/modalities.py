"""Does a teacher that sees all modalities help a network that sees some? On real cases, at 2 mm, by folds of patients.

    python experiments/modalities.py --dataset_dir BraTS --weights bundle/models/synthetic.pt

Goes on from weights, with each variant on each fold: the same crops and the same subsets of the modalities, step by
step. Scores the held-out cases with each of the 15 subsets, at 2 mm, with the weights averaged over the steps. A run
that has its CSV is not run again. Without ``--dataset_dir`` it makes the tables of the runs that are there.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    CopyItemsd,
    CropForegroundd,
    EnsureTyped,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SpatialPadd,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundle"
sys.path[:0] = [str(BUNDLE), str(HERE)]

from ideas import warm_up_poly  # noqa: E402
from runs import cases_of, hold_to, write  # noqa: E402
from tables import t_interval  # noqa: E402

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
from scripts.errors import InputError  # noqa: E402
from scripts.evaluation.report import write_csv  # noqa: E402
from scripts.evaluation.subsets import draw_subsets  # noqa: E402
from scripts.files import whole_file  # noqa: E402
from scripts.inference import AdaptiveInferer  # noqa: E402
from scripts.networks import MISSU, MultiScaleFusion  # noqa: E402
from scripts.networks.self_distillation import SelfDistillationOutput  # noqa: E402
from scripts.training.losses import ModalityDistillationLoss, SelfDistillationLoss  # noqa: E402
from scripts.weights.record import sha256  # noqa: E402

RESULTS, RUNS = HERE / "results" / "modalities", HERE / "runs" / "modalities"
CONVENTION = "brats2018"
REGIONS = regions(CONVENTION)
SUBSETS = [subset for size in range(1, 5) for subset in combinations(range(4), size)]
IMG_SIZE = 64  # of the weights
ROI = (64, 64, 64)
SEGMENTATION = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
WARM_UP, EMA_DECAY, MAX_NORM, NUM_FOLDS = 10, 0.98, 8.0, 3


class WithAttention(ModalityDistillationLoss):
    """KL, and Eq. 5 on stages 2 and 3, squared, between A^s of the student and B^s of a fused teacher."""

    def distill(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        maps = SelfDistillationLoss(exponent=2)(output.students[1:3], output.teachers[1:3])
        return super().distill(output, label) + 0.1 * maps


class Variant(NamedTuple):
    """What is trained.

    The teacher is frozen: ``weights``, those that the training begins with; or another variant, its averaged weights
    in the mean with those that it began with.
    """

    trained: bool = True
    drops: bool = True
    fused: bool = False
    teacher: str | None = None
    same_view: bool = False
    distillation: ModalityDistillationLoss = ModalityDistillationLoss(SEGMENTATION)
    weight: float = 1.0
    segmentation_weight: float = 1.0


VARIANTS = {
    "start": Variant(trained=False),
    "dropout": Variant(),
    "all": Variant(drops=False),
    "all-fused": Variant(drops=False, fused=True),
    "frozen": Variant(teacher="weights"),
    "frozen-strong": Variant(teacher="weights", weight=2.0, segmentation_weight=0.5),
    "frozen-same-view": Variant(teacher="weights", same_view=True),
    "tuned": Variant(teacher="all"),
    "tuned-fused": Variant(teacher="all-fused", distillation=WithAttention(SEGMENTATION)),
}
BASES = ("dropout", "start")  # what the others are compared with


def load(dataset_dir: Path, entries: Sequence[Mapping[str, Any]], cache_dir: Path) -> list[dict[str, Any]]:
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
            EnsureTyped(keys, dtype=[torch.float32, torch.uint8], track_meta=False),
        ]
    )
    files = [
        {
            "case_id": entry["case_id"],
            "image": {name: str(dataset_dir / path) for name, path in entry["image"].items()},
            "label": str(dataset_dir / entry["label"]),
        }
        for entry in entries
    ]
    loaded = PersistentDataset(files, transform, cache_dir)
    return [
        {"case": entry["case_id"], "fold": entry["fold"], "image": case["image"], "label": case["label"]}
        for entry, case in zip(entries, tqdm(loaded, desc="cases", disable=None), strict=True)
    ]


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


def network_of(weights: Path, fused: bool = False) -> MISSU:
    """A network with weights of one without fusion, or of one with it; in the first case fusion is the identity."""
    network = MISSU(in_channels=4, out_channels=4, img_size=IMG_SIZE)
    if fused:
        network.skips = MultiScaleFusion(network.feature_channels[:-1])
        network.skips.begin_as_identity()
    state = torch.load(weights, weights_only=True)
    network.load_state_dict({**network.state_dict(), **state})
    return network


def features_of(network: MISSU, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits; the skips, as the decoder takes them, and Z4."""
    *skips, deepest = network.encode(x)
    bottleneck = network.bottleneck(deepest)
    if network.skips is not None:
        skips = network.skips(skips)
    return network.decode(bottleneck, skips).float(), [*skips, bottleneck]


def mean_state(*networks: nn.Module) -> dict[str, torch.Tensor]:
    states = [network.state_dict() for network in networks]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def train(
    variant: Variant,
    weights: Path,
    teacher: MISSU | None,
    cases: Sequence[Mapping[str, Any]],
    steps: int,
    rate: float,
    seed: int,
) -> MISSU:
    """The network with its weights averaged over the steps."""
    torch.manual_seed(seed)
    network = network_of(weights, variant.fused)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    scheduler = warm_up_poly(optimizer, steps, power=0.9, warm_up_iters=WARM_UP)
    order = np.random.default_rng(seed).integers(len(cases), size=steps)
    for step, case in enumerate(tqdm(order, disable=None)):
        AUGMENT.set_random_state(seed=1_000_003 * seed + step)
        [drawn] = AUGMENT(dict(cases[case]))  # type: ignore[misc]
        image, complete, label = (
            monai.utils.convert_to_tensor(drawn[key], track_meta=False)[None] for key in ("image", "complete", "label")
        )
        seen = image if variant.drops else complete
        label = label.long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, students = features_of(network, seen)
        loss = variant.segmentation_weight * SEGMENTATION(logits, label)
        if teacher is not None:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                told, teachers = features_of(teacher, seen if variant.same_view else complete)
            output = SelfDistillationOutput(logits, students, teachers, told)
            loss = loss + variant.weight * variant.distillation.distill(output, label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        average.update_parameters(network)
    averaged: MISSU = average.module
    return averaged.eval()


def score(network: MISSU, cases: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Dice of each region, case and subset: rows of ``case, modalities, region, dice``."""
    infer = AdaptiveInferer(ROI, stretch=1.5, overlap=0.25)
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


Key = tuple[str, str, str]  # case, modalities, region
Run = tuple[int, int]  # fold, seed
NAMES = ["+".join(MODALITIES[i] for i in subset) for subset in SUBSETS]
MEAN = "mean of 15"


def mean_of_cases(scores: Mapping[Key, float], modalities: str, region: str) -> dict[str, float]:
    """The Dice of each case, with some of the modalities or the mean of the subsets, of a region or the mean of all."""
    cases: dict[str, list[float]] = {}
    for (case, subset, name), dice in scores.items():
        if modalities in (MEAN, subset) and region in ("mean", name):
            cases.setdefault(case, []).append(dice)
    return {case: float(np.mean(values)) for case, values in cases.items()}


def row_of(runs: Mapping[Run, Mapping[Key, float]], base: Mapping[Run, Mapping[Key, float]], *which: str) -> list[str]:
    """Seeds, cases, mean Dice, and the paired difference to the base, with its t intervals over cases and over folds.

    A difference is to the run of the base with the same fold and seed; that of a case is the mean over seeds.
    """
    dice = [value for of in runs.values() for value in mean_of_cases(of, *which).values()]
    differences: dict[int, dict[str, list[float]]] = {}
    for run in sorted(runs.keys() & base.keys()):
        own, other = (mean_of_cases(of[run], *which) for of in (runs, base))
        of_fold = differences.setdefault(run[0], {})
        for case in own:
            of_fold.setdefault(case, []).append(own[case] - other[case])
    of_folds = [[float(np.mean(values)) for values in cases.values()] for cases in differences.values()]
    of_cases = [value for fold in of_folds for value in fold]
    numbers = [float(np.mean(dice)), float(np.mean(of_cases)) if of_cases else float("nan")]
    numbers += [*t_interval(of_cases, 2), *t_interval([float(np.mean(fold)) for fold in of_folds], 2)]
    counts = len({seed for _, seed in runs}), len({key[0] for of in runs.values() for key in of})
    return [*which, *map(str, counts), *(f"{number:.4f}" for number in numbers)]


def report(results: Path) -> str:
    """Writes ``table.csv`` and pictures, and gives the most of the table for reading."""
    scores: dict[str, dict[Run, dict[Key, float]]] = {}
    for path in sorted(results.glob("*_fold*_seed*.csv")):
        variant, run = path.stem.rsplit("_fold", 1)
        fold, seed = map(int, run.split("_seed"))
        scores.setdefault(variant, {})[fold, seed] = read(results, path.stem)
    runs = {run for of in scores.values() for run in of}
    for variant in scores.keys() & {name for name, of in VARIANTS.items() if not of.trained}:  # by no seed
        scores[variant] = {run: scores[variant][run[0], 0] for run in runs if (run[0], 0) in scores[variant]}
    rows = [
        [variant, base, *row_of(of, scores[base], modalities, region)]
        for base in BASES
        if base in scores
        for variant, of in scores.items()
        for modalities in (MEAN, *NAMES)
        for region in ("mean", *REGIONS)
    ]
    columns = ["variant", "base", "modalities", "region", "seeds", "cases", "dice", "difference"]
    columns += ["low_of_cases", "high_of_cases", "low_of_folds", "high_of_folds"]
    write_csv(results / "table.csv", [columns, *rows])
    for variant in scores.keys() & {*BASES, "frozen"}:
        dice = {(row[2], row[3]): float(row[6]) for row in rows if row[0] == variant}
        of_subsets = {tuple(name.split("+")): {region: dice[name, region] for region in REGIONS} for name in NAMES}
        draw_subsets(of_subsets, results / f"{variant}.png")
    shown = [columns, *(row for row in rows if row[2] in (MEAN, NAMES[-1]))]
    return "\n".join("  ".join(f"{cell:<16}" for cell in row) for row in shown)


def run(name: str, fold: int, seed: int, cases: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Trains and scores a variant on a fold, unless it is done; its CSV goes to the results at the end."""
    stem = f"{name}_fold{fold}_seed{seed}"
    if (arguments.results / f"{stem}.csv").is_file():
        return
    variant, weights = VARIANTS[name], arguments.weights
    teacher = None
    if variant.teacher == "weights":
        teacher = network_of(weights).eval()
    elif variant.teacher is not None:
        run(variant.teacher, fold, seed, cases, arguments)
        fused, trained = VARIANTS[variant.teacher].fused, arguments.runs / f"{variant.teacher}_fold{fold}_seed{seed}.pt"
        if not trained.is_file():
            raise InputError(f"The teacher {trained} should be there, its scores alone are: give other --results.")
        teacher = network_of(trained, fused).eval()
        teacher.load_state_dict(mean_state(teacher, network_of(weights, fused)))
    seen, held_out = ([case for case in cases if (case["fold"] == fold) == held] for held in (False, True))
    started = time.process_time()
    steps = arguments.steps if variant.trained else 0
    network = network_of(weights).eval()
    if variant.trained:
        network = train(variant, weights, teacher, seen, steps, arguments.learning_rate, seed)
        with whole_file(arguments.runs / f"{stem}.pt") as temporary:
            torch.save(network.state_dict(), temporary)
    record = {
        "variant": name,
        "fold": fold,
        "seed": seed,
        "steps": steps,
        "learning_rate": arguments.learning_rate,
        "weights": weights.name,
        "crop": list(ROI),
        "cpu_seconds": round(time.process_time() - started),
        "threads": torch.get_num_threads(),
        "machine": f"{os.uname().machine}, {os.cpu_count()} CPU cores",
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }
    rows = score(network, held_out)
    write(arguments.results / f"{stem}.json", record)
    write_csv(arguments.results / f"{stem}.csv", [["case", "modalities", "region", "dice"], *rows])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, help="folder of BraTS cases; without it, only the table is made")
    parser.add_argument("--weights", type=Path, help="of a MISSU of 64^3 at 2 mm, four modalities and four classes")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of weights and of the cases at 2 mm")
    return parser


def prepared(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases; results and weights are held to them, and to the steps and the weights of the first run.

    Raises:
        InputError: when those are of others.
    """
    if arguments.weights is None or not arguments.weights.is_file():
        raise InputError(f"--weights should be a file of weights, got {arguments.weights}.")
    datalist = make_datalist(arguments.dataset_dir, MODALITIES, testing_fraction=0.0, folds=NUM_FOLDS)
    wanted = {
        "steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "weights_sha256": sha256(arguments.weights),
        **cases_of(datalist),
    }
    for flag, folder in (("--results", arguments.results), ("--runs", arguments.runs)):
        advice = f"name another folder by {flag}; without --dataset_dir the table is made all the same"
        hold_to(folder / "settings.json", wanted, advice, [*folder.glob("*_seed*.csv"), *folder.glob("*.pt")])
    return load(arguments.dataset_dir, datalist["training"], arguments.runs / "cases")


def main(argv: Sequence[str] | None = None) -> str | None:
    arguments = parser().parse_args(argv)
    try:
        cases = prepared(arguments) if arguments.dataset_dir is not None else []
        for seed in arguments.seeds if cases else ():
            for fold in arguments.folds:
                for variant in arguments.variants:
                    run(variant, fold, seed, cases, arguments)
        print(report(arguments.results))
    except InputError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
