"""nnU-Net v2 beside ours: the same cases, the same minutes of the same machine, several seeds.

    python experiments/nnunet.py --dataset_dir Task04_Hippocampus --nnunet_python .venv-bench/bin/python --minutes 45

Each side makes its own plan, and a schedule that ends with the minutes: two short trials tell how long a start and an
epoch take. The minutes are those of a training's process, validation included; plans, nnU-Net's preprocessing and the
masks of the cases to test on are not counted. ``make bench`` makes the environment of nnU-Net.

What has its result is not done again, so the same command goes on after an interruption; ``--stages`` takes apart
what needs a quiet machine (``trials train``) from what does not, and ``--sides`` lets each of two cores train one side.
Without ``--dataset_dir`` it makes the tables of the runs that are there.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from runs import BUNDLE, RESULTS, RUNS, hold_to, keep, read_json, read_scores, write
from tables import t_interval

from scripts.data.datalist import make_datalist
from scripts.errors import InputError
from scripts.evaluation.report import write_csv
from scripts.files import whole_file
from scripts.training.fingerprint import find_modalities
from scripts.training.schedule import plan_validations

STAGES = ("plans", "trials", "train", "score")
SIDES = OURS, NNUNET = "missu", "nnunet"
VALIDATION_FRACTION = 0.05
TRIALS = (1, 3)  # epochs
# nnU-Net imports all of its networks, and one of them torchvision.
TORCHVISION = Path(__file__).resolve().parents[1] / "tests" / "monai_label"
FITTED = Path(__file__).resolve().parent / "nnunet" / "fitted.py"


class Comparison:
    """Where the runs of one budget lie, and how the two sides are called."""

    def __init__(self, dataset_dir: Path, minutes: float, nnunet_python: Path, runs: Path, testing: float) -> None:
        self.dataset_dir = dataset_dir.resolve()
        self.minutes = minutes
        self.nnunet_python = nnunet_python.absolute()
        self.runs = runs.resolve()
        self.testing_fraction = testing
        self.raw = self.runs / "nnUNet_raw" / f"Dataset001_{self.dataset_dir.name}"
        self.datalist = self.runs / "datalist.json"

    def run_of(self, side: str, seed: int) -> Path:
        return self.runs / f"{side}_{self.minutes:g}min_seed{seed}"

    def call(self, log: Path, command: Sequence[object], **environment: object) -> float:
        """Runs a command, and says how many seconds it took; what it says goes to ``log``."""
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTHONPATH": f"{BUNDLE}{os.pathsep}{TORCHVISION}",
            "nnUNet_raw": str(self.runs / "nnUNet_raw"),
            "nnUNet_preprocessed": str(self.runs / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.runs / "nnUNet_results"),
            "nnUNet_extTrainer": str(FITTED.parent),
            "nnUNet_n_proc_DA": "1",
            **{name: str(value) for name, value in environment.items()},
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open(log, "w") as file:
            command = [str(part) for part in command]
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=variables, cwd=BUNDLE).returncode:
                raise InputError(f"{' '.join(command[:4])} failed, the end of {log} says why.")
        return time.monotonic() - start

    def split(self, results: Path) -> None:
        """The cases to train and to test on, which results and runs are held to.

        Raises:
            InputError: when they are of others.
        """
        fractions = {"validation_fraction": VALIDATION_FRACTION, "testing_fraction": self.testing_fraction}
        made = make_datalist(self.dataset_dir, self.modalities(), **fractions)
        advice = "take the --testing_fraction and the cases that it was made of, or another folder by --runs"
        hold_to(self.datalist, made, advice)
        tested = {entry["case_id"] for entry in made["testing"]}
        for path in sorted(results.glob("*_seed*.csv")):
            if set(read_scores(path) or ()) != tested:
                raise InputError(
                    f"{path} should be of the cases to test on, it is of others: name another folder by --results."
                )

    def plans(self) -> None:
        """Our plan, nnU-Net's raw folder, its plan and its preprocessed cases."""
        convention = self.dataset_dir / "dataset.json"
        given = ["--dataset_dir", self.dataset_dir, "--data_list_file_path", self.datalist]
        door = [sys.executable, "-m", "scripts"]
        if not self.plan.exists():
            hours = self.minutes / 60
            self.call(self.plan.with_suffix(".log"), [*door, "plan", *given, "--output", self.plan, "--hours", hours])
        if not self.raw.exists():
            names = ["--modalities", str(self.modalities()), "--label_convention", convention]
            self.call(self.runs / "raw.log", [*door, "to_nnunet", *given, *names, "--output_dir", self.raw])
        done = self.runs / "preprocessed"
        if not done.exists():
            entry = self.nnunet_python.parent / "nnUNetv2_plan_and_preprocess"
            command = [self.nnunet_python, entry, "-d", 1, "-c", "3d_fullres", "-np", 1, "-npfp", 1]
            self.call(self.runs / "preprocess.log", command)
            splits = self.runs / "nnUNet_preprocessed" / self.raw.name / "splits_final.json"
            with whole_file(splits) as temporary:
                temporary.write_text((self.raw / "splits_final.json").read_text())
            done.touch()

    def run(self, stages: Sequence[str], sides: Sequence[str], seeds: Sequence[int], results: Path) -> None:
        self.split(results)
        if "plans" in stages:
            self.plans()
        if "trials" in stages:
            for side in sides:
                self.epochs(side)
        # Side by side, so that a machine that slows down slows both.
        pairs = [(side, seed) for seed in seeds for side in sides]
        for side, seed in pairs if "train" in stages else ():
            self.train_seed(side, seed)
        for side, seed in pairs if "score" in stages else ():
            self.score_seed(side, seed, results)

    @property
    def plan(self) -> Path:
        return self.runs / f"plan_{self.minutes:g}min.json"

    def modalities(self) -> list[str]:
        return find_modalities(self.dataset_dir)

    def train(self, side: str, run: Path, epochs: int, seed: int) -> float:
        """Trains, and says how many seconds it took; what another process left is taken away, so that all is timed."""
        shutil.rmtree(run, ignore_errors=True)
        if side == NNUNET:
            command = [self.nnunet_python, FITTED, "train", self.raw.name, epochs, seed]
            # 0: data are augmented by the process that trains, on one core.
            return self.call(run / "train.log", command, nnUNet_results=run, nnUNet_n_proc_DA=0)
        command = self.workflow("training", run, ["configs/train.json"])
        epochs, interval = plan_validations(epochs)
        command += ["--max_epochs", epochs, "--val_interval", interval, "--seed", seed, "--ckpt_dir", run]
        return self.call(run / "train.log", command)

    def workflow(self, name: str, run: Path, configs: Sequence[str]) -> list[object]:
        files = [*configs, str(self.plan)]
        knobs = ["--dataset_dir", self.dataset_dir, "--data_list_file_path", self.datalist, "--output_dir", run]
        return [sys.executable, "-m", "monai.bundle", "run", name, "--config_file", str(files), *knobs]

    def epochs(self, side: str) -> int:
        """As many as the minutes hold, by two trials: what a start takes, and what each epoch."""
        of_plan = f"{side}_{self.minutes:g}min"
        path = self.runs / f"trials_{of_plan}.json"
        if not path.exists():
            write(path, {n: round(self.train(side, self.runs / f"{of_plan}_trial{n}", n, 0), 1) for n in TRIALS})
        few, more = read_json(path).values()
        of_epoch = (more - few) / (TRIALS[1] - TRIALS[0])
        start = few - TRIALS[0] * of_epoch
        return max(1, int((60 * self.minutes - start) / of_epoch))

    def train_seed(self, side: str, seed: int) -> None:
        run = self.run_of(side, seed)
        if (run / "trained.json").exists():
            return
        epochs = self.epochs(side)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = self.train(side, run, epochs, seed)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record = {
            "side": side,
            "seed": seed,
            "epochs": epochs,
            "minutes": round(seconds / 60, 2),
            "processor_minutes": round(processor / 60, 2),
            "budget_minutes": self.minutes,
            "threads": os.environ.get("OMP_NUM_THREADS", "1"),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "dataset": self.dataset_dir.name,
        }
        write(run / "trained.json", record)

    def score_seed(self, side: str, seed: int, results: Path) -> None:
        """The cases to test on, at their own spacing; the CSV goes to the results."""
        run = self.run_of(side, seed)
        target = results / f"{side}_seed{seed}.csv"
        if target.exists() or not (run / "trained.json").exists():
            return
        if side == OURS:
            command = self.workflow("evaluating", run, ["configs/train.json", "configs/evaluate.json"])
            self.call(run / "score.log", [*command, "--checkpoint", run / "model.pt"])
        else:
            model = next(run.glob("*/FittedTrainer__*"))
            masks = run / "masks"
            masks.mkdir(exist_ok=True)
            self.call(run / "predict.log", [self.nnunet_python, FITTED, "predict", model, self.raw / "imagesTs", masks])
            truth = run / "truth"
            truth.mkdir(exist_ok=True)
            for label in (self.raw / "labelsTs").iterdir():
                (truth / label.name.replace(".nii", "_seg.nii", 1)).unlink(missing_ok=True)
                (truth / label.name.replace(".nii", "_seg.nii", 1)).symlink_to(label)
            score = [sys.executable, "-m", "scripts", "score", "--dataset_dir", truth, "--prediction_dir", masks]
            score += ["--output_dir", run, "--metrics", "['dice','hd95_mm']"]
            self.call(run / "score.log", [*score, "--label_convention", self.raw / "dataset.json"])
        keep(results, target.stem, read_json(run / "trained.json"), run)


