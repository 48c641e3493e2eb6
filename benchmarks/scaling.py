"""(e) How the cost of a case grows: python benchmarks/scaling.py brain 2

One pass of the network over a brain at 2 mm, random weights, as inference.json computes it: with the size of the brain
(in typical ones of 72 x 88 x 72 voxels), the modalities, the classes, and the number of cases one after the other.
"""

from __future__ import annotations

import sys

import torch
from measure import report, seconds

from scripts.inference import AdaptiveInferer
from scripts.memory import keep_freed_memory
from scripts.networks import MISSU
from scripts.weights import with_engine

BRAIN, CROP = (72, 88, 72), 64
CANDIDATES = {"brain": (0.5, 1, 2, 4), "cases": (1, 2, 4, 8), "modalities": (1, 2, 4, 8), "classes": (2, 4, 8, 16)}


def main(what: str, number: float) -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    counts = {"brain": 1.0, "cases": 1, "modalities": 4, "classes": 4} | {what: number}
    sides = [round(side * counts["brain"] ** (1 / 3)) for side in BRAIN]
    network = MISSU(int(counts["modalities"]), int(counts["classes"]), img_size=CROP).eval()
    network = with_engine(network, "torch", "float32", "cpu")
    inferer = AdaptiveInferer([CROP] * 3, stretch=4, overlap=0.5)
    with torch.inference_mode():
        images = [torch.rand(1, int(counts["modalities"]), *sides) for _ in range(int(counts["cases"]))]
        inferer(images[0], network)
        report(seconds=seconds(lambda: [inferer(image, network) for image in images]))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
