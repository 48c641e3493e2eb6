"""MONAI Label serves the bundle from a folder, without a network: labels, masks, training.

The server runs in an environment of its own, ``.venv-clients``, made from ``requirements-clients.txt`` at first use.
Its masks are compared with those of ``inference.json`` on the same studies and weights.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scripts.networks import MISSU
from scripts.sources.phantom import make_phantom

pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[1]

MODEL = "missu_brats_mri_segmentation"
REAL = "TCGA-DU-7294"  # of MISSU_DATA/brats
MODALITIES = ("t1", "t1ce", "t2", "flair")
SIZE = 32
TINY = {"hidden_size": 32, "mlp_dim": 32, "num_layers": 1, "num_heads": 4}
# Of the load: each is asked for again and again, from several clients at once.
SHAPES = [(40, 44, 36), (32, 32, 32), (64, 40, 32), (33, 47, 35), (56, 64, 48)]
DAMAGED = {
    "cut": "cannot be read as an image",
    "nan": "should be finite",
    "lacking": "t1ce is missing",
    "three": "it has 3 channel(s)",
}
NUM_CLIENTS, NUM_REQUESTS = 8, 100
# Oblique, and not in the order left, posterior, superior: a server that mixes up axes or signs cannot hide here.
AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("zxy", (75, 8, -5), degrees=True).as_matrix() * (-1.25, 1.5, 2.0)
AFFINE[:3, 3] = (33, -21, 12)


@dataclass
class Server:
    """A running server: its address, its folders, and what it has logged so far."""

    url: str
    bundle: Path
    studies: Path
    log: Path
    pid: int

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        headers = {"Content-Type": content_type}
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=600) as response:
            return response.read()

    def segment(self, image: str, output: Path) -> Path:
        output.write_bytes(self.request("POST", f"/infer/{MODEL}?image={image}&output=image"))
        return output

    def upload(self, method: str, path: str, name: str, files: Sequence[Path], **fields: str) -> bytes:
        """Files and fields of a form."""
        parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
        parts += [f'name="{name}"; filename="{file.name}"\r\n\r\n'.encode() + file.read_bytes() for file in files]
        body = b"".join(b"--parts\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
        return self.request(method, path, body + b"--parts--\r\n", "multipart/form-data; boundary=parts")

    def save_label(self, image: str, label: Path) -> None:
        """What an annotator's viewer does with a finished label."""
        self.upload("PUT", f"/datastore/label?image={image}&tag=final", "label", [label])


