"""Where a mask comes from, by the record beside it: what its values mean, and which weights made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.cases import mask_record_of
from ..data.labels import Convention, convention_table
from ..errors import InputError
from ..files import read_json
from .record import sha256

__all__ = ["convention_of_mask", "read_mask_record", "weights_of_mask"]


def read_mask_record(mask: Path) -> dict[str, Any] | None:
    """The record beside a mask, or inside of a report of that name; none where there is none.

    Raises:
        InputError: when it cannot be read.
    """
    path = mask_record_of(mask)
    if not path.is_file():
        return None
    content = read_json(path, f"The record of the mask {mask.name},")
    inside = content.get("mask")
    return dict(inside) if isinstance(inside, Mapping) else content


def convention_of_mask(mask: Path, given: Convention | None, knob: str) -> Convention | None:
    """The convention of a mask: the one that is given, or that its record tells of, which may not contradict.

    Args:
        mask: its file.
        given: by the user, if at all.
        knob: what the user calls it.

    Raises:
        InputError: when it does.
    """
    settings = (read_mask_record(mask) or {}).get("settings")
    told = settings.get("label_convention") if isinstance(settings, Mapping) else None
    if given is not None and told is not None and convention_table(given) != convention_table(told):
        raise InputError(
            f"{knob} should be {told}, by which {mask} was written (its record says so), it is {given}: leave it out."
        )
    return given or told


def weights_of_mask(mask: Path, checkpoint: Path | None) -> list[str]:
    """The sha256 of all weights that made a mask: of those that its record tells of, else of what is given, if at all.

    Raises:
        InputError: when the weights that are given are not those of the record.
    """
    told = (read_mask_record(mask) or {}).get("weights") or []
    made_by = {str(each.get("sha256")): str(each.get("file")) for each in told}
    given = [] if checkpoint is None else [sha256(checkpoint)]
    if made_by and not made_by.keys() >= set(given):
        raise InputError(
            f"checkpoint should be {' and '.join(made_by.values())}, by which {mask} was made (its record says so), "
            f"{checkpoint} holds other weights."
        )
    return list(made_by) or given
