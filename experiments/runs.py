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
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data.datalist import make_datalist  # noqa: E402
from scripts.data.patients import patient_of, patients_of  # noqa: E402
from scripts.errors import InputError  # noqa: E402
from scripts.files import whole_file  # noqa: E402
from scripts.weights.record import sha256  # noqa: E402

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


def overlay_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """What a method lays over the configs: without words, and what has to be there for it."""
    return {name: value for name, value in method.items() if name not in ("_desc_", "needs")}


def missing_package(method: Mapping[str, Any]) -> str | None:
    """A package that a method needs and that is not there."""
    packages = [str(need["package"]) for need in method.get("needs", ()) if "package" in need]
    return next((package for package in packages if find_spec(package) is None), None)


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
        if "distillation_weight" in {**content["overlay"], **(knobs or {})}:
            raise InputError(f"distillation_weight should be a method's, of methods.json, {path.name} or -- sets it.")
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
        names = [name for name in dict.fromkeys(methods) if self.why_not(name) is None]
        return [Run(name, fold, seed) for seed in setting.seeds for fold in setting.folds for name in names]

    def why_not(self, method: str) -> str | None:
        """Why a method is not run, or not with this setting; ``None`` where it is."""
        if "why_not" in self.methods[method]:
            return str(self.methods[method]["why_not"])
        modalities, sides = self.setting.knob("modalities"), self.setting.knob("roi_size")
        for need in self.methods[method].get("needs", ()):
            if need.get("modality", modalities[0]) not in modalities:
                return f"It needs the modality {need['modality']}, this setting has {', '.join(modalities)}."
            if any(side % need.get("divisor", 1) for side in sides):
                return f"It needs crops whose sides are multiples of {need['divisor']}, this setting's are {sides}."
        return None

    def with_needed(self, runs: Iterable[Run]) -> list[Run]:
        """The runs, each behind those whose weights it needs."""
        ordered: list[Run] = []
        for run in runs:
            for need in self.methods[run.method].get("needs", ()):
                ordered += [Run(need["method"], run.fold, seed) for seed in need.get("seeds", ())]
            ordered.append(run)
        return list(dict.fromkeys(ordered))

    def overlay(self, run: Run) -> dict[str, Any]:
        """The config of a run: setting, method, seed, and a budget counted in steps rather than in epochs.

        Raises:
            InputError: when the steps are not a multiple of those of an epoch.
        """
        budget = of_steps(self.setting.iterations, self.setting.steps_per_epoch)
        plain = {"distillation_weight": 0}  # of a method that says nothing of it, whatever the configs say
        return {**self.setting.overlay, **plain, **self.definition(run), "seed": run.seed, **budget}

    def definition(self, run: Run) -> dict[str, Any]:
        """What a run was made with."""
        return overlay_of(self.methods[run.method])

    def weights(self, run: Run) -> Path:
        return self.runs / run.name / "model_final.pt"

    def prepare(self, dataset_dir: Path) -> None:
        """Splits the data set, and holds the results to the setting and the cases of the first run.

        Raises:
            InputError: when results are there of another setting or of other cases, or the steps do not fit.
        """
        setting = self.setting
        of_steps(setting.iterations, setting.steps_per_epoch)
        made = make_datalist(
            dataset_dir, setting.knob("modalities"), suffixes=setting.knob("suffixes"), **setting.split
        )
        overlay = {name: value for name, value in setting.overlay.items() if name != "metrics"}
        wanted = {
            "config_file": setting.config_file,
            "overlay": overlay,
            "split": setting.split,
            "iterations": setting.iterations,
            **cases_of(made),
        }
        entries = [entry for split in ("training", "validation", "testing") for entry in made.get(split, [])]
        by_table = {
            entry["case_id"]: entry["patient"] for entry in entries if entry["patient"] != patient_of(entry["case_id"])
        }
        if by_table:
            wanted["patients"] = by_table
        path = self.results / "settings.json"
        hold_to(path, wanted, "take another name for the setting, or other folders by --results and --runs")
        write(self.datalist, made)

    def training(self, run: Run, dataset_dir: Path) -> Training:
        cache_dir = self.runs.parent / "cache" if CACHE in self.setting.config_file else None
        files = dataset_dir, self.datalist, self.weights(run).parent
        return Training(run.name, self.setting.configs, self.overlay(run), *files, run.fold, cache_dir)

    def train(self, run: Run, dataset_dir: Path) -> None:
        """Trains, where that is not done.

        Raises:
            InputError: when a package is not there, weights are there of something else, or the workflow fails.
        """
        if package := missing_package(self.methods[run.method]):
            raise InputError(f"{run.name} was not run: it needs the package {package}.")
        self.training(run, dataset_dir).train()

    def score(self, run: Run, dataset_dir: Path) -> None:
        """Scores a run that is trained; the CSV of cases goes to the results at the end."""
        training = self.training(run, dataset_dir)
        about = {"method": run.method, "definition": self.definition(run), "fold": run.fold, "seed": run.seed}
        record = {**about, "iterations": self.setting.iterations, **training.score()}
        keep(self.results, run.name, record, training.run_dir)

    def scores(self, run: Run) -> Scores | None:
        """The scores of each case; ``None`` for a run that is not done.

        Raises:
            InputError: when the method was another one then.
        """
        path = self.results / f"{run.name}.csv"
        if not path.is_file():
            return None
        if read_json(path.with_suffix(".json"), ("definition",))["definition"] != self.definition(run):
            raise InputError(
                f"{path} is of another {run.method} than that of methods.json: to run it anew, delete it and "
                f"{self.weights(run).parent}."
            )
        return read_scores(path)

    def patients(self, case_ids: Iterable[str]) -> dict[str, str]:
        """The patient of each case, as the split has them."""
        path = self.results / "settings.json"
        by_table = read_json(path).get("patients", {}) if path.is_file() else {}
        return {**patients_of(case_ids), **by_table}

    def hours(self, run: Run) -> float:
        return float(read_json(self.results / f"{run.name}.json", ("training_hours",))["training_hours"])


