"""The table of an experiment: the paper's value beside ours, differences to a base, what was not run and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import InputError, Run, Scores, Study, read_json
from scipy import stats

from scripts.evaluation.report import interval_of_mean, write_csv
from scripts.files import whole_file

MIN_SEEDS = 3
ORDER = ("wt", "tc", "et")  # of the paper's columns
METRICS = {  # Eq. 7 to 9 of the paper, and HD95: heading, factor and digits
    "dice": ("Dice, %", 100, 1),
    "accuracy": ("Accuracy, %", 100, 2),
    "mssd_mm": ("Hausdorff, mm", 1, 1),
    "hd95_mm": ("HD95, mm", 1, 1),
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
Runs = dict[tuple[int | None, int], Scores]  # of one method, by fold and seed
NONE = float("nan")


def regions_of(columns: Sequence[str]) -> list[str]:
    """The regions of ``dice_<region>``, in the paper's order."""
    names = [name.removeprefix("dice_") for name in columns if name.startswith("dice_")]
    return sorted(names, key=place)


def place(region: str) -> int:
    """Of a region among the paper's columns, or behind them."""
    return ORDER.index(region) if region in ORDER else len(ORDER)


def mean_dice(scores: Scores) -> dict[str, float]:
    """Each case's Dice, the mean of its regions."""
    return {
        case: float(np.mean([value for name, value in of.items() if name.startswith("dice_")]))
        for case, of in scores.items()
    }


def means(runs: Runs) -> dict[str, float]:
    """The mean of each score that all runs have: over the runs of a case, then over the cases."""
    in_all = set.intersection(*(set(row) for scores in runs.values() for row in scores.values()))
    of_case: dict[str, dict[str, list[float]]] = {}
    for scores in runs.values():
        for case, row in scores.items():
            for name in row:
                if name in in_all:
                    of_case.setdefault(name, {}).setdefault(case, []).append(row[name])
    return {name: float(np.mean([np.mean(of) for of in cases.values()])) for name, cases in of_case.items()}


def t_interval(values: Sequence[float], at_least: int = MIN_SEEDS) -> tuple[float, float]:
    """The 95 % t interval of the mean of independent values; none below so many."""
    if len(values) < at_least:  # t of one degree of freedom is 12.7
        return NONE, NONE
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


class Difference(NamedTuple):
    """A mean, its 95 % t interval, and over what that is: ``seeds`` or ``patients``."""

    mean: float = NONE
    low: float = NONE
    high: float = NONE
    over: str = ""


def difference(runs: Runs, base: Runs, by_folds: bool, patients: Mapping[str, str]) -> Difference:
    """The mean of the Dice less the base's, on the same cases with the same fold and seed.

    The interval is over seeds where there are enough; over patients where folds were trained, so that each case was
    held out once, and where there are too few seeds.
    """
    pairs = [(mean_dice(runs[key]), mean_dice(base[key])) for key in sorted(runs.keys() & base.keys(), key=str)]
    if not pairs:
        return Difference()
    if not by_folds and len(pairs) >= MIN_SEEDS:
        of_seeds = [float(np.mean([scores[case] - other[case] for case in scores])) for scores, other in pairs]
        return Difference(float(np.mean(of_seeds)), *t_interval(of_seeds), "seeds")
    of_case: dict[str, list[float]] = {}
    for scores, other in pairs:
        for case in scores:
            of_case.setdefault(case, []).append(scores[case] - other[case])
    values = np.array([np.mean(of) for of in of_case.values()])
    interval = interval_of_mean(values, [patients[case] for case in of_case])
    return Difference(float(values.mean()), *interval, "patients") if interval else Difference(float(values.mean()))


