"""Masks that appear whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai.data import FolderLayoutBase, NibabelWriter

from ..data.cases import mask_of
from ..files import whole_file

__all__ = ["AtomicNibabelWriter", "MaskLayout"]

logger = logging.getLogger(__name__)


class MaskLayout(FolderLayoutBase):
    """``folder_layout`` of ``SaveImaged``: MONAI's own cuts a case's ID at its first dot.

    Args:
        output_dir: where the masks go.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def filename(self, **kwargs: Any) -> Path:
        """The file of the mask of ``case_id``."""
        return mask_of(self.output_dir, kwargs["case_id"])


class AtomicNibabelWriter(NibabelWriter):
    """Writer for ``SaveImaged`` that leaves a whole file or none."""

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        with whole_file(filename) as temporary:
            super().write(temporary, verbose=False, **kwargs)
        if verbose:
            logger.info(f"Saved {filename}")
