"""Another engine computes a network: the logits and masks of PyTorch, anew for other weights, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.inference import AdaptiveInferer
from scripts.networks import MISSU, Ensemble, Mirrored
from scripts.networks.missu import windows_of_stages
from scripts.sources.phantom import make_phantom, write_phantoms
from scripts.weights import OpenvinoNetwork, TorchExportNetwork, compiled, computed_by, with_engine

BUNDLE = Path(__file__).parents[1] / "bundle"
SIZE = 16
TINY = {"hidden_size": 32, "mlp_dim": 32, "num_layers": 2, "num_heads": 4}


@pytest.fixture
def network() -> MISSU:
    torch.manual_seed(0)
    return MISSU(img_size=SIZE, **TINY).eval()


def brain(*sides: int) -> torch.Tensor:
    """A piece from the middle of a phantom (1, 4, H, W, D)."""
    images, _ = make_phantom(0, (48, 48, 48))
    volume = torch.from_numpy(np.stack([images[name] for name in ("t1", "t1ce", "t2", "flair")]).astype(np.float32))
    h, w, d = (slice(24 - side // 2, 24 - side // 2 + side) for side in sides)
    return ((volume - volume.mean()) / volume.std())[None, :, h, w, d]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "onnxruntime"}, "engine should be torch or openvino, got onnxruntime"),
        ({"precision": "int8"}, "precision should be float32 or bfloat16, got int8."),
        ({"engine": "openvino", "device": "cuda:0"}, "engine openvino computes on a CPU, device is cuda:0"),
    ],
)
def test_what_there_is_not_is_refused(network, options, sentence):
    with pytest.raises(InputError, match=sentence):
        with_engine(network, **{"engine": "torch", "precision": "float32", "device": "cpu", **options})


def test_a_network_without_windows_is_refused():
    with pytest.raises(InputError, match="that take windows, Conv3d does not"):
        with_engine(torch.nn.Conv3d(4, 4, 1), "openvino", "float32", "cpu")


def test_a_package_that_is_missing_is_named(network, monkeypatch):
    monkeypatch.setattr(compiled, "has_openvino", False)
    with pytest.raises(InputError, match=r"engine openvino needs a package: pip install openvino\."):
        with_engine(network, "openvino", "float32", "cpu")


def test_an_exported_network_has_its_engine():
    exported = TorchExportNetwork.__new__(TorchExportNetwork)
    assert with_engine(exported, "torch", "float32", "cpu") is exported
    with pytest.raises(InputError, match="has its engine"):
        with_engine(exported, "torch", "bfloat16", "cpu")


def test_bfloat16_is_close_and_says_so(network):
    image, windows = brain(24, 24, 16), windows_of_stages((20, 24, 16), (24, 24, 16), (SIZE,) * 3)
    half = with_engine(network, "torch", "bfloat16", "cpu")
    with torch.no_grad():
        wanted, logits = network(image, windows), half(image, windows)
    assert logits.dtype == torch.float32
    assert 0 < (logits - wanted).abs().max() < 0.1 * wanted.abs().max()
    told = f"torch {torch.__version__} bfloat16, mean over flips on the axes [0, 2]"
    assert computed_by(Mirrored(half, [0, 2]), amp=False) == told
    assert computed_by(network, amp=False) == f"torch {torch.__version__} float32"


@pytest.mark.clients
class TestOpenvino:
    @pytest.mark.parametrize("kind", ["one", "ensemble", "mirrored"])
    def test_masks_are_those_of_torch(self, network, tmp_path, kind):
        network = Ensemble(network, 2) if kind == "ensemble" else network
        engine = OpenvinoNetwork(network, "float32", tmp_path / "cache")
        networks = [Mirrored(each, [0, 1, 2]) if kind == "mirrored" else each for each in (network, engine)]
        inferer = AdaptiveInferer((SIZE,) * 3, stretch=2, overlap=0.5)
        for sides in ((27, 31, 21), (15, 12, 16), (45, 20, 18)):  # one window, one of roi_size, several
            with torch.no_grad():
                wanted, logits = (inferer(brain(*sides), each) for each in networks)
            assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()

    def test_other_weights_are_compiled_anew_and_the_same_are_not(self, network, tmp_path, monkeypatch):
        image = brain(16, 16, 16)
        engine = OpenvinoNetwork(network, "float32", tmp_path)
        first, weights = engine(image), {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict({key: value * 1.1 for key, value in weights.items()})
        with torch.no_grad():
            torch.testing.assert_close(engine(image), network(image), rtol=0, atol=1e-4)
        network.load_state_dict(weights)
        with torch.no_grad():
            torch.testing.assert_close(first, network(image), rtol=0, atol=1e-4)

        def convert(*_: object) -> None:
            raise AssertionError("It was converted before.")

        monkeypatch.setattr(compiled, "write_converted", convert)
        torch.testing.assert_close(OpenvinoNetwork(network, "float32", tmp_path)(image), first, rtol=0, atol=1e-4)

    def test_a_network_that_comes_out_wrong_is_refused(self, network, tmp_path, monkeypatch):
        monkeypatch.setattr(compiled, "TOLERANCE", 0.0)
        with pytest.raises(InputError, match="The logits of OpenVINO should be those of torch"):
            OpenvinoNetwork(network, "float32", tmp_path)(brain(16, 16, 16))
        assert not list(tmp_path.iterdir())

    def test_inference_writes_the_same_mask_and_says_by_what(self, network, tmp_path, monkeypatch):
        monkeypatch.chdir(BUNDLE)
        write_phantoms(tmp_path / "cases", 1, (40, 44, 36))
        weights = tmp_path / "model.pt"
        torch.save(network.state_dict(), weights)
        tiny = tmp_path / "tiny.json"
        knobs = {"roi_size": [SIZE] * 3, "num_workers": 0, "engine_cache_dir": str(tmp_path / "cache")}
        tiny.write_text(json.dumps(knobs | {f"network_def#{name}": value for name, value in TINY.items()}))
        masks = []
        for engine in ("torch", "openvino"):
            monai.bundle.run(
                config_file=[str(BUNDLE / "configs" / "inference.json"), str(tiny)],
                logging_file=False,
                **{"dataset_dir": str(tmp_path / "cases"), "output_dir": str(tmp_path / engine)},
                **{"checkpoint": str(weights), "engine": engine, "device": "cpu"},
            )
            masks.append(np.asarray(nib.load(tmp_path / engine / "phantom_000_seg.nii.gz").dataobj))
            record = json.loads((tmp_path / engine / "phantom_000_seg.json").read_text())
            assert record["settings"]["computed_by"].split()[::2] == [engine, "float32"]
        assert masks[0].any()
        np.testing.assert_array_equal(*masks)


@pytest.mark.clients
def test_what_was_compiled_at_one_precision_is_not_taken_at_another(network, tmp_path):
    """In one cache: OpenVINO itself does not tell them apart."""
    image = brain(16, 16, 16)
    with torch.no_grad():
        wanted = network(image)
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.1), ("float32", 1e-3)):
        logits = OpenvinoNetwork(network, precision, tmp_path)(image)
        assert (logits - wanted).abs().max() < tolerance * wanted.abs().max(), precision


@pytest.mark.clients
def test_other_code_of_the_network_or_other_arguments_are_converted_anew(network, monkeypatch):
    assert compiled.fingerprint(Mirrored(network, [0])) != compiled.fingerprint(Mirrored(network, [0, 1]))
    before, read = compiled.fingerprint(network), Path.read_bytes
    changed = lambda path: read(path) + b" " * (path.name == "upsampling.py")  # noqa: E731
    monkeypatch.setattr(Path, "read_bytes", changed)
    assert compiled.fingerprint(network) != before
