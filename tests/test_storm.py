"""Many cases, damaged ones among them, two processes, killed twice: each good case has its mask in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, MODALITIES, SHAPE
from test_workflows import BUNDLE, SMALL, configs, small_weights

NUM_CASES, NUM_DAMAGED = 100, 20


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> None:
    volume = change(np.asarray(nib.load(path).dataobj, np.float32))
    nib.save(nib.Nifti1Image(volume, affine), path)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_nan(volume: np.ndarray) -> np.ndarray:
    volume[5, 5, 5] = np.nan
    return volume


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-500]), "cannot be read as an image"),
    "a flipped bit": (flip_a_bit, "cannot be read as an image"),
    "text": (lambda path: path.write_text("no scan"), "cannot be read as an image"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "missing": (Path.unlink, "t2 is missing"),
    "doubled": (lambda path: path.with_suffix("").write_bytes(b""), "t2 is doubled"),
    "NaN": (lambda path: rewrite(path, with_nan), "holds NaN or infinity"),
    "all zero": (lambda path: rewrite(path, np.zeros_like), "is zero everywhere"),
    "another shape": (lambda path: rewrite(path, lambda volume: volume[:-2]), "should have one shape"),
    "another place": (lambda path: rewrite(path, lambda volume: volume, AFFINE + 1), "should have one affine"),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory, write_case) -> Path:
    """A hundred cases; the first twenty are damaged in ten ways."""
    folder = tmp_path_factory.mktemp("cases")
    for number in range(NUM_CASES):
        files = write_case(folder / f"case_{number:03d}", f"case_{number:03d}", MODALITIES)
        if number < NUM_DAMAGED:
            damage, _ = list(DAMAGES.values())[number % len(DAMAGES)]
            damage(files["t2"])
    return folder


def test_a_hundred_cases_two_processes_killed_twice(cases, tmp_path):
    weights, output = tmp_path / "model.pt", tmp_path / "masks"
    torch.save(small_weights(), weights)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", configs("inference", "multi_gpu_inference")]
    command += ["--dataset_dir", str(cases), "--checkpoint", str(weights), "--output_dir", str(output)]
    command += [*SMALL, "--skip_existing", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def masks() -> list[str]:
        return sorted(path.name for path in output.glob("[!.]*")) if output.is_dir() else []

    for enough in (10, 40):
        process = subprocess.Popen(
            command,
            cwd=BUNDLE,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while len(masks()) < enough:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    there = {name: (output / name).stat().st_mtime_ns for name in masks()}
    assert len(there) < NUM_CASES - NUM_DAMAGED

    result = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode != 0  # there were faults
    names = [f"case_{number:03d}_seg.nii.gz" for number in range(NUM_DAMAGED, NUM_CASES)]
    files = [path.name for path in output.iterdir() if path.suffix != ".json"]
    assert sorted(files) == names  # and nothing else
    assert {name: (output / name).stat().st_mtime_ns for name in there} == there  # each case once
    for name in names:
        mask = nib.load(output / name)
        assert mask.shape == SHAPE
        assert np.allclose(mask.affine, AFFINE)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Case case_")]
    assert len(lines) == NUM_DAMAGED
    for number in range(NUM_DAMAGED):
        [line] = [line for line in lines if line.startswith(f"Case case_{number:03d}: ")]
        assert list(DAMAGES.values())[number % len(DAMAGES)][1] in line


def test_the_masks_are_those_of_one_process(cases, tmp_path):
    """Of four of the cases, by the plain command."""
    weights = tmp_path / "model.pt"
    torch.save(small_weights(), weights)
    few = tmp_path / "few"
    few.mkdir()
    for number in range(NUM_DAMAGED, NUM_DAMAGED + 4):
        (few / f"case_{number:03d}").symlink_to(cases / f"case_{number:03d}")
    common = [*SMALL, "--checkpoint", str(weights), "--dataset_dir", str(few)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    for output, launcher, config_file in (
        (tmp_path / "one", ["-m", "monai.bundle"], configs("inference")),
        (tmp_path / "two", two, configs("inference", "multi_gpu_inference")),
    ):
        command = [sys.executable, *launcher, "run", "--config_file", config_file, *common]
        result = subprocess.run(
            [*command, "--output_dir", str(output)], cwd=BUNDLE, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    one, two = (sorted((tmp_path / name).glob("*.nii.gz")) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 4
    for first, second in zip(one, two):
        assert (np.asarray(nib.load(first).dataobj) == np.asarray(nib.load(second).dataobj)).all()
