"""Arguments of the commands, spelled as the knobs of the configs are."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from typing import Any

__all__ = ["listed"]


def listed(kind: type, length: int | None = None) -> Callable[[str], list[Any]]:
    """The ``type`` of an argument that is a list: ``"['t1','flair']"``, ``"[64,64,64]"``; a lone word is a list of one.

    Args:
        kind: of its values.
        length: how many there have to be; ``None`` for one or more.
    """

    def read(text: str) -> list[Any]:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or length not in (None, len(values)) or not all(isinstance(each, kind) for each in values):
            number = "one or more" if length is None else length
            raise argparse.ArgumentTypeError(
                f"should be a list of {number} {kind.__name__}, such as "
                f"{['t1', 'flair'] if kind is str else [64] * (length or 1)}, got {text}"
            )
        return values

    return read
