"""Where the network's own kernels may be used, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

__all__ = ["apply_to", "is_eager_on_cpu", "is_written_down"]


def is_written_down() -> bool:
    """Whether what is done now is written down for a compiler or an export."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_eager_on_cpu(x: torch.Tensor) -> bool:
    """Whether what is done to ``x`` is computed now, on a CPU."""
    return x.device.type == "cpu" and not is_written_down()


def apply_to(x: torch.Tensor, function: type[torch.autograd.Function], *arguments: Any) -> torch.Tensor:
    """``function.apply(x, *arguments)`` on plain tensors; the result is of the class of ``x``, such as MetaTensor."""
    if has_torch_function_unary(x):
        result: torch.Tensor = handle_torch_function(apply_to, (x,), x, function, *arguments)
        return result
    return function.apply(x, *arguments)
