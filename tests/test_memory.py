"""What is free, by the system's own files, and what a case takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import memory
from scripts.memory import free_memory, keep_freed_memory, size_of

BUNDLE = Path(__file__).parents[1] / "bundle"
MACHINE = 5_000_000 * 1024
NAMES = {
    2: ("memory.max", "memory.current", "inactive_file {}\nactive_file {}\nanon 7\n"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file {}\ntotal_active_file {}\ncache 7\n"),
}


def write_group(folder: Path, version: int, limit: str, used: int, cache: tuple[int, int] = (0, 0)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, statistics = NAMES[version]
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(statistics.format(*cache))


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """The files of a machine without control groups."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 5000000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP_OF_SELF", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "groups")
    return tmp_path


def test_no_control_group(system):
    assert free_memory() == MACHINE


@pytest.mark.parametrize(("version", "line", "root"), [(2, "0::/", ""), (1, "4:memory:/", "memory")])
@pytest.mark.parametrize(
    ("limit", "cache", "free"),
    [
        ("3000000000", (0, 0), 1_000_000_000),
        ("3000000000", (1_200_000_000, 300_000_000), 2_500_000_000),
        ("1000", (0, 0), 0),
        ("9223372036854771712", (0, 0), MACHINE),
    ],
    ids=["a limit", "page cache is free", "over its limit", "no limit"],
)
def test_the_group_of_a_container(system, version, line, root, limit, cache, free):
    (system / "cgroup").write_text(f"1:cpu:/\n{line}\n")
    write_group(system / "groups" / root, version, limit, 2_000_000_000, cache)
    assert free_memory() == free


@pytest.mark.parametrize(("version", "prefix", "root"), [(2, "0::", ""), (1, "4:memory:", "memory")])
def test_the_tightest_of_nested_groups_counts(system, version, prefix, root):
    """As SLURM makes them: no limit for the step, one for the job; and where a container sees its host's path."""
    (system / "cgroup").write_text(f"{prefix}/slurm/job_7/step_0\n")
    job = system / "groups" / root / "slurm" / "job_7"
    write_group(job / "step_0", version, "max", 1_000_000_000)
    write_group(job, version, "3000000000", 1_000_000_000)
    write_group(job.parent, version, "4000000000", 1_000_000_000)
    assert free_memory() == 2_000_000_000
    (system / "cgroup").write_text(f"{prefix}/not/there\n")
    write_group(system / "groups" / root, version, "1500000000", 1_000_000_000)
    assert free_memory() == 500_000_000


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert free_memory() is None


def test_size():
    image, label = torch.zeros(4, 10, 10, 10), np.zeros((1, 10, 10, 10), np.uint8)
    assert size_of({"image": image, "label": label, "case_id": "a"}) == 4 * 1000 * 4 + 1000
    assert size_of([{"image": image}, {"image": image}]) == 2 * 16000


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of glibc")
def test_memory_that_is_free_again_is_not_cleared_again():
    code = """
import resource
import numpy as np
from scripts.memory import keep_freed_memory
keep_freed_memory()
np.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    pages = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, check=True, capture_output=True, text=True).stdout
    assert int(pages) < 100  # of 16,384 in 64 MiB


def test_a_system_without_glibc_keeps_its_ways(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    keep_freed_memory()
