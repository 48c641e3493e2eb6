"""What is free, by the system's own files, and what a case takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts import memory
from scripts.memory import free_memory, size_of


@pytest.mark.parametrize(
    ("limit", "free"),
    [(None, 5_000_000 * 1024), ("max", 5_000_000 * 1024), ("3000000000", 1_000_000_000), ("1000", 0)],
    ids=["no cgroup", "no limit", "a job with a limit", "a job over its limit"],
)
def test_free_memory(tmp_path, monkeypatch, limit, free):
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 5000000 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("2000000000\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory() == free


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert free_memory() is None


def test_size():
    image, label = torch.zeros(4, 10, 10, 10), np.zeros((1, 10, 10, 10), np.uint8)
    assert size_of({"image": image, "label": label, "case_id": "a"}) == 4 * 1000 * 4 + 1000
    assert size_of([{"image": image}, {"image": image}]) == 2 * 16000
