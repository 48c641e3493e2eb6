"""The tables and figures of the paper, and our own experiments, each by one command.

    python experiments/run.py table4 --setting brats_2mm --dataset_dir /data/BraTS2019

trains and scores what the experiment names, in turn, and makes the table of what is done. It goes on where it stopped.
Without ``--dataset_dir`` nothing is trained: the table is made of what is there, of the data set called ``--dataset``.
Knobs of the bundle come last, behind ``--``, such as ``-- --label_convention brats2023``.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import cases_to_show, draw_cams, draw_cases
from runs import HERE, RESULTS, RUNS, InputError, Setting, Study, named, read_json, read_methods
from sizes import report_sizes
from tables import report_scores
from tqdm.auto import tqdm

from scripts.knobs import flags

KINDS = ("scores", "size", "cases", "cam")


def values(knobs: Sequence[str]) -> dict[str, Any]:
    """Knobs of a command line by name; what is no Python value is a text."""
    found: dict[str, Any] = {}
    for name, text in flags(knobs).items():
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def methods_of(spec: Mapping[str, Any]) -> list[str]:
    return [row["method"] for row in spec["rows"].values()]


def check_part(flag: str, given: Sequence[object] | None, whole: Sequence[object]) -> None:
    """Refuses a flag that picks what is not there."""
    if other := [value for value in given or () if value not in whole]:
        raise InputError(f"--{flag} should be some of {', '.join(map(str, whole))}, got {other[0]}.")


def train(spec: Mapping[str, Any], study: Study, arguments: argparse.Namespace, name: str) -> list[str]:
    """Makes the runs that an experiment lacks, of a figure the weights that it shows; gives what failed.

    Raises:
        InputError: when the data set or what is to be done is not as it should be.
    """
    study.prepare(arguments.dataset_dir)
    runs, scored = study.all_runs(methods_of(spec)), spec["kind"] == "scores"
    if not scored:
        runs = [run for run in runs if run[1:] == runs[0][1:]]  # the first of each method
    todo = [
        run
        for run in runs
        if (arguments.folds is None or run.fold in arguments.folds)
        and (arguments.methods is None or run.method in arguments.methods)
        and (study.scores(run) is None if scored else not study.weights(run).is_file())
    ]
    failed = []
    for run in tqdm(study.with_needed(todo), desc=name, disable=None):
        try:
            study.train(run, arguments.dataset_dir)
            if scored and study.scores(run) is None:
                study.score(run, arguments.dataset_dir)
        except InputError as error:  # the others do not need it
            failed.append(str(error))
    return failed


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = ", ".join(sorted(path.stem for path in HERE.glob("*.json") if path.stem != "methods"))
    parser.add_argument("experiment", help=f"one of {names}; or a JSON file")
    parser.add_argument("--dataset_dir", type=Path, help="folder of the cases; without it, nothing is trained")
    parser.add_argument("--dataset", help="name of the data set in the results; default: that of its folder")
    parser.add_argument("--setting", help="of experiments/settings, or a JSON file; default: the experiment's own")
    parser.add_argument("--iterations", type=int, help="steps of each run, where not those of the setting")
    parser.add_argument("--seeds", type=int, nargs="+", help="likewise")
    parser.add_argument("--folds", type=int, nargs="+", help="run only these")
    parser.add_argument("--methods", nargs="+", help="run only these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of tables; default: experiments/results")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of weights and logs; default: experiments/runs")
    parser.add_argument("--cases_dir", type=Path, help="figures 3 and 4: cases to show in place of those held out")
    parser.add_argument("--num_cases", type=int, default=3, help="figure 3: how many; default: %(default)s")
    parser.add_argument("--output", type=Path, help="figures 3 and 4: the .png; default: beside the weights")
    own = sys.argv[1:] if argv is None else list(argv)
    own, knobs = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    arguments = parser.parse_args(own)
    try:
        path = named(arguments.experiment, HERE)
        spec = read_json(path, ("title", "kind", "rows"))
        if spec["kind"] not in KINDS:
            raise InputError(f"The kind of {path} should be one of {', '.join(KINDS)}, it is {spec['kind']}.")
        methods = read_methods()
        for name in methods_of(spec):
            if name not in methods:
                raise InputError(f"methods.json should have {name}, which {path.name} names.")
        check_part("methods", arguments.methods, methods_of(spec))
        if spec["kind"] == "size":
            print(report_sizes(spec, methods, arguments.results / path.stem))
            return None
        dataset_dir, dataset = arguments.dataset_dir, arguments.dataset
        if dataset is None:
            if dataset_dir is None:
                raise InputError(
                    "--dataset_dir should be given, or the name of a data set in the results by --dataset."
                )
            dataset = Path(os.path.abspath(dataset_dir)).name  # of a link its own name, which the user gave
        setting = Setting.read(
            arguments.setting or spec["setting"], arguments.iterations, arguments.seeds, values(knobs)
        )
        check_part("folds", arguments.folds, setting.folds)
        study = Study(dataset, setting, methods, arguments.results, arguments.runs)
        failed = train(spec, study, arguments, path.stem) if dataset_dir is not None else []
        try:
            if spec["kind"] == "scores":
                print(report_scores(spec, study, path.stem))
            else:
                output = arguments.output or study.runs / f"{path.stem}.png"
                cases = cases_to_show(study, dataset_dir, arguments.cases_dir, arguments.num_cases)
                print((draw_cases if spec["kind"] == "cases" else draw_cams)(spec, study, *cases, output))
        except InputError as error:
            raise InputError(" ".join(failed) or str(error)) from error  # what failed is why
        if failed:
            raise InputError(" ".join(failed))
    except InputError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
