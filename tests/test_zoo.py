"""What the model zoo asks of a bundle, and the package: verified by MONAI's own commands."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import nibabel as nib
import pytest
import torch
from conftest import RECORD, SETTINGS

from scripts.networks import MISSU
from scripts.sources.phantom import write_phantoms
from scripts.weights.checkpoints import load_weights
from scripts.weights.record import read_record, write_record

ROOT = Path(__file__).parents[1]
NAME = "missu_brats_mri_segmentation"
BUNDLE = ROOT / "bundle"
METADATA = str(BUNDLE / "configs" / "metadata.json")
INFERENCE = str(BUNDLE / "configs" / "inference.json")
TINY = {"init_filters": 8, "hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
SMALL = {"roi_size": [16, 16, 16], "num_workers": 0} | {f"network_def#{name}": value for name, value in TINY.items()}


@pytest.fixture(scope="module")
def network() -> MISSU:
    torch.manual_seed(0)
    return MISSU(img_size=16, **TINY).eval()


@pytest.fixture
def bundle(tmp_path: Path, network: MISSU) -> Path:
    """A copy of the bundle, with weights, and with what runs leave behind."""
    copy = tmp_path / "bundle"
    for folder in ("configs", "docs", "scripts"):
        shutil.copytree(BUNDLE / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "models").mkdir()
    shutil.copy(BUNDLE / "LICENSE", copy)
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    write_weights(copy, "model", content.getvalue())
    for left in ("eval/case_1.nii.gz", "demo/x.nii.gz", "data/x.nii.gz", "scripts/__pycache__/x.pyc", "models/x.ts"):
        (copy / left).parent.mkdir(exist_ok=True)
        (copy / left).touch()
    for name in ("datalist.json", "folds.json"):  # names of patients
        (copy / "configs" / name).write_text('{"training": [{"case_id": "patient"}]}')
    return copy


def write_weights(bundle: Path, name: str, content: bytes) -> None:
    (bundle / "models" / f"{name}.pt").write_bytes(content)
    settings = SETTINGS | {"roi_size": SMALL["roi_size"]}
    record = RECORD | {"settings": settings, "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "models" / f"{name}.json").write_text(json.dumps(record))


def package(bundle: Path, output_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "package.py", "--bundle", bundle, "--output_dir", output_dir, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_metadata_fits_the_schema(tmp_path):
    schema = os.environ.get("MISSU_METADATA_SCHEMA")
    if not schema:
        pytest.skip("MISSU_METADATA_SCHEMA is not set: it names a copy of the file that metadata.json gives as schema")
    copy = shutil.copy(schema, tmp_path / "schema.json")
    monai.bundle.verify_metadata(meta_file=METADATA, filepath=str(copy))  # does not download what is there


def test_as_the_zoo_verifies_it(bundle):
    # The calls of its ci/verify_bundle.py: no size is changed, so the patch has 8 x 8 x 8 voxels.
    files = {"meta_file": str(bundle / "configs/metadata.json"), "config_file": str(bundle / "configs/inference.json")}
    monai.bundle.verify_net_in_out(net_id="network_def", bundle_root=str(bundle), **files)

    torch.save(MISSU(img_size=128).state_dict(), bundle / "models" / "model.pt")
    (bundle / "models" / "model.json").unlink()
    exported, weights = bundle / "models" / "verify_model.ts", str(bundle / "models" / "model.pt")
    monai.bundle.ckpt_export(
        net_id="network_def", filepath=str(exported), ckpt_file=weights, bundle_root=str(bundle), **files
    )
    assert exported.is_file()


def test_unit_test_for_the_zoo(bundle, tmp_path):
    (tmp_path / "models").mkdir()
    bundle.rename(tmp_path / "models" / NAME)
    command = [sys.executable, "-W", "ignore", ROOT / "ci" / "unit_tests" / f"test_{NAME}.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=without_path())
    assert done.returncode == 0, done.stderr


def test_metadata_pins_the_lower_bounds_of_what_is_installed():
    metadata = json.loads(Path(METADATA).read_text())
    pins = dict(metadata["required_packages_version"])
    pins |= {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"]}
    bounds = dict(re.findall(r"^([\w-]+)>=([\w.]+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    assert bounds.pop("numpy") == "1.26.4"  # of MONAI Label; the zoo's newest Python has no such wheel
    assert pins == bounds


def test_torchscript_by_ckpt_export(network, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle)
    path = tmp_path / "model.ts"
    monai.bundle.ckpt_export(
        "network_def", str(path), "models/model.pt", "configs/metadata.json", "configs/inference.json", **SMALL
    )
    scripted = torch.jit.load(path)
    image = torch.rand(2, 4, 16, 24, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (scripted(image) - network(image)).abs().max() < 1e-4


def test_packages_are_the_same_bytes(bundle, tmp_path):
    first = package(bundle, tmp_path / "a")
    for path in bundle.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (bundle / "LICENSE").chmod(0o600)
    second = package(bundle, tmp_path / "b")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    version = json.loads(Path(METADATA).read_text())["version"]
    names = {f"{NAME}_v{version}.zip", f"{NAME}_v{version}.zip.sha256"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_package_without_weights(bundle, tmp_path):
    (bundle / "models" / "model.pt").unlink()
    refused = package(bundle, tmp_path / "dist")
    assert refused.returncode == 1
    assert "model.pt and its record model.json should be there, they are not." in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "dist").exists()


def test_all_weights_with_a_record_are_packed_and_no_others(bundle, tmp_path):
    write_weights(bundle, "synthetic", b"other weights")
    (bundle / "models" / "mine.pt").write_bytes(b"of a training")
    (bundle / "models" / "synthetic.LICENSE").write_text("terms of its own")
    with zipfile.ZipFile(package(bundle, tmp_path / "dist").stdout.strip()) as archive:
        packed = [name for name in archive.namelist() if "/models/" in name]
    names = ("model.json", "model.pt", "synthetic.LICENSE", "synthetic.json", "synthetic.pt")
    assert packed == [f"{NAME}/models/{name}" for name in names]


def test_no_package_of_weights_with_the_record_of_others(bundle, tmp_path):
    (bundle / "models" / "model.json").write_text(json.dumps({"sha256": "0" * 64}))
    refused = package(bundle, tmp_path / "dist")
    assert refused.returncode == 1
    assert re.search(r"model.pt is not what \S+model.json tells of, the sha256 differs", refused.stderr)
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "dist").exists()


def test_what_is_over_25_mb_is_listed_with_its_sha256(bundle, tmp_path):
    weights = b"x" * 25_000_001
    write_weights(bundle, "model", weights)
    with zipfile.ZipFile(package(bundle, tmp_path / "dist").stdout.strip()) as archive:
        archive.extractall(tmp_path)
    listed = (tmp_path / NAME / "large_files.yml").read_text().splitlines()
    digest = hashlib.sha256(weights).hexdigest()
    entry = ['path: "models/model.pt"', 'url: ""', f'hash_val: "{digest}"', 'hash_type: "sha256"']
    assert [line.strip(" -") for line in listed if not line.startswith("#")] == ["large_files:", *entry]


def test_the_page_for_hugging_face_has_the_card_and_what_the_site_reads(bundle, tmp_path):
    command = [
        sys.executable,
        ROOT / "tools" / "hugging_face.py",
        "--bundle",
        bundle,
        "--output_dir",
        tmp_path / "dist",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    folder = Path(done.stdout.strip())
    assert folder == tmp_path / "dist" / "hugging_face", done.stderr
    _, head, card = (folder / "README.md").read_text().split("---\n", 2)
    assert card.strip() == (BUNDLE / "docs" / "README.md").read_text().strip()
    told = json.loads(head)  # JSON is YAML
    assert (told["library_name"], told["pipeline_tag"]) == ("monai", "image-segmentation")
    assert (folder / told["license_link"]).is_file()
    metadata = json.loads(Path(METADATA).read_text())
    results = told["model-index"][0]["results"]
    assert {
        result["dataset"]["name"]: {metric["name"]: metric["value"] for metric in result["metrics"]}
        for result in results
    } == metadata["eval_metrics"]
    assert (folder / "models" / "model.pt").read_bytes() == (bundle / "models" / "model.pt").read_bytes()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0  # made anew


@pytest.mark.parametrize("path", sorted((BUNDLE / "models").glob("*.pt")), ids=lambda path: path.name)
def test_what_is_shipped_fits_its_record(path):
    record = read_record(path)  # checks the sha256
    assert path.stat().st_size < 25e6
    assert record["license"]
    assert set(record["scan_range"]) == {"volume_ml", "air", "num_cases"}
    network = MISSU(**record["settings"]["network"])
    load_weights(network, path)
    assert network.in_channels == len(record["settings"]["modalities"])
    if "CHAOS" in record["dataset"]:
        assert record["license"] in path.with_suffix(".LICENSE").read_text()
    commercial = not record["cases"]
    assert commercial == (record["license"] == "Apache-2.0")


def test_weights_are_shipped_in_float16_with_the_terms_of_their_data(bundle, network, tmp_path):
    output, settings = tmp_path / "shipped.pt", {"modalities": ["t1"], "spacing_mm": [2, 2, -1], "roi_size": [16] * 3}
    kept = {"label_convention": "brats2018", **settings}
    weights = bundle / "models" / "model.pt"
    write_record(weights, {"dataset": "phantoms", "cases": [], "settings": kept, "epoch": 1, "metrics": {"dice": 0.5}})
    command = [sys.executable, ROOT / "tools" / "ship.py", "--checkpoint", weights, "--output", output]
    command += ["--dataset", "D", "--license", "L", "--settings", "{'spacing_mm': [2, 2, 8]}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shipped = torch.load(output, weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(shipped[name], value.half() if value.is_floating_point() else value)
    record = read_record(output)  # checks the sha256
    assert (record["dataset"], record["license"], record["metrics"]) == ("D", "L", {})
    assert record["settings"] == {**kept, "spacing_mm": [2, 2, 8]}
    (bundle / "models" / "model.json").unlink()
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert "should have a record" in refused.stderr


def test_unpacked_it_segments_in_an_empty_folder(bundle, tmp_path):
    done = package(bundle, tmp_path / "dist")
    with zipfile.ZipFile(done.stdout.strip()) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        archive.extractall(tmp_path / "empty")
    assert {"LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"} <= names
    assert not [name for name in names if name.startswith(("eval", "demo", "data")) or name.endswith((".pyc", ".ts"))]
    configs = {f"configs/{path.name}" for path in BUNDLE.joinpath("configs").iterdir()}
    assert {name for name in names if name.startswith("configs/")} == configs - {
        "configs/datalist.json",
        "configs/folds.json",
    }
    assert "large_files.yml" not in names  # none is

    (folder,) = (tmp_path / "empty").iterdir()
    write_phantoms(tmp_path / "cases", 1, (32, 36, 32))
    options = [text for key, value in SMALL.items() for text in (f"--{key}", str(value))]
    paths = ["--dataset_dir", tmp_path / "cases", "--output_dir", tmp_path / "masks"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *paths, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=without_path())
    assert done.returncode == 0, done.stderr
    assert "models/model.pt: trained on BraTS" in done.stdout
    assert nib.load(tmp_path / "masks" / "phantom_000_seg.nii.gz").shape == (32, 36, 32)


def without_path() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
