"""All measurements of docs/about/performance.md, each in a process of its own, the candidates in turn: ``make bench``.

python benchmarks/bench.py --output_dir benchmarks/results
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from case import BRAINS, MODALITIES
from case import CANDIDATES as CASES
from data import CANDIDATES as CACHES
from engines import ENGINES
from folder import CANDIDATES as FOLDERS
from forward import count
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from monai.transforms import ResizeWithPadOrCrop
from networks import NETWORKS
from scaling import CANDIDATES as SIZES
from step import CANDIDATES as STEPS
from tqdm.auto import tqdm

from scripts.files import whole_file
from scripts.sources.phantom import write_phantoms

HERE = Path(__file__).parent
PACKAGES = ("torch", "monai", "numpy", "nnunetv2", "openvino")
PHANTOM = (188, 216, 192)  # whose brain is as large as an adult's, about 140 x 172 x 136 mm
VOLUME = (240, 240, 155)
STEP_SIDE = 96
MARKERS = "os^vDP*X<>phd"
ONCE = ("nnU-Net v2", "SwinUNETR")  # what begins so is minutes long

Rounds = dict[str, list[dict[str, Any]]]


def run(script: str, *arguments: object) -> dict[str, Any]:
    """One measurement in a process of its own: its line of JSON."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent / "bundle")},
    )
    if result.returncode:
        raise SystemExit(f"{script} {arguments[0]} failed:\n{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def interleaved(script: str, candidates: Sequence[str], rounds: int, *arguments: object) -> Rounds:
    """Each candidate once, then each once more: what slows the machine for a while slows all of them."""
    results: Rounds = defaultdict(list)
    order = [name for number in range(rounds) for name in candidates if number == 0 or not name.startswith(ONCE)]
    for name in tqdm(order, desc=script):
        results[name].append(run(script, name, *arguments))
        tqdm.write(f"{script}, {name}: {results[name][-1]}")
    return dict(results)


def summary(rounds: Rounds, base: str) -> dict[str, dict[str, Any]]:
    """Median and spread of the seconds, the ratio to the base, and the peak of the memory."""
    table = {}
    for name, measured in rounds.items():
        taken = [one["seconds"] for one in measured]
        table[name] = {
            "seconds": statistics.median(taken),
            "least": min(taken),
            "most": max(taken),
            "ratio": statistics.median(taken) / statistics.median(one["seconds"] for one in rounds[base]),
            "peak_gb": max(one["peak_gb"] for one in measured),
        }
    return table


def write_case(folder: Path) -> list[str]:
    """A phantom's four files in the volume of BraTS, its brain as large as an adult's."""
    write_phantoms(folder / "phantom", 1, PHANTOM)
    [case] = (folder / "phantom").iterdir()
    files = []
    for name in MODALITIES:
        [source] = case.glob(f"*_{name}.nii.gz")
        image = nib.load(source)
        volume = ResizeWithPadOrCrop(VOLUME)(np.asarray(image.dataobj)[None])[0].numpy()
        files.append(str(folder / f"case_{name}.nii.gz"))
        nib.save(nib.Nifti1Image(volume.astype(np.int16), image.affine), files[-1])
    return files


def machine() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    [model] = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    } or [platform.processor()]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def measure(parts: Sequence[str], rounds: int, case_files: list[str] | None, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine()}
    if "forward" in parts:
        peaks = [run("forward.py", "machine", 0) for _ in range(rounds)]
        gflops = {key: max(peak[key] for peak in peaks) for key in ("gemm", "conv")}
        results["machine"]["gflops"] = gflops
        tuned = [f"{name}/tuned" for name in NETWORKS]
        others = [f"{name}/{engine}" for name in ("MISSU", "SegResNet") for engine in ENGINES if engine != "tuned"]
        for side, candidates in ((64, tuned), (128, tuned + others)):
            measured = interleaved("forward.py", candidates, rounds, side)
            table = summary(measured, "MISSU/tuned")
            for name, row in table.items():
                row["gmac"] = count(name, side)
                row["parameters_m"] = measured[name][0]["parameters"] / 1e6
                row["share_of_peak"] = 2 * row["gmac"] / row["seconds"] / max(gflops.values())
            results[f"forward_{side}"] = table
    for part, candidates in (("case", CASES), ("brain", BRAINS)):
        if part not in parts:
            continue
        files = [str(Path(file).absolute()) for file in case_files or write_case(folder / part)]
        measured = interleaved("case.py", list(candidates), rounds, *files)
        table = summary(measured, next(iter(candidates)))
        for name, row in table.items():
            phases = [one["phases"] for one in measured[name]]
            row["phases"] = {key: statistics.median(one[key] for one in phases) for key in phases[0]}
        results[part] = table
    if "folder" in parts:
        files = [str(Path(file).absolute()) for file in case_files or write_case(folder / "folder")]
        measured = interleaved("folder.py", FOLDERS, rounds, *files)
        results["folder"] = summary(measured, "1x1")
        for name, row in results["folder"].items():
            row["cases_per_hour"] = statistics.median(one["cases_per_hour"] for one in measured[name])
    if "step" in parts:
        measured = interleaved("step.py", list(STEPS), rounds, STEP_SIDE)
        results["step"] = summary(measured, "plain")
        for name, row in results["step"].items():
            row["grown_gb"] = max(one["grown_gb"] for one in measured[name])
    if "scaling" in parts:
        for what, numbers in SIZES.items():
            measured = {f"{number:g}": [run("scaling.py", what, number) for _ in range(rounds)] for number in numbers}
            results[f"scaling_{what}"] = summary(measured, "1" if 1 in numbers else f"{numbers[0]:g}")
    if "data" in parts:
        cases = folder / "cases"
        write_phantoms(cases, 2, VOLUME)
        results["data"] = summary(interleaved("data.py", list(CACHES), rounds, cases), "decompressed")
    return results


