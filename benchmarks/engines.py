"""How a network is computed: as published, or with all that MISSU gets. The same for each network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import openvino
import torch
from openvino.frontend.pytorch import ts_decoder
from torch import nn

from scripts.memory import keep_freed_memory
from scripts.weights.compiled import Bfloat16Network, options, with_engine

ENGINES = ("published", "tuned", "bfloat16", "OpenVINO", "OpenVINO bfloat16")


def computed(network: nn.Module, engine: str, shape: Sequence[int]) -> Callable[..., torch.Tensor]:
    """The network, to be called with an image.

    Args:
        network: of any kind.
        engine: ``published``: as it is; ``tuned``: channels last, and the memory of tensors that are gone is kept;
            ``bfloat16``: that, too, by autocast; ``OpenVINO``, with ``bfloat16`` or without.
        shape: of the image; for networks other than MISSU compiled for this one.
    """
    if engine == "published":
        return network
    keep_freed_memory()
    precision = "bfloat16" if "bfloat16" in engine else "float32"
    if "OpenVINO" not in engine:
        network = network.to(memory_format=torch.channels_last_3d)
        return Bfloat16Network(network) if precision == "bfloat16" else network
    if getattr(network, "takes_windows", False):
        return with_engine(network, "openvino", precision, "cpu", tempfile.mkdtemp())
    return compiled(network, precision, shape)


def compiled(network: nn.Module, precision: str, shape: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """By OpenVINO, for one shape."""
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    traced = ts_decoder.TorchScriptPythonDecoder(network, example_input=(torch.rand(*shape),))
    model = frontend.convert(frontend.load(traced))
    model.reshape(list(shape))
    ready: Any = openvino.Core().compile_model(model, "CPU", options(precision))
    return lambda image: torch.from_numpy(ready([image.numpy()])[0])
