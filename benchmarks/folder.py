"""(f) A folder of cases by the command that a user types: python benchmarks/folder.py 2x30 <four files>

As ``<processes>x<cases>``: the case of the four files so many times, by the shipped weights, at 2 mm. Python's start is
counted. Each process has its share of the machine's cores.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import seconds

BUNDLE = Path(__file__).parents[1] / "bundle"
CANDIDATES = ("1x1", "1x10", "1x30", "2x30")


def main(name: str, *files: str) -> None:
    num_processes, num_cases = map(int, name.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_cases):
            case = Path(folder) / "cases" / f"case_{number:03d}"
            case.mkdir(parents=True)
            for file in files:
                suffix = Path(file).name.rpartition("_")[2]
                shutil.copy(file, case / f"{case.name}_{suffix}")
        configs, start = ["configs/inference.json"], [sys.executable, "-W", "ignore"]
        if num_processes > 1:
            configs.append("configs/multi_gpu_inference.json")
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        command = [*start, "-m", "monai.bundle", "run", "--config_file", str(configs)]
        command += ["--dataset_dir", f"{folder}/cases", "--output_dir", f"{folder}/masks"]
        threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

        def run() -> None:
            subprocess.run(command, cwd=BUNDLE, env=environment, check=True, stdout=subprocess.DEVNULL)

        taken = seconds(run)
        written = len(list(Path(folder).glob("masks/*_seg.nii.gz")))
        if written != num_cases:
            raise SystemExit(f"{written} of {num_cases} masks were written.")
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9  # of the largest process
    print(json.dumps({"seconds": taken, "cases_per_hour": 3600 * num_cases / taken, "peak_gb": peak_gb}))


if __name__ == "__main__":
    main(*sys.argv[1:])
