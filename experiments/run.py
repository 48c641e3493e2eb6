"""Runs the variants of an experiment one after another through the bundle's own workflow, and makes their table.

    python experiments/run.py experiments/self_distillation.json --dataset_dir Task04_Hippocampus

trains and scores each variant with each seed. Results lie in ``results/<experiment>/<data set>_<steps>``, so that runs
of another budget or data set are never taken for these. A run that has its CSV of cases is not run again, so the same
command goes on after an interruption. Without ``--dataset_dir`` it makes the table and the plot of the runs that are
there, of the data set that the experiment names.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats
from tqdm.auto import tqdm

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data.datalist import make_datalist  # noqa: E402
from scripts.errors import InputError  # noqa: E402
from scripts.evaluation.report import write_csv  # noqa: E402
from scripts.files import whole_file  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = Path(__file__).resolve().parent / "runs"
MIN_SEEDS = 3


def read_spec(path: Path) -> dict[str, Any]:
    """An experiment: what is trained, how long, with which seeds, and the variants as overlays by name."""
    try:
        spec = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"The experiment {path} cannot be read: {error}.") from error
    for key in ("config_file", "dataset", "split", "iterations", "seeds", "base", "variants"):
        if key not in spec:
            raise InputError(f"The experiment {path} should have {key}, it does not.")
    if spec["base"] not in spec["variants"]:
        raise InputError(f"The base of {path} should be one of its variants, it is {spec['base']}.")
    return spec


def overlay_of(spec: Mapping[str, Any], variant: str, iterations: int, seed: int) -> dict[str, Any]:
    """The overlay of one run: the variant, its seed, and a budget counted in steps rather than in epochs."""
    return {
        **spec["variants"][variant],
        "seed": seed,
        "max_epochs": 1,
        "train#trainer#epoch_length": iterations,
        "lr_scheduler#total_iters": iterations,
    }


def run_variant(
    spec: Mapping[str, Any], variant: str, seed: int, iterations: int, dataset_dir: Path, run_dir: Path, results: Path
) -> None:
    """Trains and scores one variant with one seed; its CSV of cases goes to the results at the end."""
    run_dir.mkdir(parents=True, exist_ok=True)
    overlay = run_dir / "overlay.json"
    overlay.write_text(json.dumps(overlay_of(spec, variant, iterations, seed), indent=2) + "\n")
    datalist = run_dir.parent / "datalist.json"
    if not datalist.exists():
        modalities = json.loads((BUNDLE / spec["config_file"][-1]).read_text())["modalities"]
        datalist.write_text(json.dumps(make_datalist(dataset_dir, modalities, **spec["split"]), indent=2) + "\n")
    knobs = {
        "bundle_root": BUNDLE,
        "dataset_dir": dataset_dir.resolve(),
        "data_list_file_path": datalist,
        "ckpt_dir": run_dir,
        "resume": "auto",
        "output_dir": run_dir,
    }
    configs = [str(BUNDLE / name) for name in spec["config_file"]]
    started = time.monotonic()
    with open(run_dir / "log.txt", "w") as log:
        scored = {"checkpoint": run_dir / "model_final.pt"}
        for workflow, more, own in (
            ("training", [], {}),
            ("evaluating", [str(BUNDLE / "configs/evaluate.json")], scored),
        ):
            command = [sys.executable, "-m", "monai.bundle", "run", workflow]
            command += ["--config_file", str([configs[0], *more, *configs[1:], str(overlay)])]
            for name, value in {**knobs, **own}.items():
                command += [f"--{name}", str(value)]
            environment = {**os.environ, "PYTHONPATH": f"{BUNDLE}{os.pathsep}{Path(__file__).resolve().parent}"}
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
                raise InputError(f"{variant} with seed {seed} failed, the end of {log.name} says why.")
            if workflow == "training":
                hours = (time.monotonic() - started) / 3600
    record = {
        "variant": variant,
        "seed": seed,
        "dataset": dataset_dir.resolve().name,
        "iterations": iterations,
        "training_hours": round(hours, 3),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": json.loads((run_dir / "model_final.json").read_text())["versions"],
    }
    results.mkdir(parents=True, exist_ok=True)
    with whole_file(results / f"{variant}_seed{seed}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    with whole_file(results / f"{variant}_seed{seed}.csv") as temporary:  # last: it says that the run is done
        temporary.write_text((run_dir / "metrics.csv").read_text())


def read_scores(results: Path, variant: str, seed: int) -> dict[str, float] | None:
    """Each case's Dice, the mean of its regions; ``None`` for a run that is not done."""
    path = results / f"{variant}_seed{seed}.csv"
    if not path.is_file():
        return None
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["case"]: float(np.mean([float(value) for name, value in row.items() if name.startswith("dice_")]))
        for row in rows
    }


