"""One PNG of a case: every modality, then the true and the predicted tumor, on the axial slice with most tumor.

    python -m scripts picture --case <case>/<case>_flair.nii.gz --prediction eval/<case>_seg.nii.gz --output <case>.png

The display is radiological: the patient's left is on the right of the picture, anterior is up.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..arguments import listed
from ..data.cases import LABEL, MODALITIES, case_of
from ..data.labels import LABEL_CONVENTIONS, values_to_classes
from ..data.loading import air
from ..errors import InputError
from ..files import whole_file

# Colors of Okabe and Ito, which stay apart for color-blind readers and against grey.
CLASSES = {1: ("NCR/NET", "#0072B2"), 2: ("ED", "#F0E442"), 3: ("ET", "#D55E00"), 4: ("RC / CC", "#CC79A7")}
MODALITY_TITLES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
BACKGROUND, INK = "black", "#E8E8E8"
WIDTH_PX, DPI = 1600, 200


def load_canonical(path: str | Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a 3D image with its axes turned to right, anterior, superior.

    Args:
        path: a file that nibabel reads.

    Returns:
        The volume (H, W, D) and the size of its voxels in mm, three numbers.

    Raises:
        InputError: when it is no file, or no readable 3D image.
    """
    try:
        image = nib.as_closest_canonical(nib.load(path))
        volume = np.asarray(image.dataobj)
    except (OSError, nib.filebasedimages.ImageFileError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    if volume.ndim != 3:
        raise InputError(f"{path} should hold a 3D image, not one of shape {volume.shape}.")
    return volume, tuple(float(size) for size in image.header.get_zooms())


def choose_slice(image: np.ndarray, truth: np.ndarray | None = None, prediction: np.ndarray | None = None) -> int:
    """Index along the last axis of the slice with most tumor in `truth`, else in `prediction`, else mid-image.

    All arrays are (H, W, D). A label map without tumor is passed over. Mid-image is halfway between the first and the
    last slice in which `image` is not all zero.
    """
    for classes in (truth, prediction):
        if classes is not None and classes.any():
            return int(np.count_nonzero(classes, axis=(0, 1)).argmax())
    occupied = np.flatnonzero(image.any(axis=(0, 1)))
    return int(occupied[[0, -1]].mean()) if occupied.size else image.shape[2] // 2


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


def _overlay(classes: np.ndarray) -> np.ndarray:
    """Class map (W, H) to colors (W, H, 4), transparent where there is no tumor."""
    colors = np.zeros((*classes.shape, 4))
    for index, (_, color) in CLASSES.items():
        colors[classes == index] = to_rgba(color, alpha=0.65)
    return colors


def draw_case(
    images: Mapping[str, np.ndarray],
    truth: np.ndarray | None,
    prediction: np.ndarray | None,
    output: str | Path,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    title: str | None = None,
) -> Path:
    """Draw a case in one row and write it as a PNG 1600 pixels wide, complete or not at all.

    Args:
        images: volumes (H, W, D) by modality, axes right, anterior, superior, shown in the given order. The overlays
            lie on `flair`, or on the first image if there is none of that name.
        truth: true classes (H, W, D), 0 none, 1 NCR/NET, 2 ED, 3 ET, 4 cavity or cyst, or None.
        prediction: predicted classes, likewise.
        output: a `.png` file; its folder is made when missing.
        spacing_mm: size of a voxel along each axis.
        title: a line above the pictures.

    Returns:
        The path written.

    Raises:
        InputError: when there is no image, two shapes differ, or `output` is no `.png`.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise InputError(f"output should be a .png file, not {output}.")
    if not images:
        raise InputError("images should hold at least one modality, not none.")
    first_name = next(iter(images))
    base = images.get("flair", images[first_name])
    given = {"truth": truth, "prediction": prediction}
    overlays = {name: classes for name, classes in given.items() if classes is not None}
    for name, volume in {**images, **overlays}.items():
        if volume.shape != base.shape:
            raise InputError(f"{name} has shape {volume.shape}, but {first_name} has shape {images[first_name].shape}.")

    index = choose_slice(base, truth, prediction)
    crop = crop_to_image(radiological_slice(base, index))
    panels: list[tuple[str, np.ndarray, np.ndarray | None]] = [
        *((MODALITY_TITLES.get(name, name), volume, None) for name, volume in images.items()),
        *((name.capitalize(), base, classes) for name, classes in overlays.items()),
    ]

    shown_rows, shown_columns = radiological_slice(base, index)[crop].shape
    gap_px, legend_px, heading_px = 12, 80 if overlays else 16, 110 if title else 60
    panel_width_px = (WIDTH_PX - gap_px * (len(panels) + 1)) / len(panels)
    panel_height_px = panel_width_px * shown_rows * spacing_mm[1] / (shown_columns * spacing_mm[0])
    height_px = round(panel_height_px + legend_px + heading_px)
    figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor=BACKGROUND)
    for number, (heading, volume, classes) in enumerate(panels):
        left_px = gap_px + number * (panel_width_px + gap_px)
        axes = figure.add_axes(
            (left_px / WIDTH_PX, legend_px / height_px, panel_width_px / WIDTH_PX, panel_height_px / height_px)
        )
        axes.set_axis_off()
        axes.set_title(heading, color=INK, fontsize=9, pad=5)
        grey = radiological_slice(window(volume), index)[crop]
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="bicubic", aspect="auto")
        if classes is not None:
            axes.imshow(_overlay(radiological_slice(classes, index)[crop]), interpolation="nearest", aspect="auto")
        if number == 0:
            axes.text(0.02, 0.02, "R", transform=axes.transAxes, color=INK, fontsize=7)
            axes.text(0.98, 0.02, "L", transform=axes.transAxes, color=INK, fontsize=7, ha="right")
    if title:
        figure.text(0.5, 1 - 12 / height_px, title, color=INK, fontsize=10, ha="center", va="top")
    if overlays:
        seldom = any((classes == 4).any() for classes in overlays.values())
        patches = [Patch(color=color, label=name) for index, (name, color) in CLASSES.items() if index < 4 or seldom]
        figure.legend(
            handles=patches,
            loc="lower center",
            ncols=len(patches),
            frameon=False,
            labelcolor=INK,
            fontsize=8,
            borderaxespad=0.6,
        )

    with whole_file(output) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)
    return output


def _load_classes(path: Path | None, convention: str) -> np.ndarray | None:
    """Classes of a label file, axes right, anterior, superior: (H, W, D); None without a file."""
    if path is None:
        return None
    try:
        return np.asarray(values_to_classes(load_canonical(path)[0], convention))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def main(argv: Sequence[str]) -> None:
    """Parse the command line, read the files, draw and print the path of the picture."""
    parser = argparse.ArgumentParser(prog="python -m scripts picture", description="Draw one case as a PNG.")
    parser.add_argument("--case", type=Path, required=True, help="one file of the case; the others lie beside it")
    parser.add_argument(
        "--modalities", type=listed(str), default=MODALITIES, help="those to show; default: all four of BraTS"
    )
    parser.add_argument("--prediction", type=Path, help="predicted label map")
    for name, default in (("label", "brats2018"), ("prediction", "brats2023")):
        parser.add_argument(
            f"--{name}_convention", choices=sorted(LABEL_CONVENTIONS), default=default, help="default: %(default)s"
        )
    parser.add_argument("--output", type=Path, required=True, help="the .png file to write")
    args = parser.parse_args(argv)
    case = case_of(args.case)
    loaded = {name: load_canonical(case.file(name)) for name in args.modalities}
    truth = _load_classes(case.file(LABEL) if LABEL in case.files else None, args.label_convention)
    prediction = _load_classes(args.prediction, args.prediction_convention)
    images = {name: volume - air(volume) for name, (volume, _) in loaded.items()}
    spacing_mm = next(iter(loaded.values()))[1]
    print(draw_case(images, truth, prediction, args.output, spacing_mm, title=case.case_id))
