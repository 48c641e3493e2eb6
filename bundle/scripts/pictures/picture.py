"""One PNG of a case, with the true and the predicted classes where they are there.

    python -m scripts picture --case <case>/<case>_flair.nii.gz --prediction eval/<case>_seg.nii.gz --output <case>.png

``--style colors`` shows every modality, then the classes in colors, on the axial slice with most of them;
``--style outlines`` shows a few slices, with truth and prediction as outlines on each. The display is radiological: the
patient's left is on the right of the picture, anterior is up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from monai.data import MetaTensor
from monai.transforms import Orientation

from ..arguments import listed
from ..data.cases import LABEL, MODALITIES, Case, case_of
from ..data.labels import Convention, class_names, values_to_classes
from ..data.loading import LoadImageCased, check_same_space, image_loader, read
from ..errors import InputError
from ..files import whole_file
from ..weights.origin import convention_of_mask

__all__ = ["STYLES", "ShownCase", "draw_case", "load_case", "show_case"]

# Colors of Okabe and Ito, which stay apart for color-blind readers and against grey.
COLORS_OF_CLASSES = ("#0072B2", "#F0E442", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#E69F00")  # of class 1 and on
COLORS_OF_MASKS = {"truth": "#56B4E9", "prediction": "#E69F00"}
MODALITY_TITLES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
BACKGROUND, INK = "black", "#E8E8E8"
WIDTH_PX, DPI, GAP_PX = 1600, 200, 12


def color_of(number: int) -> str:
    """The color of a class from 1 on; after the last comes the first."""
    return COLORS_OF_CLASSES[(number - 1) % len(COLORS_OF_CLASSES)]


@dataclass
class ShownCase:
    """A case to draw, all volumes (H, W, D) with the axes right, anterior, superior.

    ``images`` by modality, in the order to show; ``masks`` are the classes, 0 none, as ``truth`` and ``prediction``,
    either or none; ``names`` are those of the classes by their number.
    """

    case_id: str
    images: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    names: dict[int, str]
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)

    @property
    def base(self) -> np.ndarray:
        """What masks are laid on: FLAIR, where edema is seen best, or the first modality."""
        return self.images.get("flair", next(iter(self.images.values())))


def load_case(
    path: str | Path,
    modalities: Sequence[str] = MODALITIES,
    prediction: str | Path | None = None,
    label_convention: Convention = "brats2018",
    prediction_convention: Convention = "brats2023",
) -> ShownCase:
    """Reads a case, its label where it has one, and a prediction.

    Args:
        path: one file of the case; the others lie beside it.
        modalities: those to show.
        prediction: a predicted label map.
        label_convention: of the label.
        prediction_convention: of the prediction.

    Raises:
        InputError: as :func:`show_case`.
    """
    return show_case(case_of(path), modalities, prediction, label_convention, prediction_convention)


def show_case(
    case: Case,
    modalities: Sequence[str],
    prediction: str | Path | None,
    label_convention: Convention,
    prediction_convention: Convention,
) -> ShownCase:
    """As :func:`load_case`, of a case whose files are known.

    Raises:
        InputError: when a file cannot be read, is missing, lies in another space than the first or holds a value that
            its convention does not have, or a class is one thing by one convention and another by the other.
    """
    image = LoadImageCased("image", modalities)({"image": case.image(modalities), "case_id": case.case_id})["image"]
    turn = Orientation(axcodes="RAS", labels=None)
    truth = case.file(LABEL) if LABEL in case.files else None
    masks: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}
    for name, file, convention in (
        ("truth", truth, label_convention),
        ("prediction", prediction, prediction_convention),
    ):
        if file is None:
            continue
        mask = read(image_loader(), case.case_id, file, channels=[name])
        check_same_space(case.case_id, mask, image)
        try:
            classes = values_to_classes(mask, convention)
        except ValueError as error:
            raise InputError(f"Case {case.case_id}: {file}: {error}") from error
        for number, of_class in list(enumerate(class_names(convention)))[1:]:
            if names.setdefault(number, of_class) != of_class:
                raise InputError(
                    f"label_convention and prediction_convention should name the same classes, class {number} is "
                    f"{names[number]} in {label_convention} and {of_class} in {prediction_convention}."
                )
        masks[name] = turned(classes, turn)[0].astype(np.uint8)
    spacing_mm = cast(MetaTensor, turn(image)).pixdim.tolist()
    images = dict(zip(modalities, turned(image, turn)))
    return ShownCase(case.case_id, images, masks, names, spacing_mm)


def read_turned(case_id: str, file: Path, channels: Sequence[str]) -> np.ndarray:
    """The channels of a file (channels, H, W, D) with the axes right, anterior, superior.

    Raises:
        InputError: when it cannot be read, or has another number of channels.
    """
    return turned(read(image_loader(), case_id, file, channels), Orientation(axcodes="RAS", labels=None))


def turned(volumes: torch.Tensor, turn: Orientation) -> np.ndarray:
    return np.asarray(torch.as_tensor(turn(volumes)))


def choose_slice(image: np.ndarray, masks: Mapping[str, np.ndarray]) -> int:
    """Index along the last axis of the slice with most of the first mask that is not empty, else mid-image.

    All arrays are (H, W, D). Mid-image is halfway between the first and the last slice in which `image` is not all
    zero.
    """
    for classes in masks.values():
        if classes.any():
            return int(np.count_nonzero(classes, axis=(0, 1)).argmax())
    occupied = np.flatnonzero(image.any(axis=(0, 1)))
    return int(occupied[[0, -1]].mean()) if occupied.size else image.shape[2] // 2


def choose_slices(masks: np.ndarray, number: int = 4) -> list[int]:
    """Indices along the last axis of (H, W, D), spread evenly over the slices that are not empty."""
    occupied = np.flatnonzero(masks.any(axis=(0, 1)))
    if not occupied.size:
        occupied = np.arange(masks.shape[2])
    places = (np.arange(number) + 0.5) / number * len(occupied)
    return sorted({int(occupied[int(place)]) for place in places})


def radiological_slice(volume: np.ndarray, index: int) -> np.ndarray:
    """Rows and columns to show of axial slice `index` of a volume (H, W, D) with axes right, anterior, superior.

    Row 0 is the most anterior, column 0 the patient's right: (H, W, D) -> (W, H).
    """
    return volume[::-1, ::-1, index].T


def window(image: np.ndarray) -> np.ndarray:
    """Grey values 0 to 1 between the 1st and the 99.7th percentile of the non-zero voxels; zeros become black."""
    inside = image != 0
    if not inside.any():
        return np.zeros(image.shape)
    low, high = np.percentile(image[inside], [1, 99.7])
    return np.where(inside, np.clip((image - low) / max(high - low, 1e-9), 0, 1), 0)


def crop_to_image(image: np.ndarray, margin: int = 2) -> tuple[slice, slice]:
    """Rows and columns of a shown slice (W, H) that hold all that is not zero, and a margin."""
    if not image.any():
        return slice(None), slice(None)
    bounds = [np.flatnonzero(image.any(axis=1 - axis)) for axis in (0, 1)]
    rows, columns = (slice(max(where[0] - margin, 0), where[-1] + 1 + margin) for where in bounds)
    return rows, columns


@dataclass
class Panel:
    """One picture of the row: a slice of a volume (H, W, D), and the masks that are laid on it."""

    heading: str
    volume: np.ndarray
    index: int
    masks: Mapping[str, np.ndarray]


class Style(NamedTuple):
    """The panels of a case, how the masks of a slice (W, H) are painted on one, and the legend."""

    panels: Callable[[ShownCase], list[Panel]]
    paint: Callable[[Axes, str, np.ndarray], None]
    legend: Callable[[ShownCase], list[Any]]


def panels_of_modalities(case: ShownCase) -> list[Panel]:
    """Every modality, then the base with each mask, on one slice."""
    index = choose_slice(case.base, case.masks)
    return [
        *(Panel(MODALITY_TITLES.get(name, name), volume, index, {}) for name, volume in case.images.items()),
        *(Panel(name.capitalize(), case.base, index, {name: mask}) for name, mask in case.masks.items()),
    ]


def panels_of_slices(case: ShownCase) -> list[Panel]:
    """A few slices of the base, with all masks on each."""
    if not case.masks:
        raise InputError(f"Case {case.case_id} should have a label or a prediction to outline, it has neither.")
    indices = choose_slices(np.maximum.reduce(list(case.masks.values())))
    number = case.base.shape[2]
    return [Panel(f"slice {index + 1} of {number}", case.base, index, case.masks) for index in indices]


def paint_colors(axes: Axes, _: str, classes: np.ndarray) -> None:
    colors = np.zeros((*classes.shape, 4))
    for number, color in enumerate(COLORS_OF_CLASSES, start=1):
        colors[classes == number] = to_rgba(color, alpha=0.65)
    axes.imshow(colors, interpolation="nearest", aspect="auto")


def paint_outlines(axes: Axes, name: str, classes: np.ndarray) -> None:
    for number in np.unique(classes[classes > 0]):
        axes.contour(classes == number, levels=[0.5], colors=COLORS_OF_MASKS[name], linewidths=0.9)


def legend_of_classes(case: ShownCase) -> list[Any]:
    return [
        # Short names are abbreviations.
        Patch(color=color_of(number), label=name.upper() if len(name) < 4 else name)
        for number, name in sorted(case.names.items())
    ]


def legend_of_masks(case: ShownCase) -> list[Any]:
    return [Line2D([], [], color=COLORS_OF_MASKS[name], label=name) for name in case.masks]


STYLES = {
    "colors": Style(panels_of_modalities, paint_colors, legend_of_classes),
    "outlines": Style(panels_of_slices, paint_outlines, legend_of_masks),
}


def draw_case(case: ShownCase, output: str | Path, style: str = "colors") -> Path:
    """Draws a case in one row and writes it as a PNG 1600 pixels wide, complete or not at all.

    Args:
        case: what is shown.
        output: a `.png` file; its folder is made when missing.
        style: one of ``STYLES``.

    Returns:
        The path written.

    Raises:
        InputError: when `output` is no `.png`, or there is nothing to outline.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise InputError(f"output should be a .png file, not {output}.")
    make_panels, paint, make_legend = STYLES[style]
    panels, handles = make_panels(case), make_legend(case)
    shown = np.stack([radiological_slice(case.base, index) for index in sorted({panel.index for panel in panels})])
    crop = crop_to_image((shown != 0).any(axis=0))

    rows, columns = shown[0][crop].shape
    legend_px, heading_px = 80 if handles else 16, 110
    panel_width_px = (WIDTH_PX - GAP_PX * (len(panels) + 1)) / len(panels)
    panel_height_px = panel_width_px * rows * case.spacing_mm[1] / (columns * case.spacing_mm[0])
    height_px = round(panel_height_px + legend_px + heading_px)
    figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor=BACKGROUND)
    for number, panel in enumerate(panels):
        box = (GAP_PX + number * (panel_width_px + GAP_PX), legend_px, panel_width_px, panel_height_px)
        axes = figure.add_axes(tuple(np.array(box) / [WIDTH_PX, height_px, WIDTH_PX, height_px]))
        axes.set_axis_off()
        axes.set_title(panel.heading, color=INK, fontsize=9, pad=5)
        grey = radiological_slice(window(panel.volume), panel.index)[crop]
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="bicubic", aspect="auto")
        for name, mask in panel.masks.items():
            paint(axes, name, radiological_slice(mask, panel.index)[crop])
        if number == 0:
            axes.text(0.02, 0.02, "R", transform=axes.transAxes, color=INK, fontsize=7)
            axes.text(0.98, 0.02, "L", transform=axes.transAxes, color=INK, fontsize=7, ha="right")
    figure.text(0.5, 1 - 12 / height_px, case.case_id, color=INK, fontsize=10, ha="center", va="top")
    if handles:
        text = {"labelcolor": INK, "fontsize": 8, "borderaxespad": 0.6}
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, **text)
    with whole_file(output) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)
    return output


def main(argv: Sequence[str]) -> None:
    """Parse the command line, read the files, draw and print the path of the picture."""
    parser = argparse.ArgumentParser(prog="python -m scripts picture", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", type=Path, required=True, help="one file of the case; the others lie beside it")
    parser.add_argument(
        "--modalities", type=listed(str), default=MODALITIES, help="those to show; default: all four of BraTS"
    )
    parser.add_argument("--prediction", type=Path, help="predicted label map")
    named = "of BraTS by name, or a dataset.json; default:"
    parser.add_argument("--label_convention", default="brats2018", help=f"{named} %(default)s")
    parser.add_argument("--prediction_convention", help=f"{named} what the record of the mask says, else brats2023")
    parser.add_argument("--style", choices=STYLES, default="colors", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="the .png file to write")
    args = parser.parse_args(argv)
    predicted_by: Any = args.prediction_convention
    if args.prediction is not None:
        predicted_by = convention_of_mask(args.prediction, predicted_by, "prediction_convention")
    conventions = (args.label_convention, predicted_by or "brats2023")
    print(draw_case(load_case(args.case, args.modalities, args.prediction, *conventions), args.output, args.style))
