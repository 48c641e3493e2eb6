"""How often inference's look at a scan is wrong: real brains without a skull, a head, other organs, drawn brains.

    cd bundle && PYTHONPATH=. python ../experiments/scan_range.py --data DATA --output scans.csv

``DATA`` has ``brats18``, ``brats``, ``brats2013``, ``chaos_t2spir``, ``hippocampus`` and ``dicom``. The ranges are
those of ``brats18``, as in the record of ``model.pt``, and of drawn brains, as for ``synthetic.pt``; a case of theirs
is judged by the range of the others.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from skimage.filters import threshold_otsu

from scripts.data import SpacingOfKeysd
from scripts.data.cases import LABEL, list_cases
from scripts.data.loading import air
from scripts.files import whole_file
from scripts.inference.scan_range import measure, outside
from scripts.sources.dicom import read_slices, sorted_slices
from scripts.sources.gliomas import SPACING_MM, draw_glioma

RANGES = ("brats18", "drawn")


def measured(volumes: Sequence[np.ndarray], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Numbers of a scan as the network sees it: its air is zero, it is cut to the box of the rest, at 2 mm."""
    image = np.stack([volume - air(volume) for volume in volumes]).astype(np.float32)
    (box,) = ndimage.find_objects((image != 0).any(0).astype(np.uint8))
    scan = MetaTensor(torch.from_numpy(image[(slice(None), *box)]), affine=np.diag([*spacing_mm, 1.0]))
    coarse = SpacingOfKeysd("image", pixdim=[SPACING_MM] * 3, mode="bilinear")({"image": scan})["image"]
    return measure(coarse, coarse.pixdim.tolist())


def of_files(paths: Sequence[Path]) -> dict[str, float]:
    images = [nib.load(path) for path in paths]
    return measured([np.asarray(image.dataobj) for image in images], images[0].header.get_zooms()[:3])


def heads(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """A head as it was scanned, and with its air made zero."""
    import itk

    image = read_slices(sorted_slices(folder), folder)
    volume, spacing_mm = itk.array_from_image(image).astype(np.float32), list(image.GetSpacing())[::-1]
    yield "head", measured([volume], spacing_mm)
    for share in (0.3, 0.6, 1.0):
        inside = volume > share * threshold_otsu(volume)
        pieces, _ = ndimage.label(ndimage.binary_closing(inside, iterations=3))
        body = ndimage.binary_fill_holes(pieces == np.bincount(pieces[pieces > 0]).argmax())
        yield f"head, air by {share:g} of Otsu's threshold", measured([np.where(body, volume + 1, 0)], spacing_mm)


def scans(data: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Group, name and numbers of each scan."""
    for group in ("brats18", "brats", "brats2013"):
        for case in list_cases(data / group):
            yield group, case.case_id, of_files([paths[0] for name, paths in case.files.items() if name != LABEL])
    for seed in range(24):
        image, _ = draw_glioma(seed)
        yield "drawn", str(seed), measured(list(image.numpy()), [SPACING_MM] * 3)
    for name, found in heads(data / "dicom" / "t1post"):
        yield "head", name, found
    for group in ("chaos_t2spir", "hippocampus"):
        for path in sorted(data.joinpath(group, "imagesTr").glob("*.nii.gz")):
            yield group, path.name.removesuffix(".nii.gz"), of_files([path])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = list(scans(arguments.data))
    with whole_file(arguments.output) as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["group", "scan", "volume_ml", "air", *(f"warned_by_{of}" for of in RANGES)])
        for group, name, found in rows:
            warned = []
            for of in RANGES:
                others = [each for other_of, other, each in rows if other_of == of and (of, other) != (group, name)]
                known = {key: [min(each[key] for each in others), max(each[key] for each in others)] for key in found}
                warned.append(int(outside(found, known, is_brain=True) is not None))
            table.writerow([group, name, f"{found['volume_ml']:.0f}", f"{found['air']:.3f}", *warned])


if __name__ == "__main__":
    main()
