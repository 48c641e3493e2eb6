"""Scores weights with each subset of their modalities: which modality matters for which region.

    python -m scripts subsets --checkpoint models/model.pt --dataset_dir BraTS2019 --output_dir subsets

Evaluates by ``configs/evaluate.json`` once for each subset, 15 of four modalities, the rest zero. Below ``output_dir``:
a folder of tables for each subset, ``subsets.csv`` and ``subsets.png``. A subset that has its tables is not scored
again, so the same command serves after an interruption. Overlays and knobs of the evaluation go through:
``-- --split validation --data_list_file_path datalist.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..arguments import listed
from ..data.cases import MODALITIES
from ..errors import InputError
from ..files import read_json, whole_file
from ..weights.record import recorded
from .report import write_csv

__all__ = ["Scores", "draw_subsets", "gains", "main", "subsets_of"]

BUNDLE = Path(__file__).parents[2]

Scores = Mapping[tuple[str, ...], Mapping[str, float]]  # mean Dice of each region, by the modalities that were there


def subsets_of(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset but the empty one, in the order of the modalities, small ones first."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def gains(scores: Scores) -> dict[str, dict[str, float]]:
    """What a modality adds to the Dice of each region: the mean over the subsets without it, but the empty one.

    Example:
        >>> scores = {("t1",): {"wt": 0.5}, ("flair",): {"wt": 0.75}, ("t1", "flair"): {"wt": 0.875}}
        >>> gains(scores)
        {'t1': {'wt': 0.125}, 'flair': {'wt': 0.375}}
    """
    complete = max(scores, key=len)
    by_set = {frozenset(subset): of for subset, of in scores.items()}
    return {
        name: {
            region: float(
                np.mean([by_set[rest | {name}][region] - of[region] for rest, of in by_set.items() if name not in rest])
            )
            for region in scores[complete]
        }
        for name in complete
    }


def draw_subsets(scores: Scores, path: Path) -> None:
    """Left, a row for each subset: its modalities as dots, the Dice of each region; right, what a modality adds."""
    complete = max(scores, key=len)
    regions, rows, added = list(scores[complete]), list(scores), gains(scores)
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(rows)), dpi=150, layout="constrained")
    dots, dice, gain = figure.subplots(1, 3, width_ratios=[len(complete), 1.3 * len(regions), 1.3 * len(regions)])
    for row, subset in enumerate(rows):
        for column, name in enumerate(complete):
            dots.plot(column, row, "o", color="#333333", markerfacecolor="#333333" if name in subset else "white")
    dots.set_xticks(range(len(complete)), complete)
    dots.set_xlim(-0.5, len(complete) - 0.5)
    dots.set_ylim(len(rows) - 0.5, -0.5)
    dots.set_yticks([])
    dots.set_title("modalities")
    dots.spines[:].set_visible(False)
    table(dice, [[scores[row][region] for region in regions] for row in rows], regions, (0, 1), "mean Dice")
    of_modality = [[added[name][region] for region in regions] for name in complete]
    table(gain, of_modality, regions, (0, max(0.01, float(np.max(of_modality)))), "added by one modality")
    gain.set_yticks(range(len(complete)), complete)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def table(
    axes: Axes, values: Sequence[Sequence[float]], columns: Sequence[str], limits: tuple[float, float], title: str
) -> None:
    """Numbers on colors from white to blue."""
    axes.imshow(values, cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
    for row, of in enumerate(values):
        for column, value in enumerate(of):
            dark = value > (limits[0] + 2 * limits[1]) / 3
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [name.upper() for name in columns])
    axes.set_yticks([])
    axes.set_title(title)
    axes.spines[:].set_visible(False)


def evaluate(subset: Sequence[str], config_file: Sequence[str], knobs: Sequence[str], folder: Path) -> dict[str, float]:
    """The mean Dice of each region with some of the modalities; scored before where ``metrics.csv`` is there.

    Raises:
        InputError: when the evaluation fails; its log says why.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file", str(list(config_file))]
        command += ["--metrics", "['dice']", *knobs, "--modalities", str(list(subset)), "--output_dir", str(folder)]
        with open(folder / "log.txt", "w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=BUNDLE).returncode:
                raise InputError(f"The evaluation with {', '.join(subset)} failed, the end of {log.name} says why.")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("dice_")]
    return {name.removeprefix("dice_"): float(np.mean([float(row[name]) for row in rows])) for name in names}


def settings_file(output_dir: Path, checkpoint: Path, arguments: Sequence[str]) -> None:
    """Keeps what is scored, so that the tables of one folder are all of it.

    Raises:
        InputError: when the folder has tables of other weights or knobs.
    """
    path = output_dir / "settings.json"
    wanted = {"checkpoint": str(checkpoint), "modified": checkpoint.stat().st_mtime, "arguments": list(arguments)}
    if path.is_file() and read_json(path, "The settings of the subsets,") != wanted:
        raise InputError(f"{output_dir} holds scores of other weights or with other knobs: take another output_dir.")
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2) + "\n")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts subsets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="the weights, with their record beside them")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--output_dir", type=Path, default=Path("subsets"), help="default: %(default)s")
    parser.add_argument(
        "--config_file",
        type=listed(str),
        default=[str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")],
        help="the configs of the evaluation; default: train.json and evaluate.json",
    )
    parser.add_argument("knobs", nargs="*", help="after --: knobs of the evaluation, such as -- --split validation")
    arguments = parser.parse_args(argv)
    checkpoint, output_dir = arguments.checkpoint.resolve(), arguments.output_dir.resolve()
    if not checkpoint.is_file():
        raise InputError(f"The weights {checkpoint} are not there: train first, or name others by --checkpoint.")
    paths = ["--checkpoint", str(checkpoint), "--dataset_dir", str(arguments.dataset_dir.resolve())]
    knobs = [*paths, "--bundle_root", str(BUNDLE), *arguments.knobs]
    settings_file(output_dir, checkpoint, [*arguments.config_file, *knobs])
    scores = {
        subset: evaluate(subset, arguments.config_file, knobs, output_dir / "+".join(subset))
        for subset in tqdm(
            subsets_of(recorded(str(checkpoint), "modalities", list(MODALITIES))), desc="subsets", disable=None
        )
    }
    columns = list(next(iter(scores.values())))
    rows = [["+".join(subset), *(f"{of[name]:.4f}" for name in columns)] for subset, of in scores.items()]
    rows.append(["mean", *(f"{np.mean([of[name] for of in scores.values()]):.4f}" for name in columns)])
    write_csv(output_dir / "subsets.csv", [["modalities", *(f"dice_{name}" for name in columns)], *rows])
    draw_subsets(scores, output_dir / "subsets.png")
    width = max(len(row[0]) for row in rows) + 2
    for row in [["modalities", *(name.upper() for name in columns)], *rows]:
        print(f"{row[0]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]))
    for name, of in gains(scores).items():
        print(f"{name} adds " + ", ".join(f"{gain:+.3f} to {region.upper()}" for region, gain in of.items()) + ".")
    print(f"As a picture: {output_dir / 'subsets.png'}.")
