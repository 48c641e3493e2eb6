"""Cases and their masks as pages to read: pictures, volumes, lesions, warnings, and where the mask comes from.

    python -m scripts report --dataset_dir cases --prediction_dir eval --checkpoint models/model.pt --output_dir pages

Each case becomes ``<case>.html``, one file that asks nothing of a network, and ``<case>.json`` with the same content;
``index.html`` lists them. The display is radiological: the patient's left is on the right of the picture.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.image import imsave
from scipy import ndimage
from skimage.measure import find_contours
from tqdm.auto import tqdm

from ..arguments import listed
from ..checks.faults import Fault
from ..checks.preflight import preflight
from ..data.cases import LABEL, MODALITIES, WHOLE, Case, find_cases
from ..data.labels import Convention, is_lesion, outermost, regions
from ..data.loading import is_ct
from ..errors import InputError
from ..evaluation.calibration import check_probabilities, expected_dice
from ..evaluation.lesions import TOUCHING
from ..evaluation.score import find_masks
from ..files import check_writable, whole_file
from ..weights.origin import convention_of_mask, read_mask_record, weights_of_mask
from ..weights.record import convention_to_write, read_record, recorded, sha256
from ..weights.versions import versions
from .picture import MODALITY_TITLES, ShownCase, color_of, radiological_slice, read_turned, show_case, window
from .viewer import viewer_of

__all__ = ["describe_case", "report_case", "write_index", "write_report"]

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).parents[2]
RESEARCH_ONLY = "For research only. Not a medical device; not for diagnosis or treatment."
MAX_SHOWN = 6  # pieces with pictures; tables have them all
INDEX = "index"  # the name of the page of all cases
SCALE_MM = 20
SOFT_TISSUE_HU = (-160.0, 240.0)
MARGIN = 2  # voxels around what is not zero

# Of each plane: its axis among right, anterior, superior, and what lies at the left and at the right of the picture.
PLANES = {"axial": (2, "R", "L"), "coronal": (1, "R", "L"), "sagittal": (0, "A", "P")}


def plane_of(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Rows and columns to show of a volume (H, W, D) with the axes right, anterior, superior.

    Anterior is up in an axial plane, superior in the others; the patient's right, or anterior, is on the left.
    """
    if plane == "axial":
        return radiological_slice(volume, index)
    if plane == "coronal":
        return volume[::-1, index, ::-1].T
    return volume[index, ::-1, ::-1].T


