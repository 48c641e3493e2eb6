"""Figures 3 and 4 of the paper: cases by methods, and where the last convolution of each variant sees a class."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.visualize import GradCAM
from runs import BUNDLE, InputError, Run, Study, bundle, read_json, write
from torch import nn

from scripts.data.cases import list_cases
from scripts.data.datalist import make_datalist
from scripts.data.labels import class_names, regions
from scripts.evaluation.metrics import score_region
from scripts.files import whole_file
from scripts.pictures.picture import (
    COLORS_OF_CLASSES,
    ShownCase,
    choose_slice,
    crop_to_image,
    radiological_slice,
    show_case,
    window,
)
from scripts.weights.checkpoints import load_weights

ERRORS = {"missed": "#56B4E9", "false": "#CC79A7", "another class": "#009E73"}  # none of the first three classes
LAST = "decoder.2.conv"  # the last 3x3x3 convolution with its norm and ReLU; only the linear head comes after it
INCHES = 1.7  # side of a panel


def cases_to_show(
    study: Study, dataset_dir: Path | None, cases_dir: Path | None, number: int
) -> tuple[Path, list[dict[str, Any]]]:
    """The first labelled cases of a folder, else those that the first fold left out, and what their paths begin with.

    Raises:
        InputError: when there is no folder, or no case in it.
    """
    root = cases_dir or dataset_dir
    if root is None:
        raise InputError("--dataset_dir should be given, or cases to show by --cases_dir.")
    if cases_dir is not None:
        modalities, suffixes = study.setting.knob("modalities"), study.setting.knob("suffixes")
        entries = make_datalist(cases_dir, modalities, testing_fraction=1.0, suffixes=suffixes)["testing"]
    else:
        datalist = read_json(study.datalist)
        entries = [entry for entry in datalist["training"] if entry.get("fold") == 0] or datalist["testing"]
    if not entries[:number]:
        raise InputError(f"There should be a labelled case to show, {root} has none, or --num_cases is {number}.")
    return root, entries[:number]


def weights_of(spec: Mapping[str, Any], study: Study, root: Path) -> dict[str, tuple[Run, Path]]:
    """The first run of each row, and its weights.

    Raises:
        InputError: when a row has none, or those of something else.
    """
    found = {}
    for title, row in spec["rows"].items():
        if why_not := study.why_not(row["method"]):
            raise InputError(f"{title} cannot be drawn. {why_not}")
        run = study.all_runs([row["method"]])[0]
        path = study.weights(run)
        if not path.is_file():
            raise InputError(f"The weights of {row['method']} should be there, {path} is not: give --dataset_dir.")
        study.training(run, root).check()
        found[title] = run, path
    return found


def predict(
    study: Study, run: Run, weights: Path, root: Path, entries: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    """Writes the masks of cases by the bundle's own inference, with the values of the setting's labels."""
    network = {name: value for name, value in study.methods[run.method].items() if name.startswith("network_def")}
    write(folder / "overlay.json", {**network, "label_convention": study.setting.knob("label_convention")})
    write(folder / "datalist.json", {"testing": list(entries)})
    knobs = {
        "bundle_root": BUNDLE,
        "dataset_dir": root.resolve(),
        "data_list_file_path": folder / "datalist.json",
        "split": "testing",
        "checkpoint": weights.resolve(),
        "output_dir": folder,
        "num_workers": 0,
    }
    with open(study.runs / run.name / "inference.txt", "w") as log:
        bundle("inference", [BUNDLE / "configs" / "inference.json", folder / "overlay.json"], knobs, log, run.name)


def draw_cases(
    spec: Mapping[str, Any], study: Study, root: Path, entries: Sequence[Mapping[str, Any]], output: Path
) -> str:
    """Figure 3: for each case its image, the truth, and of each method the prediction and below it the errors."""
    convention = study.setting.knob("label_convention")
    modalities = study.setting.knob("modalities")
    runs = weights_of(spec, study, root)
    cases = {case.case_id: case for case in list_cases(root, suffixes=study.setting.knob("suffixes"))}
    shown: dict[str, dict[str, ShownCase]] = {entry["case_id"]: {} for entry in entries}
    for title, (run, weights) in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            predict(study, run, weights, root, entries, Path(folder))
            for entry in entries:
                case_id = entry["case_id"]
                mask = Path(folder) / f"{case_id}_seg.nii.gz"
                shown[case_id][title] = show_case(cases[case_id], modalities, mask, convention, convention)

    figure = Figure(figsize=(INCHES * (2 + len(runs)), 2 * INCHES * len(entries) + 0.5), dpi=150, layout="constrained")
    grid = figure.subplots(2 * len(entries), 2 + len(runs), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (case_id, of_methods) in enumerate(shown.items()):
        case = next(iter(of_methods.values()))
        truth = case.masks["truth"]
        index = choose_slice(case.base, {"truth": truth})
        upper, lower = grid[2 * number], grid[2 * number + 1]
        show(upper[0], case, index, case_id)
        show(upper[1], case, index, "truth", colored(truth, COLORS_OF_CLASSES))
        lower[1].text(0.95, 0.5, "errors", fontsize=7, ha="right", transform=lower[1].transAxes)
        for column, (title, of) in enumerate(of_methods.items(), start=2):
            prediction = of.masks["prediction"]
            dice = dice_of(prediction, truth, regions(convention))
            show(upper[column], case, index, title if number == 0 else "", colored(prediction, COLORS_OF_CLASSES))
            show(
                lower[column],
                case,
                index,
                f"Dice {dice:.2f}",
                colored(errors(prediction, truth), list(ERRORS.values())),
            )
    names = {number: name for number, name in enumerate(class_names(convention)) if number}
    handles = [Patch(color=COLORS_OF_CLASSES[number - 1], label=name) for number, name in names.items()]
    handles += [Patch(color=color, label=name) for name, color in ERRORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    with whole_file(output) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return str(output)


def errors(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 where the truth was missed, 2 where there is none, 3 where it is another class, else 0."""
    wrong = prediction != truth
    return np.select([wrong & (prediction == 0), wrong & (truth == 0), wrong], [1, 2, 3], 0).astype(np.uint8)


