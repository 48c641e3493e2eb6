"""Weights that segment gliomas: trained on drawn brains alone, then fine-tuned on a few real ones.

    cd bundle && export PYTHONPATH=.
    python ../experiments/gliomas.py train --output first.pt --steps 8000
    python ../experiments/gliomas.py train --init first.pt --output more.pt --steps 2500 --learning_rate 7e-4 --seed 1
    python ../experiments/gliomas.py finetune --init more.pt --dataset_dir BRATS --output tuned.pt --steps 750
    python ../experiments/gliomas.py average --weights more.pt tuned.pt --output model.pt
    python ../experiments/gliomas.py finetune --init synthetic.pt --dataset_dir BRATS --output fold0.pt --fold 0
    python ../experiments/gliomas.py train --output without_mimics.pt --steps 1000 --without mimics
    python ../experiments/gliomas.py score --weights fold0.pt --dataset_dir BRATS --fold 0 --output fold0.csv

One thread of a CPU with AMX takes 0.7 s a step. What came out, and how: ``results/gliomas/README.md``.
"""

from __future__ import annotations

import argparse
import csv
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import Compose, CropForegroundd, EnsureTyped, Orientationd

from scripts.data import (
    LoadImageCased,
    NormalizeChannelsd,
    RemoveSmallPiecesd,
    SpacingOfKeysd,
    ValuesToClassesd,
    is_nonzero,
)
from scripts.data.cases import LABEL, list_cases
from scripts.data.labels import regions
from scripts.evaluation.surfaces import hd95_mm
from scripts.files import whole_file
from scripts.inference import AdaptiveInferer
from scripts.networks import MISSU
from scripts.sources.gliomas import MODALITIES, PARTS, SPACING_MM, draw_glioma
from scripts.weights.checkpoints import write_state
from scripts.weights.record import arguments_of, read_record, record_of, write_record

SIDE = 64  # of a crop
FOLDS = 3
DROP = 0.4  # probability of a crop without some modalities, of the training on drawn brains
MIN_PIECE = 0.05  # as in the shipped records
DRAWN = "synthetic gliomas"
Case = tuple[torch.Tensor, torch.Tensor]  # image (4, H, W, D) z-scored, classes (H, W, D)


def z_scored(image: torch.Tensor) -> torch.Tensor:
    return NormalizeChannelsd("image", MODALITIES, {})({"image": MetaTensor(image)})["image"].as_tensor()


def drawn(seed: int, without: Sequence[str], uses: int = 2, kept: int = 8) -> Callable[[random.Random], Case]:
    """A source of brains drawn without some parts; each serves ``uses`` crops, mixed among ``kept`` of them."""
    buffer: list[list] = []

    def draw(rng: random.Random) -> Case:
        nonlocal seed
        while len(buffer) < kept:
            image, classes = draw_glioma(seed, without=without)
            buffer.append([z_scored(image), classes, uses])
            seed += 1
        entry = buffer[rng.randrange(len(buffer))]
        entry[2] -= 1
        if not entry[2]:
            buffer[:] = [other for other in buffer if other[2]]
        return entry[0], entry[1]

    return draw


def real_cases(dataset_dir: Path, fold: int | None, held_out: bool) -> dict[str, dict]:
    """Cases at 2 mm by name; case i of the sorted list belongs to fold i modulo 3."""
    keys = ["image", "label"]
    load = Compose(
        [
            LoadImageCased(keys, MODALITIES),
            ValuesToClassesd("label", label_convention="brats2018"),
            CropForegroundd(keys, source_key="image", select_fn=is_nonzero, allow_smaller=True),
            Orientationd(keys, axcodes="RAS", labels=None),
        ]
    )
    coarse = Compose(
        [
            SpacingOfKeysd(keys, pixdim=[SPACING_MM] * 3, mode=["bilinear", "nearest"]),
            NormalizeChannelsd("image", MODALITIES, {}),
            EnsureTyped(keys, dtype=[torch.float32, torch.uint8], track_meta=False),
        ]
    )
    cases = {}
    for number, case in enumerate(sorted(list_cases(dataset_dir), key=lambda case: case.case_id)):
        if fold is not None and (number % FOLDS == fold) != held_out:
            continue
        entry = {
            "case_id": case.case_id,
            "image": {name: str(case.files[name][0]) for name in MODALITIES},
            "label": str(case.files[LABEL][0]),
        }
        loaded = load(entry)
        fine = loaded["label"].as_tensor()[0].to(torch.uint8).clone()
        small = coarse(loaded)
        cases[case.case_id] = {"image": small["image"], "classes": small["label"][0], "fine": fine}
    return cases


