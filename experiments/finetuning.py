"""What weights of another task are worth where few cases are labelled: learning curves beside training from scratch.

    python experiments/finetuning.py hippocampus --dataset_dir Task04_Hippocampus --pretrained liver.pt
    python experiments/finetuning.py gliomas --dataset_dir BRATS --pretrained bundle/models/synthetic.pt

The cases to test on are the same for all runs. Those to train on are drawn by the seed, the same for both ways; so are
the steps and all knobs but those of ``finetune.json``. A run that has its CSV is not run again. Without
``--dataset_dir`` it makes the table and the plot of the runs that are there.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import BUNDLE, RESULTS, RUNS, Training, cases_of, hold_to, keep, of_steps, read_scores, write
from tables import mean_dice, t_interval

from scripts.data.datalist import make_datalist
from scripts.errors import InputError
from scripts.evaluation.report import write_csv
from scripts.files import whole_file
from scripts.weights.record import sha256

SCRATCH, TUNED = "scratch", "fine-tuned"
SCRATCH_RATE = 0.001  # that of a plan for few steps


class Task(NamedTuple):
    """What is learned: overlays on train.json, the split, the numbers of cases, and the steps of a run."""

    config_file: list[str]
    overlay: dict[str, Any]
    modalities: list[str]
    split: dict[str, Any]
    cases: list[int]
    iterations: int


TASKS = {
    "hippocampus": Task(
        ["configs/bfloat16.json", "configs/hippocampus.json"],
        {"spacing_mm": [-1, -1, -1]},
        ["mri"],
        {"seed": 0, "validation_fraction": 0.05, "testing_fraction": 0.15},
        [5, 20],
        80,
    ),
    # Thirteen cases: five to train on leave seven to test on, twenty are not there.
    "gliomas": Task(
        ["configs/bfloat16.json"],
        {
            "spacing_mm": [2, 2, 2],
            "roi_size": [64, 64, 64],
            "batch_size": 1,
            "invert_logits": True,
            "cache_rate": 1.0,
            "num_workers": 0,
            "metrics": ["dice"],
        },
        ["t1", "t1ce", "t2", "flair"],
        {"seed": 0, "validation_fraction": 0.05, "testing_fraction": 0.54},
        [5],
        80,
    ),
}


def run_of(task: Task, way: str, pretrained: Path) -> tuple[list[str], dict[str, Any]]:
    """The configs of a run and what lies over them. The task's overlays come last: its own voxels and crops."""
    if way == TUNED:
        more, own = ["configs/finetune.json"], {"pretrained": str(pretrained.resolve())}
    else:
        more, own = [], {"learning_rate": SCRATCH_RATE}
    names = ["configs/train.json", *more, *task.config_file]
    return [str(BUNDLE / name) for name in names], {**task.overlay, **own}


def draw(datalist: Mapping[str, Any], num_cases: int, seed: int) -> dict[str, Any]:
    """The split of the task, with so many cases to train on.

    Raises:
        InputError: when there are not so many.
    """
    training = datalist["training"]
    if len(training) < num_cases:
        raise InputError(f"{datalist['name']} should leave {num_cases} cases to train on, has {len(training)}.")
    return {**datalist, "training": random.Random(seed).sample(training, num_cases)}


def train(task: Task, arguments: argparse.Namespace, key: str) -> None:
    """Makes the runs that are not there; the results are held to the cases, steps and weights of the first run.

    Raises:
        InputError: when they are of others, the cases do not suffice, or a workflow fails.
    """
    results, pretrained = arguments.results / key, arguments.pretrained
    iterations = arguments.iterations or task.iterations
    runs = RUNS / "finetuning" / f"{key}_{sha256(pretrained)[:8]}"
    datalist = make_datalist(arguments.dataset_dir, task.modalities, **task.split)
    wanted = {
        "task": task._asdict(),
        "iterations": iterations,
        "learning_rate_from_scratch": SCRATCH_RATE,
        "pretrained_sha256": sha256(pretrained),
        **cases_of(datalist),
    }
    advice = "name another folder by --results; without --dataset_dir its table is made all the same"
    hold_to(results / "settings.json", wanted, advice, results.glob("*_seed*.csv"))
    for seed in arguments.seeds:
        for num_cases in task.cases:
            folder = runs / f"{num_cases}_seed{seed}"
            write(folder / "datalist.json", draw(datalist, num_cases, seed))
            for way in (SCRATCH, TUNED):
                name = f"{way}_{num_cases}_seed{seed}"
                if read_scores(results / f"{name}.csv") is None:
                    configs, overlay = run_of(task, way, pretrained)
                    overlay |= {"seed": seed, **of_steps(iterations)}
                    files = (arguments.dataset_dir, folder / "datalist.json", folder / way)
                    training = Training(name, configs, overlay, *files)
                    training.train()
                    record = {"way": way, "cases": num_cases, "seed": seed, "iterations": iterations}
                    keep(results, name, record | training.score(), folder / way)