COLUMNS = {
    "seconds": ("s", "{:.2f}"),
    "least": ("least", "{:.2f}"),
    "most": ("most", "{:.2f}"),
    "ratio": ("ratio", "{:.2f}"),
    "peak_gb": ("GB", "{:.2f}"),
    "cases_per_hour": ("cases per hour", "{:.0f}"),
    "gmac": ("GMAC", "{:.0f}"),
    "parameters_m": ("M parameters", "{:.1f}"),
    "share_of_peak": ("of the peak", "{:.0%}"),
    "grown_gb": ("grown, GB", "{:.2f}"),
}


def as_markdown(results: dict[str, Any]) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in results["machine"].items())]
    for part, table in results.items():
        if part == "machine":
            continue
        first = next(iter(table.values()))
        keys = [key for key in COLUMNS if key in first]
        phases = list(first.get("phases", ()))
        lines += ["", f"| {part} | " + " | ".join([COLUMNS[key][0] for key in keys] + phases) + " |"]
        lines.append("|---|" + "---:|" * (len(keys) + len(phases)))
        for name, row in table.items():
            cells = [COLUMNS[key][1].format(row[key]) for key in keys] + [f"{row['phases'][key]:.2f}" for key in phases]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Time against memory, of a forward and of a whole case."""
    titles = {"forward_128": "One forward at 4 x 128 x 128 x 128", "case": "A whole case of 240 x 240 x 155"}
    shown = [part for part in titles if part in results]
    figure = Figure(figsize=(9 * len(shown), 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)
    for axis, part in zip(axes[0], shown):
        for (name, row), marker in zip(results[part].items(), cycle(MARKERS)):
            spread = [[row["seconds"] - row["least"]], [row["most"] - row["seconds"]]]
            color = "#D55E00" if name.startswith("MISSU") else "#0072B2"
            axis.errorbar(row["seconds"], row["peak_gb"], xerr=spread, fmt=marker, color=color, label=name)
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axis.set(xscale="log", xlabel="seconds", ylabel="peak memory, GB", title=titles[part])
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def plot_scaling(results: dict[str, Any], path: Path) -> None:
    """Time and memory against what a case may have more of, each as a share of the first."""
    figure = Figure(figsize=(12, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(SIZES), sharey=True)
    for axis, (what, numbers) in zip(axes, SIZES.items()):
        rows = list(results[f"scaling_{what}"].values())
        for key, color, label in (("seconds", "#D55E00", "time"), ("peak_gb", "#0072B2", "peak memory")):
            shares = [row[key] / rows[0][key] for row in rows]
            axis.plot(numbers, shares, "o-", color=color, label=label)
        axis.plot(numbers, [number / numbers[0] for number in numbers], ":", color="gray", label="in proportion")
        axis.set(xscale="log", yscale="log", xlabel=what, xticks=numbers)
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(StrMethodFormatter("{x:g}"))
            scale.set_minor_locator(NullLocator())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="times the first", yticks=(1, 2, 4, 8))
    axes[0].legend(frameon=False)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["forward", "case", "brain", "folder", "step", "data", "scaling"])
    parser.add_argument("--case", nargs=4, help="T1, T1ce, T2 and FLAIR of a case, else a phantom")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.parts, options.rounds, options.case, Path(folder))
    with whole_file(options.output_dir / "bench.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    table = as_markdown(results)
    with whole_file(options.output_dir / "bench.md") as temporary:
        temporary.write_text(table)
    print(table)
    if {"forward_128", "case"} & results.keys():
        plot(results, options.output_dir / "bench.png")
    if "scaling" in options.parts:
        plot_scaling(results, options.output_dir / "scaling.png")


if __name__ == "__main__":
    main()
