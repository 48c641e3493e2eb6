"""Masks that appear whole or not at all."""

from __future__ import annotations

import logging
from typing import Any

from monai.data import NibabelWriter

from ..files import whole_file

__all__ = ["AtomicNibabelWriter"]

logger = logging.getLogger(__name__)


class AtomicNibabelWriter(NibabelWriter):
    """Writer for ``SaveImaged`` that leaves a whole file or none."""

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        with whole_file(filename) as temporary:
            super().write(temporary, verbose=False, **kwargs)
        if verbose:
            logger.info(f"Saved {filename}")