def common_seeds(results: Path) -> list[str]:
    """Those of which both sides have their scores."""
    seeds_of = [{path.stem.rpartition("seed")[2] for path in results.glob(f"{side}_seed*.csv")} for side in SIDES]
    return sorted(set.intersection(*seeds_of), key=int)


def report(results: Path) -> str:
    """Writes ``table.csv`` of the seeds that both sides have, and gives it for reading.

    Differences are ours less nnU-Net's, of the same seed and case. One interval is over the seeds' mean differences:
    what another seed would give on these cases. The other is over the cases' mean differences: what these seeds would
    give on other cases.
    """
    seeds = common_seeds(results)
    scores = {side: [read_scores(results / f"{side}_seed{seed}.csv") or {} for seed in seeds] for side in SIDES}
    records = {side: [read_json(results / f"{side}_seed{seed}.json") for seed in seeds] for side in SIDES}
    cases = sorted(scores[OURS][0])
    regions = [name.removeprefix("dice_") for name in scores[OURS][0][cases[0]] if name.startswith("dice_")]
    of = {  # (regions, seeds, cases)
        side: np.array([[[each[case][f"dice_{name}"] for case in cases] for each in scores[side]] for name in regions])
        for side in SIDES
    }
    columns = ["region", "seeds", "cases"]
    for side in SIDES:
        columns += [f"{side}_dice", f"{side}_std_of_seeds", f"{side}_minutes"]
    columns += ["difference", "seeds_ci95_low", "seeds_ci95_high", "cases_ci95_low", "cases_ci95_high"]
    rows = [columns]
    for number, region in enumerate([*regions, "mean"]):
        pair = [of[side][number] if region != "mean" else of[side].mean(axis=0) for side in SIDES]
        row = [region, str(len(seeds)), str(len(cases))]
        for side, values in zip(SIDES, pair):
            of_seeds = values.mean(axis=1)
            spread = of_seeds.std(ddof=1) if len(seeds) > 1 else float("nan")
            minutes = np.mean([record["minutes"] for record in records[side]])
            row += [f"{of_seeds.mean():.4f}", f"{spread:.4f}", f"{minutes:.2f}"]
        difference = pair[0] - pair[1]
        numbers = [difference.mean(), *t_interval(difference.mean(axis=1)), *t_interval(difference.mean(axis=0))]
        rows.append([*row, *(f"{value:.4f}" for value in numbers)])
    write_csv(results / "table.csv", rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, help="folder with a dataset.json; without it, tables alone")
    parser.add_argument("--nnunet_python", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--minutes", type=float, default=45, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--testing_fraction", type=float, default=0.3, help="of the patients; of all budgets alike")
    parser.add_argument("--results", type=Path, default=RESULTS / "nnunet", help="folder of tables")
    parser.add_argument("--runs", type=Path, default=RUNS / "nnunet", help="folder of what is trained, not in git")
    arguments = parser.parse_args(argv)
    try:
        if arguments.dataset_dir is not None:
            name = arguments.dataset_dir.resolve().name
            results = arguments.results / f"{name}_{arguments.minutes:g}min"
            if arguments.nnunet_python is None or not arguments.nnunet_python.is_file():
                raise InputError(f"nnunet_python should be a file, got {arguments.nnunet_python}: make bench makes it.")
            own = (arguments.minutes, arguments.nnunet_python, arguments.runs / name, arguments.testing_fraction)
            comparison = Comparison(arguments.dataset_dir, *own)
            comparison.run(arguments.stages, arguments.sides, arguments.seeds, results)
        if "score" in arguments.stages:
            folders = sorted(arguments.results.glob("*_*min"))
            for folder in folders:
                table = report(folder) if common_seeds(folder) else "No seed has runs of both sides yet."
                print(f"{folder.name}\n{table}")
            if not folders and arguments.dataset_dir is None:
                raise InputError(f"There should be runs to report, {arguments.results} has none: give --dataset_dir.")
    except InputError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
