"""Another engine than PyTorch computes the network: whole brains in one pass, the same masks in less time."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import convert_to_tensor, optional_import
from torch import nn

from ..errors import InputError
from ..files import check_writable
from ..networks import Mirrored, Windows, missu
from ..networks.missu import NUM_STAGES, windows_of_stages
from .engines import OnnxNetwork, TorchExportNetwork, TorchScriptNetwork

logger = logging.getLogger(__name__)

openvino, has_openvino = optional_import("openvino")
ts_decoder, _ = optional_import("openvino.frontend.pytorch.ts_decoder")

__all__ = ["Bfloat16Network", "OpenvinoNetwork", "computed_by", "with_engine"]

ENGINES = ("torch", "openvino")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# Sides of the example that is traced, of the image in it and of its windows; then of one that is compared, of others
# on each axis.
TRACED = ((48, 64, 40), (48, 61, 38), (24, 16, 16))
COMPARED = ((40, 56, 48), (35, 56, 42), (16, 24, 16))
TOLERANCE = 1e-3  # of a logit, as a share of the largest


def with_engine(
    network: Any,
    engine: str,
    precision: str,
    device: torch.device | str,
    cache_dir: str | None = None,
) -> Any:
    """A network as an engine computes it, at a precision; it is called as the network is.

    Args:
        network: one of ``scripts.networks``, or an exported one, which has its engine already.
        engine: ``torch``, or ``openvino``, which computes on a CPU.
        precision: ``float32`` or ``bfloat16``.
        device: where it is to be computed.
        cache_dir: where compiled networks are kept; by default in the user's folder for such.

    Raises:
        InputError: for an engine or a precision that there is not, or that cannot compute this network there; when a
            package is missing.
    """
    for name, value, known in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise InputError(f"{name} should be {' or '.join(known)}, got {value}.")
    if isinstance(network, OnnxNetwork | TorchExportNetwork | TorchScriptNetwork):
        if (engine, precision) != ("torch", "float32"):
            raise InputError("An exported network has its engine and its precision: leave out engine and precision.")
        return network
    device = torch.device(device)
    if precision == "bfloat16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning("This processor has no instructions for bfloat16: precision float32 would take less time.")
    if engine == "torch":
        network = network.to(device, memory_format=torch.channels_last_3d)
        return network if precision == "float32" else Bfloat16Network(network)
    if device.type != "cpu":
        raise InputError(
            f"engine openvino computes on a CPU, device is {device}: leave out engine, or take device cpu."
        )
    if not getattr(network, "takes_windows", False):
        raise InputError(f"engine openvino computes networks that take windows, {type(network).__name__} does not.")
    if not has_openvino:
        raise InputError("engine openvino needs a package: pip install openvino.")
    return OpenvinoNetwork(network, precision, Path(cache_dir) if cache_dir else default_cache_dir())


def computed_by(network: Any, amp: bool) -> str:
    """Engine, version and precision of a network, and what is done around it, for the record of its masks."""
    if isinstance(network, Mirrored):
        return f"{computed_by(network.network, amp)}, mean over flips on the axes {list(network.axes)}"
    return str(getattr(network, "computed_by", f"torch {torch.__version__} {'float16' if amp else 'float32'}"))


def default_cache_dir() -> Path:
    """Where programs of a user keep what they can make anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "missu"


class Bfloat16Network(nn.Module):
    """A network in bfloat16 where that loses little; norms sum up in float32, logits are float32."""

    computed_by = f"torch {torch.__version__} bfloat16"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.takes_windows = getattr(network, "takes_windows", False)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits (B, classes, H, W, D) of an image (B, C, H, W, D)."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.network(x, *args, **kwargs).float()