def cases_of(datalist: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the cases of a datalist and their splits from others."""
    cases = sorted(
        [entry["case_id"], split, entry.get("fold")]
        for split in ("training", "validation", "testing")
        for entry in datalist.get(split, [])
    )
    return {"num_cases": len(cases), "cases_sha256": hashlib.sha256(json.dumps(cases).encode()).hexdigest()}


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


def hold_to(path: Path, wanted: Mapping[str, Any], advice: str, made: Iterable[Path] = ()) -> None:
    """Writes what something is made with; where the file or what was made is there, the file has to say the same.

    Raises:
        InputError: when it does not, with the first difference and the advice.
    """
    if not path.is_file():
        if there := sorted(made):
            raise InputError(f"{path} should say what {there[0].name} was made with, it is not there: {advice}.")
        write(path, wanted)
    elif different := first_difference(read_json(path), json.loads(json.dumps(wanted))):
        name, was, is_now = different
        raise InputError(f"{name} should be that of {path}, {was}, got {is_now}: {advice}.")


def first_difference(there: Any, wanted: Any) -> tuple[str, str, str] | None:
    """Where two contents of JSON files differ first: the name, with ``#`` between the levels, and both values."""
    if there == wanted:
        return None
    if isinstance(there, dict) and isinstance(wanted, dict):
        for name in [*wanted, *there]:
            if different := first_difference(there.get(name), wanted.get(name)):
                below, *values = different
                return "#".join(filter(None, [name, below])), *values
    return "", *(
        "nothing" if of is None else textwrap.shorten(str(of), 80, placeholder="...") for of in (there, wanted)
    )


def trained_with(configs: Sequence[str], overlay: Mapping[str, Any], datalist: Path) -> dict[str, Any]:
    """What decides the weights of a run: its overlay, what the configs hold, the cases."""
    return {
        "overlay": without_words(overlay),
        "configs": {path.removeprefix(f"{BUNDLE}/"): without_words(read_json(Path(path))) for path in configs},
        "datalist_sha256": hashlib.sha256(json.dumps(read_json(datalist)).encode()).hexdigest(),
    }


def without_words(content: Any) -> Any:
    """A config without what says nothing of the weights: words, and the metrics of the scores."""
    if isinstance(content, Mapping):
        return {name: without_words(of) for name, of in content.items() if name not in ("_desc_", "metrics")}
    return [without_words(of) for of in content] if isinstance(content, list) else content


@dataclass(frozen=True)
class Training:
    """A training and its folder, with what a process of it is told."""

    name: str
    configs: Sequence[str]
    overlay: Mapping[str, Any]
    dataset_dir: Path
    datalist: Path
    run_dir: Path
    fold: int | None = None
    cache_dir: Path | None = None

    @property
    def weights(self) -> Path:
        return self.run_dir / "model_final.pt"

    def check(self) -> None:
        """Holds the folder to what its weights were trained with.

        Raises:
            InputError: when that was something else, or is not known.
        """
        wanted = trained_with(self.configs, self.overlay, self.datalist)
        advice = f"delete {self.run_dir} to train anew"
        hold_to(self.run_dir / "trained_with.json", wanted, advice, self.run_dir.glob("*.pt"))

    def bundle(self, workflow: str, configs: Sequence[Path], knobs: Mapping[str, Any]) -> None:
        write(self.run_dir / "overlay.json", self.overlay)
        first, *others = [*self.configs, str(self.run_dir / "overlay.json")]
        own = {
            "bundle_root": BUNDLE,
            "dataset_dir": self.dataset_dir.resolve(),
            "data_list_file_path": self.datalist.resolve(),
            "ckpt_dir": self.run_dir.resolve(),
            "output_dir": self.run_dir.resolve(),
        }
        if self.fold is not None:
            own["fold"] = self.fold
        if self.cache_dir is not None:
            own["cache_dir"] = self.cache_dir.resolve()
        with open(self.run_dir / "log.txt", "a") as log:
            bundle(workflow, [first, *configs, *others], own | knobs, log, self.name)

    def train(self) -> None:
        """Trains; one that was cut goes on from its checkpoint, one that is done is not done again.

        Raises:
            InputError: when the folder is of another training, or the workflow fails; the log says why.
        """
        self.check()
        path = self.run_dir / "time.json"
        before = read_json(path) if path.is_file() else {"seconds": 0.0, "since": None}
        if self.weights.is_file() and before["since"] is None:
            return
        seconds = before["seconds"]
        if before["since"] is not None:  # it was cut: what came after its last checkpoint is done again
            saved = [checkpoint.stat().st_mtime for checkpoint in self.run_dir.glob("checkpoint_*.pt")]
            seconds += max(0.0, max(saved, default=0.0) - before["since"])
        write(path, {"seconds": seconds, "since": time.time()})
        started = time.monotonic()
        self.bundle("training", [], {"resume": "auto"})
        write(path, {"seconds": seconds + time.monotonic() - started, "since": None})

    def score(self) -> dict[str, Any]:
        """Scores the cases for testing or those of the fold, and gives what is to be known of the run.

        Raises:
            InputError: when the workflow fails; the log says why.
        """
        split = "testing" if self.fold is None else "validation"
        scored = {"checkpoint": self.weights.resolve(), "split": split}
        self.bundle("evaluating", [BUNDLE / "configs" / "evaluate.json"], scored)
        return {
            "training_hours": round(read_json(self.run_dir / "time.json")["seconds"] / 3600, 3),
            "trained_with_sha256": sha256(self.run_dir / "trained_with.json"),
            "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "versions": read_json(self.run_dir / "model_final.json")["versions"],
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