def paired_difference(scores: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """Mean of ``scores - base``, both (seeds, cases), with the 95 % t interval over the seeds' mean differences.

    It says what another seed would give on these cases. Below three seeds there is none, NaN: t of one
    degree of freedom is 12.7.
    """
    of_seeds = (scores - base).mean(axis=1)
    mean = float(of_seeds.mean())
    if len(of_seeds) < MIN_SEEDS:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(of_seeds) - 1) * stats.sem(of_seeds)
    return mean, float(mean - half), float(mean + half)


def report(spec: Mapping[str, Any], seeds: Sequence[int], results: Path) -> str:
    """Writes ``table.csv`` and ``plot.png`` of the runs that are done, and gives the table for reading."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for variant in spec["variants"]:
        done = {seed: of for seed in seeds if (of := read_scores(results, variant, seed)) is not None}
        if done:
            scores[variant] = done
    if not scores:
        raise InputError(f"There should be runs to report, {results} holds none: give --dataset_dir to make them.")
    rows, means = [], {}
    for variant, of_seeds in scores.items():
        means[variant] = [float(np.mean(list(of.values()))) for of in of_seeds.values()]
        spread = float(np.std(means[variant], ddof=1)) if len(of_seeds) > 1 else float("nan")
        row = [variant, len(of_seeds), len(next(iter(of_seeds.values()))), np.mean(means[variant]), spread]
        common = sorted(of_seeds.keys() & scores.get(spec["base"], {}).keys())
        difference: Sequence[float] = (float("nan"),) * 3
        if common and variant != spec["base"]:
            cases = sorted(of_seeds[common[0]])
            paired = [
                np.array([[scores[name][seed][case] for case in cases] for seed in common])
                for name in (variant, spec["base"])
            ]
            difference = paired_difference(*paired)
        hours = [json.loads((results / f"{variant}_seed{s}.json").read_text())["training_hours"] for s in of_seeds]
        rows.append([*row, *difference, float(np.mean(hours))])
    columns = ["variant", "seeds", "cases", "dice", "std_of_seeds", "difference", "ci95_low", "ci95_high", "hours"]
    formatted = [
        [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row] for row in [columns, *rows]
    ]
    write_csv(results / "table.csv", formatted)
    plot(means, {row[0]: row[5:8] for row in rows}, spec["base"], results / "plot.png")
    note = f"ci95: 95 % t interval over the seeds' mean differences on the same cases; none below {MIN_SEEDS} seeds."
    widths = [max(len(row[column]) for row in formatted) for column in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in formatted]
    return "\n".join([*lines, note])


def plot(
    means: Mapping[str, Sequence[float]], differences: Mapping[str, Sequence[float]], base: str, path: Path
) -> None:
    """Left, a dot per seed and the mean; right, the paired difference to the base with its interval."""
    figure = Figure(figsize=(9, 0.7 + 0.45 * len(means)), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    positions = np.arange(len(means))[::-1]
    for position, (variant, of) in zip(positions, means.items()):
        left.plot(of, [position] * len(of), "o", color="#0072B2", alpha=0.6, markersize=5)
        left.plot(np.mean(of), position, "|", color="black", markersize=14)
        mean, low, high = differences[variant]
        if np.isfinite(low):
            right.errorbar(mean, position, xerr=[[mean - low], [high - mean]], fmt="o", color="#D55E00", capsize=3)
        elif np.isfinite(mean):
            right.plot(mean, position, "o", color="#D55E00", markerfacecolor="none")
    left.set_yticks(positions, list(means))
    left.set_xlabel("Dice: a dot per seed, their mean")
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_xlabel(f"difference to {base}, 95 % t interval over seeds")
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", type=Path, help="a JSON file of experiments/")
    parser.add_argument("--dataset_dir", type=Path, help="folder of the cases; without it, only the table is made")
    parser.add_argument("--iterations", type=int, help="steps of each run, where not those of the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", help="likewise")
    parser.add_argument("--variants", nargs="+", help="run only these")
    parser.add_argument(
        "--results", type=Path, help="folder of tables; default: experiments/results/<experiment>/<data set>_<steps>"
    )
    arguments = parser.parse_args(argv)
    name = arguments.experiment.stem
    try:
        spec = read_spec(arguments.experiment)
        seeds = arguments.seeds or spec["seeds"]
        iterations = arguments.iterations or spec["iterations"]
        dataset = spec["dataset"] if arguments.dataset_dir is None else arguments.dataset_dir.resolve().name
        key = f"{dataset}_{iterations}"
        results = arguments.results or RESULTS / name / key
        if arguments.dataset_dir is not None:
            runs = [(variant, seed) for seed in seeds for variant in arguments.variants or spec["variants"]]
            todo = [(variant, seed) for variant, seed in runs if read_scores(results, variant, seed) is None]
            for variant, seed in tqdm(todo, desc=name, disable=None):
                run_dir = RUNS / name / key / f"{variant}_seed{seed}"
                run_variant(spec, variant, seed, iterations, arguments.dataset_dir, run_dir, results)
        print(report(spec, seeds, results))
    except InputError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