class OpenvinoNetwork:
    """A network as OpenVINO computes it on a CPU, for any batch and size.

    It is converted and compiled at its first image, when the weights are loaded, and again should they have changed.
    What comes of it is kept on disk, by what it is made of: the weights, the code of the network and the versions.

    Args:
        network: takes an image and windows; one that is given without windows is one window.
        precision: ``float32`` or ``bfloat16``; of the norms too, as OpenVINO decides.
        cache_dir: where compiled networks are kept.

    Raises:
        InputError: by a call, when the converted network computes something else than the network, or ``cache_dir``
            cannot be written to.
    """

    takes_windows = True

    def __init__(self, network: nn.Module, precision: str, cache_dir: Path) -> None:
        self.eager = network.eval()
        self.precision = precision
        self.cache_dir = cache_dir
        self.computed_by = f"openvino {openvino.__version__.split('-')[0]} {precision}"
        self.lock = threading.Lock()
        self.compiled: Any = None
        self.compiled_from: list[tuple[int, int]] = []

    def __call__(self, x: torch.Tensor, windows: Sequence[Windows] | None = None) -> torch.Tensor:
        """Logits (B, classes, H, W, D) of an image (B, C, H, W, D)."""
        image = convert_to_tensor(x, track_meta=False)
        sides = image.shape[2:]
        matrices = flattened(windows or windows_of_stages(sides, sides, sides))
        with self.lock:  # threads may share it
            weights = [
                (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
                for tensor in self.eager.state_dict().values()
            ]
            if weights != self.compiled_from:
                self.compiled, self.compiled_from = self.compile(), weights
        logits = self.compiled([value.numpy() for value in (image.float().contiguous(), *matrices)], share_inputs=True)[
            0
        ]
        return torch.from_numpy(logits)

    def compile(self) -> Any:
        """The compiled network, from the cache where it is there."""
        check_writable(self.cache_dir, "The cache of compiled networks")
        folder = self.cache_dir / fingerprint(self.eager)
        if not folder.is_dir():
            logger.info("OpenVINO converts the network, once for these weights.")
            write_converted(self.eager, folder)
        # OpenVINO would load what it compiled at another precision, and compute something else.
        compiled = {"CACHE_DIR": folder / self.precision}
        return openvino.Core().compile_model(folder / "model.xml", "CPU", {**options(self.precision), **compiled})


def options(precision: str) -> dict[str, Any]:
    return {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}


def fingerprint(network: nn.Module) -> str:
    """A name for what a converted network is made of: its weights, its arguments, the code, the versions."""
    digest = hashlib.sha256(f"{openvino.__version__} {torch.__version__}".encode())
    files = {
        Path(inspect.getfile(type(module)))
        for module in network.modules()
        if not type(module).__module__.startswith("torch.")
    }
    files.update(Path(missu.__file__).parent.glob("*.py"))  # functions of the network's, too
    for file in (Path(__file__), *sorted(files)):
        digest.update(file.read_bytes())
    for name, module in network.named_modules():
        arguments = {
            key: value for key, value in vars(module).items() if isinstance(value, int | float | str | tuple | list)
        }
        digest.update(f"{name} {type(module).__name__} {sorted(arguments.items())}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def write_converted(network: nn.Module, folder: Path) -> None:
    """Converts a network and keeps it in a folder, which is there whole or not at all.

    Raises:
        InputError: when it computes something else than the network.
    """
    channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv3d))
    generator = torch.Generator().manual_seed(0)
    (image, windows), (other, other_windows) = (
        (torch.randn(batch, channels, *sides, generator=generator), windows_of_stages(inner, sides, crop))
        for batch, (sides, inner, crop) in ((2, TRACED), (1, COMPARED))
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is fixed by tracing; the comparison below sees it
        # What openvino.convert_model does, but for its report to Intel.
        frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
        traced = ts_decoder.TorchScriptPythonDecoder(FlatWindows(network), example_input=(image, *flattened(windows)))
        model = frontend.convert(frontend.load(traced))
        wanted = network(other, other_windows)
    compiled = openvino.Core().compile_model(model, "CPU", options("float32"))
    logits = torch.from_numpy(compiled([value.numpy() for value in (other, *flattened(other_windows))])[0])
    difference, largest = (logits - wanted).abs().max().item(), wanted.abs().max().item()
    if not difference <= TOLERANCE * largest:  # nor where one is NaN
        raise InputError(
            f"The logits of OpenVINO should be those of torch to {TOLERANCE:g} of the largest, {largest:.3g}, they are "
            f"off by {difference:.3g}: leave out engine."
        )
    with tempfile.TemporaryDirectory(prefix=".converted_", dir=folder.parent) as staging:
        unfinished = Path(staging) / "model"
        unfinished.mkdir()
        openvino.save_model(model, unfinished / "model.xml", compress_to_fp16=False)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
            shutil.rmtree(unfinished)


class FlatWindows(nn.Module):
    """A network whose windows come as tensors, one after the other: what a converter takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        windows = []
        for start in range(0, 6 * NUM_STAGES, 6):
            h, w, d, h_weights, w_weights, d_weights = matrices[start : start + 6]
            windows.append(Windows((h, w, d), (h_weights, w_weights, d_weights)))
        return self.network(image, windows)


def flattened(windows: Sequence[Windows]) -> list[torch.Tensor]:
    return [matrix for stage in windows for matrix in (*stage.averages, *stage.weights)]