def cropped(case: Case, rng: random.Random) -> Case:
    """A crop of 64^3, in eight of ten around a voxel of one of the tumor's classes."""
    image, classes = case
    places = [(classes == k).nonzero() for k in (1, 2, 3)]
    places = [place for place in places if len(place)]
    if places and rng.random() < 0.8:
        voxels = rng.choice(places)
        center = [at + rng.randint(-24, 24) for at in voxels[rng.randrange(len(voxels))].tolist()]
    else:
        center = [rng.randint(20, side - 20) for side in classes.shape]
    low = [min(max(at - SIDE // 2, 0), max(side - SIDE, 0)) for at, side in zip(center, classes.shape, strict=True)]
    window = tuple(slice(at, at + SIDE) for at in low)
    image, classes = image[(slice(None), *window)].clone(), classes[window].clone()
    padding = [pad for side in reversed(classes.shape) for pad in (0, SIDE - side)]
    return F.pad(image, padding), F.pad(classes, padding)


def turned(case: Case, rng: random.Random) -> Case:
    """A crop turned by up to 0.2 radians about each axis, each side scaled by 0.85 to 1.15."""
    image, classes = case
    matrix = torch.eye(3)
    for axis in range(3):
        angle = torch.tensor(rng.uniform(-0.2, 0.2))
        first, second = [other for other in range(3) if other != axis]
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = angle.cos()
        turn[first, second], turn[second, first] = -angle.sin(), angle.sin()
        matrix = matrix @ turn
    matrix = matrix @ torch.diag(torch.tensor([rng.uniform(0.85, 1.15) for _ in range(3)]))
    affine = torch.cat([matrix, torch.zeros(3, 1)], 1)[None]
    grid = F.affine_grid(affine, [1, 1, SIDE, SIDE, SIDE], align_corners=False)
    brain = F.grid_sample((image != 0).any(0)[None, None].float(), grid, align_corners=False)[0, 0] > 0.5
    image = F.grid_sample(image[None], grid, align_corners=False)[0] * brain
    classes = F.grid_sample(classes[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0].to(
        torch.uint8
    )
    return image, classes


def augmented(case: Case, rng: random.Random, strength: float, drop: float) -> Case:
    """Flips, gain and offset of each modality, and in ``drop`` of the crops a random subset of the modalities."""
    image, classes = case
    for axis, probability in enumerate((0.5, 0.1, 0.1)):
        if rng.random() < probability:
            image, classes = image.flip(axis + 1), classes.flip(axis)
    gain, offset = (
        torch.tensor([rng.uniform(-strength, strength) for _ in MODALITIES]).view(-1, 1, 1, 1) for _ in range(2)
    )
    image = torch.where(image != 0, image * (1 + gain) + offset, image)
    if rng.random() < drop:
        kept = [rng.random() < 0.5 for _ in MODALITIES]
        kept[rng.randrange(len(MODALITIES))] = True
        image = image * torch.tensor(kept).view(-1, 1, 1, 1)
    return image, classes


def fit(
    network: MISSU,
    next_case: Callable[[random.Random], Case],
    steps: int,
    learning_rate: float,
    strength: float,
    drop: float,
    decay: float,
    seed: int,
    log: Path,
) -> dict[str, torch.Tensor]:
    """Trains in bfloat16 on crops, and gives the weights averaged over the steps."""
    rng = random.Random(seed)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.train()
    losses: list[float] = []
    started = time.time()
    for step in range(steps):
        image, classes = augmented(next_case(rng), rng, strength, drop)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps) ** 0.9 * min(1.0, (step + 1) / 100)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(image[None].to(memory_format=torch.channels_last_3d))
        value = loss(logits.float(), classes[None, None].long())
        optimizer.zero_grad()
        value.backward()
        if torch.isfinite(torch.nn.utils.clip_grad_norm_(network.parameters(), 8.0)):
            optimizer.step()
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                average[name].lerp_(tensor, 1 - min(decay, (step + 1) / (step + 10)))
        losses.append(float(value.detach()))
        if len(losses) == 50:
            with log.open("a") as file:
                file.write(f"{step + 1},{sum(losses) / 50:.4f},{time.time() - started:.0f}\n")
            losses = []
    return average


def save(network: MISSU, weights: dict[str, torch.Tensor], path: Path, dataset: str, cases: Sequence[str]) -> None:
    """In float16: half the size, and the same masks. With the record that ``inference.json`` takes its knobs from."""
    write_state({name: value.half() for name, value in weights.items()}, path, outdated=record_of(path))
    settings = {
        "label_convention": "brats2018",
        "modalities": list(MODALITIES),
        "spacing_mm": [SPACING_MM] * 3,
        "intensities": {},
        "roi_size": [SIDE] * 3,
        "regions": {name: list(classes) for name, classes in regions("brats2018").items()},
        "stretch": 1.5,
        "invert_logits": True,
        "largest_component_of": [],
        "min_piece": MIN_PIECE,
        "flip_axes": [0, 1, 2],
        "modality_dropout": DROP,
        "network": arguments_of(network),
    }
    record = {"dataset": dataset, "cases": sorted(cases), "settings": settings, "epoch": 1, "metrics": {}}
    write_record(path, {**record, "command": shlex.join(sys.argv)})


def network_of(path: Path | None, seed: int = 0) -> MISSU:
    torch.manual_seed(seed)
    network = MISSU(in_channels=len(MODALITIES), out_channels=4, img_size=SIDE)
    if path is not None:
        network.load_state_dict(torch.load(path, weights_only=True))
    return network


def to_fine(logits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Logits (1, C, h, w, d) at 2 mm, at the voxels of 1 mm that they were averaged from."""
    fine = F.interpolate(logits, size=[2 * s - 1 for s in logits.shape[2:]], mode="trilinear", align_corners=True)
    padding = [pad for got, side in zip(reversed(fine.shape), reversed(shape)) for pad in (0, max(0, side - got))]
    fine = F.pad(fine, padding, mode="replicate")[0]
    return fine[:, : shape[0], : shape[1], : shape[2]]


def dice(prediction: torch.Tensor, truth: torch.Tensor) -> float:
    if not truth.any():
        return float(not prediction.any())
    return float(2 * (prediction & truth).sum() / (prediction.sum() + truth.sum()))


@torch.inference_mode()
def segment(network: MISSU, image: torch.Tensor, stretch: float) -> torch.Tensor:
    """Logits (1, C, h, w, d) of an image at 2 mm, in bfloat16; ``stretch`` as in ``inference.json``."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return AdaptiveInferer((SIDE,) * 3, stretch, overlap=0.5)(image[None], network.eval()).float()


def regions_of(classes: torch.Tensor) -> list[torch.Tensor]:
    """WT, TC and ET."""
    return [classes > 0, (classes == 1) | (classes == 3), classes == 3]


def score(network: MISSU, case: dict, stretch: float, min_pieces: Sequence[float]) -> Iterator[list[float]]:
    """For each ``min_piece`` it, Dice of WT, TC and ET at 1 mm, an empty region counts 1 or 0, and HD95 in mm."""
    classes = to_fine(segment(network, case["image"], stretch), case["fine"].shape).argmax(0, keepdim=True)
    for min_piece in min_pieces:
        kept = RemoveSmallPiecesd("pred", "brats2018", min_piece)({"pred": MetaTensor(classes.to(torch.uint8))})["pred"]
        pairs = list(zip(regions_of(kept.as_tensor()[0]), regions_of(case["fine"]), strict=True))
        yield [
            min_piece,
            *(dice(*pair) for pair in pairs),
            *(hd95_mm(*(mask.numpy() for mask in pair), spacing_mm=(1, 1, 1)) for pair in pairs),
        ]


def score_subsets(network: MISSU, cases: dict[str, dict], stretch: float) -> Iterator[list]:
    """Mean Dice of WT, TC and ET with each subset of the modalities, the others zero."""
    for bits in range(1, 2 ** len(MODALITIES)):
        kept = [bool(bits >> channel & 1) for channel in range(len(MODALITIES))]
        dices = []
        for case in cases.values():
            image = case["image"] * torch.tensor(kept).view(-1, 1, 1, 1)
            classes = to_fine(segment(network, image, stretch), case["fine"].shape).argmax(0)
            pairs = zip(regions_of(classes), regions_of(case["fine"]), strict=True)
            dices.append([dice(*pair) for pair in pairs])
        names = "+".join(name for name, is_kept in zip(MODALITIES, kept) if is_kept)
        yield [names, *torch.tensor(dices).mean(0).tolist()]


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        for row in rows:
            table.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "finetune", "average", "score", "subsets"])
    parser.add_argument("--output", type=Path, required=True, help="weights, or the table of scores")
    parser.add_argument("--init", type=Path, help="weights to go on from; without them a network from scratch")
    parser.add_argument("--weights", type=Path, nargs="+", help="weights to score, or several to average")
    parser.add_argument("--dataset_dir", type=Path, help="folder of real cases")
    parser.add_argument("--fold", type=int, help="0 to 2: left out of fine-tuning, or what is scored; default: all")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3, and 3e-4 for fine-tuning")
    parser.add_argument("--drawn_fraction", type=float, default=0.4, help="drawn brains among those of fine-tuning")
    parser.add_argument("--num_cases", type=int, help="fine-tunes on the first so many of the cases that are left")
    parser.add_argument("--stretch", type=float, default=1.5, help="for scores; 1: windows of 64^3")
    parser.add_argument("--min_piece", type=float, nargs="+", default=[0.0], help="for scores")
    parser.add_argument("--without", nargs="+", choices=PARTS, default=[], help="of the drawn brains")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log = arguments.output.with_suffix(".log.csv")
    draw = drawn(1_000_000 * (arguments.seed + 1), arguments.without)
    if arguments.what == "train":
        rate = arguments.learning_rate or 1e-3
        network = network_of(arguments.init, arguments.seed)

        def crop_of_drawn(rng: random.Random) -> Case:
            return cropped(draw(rng), rng)

        average = fit(network, crop_of_drawn, arguments.steps, rate, 0.15, DROP, 0.998, arguments.seed, log)
        save(network, average, arguments.output, DRAWN, [])
    elif arguments.what == "finetune":
        cases = real_cases(arguments.dataset_dir, arguments.fold, held_out=False)
        cases = dict(list(cases.items())[: arguments.num_cases])

        def mixed(rng: random.Random) -> Case:
            if rng.random() < arguments.drawn_fraction:
                return cropped(draw(rng), rng)
            case = cases[rng.choice(sorted(cases))]
            crop = cropped((case["image"], case["classes"]), rng)
            return turned(crop, rng) if rng.random() < 0.5 else crop

        network = network_of(arguments.init, arguments.seed)
        rate = arguments.learning_rate or (3e-4 if arguments.init else 1e-3)
        average = fit(network, mixed, arguments.steps, rate, 0.2, 0.15, 0.99, arguments.seed, log)
        dataset = arguments.dataset_dir.name + (f", after {DRAWN}" if arguments.init else "")
        save(network, average, arguments.output, dataset, list(cases))
    elif arguments.what == "average":
        records = []
        for path in arguments.weights:
            record = read_record(path)
            if record is None:
                parser.error(f"the weights {path} should have a record")
            records.append(record)
        networks = [network_of(path) for path in arguments.weights]
        states = [network.state_dict() for network in networks]
        weights = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
        # Whatever the order of the weights, the mean was trained on the cases of all of them.
        cases = {case for record in records for case in record["cases"]}
        dataset = max(records, key=lambda record: len(record["cases"]))["dataset"]
        save(networks[0], weights, arguments.output, dataset, sorted(cases))
    else:
        if len(arguments.weights) > 1:
            parser.error("one network is scored at a time: give one file of weights")
        network = network_of(arguments.weights[0])
        cases = real_cases(arguments.dataset_dir, arguments.fold, held_out=True)
        if arguments.what == "subsets":
            rows = score_subsets(network, cases, arguments.stretch)
            write_table(arguments.output, ["modalities", "wt", "tc", "et"], rows)
        else:
            head = ["case", "min_piece", "wt", "tc", "et", "hd95_wt", "hd95_tc", "hd95_et"]
            of_case = partial(score, network, stretch=arguments.stretch, min_pieces=arguments.min_piece)
            rows = ([name, *row] for name, case in cases.items() for row in of_case(case))
            write_table(arguments.output, head, rows)


if __name__ == "__main__":
    main()