def dice_of(prediction: np.ndarray, truth: np.ndarray, of_regions: Mapping[str, Sequence[int]]) -> float:
    """The mean over the regions."""
    dice = [
        score_region(np.isin(prediction, classes), np.isin(truth, classes), (1, 1, 1), ["dice"])[0]["dice"]
        for classes in of_regions.values()
    ]
    return float(np.mean(dice))


def colored(classes: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    """(H, W, D) -> (H, W, D, 4)."""
    table = np.array([(0, 0, 0, 0), *(to_rgba(color, alpha=0.65) for color in colors)])
    return table[classes]


def show(axes: Axes, case: ShownCase, index: int, title: str, over: np.ndarray | None = None) -> None:
    """A slice of a case in grey, and colors (H, W, D, 4) over it."""
    grey = radiological_slice(window(case.base), index)
    crop = crop_to_image(grey)
    aspect = case.spacing_mm[1] / case.spacing_mm[0]
    axes.imshow(grey[crop], cmap="gray", vmin=0, vmax=1, aspect=aspect)
    if over is not None:
        axes.imshow(np.moveaxis(over[::-1, ::-1, index], 0, 1)[crop], interpolation="nearest", aspect=aspect)
    axes.set_title(title, fontsize=7)


def draw_cams(
    spec: Mapping[str, Any], study: Study, root: Path, entries: Sequence[Mapping[str, Any]], output: Path
) -> str:
    """Figure 4: of the first case, for each class (rows) the Grad-CAM of each variant (columns), on a crop."""
    entry = entries[0]
    runs = weights_of(spec, study, root)
    names = class_names(study.setting.knob("label_convention"))
    maps: dict[str, list[np.ndarray]] = {}
    for title, (run, weights) in runs.items():
        parser = ConfigParser()
        parser.read_config(study.setting.configs)
        for name, value in {**study.overlay(run), "bundle_root": str(BUNDLE)}.items():
            parser.set(value, name)
        network = parser.get_parsed_content("network_def")
        load_weights(network, weights)
        item = Compose(parser.get_parsed_content("train#deterministic_transforms"))(with_root(entry, root))
        spacing_mm = item["image"].pixdim.tolist()
        image, label = (torch.as_tensor(item[key]) for key in ("image", "label"))
        part = crop_on(label[0] > 0, parser.get_parsed_content("roi_size"))
        image, label = image[(slice(None), *part)], label[(0, *part)]
        maps[title] = [cam(network, image, number) for number in range(1, len(names))]

    masks = {"truth": label.numpy().astype(np.uint8)}
    case = ShownCase(entry["case_id"], {"image": image[-1].numpy()}, masks, {}, spacing_mm)
    index = choose_slice(case.base, case.masks)
    size = (INCHES * (1 + len(runs)), (INCHES + 0.2) * (len(names) - 1) + 0.6)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(names) - 1, 1 + len(runs), squeeze=False)
    for row, (axes_of_row, name) in enumerate(zip(grid, names[1:])):
        of_class = np.where(case.masks["truth"] == row + 1, row + 1, 0)
        show(axes_of_row[0], case, index, f"truth: {name}", colored(of_class, COLORS_OF_CLASSES))
        for axes, (title, of) in zip(axes_of_row[1:], maps.items()):
            show(axes, case, index, title if row == 0 else "", heat(of[row]))
        for axes in axes_of_row:
            axes.set_axis_off()
    with whole_file(output) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return str(output)


def with_root(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """An entry of a datalist with whole paths."""
    image = entry["image"]
    whole = str(root / image) if isinstance(image, str) else {name: str(root / file) for name, file in image.items()}
    return {**entry, "image": whole, "label": str(root / entry["label"])}


def crop_on(mask: torch.Tensor, sides: Sequence[int]) -> tuple[slice, ...]:
    """Slices of a crop within a volume (H, W, D), as near as can be to having the mask in its middle."""
    inside = mask.nonzero().float().mean(0).tolist() if mask.any() else [side / 2 for side in mask.shape]
    starts = [
        max(0, min(round(center - side / 2), whole - side)) for center, side, whole in zip(inside, sides, mask.shape)
    ]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides))


def cam(network: nn.Module, image: torch.Tensor, number: int) -> np.ndarray:
    """Grad-CAM of a class at the last convolution: (C, H, W, D) -> (H, W, D), not scaled.

    It is taken behind the norm and the ReLU: before an instance norm, gradients sum up to zero in each channel, and the
    map would be noise. Behind them comes the head alone, which is linear: the map is the logit of the class less its
    bias, where that is positive.
    """
    return GradCAM(network, LAST).compute_map(image[None], class_idx=number)[0, 0].detach().numpy()


def heat(values: np.ndarray) -> np.ndarray:
    """From clear to red, scaled to the largest value of the volume: (H, W, D) -> (H, W, D, 4)."""
    scaled = values / max(float(values.max()), 1e-12)
    return np.stack([np.ones_like(scaled), 1 - scaled, np.zeros_like(scaled), 0.75 * scaled**0.5], axis=-1)