def report(task: Task, seeds: Sequence[int], results: Path) -> str:
    """Writes ``table.csv`` and ``plot.png`` of the seeds that both ways have, and gives the table for reading."""
    rows = [["cases", "way", "seeds", "test_cases", "dice", "std_of_seeds", "difference", "ci95_low", "ci95_high"]]
    curves: dict[str, dict[int, list[float]]] = {SCRATCH: {}, TUNED: {}}
    for num_cases in task.cases:
        of: dict[str, Mapping[int, Mapping[str, float]]] = {
            way: {
                seed: mean_dice(one)
                for seed in seeds
                if (one := read_scores(results / f"{way}_{num_cases}_seed{seed}.csv"))
            }
            for way in curves
        }
        common = sorted(of[SCRATCH].keys() & of[TUNED].keys())
        if not common:
            continue
        names = sorted(of[SCRATCH][common[0]])
        scores = {way: np.array([[of[way][seed][case] for case in names] for seed in common]) for way in curves}
        for way, values in scores.items():
            means = values.mean(axis=1)
            curves[way][num_cases] = means.tolist()
            spread = means.std(ddof=1) if len(common) > 1 else float("nan")
            numbers = [means.mean(), spread]
            gains = (values - scores[SCRATCH]).mean(axis=1)
            numbers += [gains.mean(), *t_interval(gains)] if way == TUNED else [float("nan")] * 3
            rows.append([str(num_cases), way, str(len(common)), str(len(names)), *(f"{n:.4f}" for n in numbers)])
    if len(rows) == 1:
        raise InputError(f"There should be runs to report, {results} holds none: give --dataset_dir to make them.")
    write_csv(results / "table.csv", rows)
    plot(curves, results / "plot.png")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)


def plot(curves: Mapping[str, Mapping[int, Sequence[float]]], path: Path) -> None:
    """Dice over the number of cases: a dot for each seed, a line through their means."""
    figure = Figure(figsize=(5, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (way, of), color in zip(curves.items(), ("#0072B2", "#D55E00")):
        for num_cases, dice in of.items():
            axes.plot([num_cases] * len(dice), dice, "o", color=color, alpha=0.5, markersize=4)
        axes.plot(list(of), [float(np.mean(dice)) for dice in of.values()], "-", color=color, marker="_", label=way)
    axes.set_xlabel("cases to train on")
    axes.set_ylabel("Dice: a dot per seed, their mean")
    axes.set_xticks(sorted({num_cases for of in curves.values() for num_cases in of}))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--dataset_dir", type=Path, help="folder of the cases; without it, only the table is made")
    parser.add_argument("--pretrained", type=Path, help="weights to begin with, their record beside")
    parser.add_argument("--iterations", type=int, help="steps of each run, where not those of the task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS / "finetuning", help="folder of tables")
    arguments = parser.parse_args(argv)
    task = TASKS[arguments.task]
    try:
        if arguments.dataset_dir is None:
            begins_with = arguments.pretrained.stem if arguments.pretrained else "*"
            pattern = f"{begins_with}_to_{arguments.task}_{arguments.iterations or '*'}"
            keys = sorted(path.name for path in arguments.results.glob(pattern))
        else:
            if arguments.pretrained is None or not arguments.pretrained.is_file():
                raise InputError(f"--pretrained should be a file of weights, got {arguments.pretrained}.")
            keys = [f"{arguments.pretrained.stem}_to_{arguments.task}_{arguments.iterations or task.iterations}"]
            train(task, arguments, keys[0])
        if not keys:
            raise InputError(f"There should be runs to report, {arguments.results} holds none: give --dataset_dir.")
        for key in keys:
            print(f"{key}\n{report(task, arguments.seeds, arguments.results / key)}")
    except InputError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
