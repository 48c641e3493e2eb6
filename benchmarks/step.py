"""(c) Training steps at batch 1, with and without distillation: python benchmarks/step.py plain 96"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from measure import peak_gb, report, seconds
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
STEPS = 8

CANDIDATES = {
    "plain": {"distillation_weight": 0.0},
    "distilled": {"distillation_weight": 0.3},
    "distilled, checkpointed": {"distillation_weight": 0.3, "checkpointing": True},
}


def main(name: str, side: int) -> None:
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser.update({"roi_size": [side] * 3, "lr_scheduler": None, **CANDIDATES[name]})
    network, loss, optimizer = (parser.get_parsed_content(key) for key in ("train_network", "loss", "optimizer"))
    image = torch.rand(1, 4, side, side, side)
    label = torch.randint(4, (1, 1, side, side, side))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(image), label).backward()
        optimizer.step()

    times, peaks = [], []
    for _ in range(STEPS):
        times.append(seconds(step))
        peaks.append(peak_gb())
    # The optimizer has its state from the first step on; the allocator's arenas take a few more to settle.
    report(seconds=min(times[1:]), peaks_gb=peaks, grown_gb=peaks[-1] - peaks[STEPS // 2 - 1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
