"""Masks that appear whole or not at all, and lie where their scan lies for every reader."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import FolderLayoutBase, NibabelWriter
from nibabel.nifti1 import Nifti1Extension

from ..data.cases import mask_of
from ..errors import InputError
from ..files import whole_file

__all__ = ["AtomicNibabelWriter", "MaskLayout", "ProbabilitiesLayout"]

logger = logging.getLogger(__name__)

# What a NIfTI header says of place and unit, as MONAI hands it on with a scan.
GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


DESCRIPTION_BYTES = 79  # of a NIfTI header, less the zero at its end


class MaskLayout(FolderLayoutBase):
    """``folder_layout`` of ``SaveImaged``: MONAI's own cuts a case's ID at its first dot.

    Args:
        output_dir: where the masks go.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def filename(self, **kwargs: Any) -> Path:
        """The file of the mask of ``case_id``.

        Raises:
            InputError: when it is there: none was at the start, so that another run writes to the same folder, or a
                file system takes two IDs for one.
        """
        path = mask_of(self.output_dir, kwargs["case_id"])
        if path.exists():
            raise InputError(
                f"{path} should be a new file, it came since the start: from another run into this output_dir, or from "
                "a case whose ID differs in capital letters alone."
            )
        return path


class ProbabilitiesLayout(FolderLayoutBase):
    """``folder_layout`` of ``SaveImaged`` for what is no mask: a file is called as its case.

    Args:
        output_dir: where the files go; one that is there is replaced. ``None`` where none are kept: MONAI builds what
            a part that is disabled is made of.
    """

    def __init__(self, output_dir: str | None) -> None:
        self.output_dir = output_dir

    def filename(self, **kwargs: Any) -> Path:
        """The file of ``case_id``."""
        return Path(str(self.output_dir), f"{kwargs['case_id']}.nii.gz")


class AtomicNibabelWriter(NibabelWriter):
    """Writer for ``SaveImaged`` that leaves a whole file or none.

    A mask on the grid of its scan takes the scan's unit, qform and sform with their codes, as some readers go by the
    one and some by the other. MONAI's writer takes millimeters for unknown, and the code 1 for both. The description in
    the header names the modalities that were missing.

    Args:
        temperature: of probabilities, which an extension of the header has as JSON.
    """

    def __init__(self, *args: Any, temperature: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = temperature

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        super().set_metadata(meta_dict, resample, **options)
        self.scan = meta_dict or {}

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        image = self.create_backend_obj(self.data_obj, self.affine, self.output_dtype, **kwargs)
        header = image.header.copy()
        if all(field in self.scan for field in GEOMETRY):
            for field in GEOMETRY:
                header[field] = np.asarray(self.scan[field])
        if not np.allclose(header.get_best_affine(), image.affine, atol=1e-4):  # no scan, or another grid than its own
            header = image.header
            header.set_xyzt_units("mm")
            for set_form in (image.set_sform, image.set_qform):
                set_form(image.affine, code="scanner")
        if self.scan.get("missing"):
            header["descrip"] = f"without {self.scan['missing']}"[:DESCRIPTION_BYTES]
        if self.temperature:
            header.extensions.append(Nifti1Extension("comment", json.dumps(dict(self.temperature)).encode()))
        try:
            with whole_file(filename) as temporary:
                nib.save(nib.Nifti1Image(image.dataobj, None, header), temporary)
        except OSError as error:  # MONAI's SaveImage keeps no error, only its text
            raise InputError(f"{filename} cannot be written: {error.strerror or error}.") from error
        if verbose:
            logger.info(f"Saved {filename}")
