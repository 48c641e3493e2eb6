"""(d) The data pipeline alone: crops of 128^3 by each way of caching: python benchmarks/data.py decompressed <folder>

The folder holds cases in BraTS layout with labels. One process, no workers; the caches are filled before.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from measure import report, seconds
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
CROPS = 12

CANDIDATES = {
    "decompressed": {},
    "in memory": {"cache_rate": 1.0},
    "mapped": {"overlay": "cache.json"},
}


def main(name: str, dataset_dir: str) -> None:
    settings = dict(CANDIDATES[name])
    overlay = settings.pop("overlay", None)
    with tempfile.TemporaryDirectory() as cache:
        parser = ConfigParser()
        parser.read_config([CONFIGS / file for file in ("train.json", overlay) if file])
        if overlay:
            settings["cache_dir"] = cache
        parser.update({"dataset_dir": dataset_dir, "num_workers": 0, "batch_size": 1, **settings})
        torch.manual_seed(0)
        dataset = parser.get_parsed_content("train#dataset")
        filling = seconds(lambda: [dataset[i] for i in range(len(dataset))])
        taken = [seconds(lambda index=index: dataset[index % len(dataset)]) for index in range(CROPS)]
        report(seconds=sum(taken) / CROPS, first_epoch_seconds=filling, cases=len(dataset))


if __name__ == "__main__":
    main(*sys.argv[1:])
