"""(c) Training steps at batch 1, with and without distillation: python benchmarks/step.py plain 96"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from measure import peak_gb, report, seconds
from monai.bundle import ConfigParser

from scripts.memory import keep_freed_memory

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
STEPS = 8

PLAIN, DISTILLED = {"distillation_weight": 0.0}, {"distillation_weight": 0.3}
CANDIDATES = {
    "plain": PLAIN,
    "plain, bfloat16.json": PLAIN,
    "distilled": DISTILLED,
    "distilled, bfloat16.json": DISTILLED,
    "distilled, checkpointed": {**DISTILLED, "checkpointing": True},
}


def main(name: str, side: int) -> None:
    torch.manual_seed(0)
    keep_freed_memory()  # as train.json does
    parser = ConfigParser()
    parser.read_config([CONFIGS / file for file in ("train.json", "bfloat16.json") if file in f"train.json, {name}"])
    parser.update({"roi_size": [side] * 3, "lr_scheduler": None, **CANDIDATES[name]})
    network, loss, optimizer, inferer = (
        parser.get_parsed_content(key) for key in ("train_network", "loss", "optimizer", "train#inferer")
    )
    image = torch.rand(1, 4, side, side, side)
    label = torch.randint(4, (1, 1, side, side, side))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(image, network), label).backward()
        optimizer.step()

    times, peaks = [], []
    for _ in range(STEPS):
        times.append(seconds(step))
        peaks.append(peak_gb())
    # The optimizer has its state from the first step on; the allocator's arenas take a few more to settle.
    report(seconds=min(times[1:]), peaks_gb=peaks, grown_gb=peaks[-1] - peaks[STEPS // 2 - 1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
