"""Brains from a scanner to one grid and without their skull, by brainles-preprocessing where it is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError

__all__ = ["extract_brain"]

logger = logging.getLogger(__name__)

PACKAGE = "brainles-preprocessing"
INSTALL = (
    f"register the series to one grid and strip the skull first: pip install {PACKAGE}[itk-elastix] (Apache-2.0, with "
    "HD-BET, Apache-2.0), and this command does it, or segment NIfTI files that are prepared"
)
# The one with the sharpest grid and the most signal in a study of a glioma, as BraTS's own preparation takes it.
CENTERS = ("t1ce", "t1", "flair", "t2")


def extract_brain(files: Mapping[str, Path], folder: Path, why: str) -> dict[str, Path]:
    """Registers the series of a brain to one of them, in its own space, and takes the brain out.

    ``NativeSpacePreprocessor`` of brainles-preprocessing (Kofler et al., arXiv:2507.09036): rigid registration by ANTs,
    brain extraction by HD-BET (Isensee et al., 2019), which downloads its weights when it is first used.

    Args:
        files: by modality.
        folder: for what is written.
        why: the sentence without its end that says what the series lack.

    Returns:
        The file of each modality; that of the center, T1ce where there is one, comes first, and lies on its own grid.

    Raises:
        InputError: when the package is not installed, or fails.
    """
    try:
        preprocessor, modality = (
            import_module(f"brainles_preprocessing.{name}") for name in ("preprocessor", "modality")
        )
    except ImportError as error:
        raise InputError(f"{why}: {INSTALL}.") from error
    except AttributeError as error:  # of itk-core, which it takes for the whole of itk
        raise InputError(
            f"{why}: {PACKAGE} is installed, but cannot be loaded without elastix, pip install itk-elastix."
        ) from error
    center = next((name for name in CENTERS if name in files), next(iter(files)))
    ordered = [center, *(name for name in files if name != center)]
    written = {name: folder / f"{name}_brain.nii.gz" for name in ordered}
    parts: list[Any] = [
        (modality.CenterModality if name == center else modality.Modality)(
            modality_name=name,
            input_path=files[name],
            raw_bet_output_path=written[name],
            atlas_correction=False,
        )
        for name in ordered
    ]
    logger.warning(
        f"{why}: {PACKAGE} {version(PACKAGE)} registers the series to {center} and strips the skull. "
        "Look at the result."
    )
    try:
        preprocessor.NativeSpacePreprocessor(
            center_modality=parts[0],
            moving_modalities=parts[1:],
            temp_folder=folder / "preprocessing",  # by default one that it leaves behind
            use_gpu=torch.cuda.is_available(),
        ).run(log_file=folder / "preprocessing.log")
    except Exception as error:  # ANTs, HD-BET and a download that fails have an error of their own each
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise InputError(f"{PACKAGE} could not prepare the brain: {reason}.") from error
    for name, file in written.items():
        if not file.is_file():
            raise InputError(f"{PACKAGE} should have written the brain of {name}, {file.name} is not there.")
    return written
