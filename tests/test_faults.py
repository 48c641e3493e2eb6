"""What a machine does to a training: kills it, fills up, loses a process. Nothing is lost, and a sentence says it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_workflows import BUNDLE, SMALL, configs, run

EPOCHS, STEPS = 4, 8  # an epoch: four cases in batches of two
ENVIRONMENT = {
    **os.environ,
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    # torchrun's restarted processes else find each other's old addresses: pytorch/pytorch#135712
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts", "1", "-m")


@pytest.fixture(scope="module")
def cases(tmp_path_factory, write_case) -> Path:
    """Five cases, one of them for validation."""
    folder = tmp_path_factory.mktemp("cases")
    for number in range(5):
        write_case(folder / "data" / f"case_{number}", f"case_{number}")
    entries = [{"image": f"case_{i}/case_{i}_flair.nii.gz", "label": f"case_{i}/case_{i}_seg.nii.gz"} for i in range(5)]
    (folder / "datalist.json").write_text(json.dumps({"training": entries[:4], "validation": entries[4:]}))
    return folder


def arguments(cases: Path, folder: Path, *more: str) -> list[str]:
    paths = ["--dataset_dir", cases / "data", "--data_list_file_path", cases / "datalist.json"]
    paths += ["--ckpt_dir", folder, "--output_dir", folder / "logs"]
    knobs = ["--max_epochs", EPOCHS, "--val_interval", 2, "--batch_size", 2, "--checkpoint_interval", 1]
    return [*map(str, [*paths, *SMALL, *knobs]), *more]


def train(cases: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """One process, with dropout: its random numbers belong to the state."""
    more = ("--network_def#dropout", "0.1", *more)
    return run("training", "--config_file", configs("train", "deterministic"), *arguments(cases, folder, *more))


def start(
    cases: Path, folder: Path, *more: str, names=("train", "deterministic"), launcher=("-m",), **environment: str
) -> subprocess.Popen:
    command = [sys.executable, *launcher, "monai.bundle", "run", "training", "--config_file", configs(*names)]
    return subprocess.Popen(
        [*command, *arguments(cases, folder, *more)],
        cwd=BUNDLE,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(folder: Path, name: str, process: subprocess.Popen) -> None:
    while not (folder / name).exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def processes_of(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.fixture(scope="module")
def undisturbed(cases, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = train(cases, folder)
    assert result.returncode == 0, result.stderr
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.pt", "model_final.pt", "model.json")}


def test_two_halves_are_the_whole_with_and_without_workers(cases, undisturbed, tmp_path):
    half = train(cases, tmp_path, "--train#trainer#max_epochs", "2", "--num_workers", "2")
    assert half.returncode == 0, half.stderr
    result = train(cases, tmp_path, "--resume", "true")
    assert result.returncode == 0, result.stderr
    assert "Goes on from" in result.stdout
    assert contents(tmp_path) == undisturbed


def test_killed_twice_and_asked_to_end_once(cases, undisturbed, tmp_path):
    for name, number in (("2.pt", signal.SIGKILL), ("4.pt", signal.SIGTERM), ("6.pt", signal.SIGKILL)):
        process = start(cases, tmp_path, "--resume", "auto", "--network_def#dropout", "0.1")
        wait_for(tmp_path, f"checkpoint_iteration={name}", process)
        process.send_signal(number)
        log, _ = process.communicate()
        assert process.returncode == (128 + signal.SIGTERM if number == signal.SIGTERM else -number), log
    result = train(cases, tmp_path, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path) == undisturbed


def test_a_process_of_two_dies_and_the_training_goes_on(cases, tmp_path):
    """Both are started anew, by torchrun. The weights are those of an undisturbed run of two processes."""
    results = {}
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        process = start(
            cases,
            folder,
            "--batch_size",
            "1",
            "--resume",
            "auto",
            names=("train", "multi_gpu_train"),
            launcher=LAUNCHER,
        )
        if name == "killed":
            wait_for(folder, "checkpoint_iteration=2.pt", process)
            os.kill(processes_of(process.pid)[-1], signal.SIGKILL)
        log, _ = process.communicate()
        assert process.returncode == 0, log
        assert ("Goes on from" in log) == (name == "killed")
        results[name] = (folder / "model_final.pt").read_bytes()
    assert results["killed"] == results["undisturbed"]


def test_two_processes_are_asked_to_end_one_after_the_other(cases, tmp_path):
    """They end after the same step, or one would wait for the other's gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    more = ["--batch_size", "1", "--max_epochs", "1000", "--val_interval", "1000", "--checkpoint_interval", "1000"]
    several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    names = ("train", "multi_gpu_train")
    first, second = (
        start(cases, tmp_path, *more, names=names, **several, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
    )
    while "Epoch: 2/1000" not in first.stdout.readline():
        assert first.poll() is None, second.communicate()[0]
    second.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    first.send_signal(signal.SIGTERM)
    logs = [process.communicate(timeout=60)[0] for process in (first, second)]
    # The first may be done by the second's wish when its own signal comes.
    assert [process.returncode for process in (first, second)] == [143, 143], logs
    [checkpoint] = tmp_path.glob("*.pt")
    assert f"Asked to end: saved {checkpoint}" in logs[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_of_a_training_are_asked_to_end_together(cases, tmp_path, number):
    """As clusters and a terminal do: those that load data have to wait for the checkpoint."""
    more = ["--num_workers", "2", "--max_epochs", "1000", "--val_interval", "1000", "--checkpoint_interval", "1000"]
    process = start(cases, tmp_path, *more)
    while "Epoch: 2/1000" not in process.stdout.readline():
        assert process.poll() is None, process.stdout.read()
    workers = processes_of(process.pid)
    assert workers
    os.killpg(process.pid, number)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, log
    assert "Traceback" not in log
    [checkpoint] = tmp_path.glob("*.pt")
    assert f"Asked to end: saved {checkpoint}" in log
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_worker_dies(cases, tmp_path):
    process = start(cases, tmp_path, "--num_workers", "1", "--max_epochs", "1000", "--checkpoint_interval", "1000")
    wait_for(tmp_path / "logs", "", process)
    while "Epoch: 2/1000" not in process.stdout.readline():
        assert process.poll() is None, process.stdout.read()
    os.kill(processes_of(process.pid)[0], signal.SIGKILL)
    log, _ = process.communicate()
    assert process.returncode == 1
    assert any(line.startswith("Error: A process that loads data died (") for line in log.splitlines()), log


def test_a_loss_that_is_no_number(cases, tmp_path):
    result = train(cases, tmp_path, "--learning_rate", "1e30")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: The loss should be finite, it is ")
    assert "with the cases case_" in last
    assert not list(tmp_path.glob("*.pt"))


def test_a_folder_that_cannot_be_written_to(cases, tmp_path):
    """Not by its permissions, which say nothing to root."""
    (tmp_path / "file").write_text("mine")
    for knob in ("ckpt_dir", "output_dir"):
        result = train(cases, tmp_path / "models", f"--{knob}", str(tmp_path / "file" / "folder"))
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert str(tmp_path / "file") in last
        assert "Traceback" not in result.stderr


def may_mount() -> bool:
    return not subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], stderr=-3).returncode


@pytest.mark.skipif(not may_mount(), reason="this machine does not let a test mount a small /dev/shm of its own")
@pytest.mark.parametrize("size", ["16k", "100k"], ids=["no room for locks", "no room for images"])
def test_a_full_shared_memory(cases, tmp_path, size):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", configs("train")]
    command += arguments(cases, tmp_path, "--num_workers", "1")
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", *command],
        cwd=BUNDLE,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "/dev/shm) is full" in result.stderr.strip().splitlines()[-1]
