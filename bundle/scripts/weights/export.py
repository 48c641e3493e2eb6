"""The network in the formats of others: TorchScript, ONNX, torch.export; and its weights as safetensors.

    python -m scripts export --checkpoint models/model.pt --output_dir models

writes ``model.ts``, ``model.onnx``, ``model.pt2`` and ``model.safetensors``, compares each with eager PyTorch on the
same weights and images, and writes the table of that, ``exports.md``. ``configs/inference_*.json`` run inference on
the exported networks.
Batch and size are dynamic in all of them; sides are divisible by 8.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.utils import optional_import
from torch import nn
from torch.export import Dim

from ..arguments import listed
from ..errors import InputError
from ..networks.missu import AXES, STRIDE
from .checkpoints import load_weights
from .engines import OnnxNetwork, TorchExportNetwork, TorchScriptNetwork
from .record import EXPORTED, read_record, record_of, write_record

op, _ = optional_import("onnxscript", name="opset18")
safetensors_torch, _ = optional_import("safetensors.torch")

__all__ = ["export"]

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "safetensors")
TOLERANCE = 1e-4  # of the logits
# Batch and sides of the example that is traced: all different, and none of them 1, or torch would take some for fixed.
TRACED = (2, 32, 48, 40)
Network = Callable[[torch.Tensor], torch.Tensor]


def export(
    output_dir: str | Path,
    checkpoint: str | Path | None = None,
    config_file: Sequence[str] = ("configs/inference.json",),
    size: Sequence[int] | None = None,
    repeats: int = 3,
) -> str:
    """Writes all formats, or none of them.

    Args:
        output_dir: folder to write to; made where it is missing.
        checkpoint: weights; by default those of the config.
        config_file: ``inference.json``, and overlays on it.
        size: sides of the example input, for the comparison of values and times; by default the config's ``roi_size``.
        repeats: passes to time; the median counts.

    Returns:
        The table of differences from eager and of times, in Markdown.

    Raises:
        InputError: when a package is missing, a side is not one that the network takes, the weights are not there or
            of another network, or an exported network computes something else than the network.
    """
    missing = [name for name in PACKAGES if not optional_import(name)[1]]
    if missing:
        raise InputError(f"Export needs {', '.join(missing)}: pip install {' '.join(missing)}.")
    config = ConfigParser()
    config.read_config(list(config_file))
    if checkpoint is not None:
        config["checkpoint"] = str(checkpoint)
    size = list(size or config.get_parsed_content("roi_size"))
    for axis, side in zip(AXES, size):
        if side < 2 * STRIDE or side % STRIDE:
            raise InputError(f"size should be divisible by {STRIDE}, from {2 * STRIDE} on, {axis} is {side}.")
    checkpoint = str(config.get_parsed_content("checkpoint"))
    network = config.get_parsed_content("network_def").eval()
    load_weights(network, checkpoint)
    examples = [smooth_images(batch, network.in_channels, sides) for batch, *sides in ((1, *size), TRACED)]

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=output_dir) as staging:
        unfinished = Path(staging)
        write_torchscript(unfinished / "model.ts", checkpoint, config_file)
        write_onnx(unfinished / "model.onnx", checkpoint, config_file, list(examples[1].shape))
        write_torch_export(unfinished / "model.pt2", network, examples[1])
        (unfinished / "model.safetensors").write_bytes(safetensors_torch.save(network.state_dict()))
        table = compare(network, unfinished, examples, repeats)
        (unfinished / "exports.md").write_text(table)
        record = read_record(checkpoint)
        for path in unfinished.iterdir():
            record_of(output_dir / path.name).unlink(missing_ok=True)
            os.replace(path, output_dir / path.name)
        if record is not None:
            for suffix in EXPORTED:
                write_record(output_dir / f"model{suffix}", record)
    return table


def smooth_images(batch: int, channels: int, sides: Sequence[int]) -> torch.Tensor:
    """Images (batch, channels, *sides) of smooth noise with zeros around it: in raw noise every class is a toss-up."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, channels, *(side // STRIDE for side in sides), generator=generator)
    smooth = F.interpolate(coarse, size=tuple(sides), mode="trilinear")
    axes = [torch.linspace(-1, 1, side) for side in sides]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    return smooth * (radius < 1)


def write_torchscript(path: Path, checkpoint: str, config_file: Sequence[str]) -> None:
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=checkpoint,
        meta_file=str(Path(config_file[0]).with_name("metadata.json")),
        config_file=list(config_file),
        checkpoint=checkpoint,  # whose record tells the network's arguments
    )