@pytest.fixture(scope="module")
def python(environment: Callable[[str, Path], Path]) -> Path:
    """The Python of the server's environment."""
    return environment(".venv-clients", ROOT / "requirements-clients.txt")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of a file per modality: ``case_0`` to ``case_2``, those of the load, damaged ones among them, a real one
    where somebody has it; two of a 4D file.
    """
    folder = tmp_path_factory.mktemp("studies")

    def save(name: str, volume: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / f"{name}.nii.gz")

    for number in range(3):
        images, label = make_phantom(number, (40, 44, 36))
        for modality in MODALITIES:
            save(f"case_{number}_{modality}", images[modality])
        save(f"case_{number}_seg", label)
        if number == 0:
            save("whole_4d", np.stack([images[modality] for modality in MODALITIES], axis=-1))
            save("three_4d", np.stack([images[modality] for modality in MODALITIES[:3]], axis=-1))
    for number, shape in enumerate(SHAPES):
        images, _ = make_phantom(10 + number, shape)
        for modality in MODALITIES:
            save(f"load_{number}_{modality}", images[modality])
    images, _ = make_phantom(20, SHAPES[0])
    for name in DAMAGED.keys() - {"three"}:
        for modality in MODALITIES:
            save(f"{name}_{modality}", images[modality])
    cut = folder / "cut_t2.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-500])
    (folder / "lacking_t1ce.nii.gz").unlink()
    save("nan_t1", np.where(images["t1"] > images["t1"].mean(), np.nan, images["t1"]))
    if data := os.environ.get("MISSU_DATA"):
        for modality in MODALITIES:
            shutil.copy(Path(data, "brats", "LGG", REAL, f"{REAL}_{modality}.nii.gz"), folder)
    return folder


def edit(config: Path, **values: object) -> None:
    """Sets knobs, and the size of the network, in a config."""
    content = json.loads(config.read_text()) | values
    content["network_def"] |= TINY
    config.write_text(json.dumps(content, indent=4))


@pytest.fixture(scope="module")
def server(python: Path, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("monai_label")
    # A proxy that is not there: what is not on this machine cannot be reached.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    settings = {"PYTHONPATH": str(ROOT / "tests" / "monai_label"), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    filters = {"MONAI_LABEL_DATASTORE_FILE_EXT": '["*_flair.nii.gz", "*_4d.nii.gz"]'}
    env = os.environ | nowhere | settings | filters
    command = [python, "-m", "monailabel.main"]
    download = ["apps", "--download", "--name", "monaibundle", "--output", folder / "apps"]
    subprocess.run([*command, *download], check=True, env=env, cwd=folder, capture_output=True, timeout=300)

    app = folder / "apps" / "monaibundle"
    bundle = app / "model" / MODEL
    ignored = shutil.ignore_patterns("demo", "eval", "__pycache__", "*.pt", "model.json", "synthetic.json")
    shutil.copytree(ROOT / "bundle", bundle, ignore=ignored)
    edit(bundle / "configs" / "inference.json", roi_size=[SIZE] * 3, overlap=0.25)  # a real study is 200 windows
    # Labels that a viewer saves hold the values of our masks.
    edit(
        bundle / "configs" / "train.json",
        roi_size=[SIZE] * 3,
        batch_size=1,
        num_workers=0,
        label_convention="brats2023",
    )
    torch.manual_seed(0)
    torch.save(MISSU(img_size=SIZE, **TINY).state_dict(), bundle / "models" / "model.pt")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    options = ["--app", app, "--studies", studies, "--host", "127.0.0.1", "--port", str(port)]
    conf = ["--conf", "models", MODEL, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "start_server", *options, *conf],
            env=env,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        running = Server(f"http://127.0.0.1:{port}", bundle, studies, log, process.pid)
        wait_for(running, process)
        yield running
    finally:
        for name in (signal.SIGTERM, signal.SIGKILL):  # the whole session: a server may have workers
            if process.poll() is None:
                os.killpg(process.pid, name)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    continue


def wait_for(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.request("GET", "/info/")
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"The server did not start:\n{server.log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def all_expected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The masks of good studies by the bundle's own ``inference.json``, with the server's weights."""
    folder, masks = tmp_path_factory.mktemp("expected"), tmp_path_factory.mktemp("masks")
    names = ["case_0", *(f"load_{number}" for number in range(len(SHAPES)))]
    for name in names:
        for modality in MODALITIES:
            shutil.copy(server.studies / f"{name}_{modality}.nii.gz", folder)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    options = ["--dataset_dir", folder, "--output_dir", masks, "--num_workers", "0"]
    subprocess.run([*command, *options], cwd=server.bundle, check=True, timeout=300)
    return {name: np.asarray(nib.load(masks / f"{name}_seg.nii.gz").dataobj) for name in names}


@pytest.fixture(scope="module")
def expected(all_expected: dict[str, np.ndarray]) -> np.ndarray:
    return all_expected["case_0"]


def test_info_names_the_values_of_the_mask(server):
    info = json.loads(server.request("GET", "/info/"))
    assert info["models"][MODEL]["labels"] == {"ncr/net": 1, "ed": 2, "et": 3}
    assert MODEL in info["trainers"]


@pytest.mark.parametrize("image", ["case_0", "whole"], ids=["a file per modality", "one 4D file"])
def test_mask_is_that_of_the_bundle_in_the_space_of_the_study(server, expected, tmp_path, image):
    path = server.segment(image, tmp_path / "mask.nii.gz")
    mask = nib.load(path)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) == {0, 1, 2, 3}  # else the comparison would say little
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def geometry(python: Path, *images: Path) -> list[list[float]]:
    """Size, spacing, origin and direction, as SimpleITK, and so 3D Slicer, reads them."""
    script = """
import json, sys
import SimpleITK
images = [SimpleITK.ReadImage(path) for path in sys.argv[1:]]
print(json.dumps([[*i.GetSize(), *i.GetSpacing(), *i.GetOrigin(), *i.GetDirection()] for i in images]))
"""
    done = subprocess.run([python, "-c", script, *images], check=True, capture_output=True, timeout=120)
    return json.loads(done.stdout)


def test_simpleitk_sees_the_geometry_of_the_study(server, python, tmp_path):
    mask = server.segment("case_0", tmp_path / "mask.nii.gz")
    of_mask, of_study = geometry(python, mask, server.studies / "case_0_flair.nii.gz")
    np.testing.assert_allclose(of_mask, of_study, atol=1e-4)


