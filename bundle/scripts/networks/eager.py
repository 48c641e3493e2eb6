"""Where the network's own kernels may be used."""

from __future__ import annotations

import torch

__all__ = ["is_eager_on_cpu"]


def is_eager_on_cpu(x: torch.Tensor) -> bool:
    """Whether what is done to ``x`` is computed now, on a CPU, and not written down for a compiler or an export."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