def report_scores(spec: Mapping[str, Any], study: Study, name: str) -> str:
    """Writes ``<name>.md``, ``.csv`` and ``.png`` beside the runs that are done, and gives the first.

    Raises:
        InputError: when none is done.
    """
    runs: dict[str, Runs] = {}
    all_runs = study.all_runs(row["method"] for row in spec["rows"].values())
    done: list[Run] = []
    for run in all_runs:
        if (scores := study.scores(run)) is not None:
            runs.setdefault(run.method, {})[run.fold, run.seed] = scores
            done.append(run)
    if not done:
        raise InputError(
            f"There should be runs to report, {study.results} holds none of this experiment: "
            "give --dataset_dir to make them."
        )
    by_folds = study.setting.folds != [None]
    patients = study.patients({case for of in runs.values() for scores in of.values() for case in scores})
    expected = len(study.setting.folds) * len(study.setting.seeds)
    columns = list(dict.fromkeys(name for of in runs.values() for name in means(of)))
    regions = regions_of(columns)
    csv_rows, lines, reasons = [], [], []
    plotted: dict[str, tuple[dict[str, float], list[float], Difference]] = {}
    first_of: dict[str, str] = {}
    printed_regions = {region for row in spec["rows"].values() for region in row.get("paper", {})}
    for title, row in spec["rows"].items():
        method, paper = row["method"], row.get("paper", {})
        printed = " / ".join(f"{paper[region]:.2f}" for region in sorted(paper, key=place))
        of = runs.get(method, {})
        if why_not := study.why_not(method):
            reasons.append(f"- **{title}**: {why_not}")
            lines.append([title, printed, *["see below"], *[""] * (len(METRICS) + 3)])
            continue
        if not of:
            lines.append([title, printed, *["not run"], *[""] * (len(METRICS) + 3)])
            continue
        mean = means(of)
        base = {} if method == spec["base"] else runs.get(spec["base"], {})
        compared = difference(of, base, by_folds, patients)
        hours = float(np.mean([study.hours(run) for run in done if run.method == method]))
        of_runs = [float(np.mean(list(mean_dice(scores).values()))) for scores in of.values()]
        plotted[title] = (mean, of_runs, compared)
        cells = []
        for metric, (_, factor, digits) in METRICS.items():
            values = [mean.get(f"{metric}_{region}") for region in regions]
            shown = ["-" if value is None else f"{factor * value:.{digits}f}" for value in values]
            cells.append(" / ".join(shown) if set(shown) != {"-"} else "")
        less, low, high = (f"{100 * value:+.1f}" if np.isfinite(value) else "" for value in compared[:3])
        interval = f"{low} to {high} ({compared.over})" if low else ""
        count = f"{len(of)} of {expected}"
        if first_of.setdefault(method, title) != title:
            count += f", those of {first_of[method]}"
        lines.append([title, printed, *cells, less, interval, count, f"{60 * hours:.0f}"])
        num_cases = len({case for scores in of.values() for case in scores})
        spread = float(np.std(of_runs, ddof=1)) if len(of_runs) > 1 else NONE
        numbers = [*(mean.get(name, NONE) for name in columns), spread, *compared[:3], hours]
        numbers_as_text = [f"{value:.4f}" for value in numbers]
        csv_rows.append([title, method, str(len(of)), str(num_cases), *numbers_as_text, compared.over])
    heading = [
        "row",
        "method",
        "runs",
        "cases",
        *columns,
        "std_of_runs",
        "difference",
        "ci95_low",
        "ci95_high",
        "hours",
        "ci95_over",
    ]
    write_csv(study.results / f"{name}.csv", [heading, *csv_rows])
    plot(plotted, regions, base_of(spec), study.results / f"{name}.png")
    headings = [
        "",
        with_regions(spec.get("paper", ""), printed_regions),
        *(with_regions(text, regions) for text, _, _ in METRICS.values()),
        "Mean Dice less the base's, points",
        "95 % interval (over)",
        "Runs",
        "Minutes",
    ]
    if "paper" not in spec:  # nothing of it in this table
        headings, lines = headings[:1] + headings[2:], [line[:1] + line[2:] for line in lines]
    align = ["---", *["---:"] * (len(headings) - 1)]
    table = ["| " + " | ".join(line) + " |" for line in (headings, align, *lines)]
    partly = [
        text.partition(",")[0]
        for metric, (text, _, _) in METRICS.items()
        if 0 < sum(f"{metric}_{regions[0]}" in mean for mean, _, _ in plotted.values()) < len(plotted)
    ]
    text = "\n".join([*table, "", budget(spec, study, done, partly), *([""] if reasons else []), *reasons]) + "\n"
    with whole_file(study.results / f"{name}.md") as temporary:
        temporary.write_text(text)
    return text