def test_a_study_can_be_segmented_again(server, expected, tmp_path):
    for name in ("first.nii.gz", "second.nii.gz"):
        mask = nib.load(server.segment("case_0", tmp_path / name))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def test_files_sent_by_a_client(server, expected, tmp_path):
    """Four files as a session, for who has no access to the studies folder; the server keeps them as a folder."""
    files = [server.studies / f"case_0_{modality}.nii.gz" for modality in MODALITIES]
    session = json.loads(server.upload("PUT", "/session/", "files", files))["session_id"]
    path = f"/infer/{MODEL}?session_id={session}&output=image"
    (tmp_path / "mask.nii.gz").write_bytes(
        server.upload("POST", path, "file", [], params=json.dumps({"result_extension": ".nii.gz"}))
    )
    server.request("DELETE", f"/session/{session}")
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def test_a_real_study(server, python, real_data, tmp_path):
    path = server.segment(REAL, tmp_path / "mask.nii.gz")
    study_path = real_data / "brats" / "LGG" / REAL / f"{REAL}_flair.nii.gz"
    mask, study = nib.load(path), nib.load(study_path)
    assert mask.shape == study.shape
    np.testing.assert_allclose(mask.affine, study.affine, atol=1e-4)
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2, 3}
    # Nothing is computed outside the box of the brain, which lies off the middle of the scan.
    brain = np.zeros(study.shape, bool)
    for modality in MODALITIES:
        brain |= np.asarray(nib.load(study_path.with_name(f"{REAL}_{modality}.nii.gz")).dataobj) != 0
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(brain))
    assert values[box].any()
    assert values[box].sum() == values.sum()
    of_mask, of_study = geometry(python, path, study_path)
    np.testing.assert_allclose(of_mask, of_study, atol=1e-4)


def test_a_study_of_three_channels_is_refused_with_a_sentence(server, tmp_path):
    with pytest.raises(urllib.error.HTTPError):
        server.segment("three", tmp_path / "mask.nii.gz")
    sentence = "should be 3D with 4 channel(s) (t1, t1ce, t2, flair), it has 3 channel(s)"
    deadline = time.monotonic() + 10  # the traceback is logged after the answer
    while sentence not in server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sentence in server.log.read_text()


def held_by(pid: int) -> dict[str, int]:
    """What a process and its children hold: MiB of memory, open files."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pids = [pid, *map(int, children)]
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in pids)
    files = sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in pids)
    return {"mib": pages * os.sysconf("SC_PAGE_SIZE") // 2**20, "files": files}


def test_many_clients_at_once(server, all_expected, tmp_path):
    """Images of many sizes, damaged ones among them: each gets its mask or its refusal, and nothing is kept."""
    names = [*(name for name in all_expected if name != "case_0"), *DAMAGED]

    def ask(number: int) -> str:
        name = names[number % len(names)]
        output = tmp_path / f"{number}.nii.gz"
        try:
            server.segment(name, output)
        except urllib.error.HTTPError as error:
            return f"{name}: refused with {error.code}"
        mask = nib.load(output)
        is_right = np.array_equal(np.asarray(mask.dataobj), all_expected[name])
        return f"{name}: {'right' if is_right and np.allclose(mask.affine, AFFINE, atol=1e-4) else 'wrong'}"

    def ask_all(numbers: Sequence[int]) -> Counter[str]:
        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            return Counter(clients.map(ask, numbers))

    numbers = list(range(NUM_REQUESTS))
    random.Random(0).shuffle(numbers)
    ask_all(numbers[: 4 * NUM_CLIENTS])  # the threads of the server, and what they keep for good
    before = held_by(server.pid)
    answers = ask_all(numbers)
    after = held_by(server.pid)
    print(f"{answers}, before {before}, after {after}")
    asked = Counter(names[number % len(names)] for number in numbers)
    said = {name: "refused with 500" if name in DAMAGED else "right" for name in names}
    assert answers == {f"{name}: {said[name]}": count for name, count in asked.items()}
    log = server.log.read_text()
    for sentence in DAMAGED.values():
        assert sentence in log
    assert after["mib"] < 1.1 * before["mib"]
    assert after["files"] <= before["files"] + NUM_CLIENTS


def test_training_on_labels_saved_in_a_viewer(server, tmp_path):
    for case_id in ("case_1", "case_2"):
        label = nib.load(server.studies / f"{case_id}_seg.nii.gz")
        values = np.asarray(label.dataobj)
        nib.save(nib.Nifti1Image(np.where(values == 4, 3, values), label.affine), tmp_path / "label.nii.gz")
        server.save_label(case_id, tmp_path / "label.nii.gz")

    weights = server.bundle / "models" / "model.pt"
    before = torch.load(weights, weights_only=True)
    body = json.dumps({"max_epochs": 1, "val_split": 0.5, "device": "cpu"}).encode()
    server.request("POST", f"/train/{MODEL}?run_sync=true", body)
    after = torch.load(weights, weights_only=True)
    assert after.keys() == before.keys()
    assert any((after[key] != before[key]).any() for key in before), server.log.read_text()[-3000:]

    mask = nib.load(server.segment("case_0", tmp_path / "mask.nii.gz"))
    assert mask.shape == nib.load(server.studies / "case_0_flair.nii.gz").shape