def find_pieces(case: ShownCase, of_regions: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """The connected pieces (26 neighbors) of the outermost regions, in prediction and truth together, largest first.

    Each has a title: a lesion has a number, an organ in one piece its name alone.

    ``slices`` are those with most of the piece, counted from 0 at the left, the back and the bottom.
    """
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    found: list[dict[str, Any]] = []
    for region, classes in outermost(of_regions).items():
        masks = {name: np.isin(mask, classes) for name, mask in case.masks.items()}
        pieces, _ = ndimage.label(np.logical_or.reduce(list(masks.values())), TOUCHING)
        for number, box in enumerate(ndimage.find_objects(pieces), start=1):
            piece = pieces[box] == number
            volumes = {f"{name}_ml": float((piece & mask[box]).sum()) * voxel_ml for name, mask in masks.items()}
            slices = {}
            for plane, (axis, _, _) in PLANES.items():
                areas = piece.sum(tuple(other for other in range(3) if other != axis))
                slices[plane] = int(box[axis].start + areas.argmax())
            kind = None
            if "truth_ml" in volumes:
                kind = "missed" if not volumes["prediction_ml"] else "found" if volumes["truth_ml"] else "false"
            found.append({"region": region, "title": "", "kind": kind, **volumes, "slices": slices})
    found.sort(key=lambda piece: -max(piece.get("truth_ml", 0), piece["prediction_ml"]))
    for region in {piece["region"] for piece in found}:
        alike = [piece for piece in found if piece["region"] == region]
        for number, piece in enumerate(alike, start=1):
            if is_lesion(region):
                piece["title"] = f"{title(region)} lesion {number}"
            else:
                piece["title"] = title(region) if len(alike) == 1 else f"{title(region)}, piece {number}"
    return found


def volumes_of(case: ShownCase, mask: np.ndarray, of_regions: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Volumes in ml of the classes and regions of a mask, and how many connected pieces its outermost regions have."""
    counts = np.bincount(mask.ravel(), minlength=max(case.names) + 1)
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    return {
        "regions_ml": {name: float(counts[list(of)].sum()) * voxel_ml for name, of in of_regions.items()},
        "classes_ml": {name: float(counts[number]) * voxel_ml for number, name in sorted(case.names.items())},
        "num_pieces": {
            name: int(ndimage.label(np.isin(mask, of), TOUCHING)[1]) for name, of in outermost(of_regions).items()
        },
    }


def dice_of(case: ShownCase, of_regions: Mapping[str, tuple[int, ...]]) -> dict[str, float | None]:
    """Dice of each region; none where truth and prediction are both empty."""
    dice: dict[str, float | None] = {}
    for name, of in of_regions.items():
        prediction, truth = (np.isin(case.masks[which], of) for which in ("prediction", "truth"))
        total = int(prediction.sum() + truth.sum())
        dice[name] = 2 * int((prediction & truth).sum()) / total if total else None
    return dice


def describe_weights(checkpoint: Path | None) -> dict[str, Any] | None:
    """File and sha256 of weights, and what their record says; the record is none where there is none."""
    if checkpoint is None:
        return None
    if not checkpoint.is_file():
        raise InputError(f"checkpoint should be a file of weights, {checkpoint} is not there.")
    record = read_record(checkpoint)
    told = None
    if record is not None:
        told = {name: record.get(name) for name in ("dataset", "epoch", "metrics", "settings", "versions")}
        told["num_cases"] = len(record.get("cases", ()))
    return {"file": checkpoint.name, "sha256": sha256(checkpoint), "record": told}


def describe_case(
    case: ShownCase,
    files: Mapping[str, Path],
    label_convention: Convention,
    checkpoint: Path | None,
    faults: Iterable[Fault],
    seconds: float | None = None,
    probabilities: np.ndarray | None = None,
) -> dict[str, Any]:
    """What a report says, ready for JSON.

    Args:
        case: with a ``prediction``, and a ``truth`` where there is one.
        files: by modality, and of the masks.
        label_convention: whose regions are told of.
        checkpoint: the weights that made the mask, where they are known.
        faults: what preflight found.
        seconds: that the segmentation took, where it was measured.
        probabilities: of the regions (regions, H, W, D), where they were kept.
    """
    of_regions = regions(label_convention)
    return {
        "case_id": case.case_id,
        "note": RESEARCH_ONLY,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": {name: path.name for name, path in files.items()},
        "shape": list(case.base.shape),
        "spacing_mm": [round(float(size), 4) for size in case.spacing_mm],
        "volumes": {name: volumes_of(case, mask, of_regions) for name, mask in case.masks.items()},
        "pieces": find_pieces(case, of_regions),
        "dice": dice_of(case, of_regions) if "truth" in case.masks else None,
        "expected_dice": None
        if probabilities is None
        else {
            name: expected_dice(np.isin(case.masks["prediction"], of), likely)
            for (name, of), likely in zip(of_regions.items(), probabilities)
        },
        "warnings": [{"fault": fault.fault, "detail": fault.detail} for fault in faults],
        "weights": describe_weights(checkpoint),
        "seconds": seconds,
        "versions": versions(),
    }


def report_case(
    case: Case,
    prediction: Path,
    modalities: Sequence[str],
    label_convention: Convention,
    prediction_convention: Convention,
    checkpoint: Path | None,
    seconds: float | None = None,
    probabilities: Path | None = None,
) -> tuple[ShownCase, dict[str, Any]]:
    """A case, its mask and its label where it has one, checked and described; ``mask`` is the mask's own record.

    Raises:
        InputError: as :func:`scripts.pictures.picture.show_case`, and when the probabilities have another shape, or
            the mask's record cannot be read.
    """
    likely = None
    if probabilities is not None:
        likely = read_turned(case.case_id, probabilities, list(regions(prediction_convention)))
        check_probabilities(case.case_id, probabilities, likely)
    shown = show_case(case, modalities, prediction, label_convention, prediction_convention)
    faults = preflight([case], modalities, label_convention=label_convention).faults
    image = case.image(modalities)
    files = {**image} if isinstance(image, Mapping) else {WHOLE: image}
    if LABEL in case.files:
        files["truth"] = case.file(LABEL)
    if likely is not None and likely.shape[1:] != shown.base.shape:
        raise InputError(
            f"Case {case.case_id}: {probabilities} should have the shape of the scans, "
            f"{list(shown.base.shape)}, it has {list(likely.shape[1:])}."
        )
    content = describe_case(shown, files, prediction_convention, checkpoint, faults, seconds, likely)
    return shown, {**content, "mask": read_mask_record(prediction)}


def data_uri(grey: np.ndarray) -> str:
    """A picture of grey values 0 to 1 as a JPEG inside of a link."""
    buffer = BytesIO()
    imsave(buffer, grey, cmap="gray", vmin=0, vmax=1, format="jpg", pil_kwargs={"quality": 88})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def outline_of(mask: np.ndarray, width_mm: float, height_mm: float) -> str:
    """The border of a mask (rows, columns) as the path of an SVG in mm; empty where the mask is."""
    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)  # pads, so that each line is closed
    return "".join(
        "M" + "L".join(f"{(x - 0.5) * width_mm:.1f} {(y - 0.5) * height_mm:.1f}" for y, x in line[:-1]) + "Z"
        for line in lines
    )


def view_of(case: ShownCase, greys: Mapping[str, np.ndarray], box: Sequence[slice], plane: str, index: int) -> dict:
    """One plane: the picture of each modality, the outlines of each class in each mask, its size in mm."""
    axis, left, right = PLANES[plane]
    across, down = (size for at, size in enumerate(case.spacing_mm) if at != axis)
    shown_box = tuple(slice(None) if at == axis else side for at, side in enumerate(box))
    outlines = []
    for name, mask in case.masks.items():
        classes = plane_of(mask[shown_box], plane, index)
        for number in case.names:
            if line := outline_of(classes == number, across, down):
                outlines.append({"mask": name, "number": number, "line": line})
    rows, columns = plane_of(case.base[shown_box], plane, index).shape
    return {
        "plane": plane,
        "index": index,
        "number": case.base.shape[axis],
        "left": left,
        "right": right,
        "width_mm": round(columns * across, 2),
        "height_mm": round(rows * down, 2),
        "pictures": [data_uri(plane_of(grey[shown_box], plane, index)) for grey in greys.values()],
        "outlines": outlines,
    }


def soft_tissue(image: np.ndarray) -> np.ndarray:
    """Grey values 0 to 1 of a CT in Hounsfield units, in the window that abdomens are read with."""
    low, high = SOFT_TISSUE_HU
    return np.clip((image - low) / (high - low), 0, 1)


def box_of(case: ShownCase) -> tuple[slice, ...]:
    """The part of the volume that is not zero, and a margin."""
    there = np.logical_or.reduce([case.base != 0, *(mask > 0 for mask in case.masks.values())])
    bounds = [np.flatnonzero(there.any(tuple(at for at in range(3) if at != axis))) for axis in range(3)]
    return tuple(slice(max(where[0] - MARGIN, 0), where[-1] + 1 + MARGIN) for where in bounds)


def groups_of_views(
    case: ShownCase, greys: Mapping[str, np.ndarray], box: Sequence[slice], pieces: Sequence[Mapping[str, Any]]
) -> list[list[dict]]:
    """Three planes for each of the largest pieces, through the middle where there is none."""
    places = [piece["slices"] for piece in pieces[:MAX_SHOWN]]
    if not places:
        places = [{plane: (box[axis].start + box[axis].stop) // 2 for plane, (axis, _, _) in PLANES.items()}]
    return [[view_of(case, greys, box, plane, index) for plane, index in place.items()] for place in places]


def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["ml"] = written_ml
    environment.filters["title"] = title
    environment.filters["is_lesion"] = environment.tests["is_lesion"] = is_lesion
    return environment


def written_ml(value: float | None) -> str:
    """Milliliters for people: three digits, zero as such."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def title(name: str) -> str:
    """Short names are abbreviations."""
    return MODALITY_TITLES.get(name, name.upper() if len(name) < 4 else name)


def has_temperature(weights: Mapping[str, Any] | None) -> bool:
    """Whether the record of weights has a temperature, by what a report says of them."""
    return bool(weights and weights["record"] and weights["record"]["settings"].get("temperature"))


def write_report(case: ShownCase, content: Mapping[str, Any], output: Path) -> None:
    """Writes a report as HTML to ``output``, and as JSON beside it."""
    box = box_of(case)
    greys = {name: soft_tissue(image) if is_ct(name) else window(image) for name, image in case.images.items()}
    page = (
        templates()
        .get_template("case_report.html")
        .render(
            report=content,
            groups=groups_of_views(case, greys, box, content["pieces"]),
            viewer=viewer_of(case, greys, box),
            modalities=list(case.images),
            base=next(at for at, image in enumerate(case.images.values()) if image is case.base),
            classes={number: (name, color_of(number)) for number, name in sorted(case.names.items())},
            scale_mm=SCALE_MM,
            temperature=has_temperature(content["weights"]),
        )
    )
    for path, text in ((output, page), (output.with_suffix(".json"), json.dumps(content, indent=2) + "\n")):
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_index(contents: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Writes the page that lists reports which lie beside it."""
    page = templates().get_template("case_index.html").render(reports=contents, note=RESEARCH_ONLY)
    with whole_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of cases, or of one case")
    parser.add_argument("--prediction_dir", type=Path, required=True, help="folder with their masks")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the pages, a new one")
    parser.add_argument("--probabilities_dir", type=Path, help="what inference wrote there, for the expected Dice")
    parser.add_argument("--checkpoint", type=Path, help="the weights that made the masks")
    parser.add_argument("--modalities", type=listed(str), help="those to show; default: those of the weights' record")
    parser.add_argument("--label_convention", help="of the labels; default: that of the weights' training")
    parser.add_argument(
        "--prediction_convention", help="of the masks; default: that of their records, else of the weights"
    )
    arguments = parser.parse_args(argv)
    checkpoint = () if arguments.checkpoint is None else (str(arguments.checkpoint),)
    modalities = arguments.modalities or recorded(checkpoint, "modalities", list(MODALITIES))
    label_convention = arguments.label_convention or recorded(checkpoint, "label_convention", "brats2018")
    if arguments.output_dir.exists() and any(arguments.output_dir.iterdir()):
        raise InputError(f"output_dir should be a new folder, {arguments.output_dir} holds files.")
    if arguments.checkpoint is not None and not arguments.checkpoint.is_file():
        raise InputError(f"checkpoint should be a file of weights, {arguments.checkpoint} is not there.")
    found = find_cases(arguments.dataset_dir)
    case_ids = {case.case_id for case in found}
    masks = find_masks(arguments.prediction_dir, case_ids)
    cases = [case for case in found if case.case_id in masks]
    if not cases:
        raise InputError(f"No case of {arguments.dataset_dir} has a mask in {arguments.prediction_dir}.")
    for what, others in (
        ("case(s) have no mask", case_ids - masks.keys()),
        ("mask(s) have no case", masks.keys() - case_ids),
    ):
        if others:
            logger.warning(f"{len(others)} {what} and no page, such as {min(others)}.")
    conventions: dict[str, Any] = {
        case.case_id: convention_of_mask(
            masks[case.case_id], arguments.prediction_convention, f"Case {case.case_id}: prediction_convention"
        )
        or convention_to_write(checkpoint, "brats2023")
        for case in cases
    }
    first = cases[0].case_id
    for case_id, convention in conventions.items():
        weights_of_mask(masks[case_id], arguments.checkpoint)  # refuses others
        if list(regions(convention)) != list(regions(conventions[first])):
            raise InputError(
                f"All masks should have the same regions, {first} has {', '.join(regions(conventions[first]))}, "
                f"{case_id} has {', '.join(regions(convention))}: make the pages of each kind apart."
            )
    if any(case.case_id.lower() == INDEX for case in cases):
        raise InputError(f"Case {INDEX}: its page would be that of all cases, {INDEX}.html: rename it.")
    probabilities = {}
    if arguments.probabilities_dir is not None:
        kept = find_cases(arguments.probabilities_dir, knob="probabilities_dir", known=case_ids)
        probabilities = {case.case_id: case.file(WHOLE) for case in kept}
        for case in cases:
            if case.case_id not in probabilities:
                raise InputError(
                    f"Case {case.case_id}: its probabilities are missing in {arguments.probabilities_dir}."
                )
    check_writable(arguments.output_dir, "output_dir")
    contents, refused = [], []
    for case in tqdm(cases, desc="reports", leave=False, disable=None):
        of_case = (label_convention, conventions[case.case_id])
        likely = probabilities.get(case.case_id)
        try:
            shown, content = report_case(
                case, masks[case.case_id], modalities, *of_case, arguments.checkpoint, None, likely
            )
        except InputError as error:
            refused.append(str(error))
            continue
        write_report(shown, content, arguments.output_dir / f"{case.case_id}.html")
        contents.append(content)
    if contents:
        write_index(contents, arguments.output_dir / f"{INDEX}.html")
    if refused:
        raise InputError("\n".join([f"{len(refused)} of {len(cases)} cases failed.", *refused]))
    print(arguments.output_dir / f"{INDEX}.html")
