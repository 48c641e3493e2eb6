"""The runs of experiments: a method, trained and scored on a fold of a data set with a seed, by the bundle's workflow.

Results lie in ``<results>/<data set>/<setting>_<steps>``, weights and logs in ``<runs>/<data set>/<setting>_<steps>``.
Experiments that name the same method share its runs. A run that has its CSV of cases is not run again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data.datalist import make_datalist  # noqa: E402
from scripts.errors import InputError  # noqa: E402
from scripts.files import whole_file  # noqa: E402

RESULTS, RUNS = HERE / "results", HERE / "runs"
CACHE = "configs/cache.json"  # an overlay that needs a folder

Scores = dict[str, dict[str, float]]  # of each case: <metric>_<region>


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A JSON file of experiments, with the keys that it has to have.

    Raises:
        InputError: when it cannot be read, or lacks one.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} cannot be read: {error}.") from error
    for key in keys:
        if key not in content:
            raise InputError(f"The file {path} should have {key}, it does not.")
    return content


def named(name: str, folder: Path) -> Path:
    """The file of an experiment or a setting, given by its name or its path."""
    return Path(name) if name.endswith(".json") else folder / f"{name}.json"


def read_methods() -> dict[str, dict[str, Any]]:
    """What can be trained, by name, and what cannot and why."""
    methods = read_json(HERE / "methods.json")
    methods.pop("_desc_")
    return methods


@dataclass(frozen=True)
class Setting:
    """How and how long methods are trained: the configs and what lies over them, the split, the steps, the seeds.

    ``steps_per_epoch`` is how often a checkpoint can be written; ``None`` for one epoch of all steps.
    """

    name: str
    config_file: list[str]
    overlay: dict[str, Any]
    split: dict[str, Any]
    iterations: int
    seeds: list[int]
    about: str = ""
    steps_per_epoch: int | None = None

    @classmethod
    def read(
        cls,
        name: str,
        iterations: int | None = None,
        seeds: list[int] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> Setting:
        """A setting by name or path, with other steps, seeds and knobs where they are given.

        Raises:
            InputError: when the file cannot be read, or lacks a key.
        """
        path = named(name, HERE / "settings")
        content = read_json(path, ("config_file", "overlay", "split", "iterations", "seeds"))
        setting = cls(path.stem, about=content.pop("_desc_", ""), **content)
        return replace(
            setting,
            overlay={**setting.overlay, **(knobs or {})},
            iterations=iterations or setting.iterations,
            seeds=seeds or setting.seeds,
        )

    @property
    def folds(self) -> list[int | None]:
        """Those that take turns as held-out cases; one, without a number, where cases for testing are set aside."""
        return list(range(self.split["folds"])) if "folds" in self.split else [None]

    @property
    def configs(self) -> list[str]:
        """Paths of the configs; those that are not absolute lie in the bundle."""
        return [str(BUNDLE / name) for name in self.config_file]

    def knob(self, name: str) -> Any:
        """The value of a knob as the configs have it, the last one that names it."""
        found = [of for path in self.configs if name in (of := read_json(Path(path)))]
        return self.overlay.get(name, found[-1][name] if found else None)


class Run(NamedTuple):
    """A method on a fold (``None``: the cases for testing) with a seed."""

    method: str
    fold: int | None
    seed: int

    @property
    def name(self) -> str:
        return "_".join([self.method, *([] if self.fold is None else [f"fold{self.fold}"]), f"seed{self.seed}"])


@dataclass(frozen=True)
class Study:
    """A data set by its name, a setting, and where their runs lie."""

    dataset: str
    setting: Setting
    methods: Mapping[str, dict[str, Any]]
    results_root: Path = RESULTS
    runs_root: Path = RUNS

    @property
    def key(self) -> Path:
        return Path(self.dataset) / f"{self.setting.name}_{self.setting.iterations}"

    @property
    def results(self) -> Path:
        return self.results_root / self.key

    @property
    def runs(self) -> Path:
        return self.runs_root / self.key

    @property
    def datalist(self) -> Path:
        return self.runs / "datalist.json"

    def all_runs(self, methods: Iterable[str]) -> list[Run]:
        """The first fold and seed of all methods first, so that a table says something early."""
        setting = self.setting
        names = [name for name in dict.fromkeys(methods) if "why_not" not in self.methods[name]]
        return [Run(name, fold, seed) for seed in setting.seeds for fold in setting.folds for name in names]

    def overlay(self, run: Run) -> dict[str, Any]:
        """The config of a run: setting, method, seed, and a budget counted in steps rather than in epochs.

        Raises:
            InputError: when the steps are not a multiple of those of an epoch.
        """
        budget = of_steps(self.setting.iterations, self.setting.steps_per_epoch)
        return {**self.setting.overlay, **self.methods[run.method], "seed": run.seed, **budget}

    def definition(self, run: Run) -> dict[str, Any]:
        """What a run was made with, but for words."""
        return {name: value for name, value in self.methods[run.method].items() if name != "_desc_"}

    def prepare(self, dataset_dir: Path) -> None:
        """Splits the data set, and holds the results to the setting and the cases of the first run.

        Raises:
            InputError: when results are there of another setting or of other cases.
        """
        setting = self.setting
        made = make_datalist(dataset_dir, setting.knob("modalities"), **setting.split)
        cases = sorted(
            [entry["case_id"], split, entry.get("fold")]
            for split in ("training", "validation", "testing")
            for entry in made.get(split, [])
        )
        overlay = {name: value for name, value in setting.overlay.items() if name != "metrics"}
        wanted = {
            "config_file": setting.config_file,
            "overlay": overlay,
            "split": setting.split,
            "iterations": setting.iterations,
            "num_cases": len(cases),
            "cases_sha256": hashlib.sha256(json.dumps(cases).encode()).hexdigest(),
        }
        path = self.results / "settings.json"
        if path.is_file():
            there = read_json(path)
            for name, value in wanted.items():
                if there.get(name) != value:
                    raise InputError(
                        f"{name} should be that of {path}, {there.get(name)}, got {value}: take another name for the "
                        "setting, or another folder by --results."
                    )
        else:
            write(path, wanted)
        write(self.datalist, made)

    def train_and_score(self, run: Run, dataset_dir: Path) -> None:
        """Trains and scores; the CSV of cases goes to the results at the end.

        Raises:
            InputError: when a workflow fails; the log says why.
        """
        run_dir = self.runs / run.name
        cache_dir = self.runs.parent / "cache" if CACHE in self.setting.config_file else None
        record = train_and_score(
            run.name, self.setting.configs, self.overlay(run), dataset_dir, self.datalist, run_dir, run.fold, cache_dir
        )
        about = {"method": run.method, "definition": self.definition(run), "fold": run.fold, "seed": run.seed}
        keep(self.results, run.name, {**about, "iterations": self.setting.iterations, **record}, run_dir)

    def scores(self, run: Run) -> Scores | None:
        """The scores of each case; ``None`` for a run that is not done.

        Raises:
            InputError: when the method was another one then.
        """
        path = self.results / f"{run.name}.csv"
        if not path.is_file():
            return None
        if read_json(path.with_suffix(".json"), ("definition",))["definition"] != self.definition(run):
            raise InputError(f"{path} is of another {run.method} than that of methods.json: run it anew without it.")
        return read_scores(path)

    def hours(self, run: Run) -> float:
        return float(read_json(self.results / f"{run.name}.json", ("training_hours",))["training_hours"])


def of_steps(iterations: int, steps_per_epoch: int | None = None) -> dict[str, Any]:
    """An overlay for a budget counted in steps rather than in epochs.

    Nothing is validated: the last weights are scored, so that no method gains by choosing.

    Raises:
        InputError: when the steps are not a multiple of those of an epoch.
    """
    steps = min(steps_per_epoch or iterations, iterations)
    if iterations % steps:
        raise InputError(f"iterations should be a multiple of steps_per_epoch, got {iterations} and {steps}.")
    epochs = iterations // steps
    return {
        "max_epochs": epochs,
        "val_interval": epochs + 1,  # never
        "train#trainer#epoch_length": steps,
        "lr_scheduler#total_iters": iterations,
    }


def train_and_score(
    name: str,
    configs: Sequence[str],
    overlay: Mapping[str, Any],
    dataset_dir: Path,
    datalist: Path,
    run_dir: Path,
    fold: int | None = None,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Trains, scores the cases for testing or those of the fold, and gives what is to be known of the run.

    A training that was cut goes on from its checkpoint; one that is done is not done again.

    Raises:
        InputError: when a workflow fails; the log says why.
    """
    write(run_dir / "overlay.json", overlay)
    first, *others = [*configs, str(run_dir / "overlay.json")]
    weights, hours = run_dir / "model_final.pt", run_dir / "hours.json"
    knobs = {
        "bundle_root": BUNDLE,
        "dataset_dir": dataset_dir.resolve(),
        "data_list_file_path": datalist.resolve(),
        "ckpt_dir": run_dir.resolve(),
        "output_dir": run_dir.resolve(),
    }
    if fold is not None:
        knobs["fold"] = fold
    if cache_dir is not None:
        knobs["cache_dir"] = cache_dir.resolve()
    with open(run_dir / "log.txt", "a") as log:
        if not weights.is_file() or not hours.is_file():
            started = time.monotonic()
            bundle("training", [first, *others], knobs | {"resume": "auto"}, log, name)
            write(hours, round((time.monotonic() - started) / 3600, 3))
        scored = {"checkpoint": weights.resolve(), "split": "testing" if fold is None else "validation"}
        bundle("evaluating", [first, BUNDLE / "configs" / "evaluate.json", *others], knobs | scored, log, name)
    return {
        "training_hours": read_json(hours),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": read_json(run_dir / "model_final.json")["versions"],
    }


def keep(results: Path, name: str, record: Mapping[str, Any], run_dir: Path) -> None:
    """Puts the record of a run and its scores to the results."""
    write(results / f"{name}.json", record)
    with whole_file(results / f"{name}.csv") as temporary:  # last: it says that the run is done
        temporary.write_text((run_dir / "metrics.csv").read_text())


def read_scores(path: Path) -> Scores | None:
    """The scores of each case; ``None`` where there are none."""
    if not path.is_file():
        return None
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("case"): {name: float(value) for name, value in row.items()} for row in rows}


def bundle(workflow: str, config_file: Iterable[object], knobs: Mapping[str, Any], log: Any, name: str) -> None:
    """Runs a workflow of the bundle in a process of its own.

    Raises:
        InputError: when it fails.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", str([*map(str, config_file)])]
    for knob, value in knobs.items():
        command += [f"--{knob}", str(value)]
    paths = [str(BUNDLE), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
        raise InputError(f"The {workflow} of {name} failed, the end of {log.name} says why.")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
