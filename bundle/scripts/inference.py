"""Inference over many cases: a bad one is reported at the end, the good ones are written."""

from __future__ import annotations

import logging
from typing import Any

from monai.data import Dataset, NibabelWriter
from monai.engines import SupervisedEvaluator

from .errors import InputError, one_sentence
from .files import whole_file

__all__ = ["AtomicNibabelWriter", "CaseDataset", "CaseEvaluator"]

logger = logging.getLogger(__name__)

FAULT = "fault"


class CaseDataset(Dataset):
    """Dataset in which a case with bad input becomes ``{"fault": sentence}`` instead of ending the run."""

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            sentence = one_sentence(error)
            if sentence is None:
                raise
            return {FAULT: sentence}


class CaseEvaluator(SupervisedEvaluator):
    """Evaluator that passes over the faults of a ``CaseDataset`` and ends with them.

    Raises:
        InputError: by ``run``, after all cases, when there was a fault: one line each.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.faults: list[str] = []

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> Any:
        if FAULT in batchdata:
            self.faults += batchdata[FAULT]
            return []
        return super()._iteration(engine, batchdata)

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        self.faults = []
        super().run(global_epoch)
        num_cases = self.state.epoch_length
        self.logger.info(f"{num_cases - len(self.faults)} of {num_cases} cases segmented.")
        if self.faults:
            raise InputError("\n".join([f"{len(self.faults)} of {num_cases} cases failed.", *self.faults]))


class AtomicNibabelWriter(NibabelWriter):
    """Writer for ``SaveImaged`` that leaves a whole file or none."""

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        with whole_file(filename) as temporary:
            super().write(temporary, verbose=False, **kwargs)
        if verbose:
            logger.info(f"Saved {filename}")