def write_onnx(path: Path, checkpoint: str, config_file: Sequence[str], input_shape: Sequence[int]) -> None:
    options = {
        "dynamo": True,
        "external_data": False,
        "verbose": False,
        "dynamic_shapes": dynamic_shapes(),
        "custom_translation_table": {torch.ops.aten.group_norm.default: onnx_group_norm},
        "input_names": ["image"],
        "output_names": ["pred"],
    }
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=checkpoint,
        config_file=list(config_file),
        checkpoint=checkpoint,
        use_trace=True,  # hands the keyword arguments to torch.onnx.export
        input_shape=list(input_shape),
        converter_kwargs=options,
    )


def onnx_group_norm(
    input: Any, num_groups: int, weight: Any, bias: Any, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """GroupNorm of (B, C, H, W, D) in ONNX, by the mean along one axis after the other.

    torch writes it as InstanceNormalization, which ONNX Runtime sums up in float32, voxel after voxel: at 96^3 the
    result is wrong by 5e-3, this one by 2e-6.
    """

    def mean_of_group(x: Any) -> Any:
        for axis in (4, 3, 2):
            x = op.ReduceMean(x, op.Constant(value_ints=[axis]), keepdims=1)
        groups = op.Reshape(
            x, op.Constant(value_ints=[0, num_groups, -1])
        )  # (B, C, 1, 1, 1) -> (B, groups, C / groups)
        mean = op.Expand(op.ReduceMean(groups, op.Constant(value_ints=[2]), keepdims=1), op.Shape(groups))
        return op.Reshape(mean, op.Constant(value_ints=[0, -1, 1, 1, 1]))  # (B, groups, C / groups) -> (B, C, 1, 1, 1)

    per_channel = op.Constant(value_ints=[1, -1, 1, 1, 1])
    centered = op.Sub(input, mean_of_group(input))
    variance = mean_of_group(op.Mul(centered, centered))
    deviation = op.Sqrt(op.Add(variance, op.Constant(value_float=eps)))
    scale = op.Div(op.Reshape(weight, per_channel), deviation)
    return op.Add(op.Mul(centered, scale), op.Reshape(bias, per_channel))


def write_torch_export(path: Path, network: nn.Module, example: torch.Tensor) -> None:
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=dynamic_shapes()), path)


def dynamic_shapes() -> dict[str, dict[int, Any]]:
    """Any batch, and any side that is a multiple of the deepest stage's stride."""
    sides = {axis: STRIDE * Dim(f"{name.lower()}_by_{STRIDE}", max=64) for axis, name in enumerate(AXES, start=2)}
    return {"x": {0: Dim("batch", max=64)} | sides}


def load_safetensors(path: Path, network: nn.Module) -> nn.Module:
    network.load_state_dict(safetensors_torch.load_file(path))
    return network


@torch.no_grad()
def compare(network: nn.Module, folder: Path, examples: Sequence[torch.Tensor], repeats: int) -> str:
    """The table of the files in a folder: how far from eager, how fast beside it."""
    wanted = [network(example) for example in examples]
    formats: dict[str, tuple[str, Callable[[], Network]]] = {
        "PyTorch, eager": ("", lambda: network),
        "TorchScript": ("model.ts", lambda: TorchScriptNetwork(str(folder / "model.ts"))),
        "ONNX, ONNX Runtime": ("model.onnx", lambda: OnnxNetwork(str(folder / "model.onnx"))),
        "torch.export": ("model.pt2", lambda: TorchExportNetwork(str(folder / "model.pt2"))),
        "safetensors, eager": ("model.safetensors", lambda: load_safetensors(folder / "model.safetensors", network)),
    }
    shape = " x ".join(map(str, examples[0].shape))
    lines = [
        f"| Format | File | MB | Largest difference of a logit | Voxels of another class | Seconds for {shape} |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, (file, load) in formats.items():
        loaded = load()
        logits = [loaded(example) for example in examples]
        difference = max((a - b).abs().max().item() for a, b in zip(logits, wanted))
        if not difference < TOLERANCE:
            raise InputError(f"The logits of {name} should be within {TOLERANCE:g} of eager's, got {difference:g}.")
        voxels = sum(int((a.argmax(dim=1) != b.argmax(dim=1)).sum()) for a, b in zip(logits, wanted))
        megabytes = f"{(folder / file).stat().st_size / 1e6:.1f}" if file else ""
        seconds = median_seconds(loaded, examples[0], repeats)
        lines.append(f"| {name} | {file} | {megabytes} | {difference:.1e} | {voxels} | {seconds:.2f} |")
    return "\n".join(lines) + "\n"


def median_seconds(network: Network, example: torch.Tensor, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        network(example)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: those of the config)")
    parser.add_argument(
        "--config_file", type=listed(str), default=["configs/inference.json"], help="inference.json and overlays on it"
    )
    parser.add_argument("--size", type=listed(int, 3), help="sides of the example (default: the config's roi_size)")
    parser.add_argument("--repeats", type=int, default=3, help="passes to time (default: %(default)s)")
    print(export(**vars(parser.parse_args(argv))))
