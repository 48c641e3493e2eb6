"""One PNG of a case: outlines of the true and the predicted organ on a few axial slices.

    python -m scripts outlines --image <case>_t2spir.nii.gz --truth <case>_seg.nii.gz \
        --prediction eval/<case>_seg.nii.gz --output <case>.png

The display is radiological, as in ``python -m scripts picture``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import InputError
from ..files import whole_file
from .picture import BACKGROUND, DPI, INK, WIDTH_PX, crop_to_image, load_canonical, radiological_slice, window

__all__ = ["choose_slices", "draw_outlines"]

COLORS = {"truth": "#56B4E9", "prediction": "#E69F00"}  # of Okabe and Ito


def choose_slices(masks: np.ndarray, number: int = 4) -> list[int]:
    """Indices along the last axis of (H, W, D), spread evenly over the slices that are not empty."""
    occupied = np.flatnonzero(masks.any(axis=(0, 1)))
    if not occupied.size:
        occupied = np.arange(masks.shape[2])
    places = (np.arange(number) + 0.5) / number * len(occupied)
    return sorted({int(occupied[int(place)]) for place in places})


def draw_outlines(
    image: np.ndarray,
    masks: dict[str, np.ndarray],
    output: str | Path,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    title: str | None = None,
) -> Path:
    """Draws a row of slices and writes it as a PNG 1600 pixels wide, complete or not at all.

    Args:
        image: volume (H, W, D), axes right, anterior, superior.
        masks: label maps (H, W, D) as ``truth`` and ``prediction``. Where there is a prediction, only the labels that
            it holds are outlined: a network of the liver says nothing of the spleen.
        output: a ``.png`` file; its folder is made when missing.
        spacing_mm: size of a voxel along each axis.
        title: a line above the slices.

    Raises:
        InputError: when a mask has another shape than the image, or ``output`` is no ``.png``.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise InputError(f"output should be a .png file, not {output}.")
    for name, mask in masks.items():
        if mask.shape != image.shape:
            raise InputError(f"{name} should have the shape of the image, {image.shape}, not {mask.shape}.")
    prediction = masks.get("prediction")
    telling = prediction if prediction is not None and prediction.any() else sum(masks.values(), np.zeros(image.shape))
    labels = [int(label) for label in np.unique(telling) if label]
    indices = choose_slices(np.isin(list(masks.values()), labels).max(axis=0))
    grey = window(image)
    rows, columns = crop_to_image(radiological_slice((image != 0).max(axis=2, keepdims=True), 0))

    shape = radiological_slice(image, 0)[rows, columns].shape
    gap_px, legend_px, heading_px = 12, 80, 110 if title else 60
    panel_width_px = (WIDTH_PX - gap_px * (len(indices) + 1)) / len(indices)
    panel_height_px = panel_width_px * shape[0] * spacing_mm[1] / (shape[1] * spacing_mm[0])
    height_px = round(panel_height_px + legend_px + heading_px)
    figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor=BACKGROUND)
    for number, index in enumerate(indices):
        box = (gap_px + number * (panel_width_px + gap_px), legend_px, panel_width_px, panel_height_px)
        axes = figure.add_axes(tuple(np.array(box) / [WIDTH_PX, height_px, WIDTH_PX, height_px]))
        axes.set_axis_off()
        axes.set_title(f"slice {index + 1} of {image.shape[2]}", color=INK, fontsize=8, pad=5)
        axes.imshow(
            radiological_slice(grey, index)[rows, columns],
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="bicubic",
            aspect="auto",
        )
        for name, mask in masks.items():
            shown = radiological_slice(mask, index)[rows, columns]
            for label in labels:
                if (shown == label).any():
                    axes.contour(shown == label, levels=[0.5], colors=COLORS[name], linewidths=0.9)
        if number == 0:
            axes.text(0.02, 0.02, "R", transform=axes.transAxes, color=INK, fontsize=7)
            axes.text(0.98, 0.02, "L", transform=axes.transAxes, color=INK, fontsize=7, ha="right")
    if title:
        figure.text(0.5, 1 - 12 / height_px, title, color=INK, fontsize=10, ha="center", va="top")
    lines = [Line2D([], [], color=COLORS[name], label=name) for name in masks]
    figure.legend(handles=lines, loc="lower center", ncols=len(lines), frameon=False, labelcolor=INK, fontsize=8)
    with whole_file(output) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)
    return output


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts outlines", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--image", type=Path, required=True, help="one modality of the case")
    parser.add_argument("--truth", type=Path, help="its label map")
    parser.add_argument("--prediction", type=Path, help="the predicted one, in the same values")
    parser.add_argument("--output", type=Path, required=True, help="the .png file to write")
    arguments = parser.parse_args(argv)
    given = {"truth": arguments.truth, "prediction": arguments.prediction}
    masks = {name: load_canonical(path)[0] for name, path in given.items() if path is not None}
    if not masks:
        raise InputError("There should be a --truth, a --prediction or both, there is none.")
    image, spacing_mm = load_canonical(arguments.image)
    title = arguments.image.name.split(".")[0]
    print(draw_outlines(image, masks, arguments.output, spacing_mm, title))