def name_of(region: str) -> str:
    return region.upper() if region in ORDER else region


def with_regions(text: str, regions: Collection[str]) -> str:
    """A heading with the regions whose values stand below it, where there are several."""
    return f"{text} ({' / '.join(map(name_of, sorted(regions, key=place)))})" if len(regions) > 1 else text


def base_of(spec: Mapping[str, Any]) -> str:
    """The name of the row that the others are compared with."""
    return next(title for title, row in spec["rows"].items() if row["method"] == spec["base"])


def budget(spec: Mapping[str, Any], study: Study, done: Sequence[Run], partly: Sequence[str]) -> str:
    """What the numbers are of: data, split, steps, machine."""
    setting = study.setting
    records = [read_json(study.results / f"{run.name}.json") for run in done]
    machines = sorted(
        {f"{of['machine']}, {of['threads']} thread(s), torch {of['versions']['torch']}" for of in records}
    )
    bundles = sorted({of["versions"].get("bundle", "unknown") for of in records})
    split = ", ".join(f"{name} {value}" for name, value in setting.split.items())
    scored = "each case by the fold that left it out" if setting.folds != [None] else "the cases set aside for testing"
    sentences = [
        f"{study.dataset}, setting `{setting.name}`: {setting.about} {setting.iterations} steps; split: {split}; "
        f"scored is {scored}, with the last weights.",
        f"The base is {base_of(spec)}; a difference is over the folds and seeds that a row and the base both have, a "
        "Dice over all of a row's runs.",
        "An interval over seeds says what another seed would give on these cases, one over patients what these runs "
        "would give on other patients.",
        f"{' and '.join(partly)}: blank where a run was made before that was scored." if partly else "",
        "Minutes are those of a training.",
        f"Machine: {'; '.join(machines)}.",
        f"Runs are of the bundle's versions {', '.join(bundles)}." if len(bundles) > 1 else "",
    ]
    return " ".join(filter(None, sentences))


def plot(
    rows: Mapping[str, tuple[dict[str, float], list[float], Difference]], regions: Sequence[str], base: str, path: Path
) -> None:
    """Left, the Dice of each region, and a dot for the mean of each run; right, the difference to the base."""
    figure = Figure(figsize=(10, 1.1 + 0.45 * len(rows)), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    positions = np.arange(len(rows))[::-1]
    for number, (position, (mean, of_runs, (middle, low, high, over))) in enumerate(zip(positions, rows.values())):
        left.plot(of_runs, [position] * len(of_runs), "o", color="grey", alpha=0.5, markersize=4)
        for region, color in zip(regions, COLORS):
            value = mean[f"dice_{region}"]
            left.plot(
                value,
                position,
                "|",
                color=color,
                markersize=14,
                markeredgewidth=2.5,
                label=name_of(region) if not number else None,
            )
        face = "none" if over == "patients" else COLORS[1]
        if np.isfinite(low):
            ends = [[middle - low], [high - middle]]
            right.errorbar(middle, position, xerr=ends, fmt="o", color=COLORS[1], markerfacecolor=face, capsize=3)
        elif np.isfinite(middle):
            right.plot(middle, position, "x", color=COLORS[1])
    left.set_yticks(positions, list(rows))
    left.set_ylim(-0.5, len(rows) - 0.5)  # no mark is cut
    left.set_xlabel("Dice; dots: the mean of a run")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(regions), frameon=False)
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_xlabel(f"mean Dice less that of {base};\n95 % interval, dots: over seeds,\nrings: over patients")
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
