"""(a) One forward of a network, at 64^3 and at 128^3, by an engine: python benchmarks/forward.py MISSU/tuned 64"""

from __future__ import annotations

import sys

import torch
from engines import computed
from measure import report, seconds
from networks import CHANNELS, NETWORKS, gmac
from torch import nn

GEMM = 4096


def peak_gflops() -> dict[str, float]:
    """What the machine reaches at best: a product of two matrices, and a convolution of 64 to 64 channels."""
    a, b = torch.rand(2, GEMM, GEMM)
    conv = nn.Conv3d(64, 64, kernel_size=3, padding=1).to(memory_format=torch.channels_last_3d)
    image = torch.rand(1, 64, 48, 48, 48)
    return {
        "gemm": 2 * GEMM**3 / min(seconds(lambda: a @ b) for _ in range(8)) / 1e9,
        "conv": 2 * 27 * 64 * 64 * 48**3 / min(seconds(lambda: conv(image)) for _ in range(8)) / 1e9,
    }


def main(name: str, side: int) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        if name == "machine":
            report(**peak_gflops())
            return
        name, _, engine = name.partition("/")
        image = torch.rand(1, CHANNELS, side, side, side)
        with torch.inference_mode(False), torch.no_grad():
            plain = NETWORKS[name](side).eval()
            parameters = sum(parameter.numel() for parameter in plain.parameters())
            network = computed(plain, engine, image.shape)
        first = seconds(lambda: network(image))
        report(
            seconds=min(seconds(lambda: network(image)) for _ in range(1 if side > 64 else 3)),
            first_seconds=first,
            parameters=parameters,
        )


def count(name: str, side: int) -> float:
    return gmac(NETWORKS[name.partition("/")[0]](side).eval().to("meta"), side)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
