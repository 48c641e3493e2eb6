"""Arguments of the commands, spelled as the knobs of the configs are."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from typing import Any

__all__ = ["listed", "mapped"]


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


def mapped(text: str) -> dict[str, str]:
    """The ``type`` of an argument that is a mapping from text to text: ``"{'T1w':'t1'}"``."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, dict) or not all(
        isinstance(part, str) and part for pair in value.items() for part in pair
    ):
        raise argparse.ArgumentTypeError(f"should be a mapping such as {{'T1w': 't1', 'dseg': 'seg'}}, got {text}")
    return value
