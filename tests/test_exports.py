"""The exported networks: the logits of eager PyTorch at any batch and size, the same masks by ``inference.json``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import RECORD, SETTINGS

from scripts.__main__ import main
from scripts.errors import InputError, one_sentence
from scripts.networks import MISSU, Windows
from scripts.networks.missu import windows_of_stages
from scripts.sources.phantom import make_phantom, write_phantoms
from scripts.weights import export as export_module
from scripts.weights.engines import OnnxNetwork, TorchExportNetwork, TorchScriptNetwork
from scripts.weights.export import export
from scripts.weights.record import read_record, write_record

pytestmark = pytest.mark.clients

BUNDLE = Path(__file__).parents[1] / "bundle"
SIZE = 32
TINY = {"hidden_size": 32, "mlp_dim": 32, "num_layers": 2, "num_heads": 4}
FORMATS = {
    "ts": ("model.ts", TorchScriptNetwork),
    "onnx": ("model.onnx", OnnxNetwork),
    "pt2": ("model.pt2", TorchExportNetwork),
}


@pytest.fixture(scope="module")
def network() -> MISSU:
    torch.manual_seed(0)
    return MISSU(img_size=SIZE, **TINY).eval()


@pytest.fixture(scope="module")
def checkpoint(network: MISSU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``inference.json`` and an overlay that makes its network tiny."""
    overlay = tmp_path_factory.mktemp("configs") / "tiny.json"
    knobs = {"roi_size": [SIZE] * 3, "num_workers": 0}
    overlay.write_text(json.dumps(knobs | {f"network_def#{name}": value for name, value in TINY.items()}))
    return [str(BUNDLE / "configs" / "inference.json"), str(overlay)]


@pytest.fixture(scope="module")
def exports(checkpoint: Path, config_file: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "new"
    export(folder, checkpoint, config_file, repeats=1)
    return folder


def test_all_formats_and_the_table_are_written(exports):
    files = {"model.ts", "model.onnx", "model.pt2", "model.safetensors"}
    assert {path.name for path in exports.iterdir()} == files | {"exports.md"}
    table = (exports / "exports.md").read_text()
    assert all(name in table for name in files)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(1, 32, 40, 48), (3, 16, 24, 64)], ids=["batch 1", "batch 3"])
def test_logits_are_those_of_eager(exports, network, kind, shape):
    file, load = FORMATS[kind]
    images, _ = make_phantom(0, (64, 64, 64))
    volume = torch.from_numpy(np.stack([images[name] for name in ("t1", "t1ce", "t2", "flair")]).astype(np.float32))
    volume = (volume - volume.mean()) / volume.std()
    batch, *sides = shape
    image = torch.stack([volume[:, i : i + sides[0], : sides[1], : sides[2]] for i in range(batch)])
    with torch.no_grad():
        logits, wanted = load(exports / file)(image), network(image)
    assert (logits - wanted).abs().max() < 1e-4
    assert torch.equal(logits.argmax(dim=1), wanted.argmax(dim=1))


