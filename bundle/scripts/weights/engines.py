"""Exported networks in place of the network: one class per format, for the overlays ``configs/inference_*.json``."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from monai.utils import convert_to_tensor, optional_import
from torch import nn
from torch.export.passes import move_to_device_pass

from ..errors import InputError
from .record import describe, read_record, record_of

logger = logging.getLogger(__name__)

onnxruntime, has_onnxruntime = optional_import("onnxruntime")

__all__ = ["OnnxNetwork", "TorchExportNetwork", "TorchScriptNetwork"]


def existing(path: str | Path) -> str:
    """The path, as text; says in the log what it comes from, by its record.

    Raises:
        InputError: when there is no file, or its record is missing though its weights have one.
    """
    if not Path(path).is_file():
        raise InputError(f"The exported network {path} is not there: python -m scripts export writes it.")
    if read_record(path) is None and read_record(Path(path).with_suffix(".pt")) is not None:
        raise InputError(
            f"The exported network {path} has no record {record_of(Path(path)).name}, though the weights beside it "
            "have one: export it anew by python -m scripts export."
        )
    logger.info(describe(path))
    return str(path)


class TorchScriptNetwork(nn.Module):
    """A ``model.ts``: logits (B, classes, H, W, D) of an image (B, C, H, W, D), as all of this file."""

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.network = torch.jit.load(existing(path), map_location=device).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(convert_to_tensor(x, track_meta=False))


class TorchExportNetwork:
    """A ``model.pt2``. No ``nn.Module``: an exported program has no training and evaluation mode to switch."""

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        self.network = move_to_device_pass(torch.export.load(existing(path)), torch.device(device)).module()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(convert_to_tensor(x, track_meta=False))


class OnnxNetwork:
    """A ``model.onnx``, run by ONNX Runtime: on the GPU where its CUDA provider is installed, else on the CPU."""

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        if not has_onnxruntime:
            raise InputError(f"The exported network {path} is run by ONNX Runtime: pip install onnxruntime.")
        wanted = ["CPUExecutionProvider"] if torch.device(device).type == "cpu" else None
        self.session = onnxruntime.InferenceSession(
            existing(path), providers=wanted or onnxruntime.get_available_providers()
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        (name,) = (entry.name for entry in self.session.get_inputs())
        (logits,) = self.session.run(None, {name: x.numpy(force=True)})
        return torch.from_numpy(logits).to(x.device)