@pytest.fixture(scope="module")
def with_windows(network: MISSU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in ONNX with windows as inputs beside the image: of any number and size."""
    path = tmp_path_factory.mktemp("windows") / "model.onnx"
    auto = torch.export.Dim.AUTO
    axes = tuple({0: auto, 1: auto} for _ in range(3))
    torch.onnx.export(
        network,
        (torch.rand(2, 4, 32, 48, 40), windows_of_stages((32, 47, 38), (32, 48, 40), (16, 16, 16))),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=(dict.fromkeys((0, 2, 3, 4), auto), [Windows(axes, axes)] * 4),
    )
    return path


@pytest.mark.parametrize("sides", [(45, 53, 43), (90, 106, 76)], ids=["one of some sides", "brain at 2 mm"])
def test_another_engine_segments_a_brain_in_one_pass(with_windows, network, sides):
    images, _ = make_phantom(0, sides)
    volume = torch.from_numpy(np.stack([images[name] for name in ("t1", "t1ce", "t2", "flair")]).astype(np.float32))
    volume = (volume - volume.mean()) / volume.std()
    window = [-(-side // 8) * 8 for side in sides]
    image = torch.zeros(1, 4, *window)
    image[..., : sides[0], : sides[1], : sides[2]] = volume
    windows = windows_of_stages(sides, window, (64, 48, 48))
    session = pytest.importorskip("onnxruntime").InferenceSession(with_windows, providers=["CPUExecutionProvider"])
    values = [image, *(matrix for stage in windows for matrix in (*stage.averages, *stage.weights))]
    names = [entry.name for entry in session.get_inputs()]
    (logits,) = session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})
    with torch.no_grad():
        wanted = network(image, windows)
        assert not torch.allclose(wanted, network(image), atol=0.05)
    assert np.abs(logits - wanted.numpy()).max() < 1e-4


def test_safetensors_hold_the_weights(exports, network):
    weights = pytest.importorskip("safetensors.torch").load_file(exports / "model.safetensors")
    state = network.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) for key in state)


@pytest.mark.parametrize("kind", FORMATS)
def test_inference_writes_the_same_mask(exports, checkpoint, config_file, tmp_path, monkeypatch, kind):
    """In windows of the training, as an exported network has them always."""
    monkeypatch.chdir(BUNDLE)
    write_phantoms(tmp_path / "cases", 1, (40, 44, 36))
    overlay = str(BUNDLE / "configs" / f"inference_{kind}.json")
    runs = {
        "eager": {"config_file": config_file, "checkpoint": str(checkpoint), "stretch": 1.0},
        "exported": {"config_file": [*config_file, overlay], "exported": str(exports / FORMATS[kind][0])},
    }
    masks = []
    for name, options in runs.items():
        folder = tmp_path / name
        monai.bundle.run(dataset_dir=str(tmp_path / "cases"), output_dir=str(folder), logging_file=False, **options)
        masks.append(np.asarray(nib.load(folder / "phantom_000_seg.nii.gz").dataobj))
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


def test_the_record_goes_with_each_format(checkpoint, config_file, tmp_path, monkeypatch):
    for name in ("write_torchscript", "write_onnx", "write_torch_export"):
        monkeypatch.setattr(export_module, name, lambda path, *_: path.write_text(path.name))
    monkeypatch.setattr(export_module, "compare", lambda *_: "a table")
    monkeypatch.setattr(export_module, "PACKAGES", ("torch",))  # of the others nothing is asked here
    monkeypatch.setattr(export_module, "safetensors_torch", SimpleNamespace(save=lambda _: b""))
    weights = tmp_path / "weights.pt"
    weights.write_bytes(checkpoint.read_bytes())
    settings = {**SETTINGS, "roi_size": [32, 32, 32], "spacing_mm": [-1, -1, -1]}  # those of the config
    write_record(weights, {**RECORD, "settings": settings})
    export(tmp_path / "exports", weights, config_file)
    for file, _ in FORMATS.values():
        assert read_record(tmp_path / "exports" / file)["settings"] == read_record(weights)["settings"]
    export(tmp_path / "exports", checkpoint, config_file)  # which have no record
    assert not list((tmp_path / "exports").glob("*.json"))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_network_that_is_not_there(config_file, tmp_path, kind):
    with pytest.raises(InputError, match=r"no\.file is not there: python -m scripts export writes it"):
        FORMATS[kind][1](str(tmp_path / "no.file"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "[32,36,32]"], "size should be divisible by 8, from 16 on, W is 36."),
        (["--checkpoint", "/no/model.pt"], "The weights /no/model.pt are not there"),
    ],
    ids=["size", "weights"],
)
def test_bad_input_ends_in_one_sentence_and_writes_nothing(checkpoint, config_file, tmp_path, arguments, sentence):
    folder = tmp_path / "exports"
    options = ["--checkpoint", str(checkpoint), "--output_dir", str(folder), "--config_file", str(config_file)]
    assert sentence in str(main(["export", *options, *arguments]))
    assert not folder.exists()


def test_weights_of_another_network_are_not_exported(network, config_file, tmp_path):
    other = tmp_path / "other.pt"
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, other)
    folder = tmp_path / "exports"
    sentence = str(
        main(["export", "--checkpoint", str(other), "--output_dir", str(folder), "--config_file", str(config_file)])
    )
    assert sentence.startswith(f"Error: The weights {other} are of another network: they lack")
    assert "\n" not in sentence
    assert not folder.exists()


def test_an_export_that_fails_leaves_nothing(checkpoint, config_file, tmp_path, monkeypatch):
    def compare(*_: object) -> str:
        raise InputError("The logits differ.")

    monkeypatch.setattr(export_module, "compare", compare)
    for name in ("write_torchscript", "write_onnx", "write_torch_export"):
        monkeypatch.setattr(export_module, name, lambda path, *_: path.touch())
    (tmp_path / "model.ts").write_text("the old one")
    with pytest.raises(InputError, match="The logits differ"):
        export(tmp_path, checkpoint, config_file)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.ts", "the old one")]


def test_a_package_that_is_missing_is_named(checkpoint, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "PACKAGES", ("torch", "not_a_package"))
    with pytest.raises(InputError) as raised:
        export(tmp_path / "exports", checkpoint, config_file)
    assert one_sentence(raised.value) == "Export needs not_a_package: pip install not_a_package."
    assert not (tmp_path / "exports").exists()
