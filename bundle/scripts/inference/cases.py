"""Inference over many cases: shared among processes, a bad one reported at the end, done ones not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from ..data.cases import case_id_of, cases_of_batch, first_file, mask_of
from ..errors import InputError, flag, one_sentence
from ..files import check_writable, remove_unfinished, unwound_by_sigterm

__all__ = ["FAULT", "CaseDataset", "CaseEvaluator"]

FAULT = "fault"


class CaseDataset(Dataset):
    """The cases to segment, in which one with bad input becomes ``{"fault": sentence}`` instead of ending the run.

    Args:
        data: the cases.
        transform: their preprocessing.
        output_dir: where the masks go.
        skip_existing: whether a case that has its mask is left out. Else it is refused, by :meth:`prepare`.
        shared: whether each process that ``torchrun`` started takes its share of the cases, by their place in the list
            alone. They do not wait for each other, so one that dies takes nothing from the others.

    Raises:
        InputError: when a case's ID cannot be a file's name, two cases would have one mask, or there is nobody to share
            the cases with.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        output_dir: str,
        skip_existing: bool = False,
        shared: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.skip_existing = flag("skip_existing", skip_existing)
        check_masks(data, self.output_dir)
        rank, num_processes = place_among_processes() if flag("shared", shared) else (0, 1)
        self.share = list(data)[rank::num_processes]
        self.there = [path for path in map(self.mask_of, self.share) if path.exists()]
        super().__init__(
            [item for item in self.share if not (self.skip_existing and self.mask_of(item).exists())], transform
        )

    def mask_of(self, item: Mapping[str, Any]) -> Path:
        return mask_of(self.output_dir, case_id_of(item))

    def prepare(self) -> None:
        """Makes the output folder ready, and removes what a killed process left of a mask of these cases.

        Raises:
            InputError: when it cannot be written to, or holds masks that the run would replace.
        """
        if self.there and not self.skip_existing:
            raise InputError(
                f"output_dir {self.output_dir} holds masks of {len(self.there)} of these cases, such as "
                f"{self.there[0].name}: keep them by --skip_existing true, or take another output_dir."
            )
        check_writable(self.output_dir, "output_dir")
        for item in self.share:
            remove_unfinished(self.output_dir, escape(self.mask_of(item).name))

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            sentence = one_sentence(error)
            if sentence is None:
                raise
            return {FAULT: sentence}


def check_masks(data: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    """Refuses two cases that would be written to one file."""
    first: dict[Path, Mapping[str, Any]] = {}
    for item in data:
        path = mask_of(output_dir, case_id_of(item))
        if path in first:
            raise InputError(
                f"Case {case_id_of(item)} is doubled, each case has a mask of its own: "
                f"{first_file(first[path])} and {first_file(item)} would both be {path.name}."
            )
        first[path] = item


def place_among_processes() -> tuple[int, int]:
    """Number of this process and how many there are, as ``torchrun`` says."""
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise InputError(
            "Cases are shared among processes by torchrun -m monai.bundle run, which sets RANK and WORLD_SIZE: "
            f"{error} is not set."
        ) from error


class CaseEvaluator(SupervisedEvaluator):
    """Evaluator that passes over the faults of a :class:`CaseDataset` and ends with them.

    Raises:
        InputError: by ``run``, before the first case when the output folder is not fit; after all cases when there
            was a fault: one line each.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.faults: list[str] = []
        self.num_done = 0

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> Any:
        if FAULT in batchdata:
            self.faults += batchdata[FAULT]
            return []
        try:
            output = super()._iteration(engine, batchdata)
        except Exception as error:
            found = behind(error)
            if found is None:
                raise
            is_named = str(found).startswith("Case ")
            self.faults.append(str(found) if is_named else f"Case {', '.join(cases_of_batch(batchdata))}: {found}")
            return []
        self.num_done += 1
        return output

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        self.faults, self.num_done = [], 0
        start = time.perf_counter()
        dataset: Any = self.data_loader.dataset  # type: ignore[union-attr]
        dataset.prepare()
        try:
            with unwound_by_sigterm():
                if len(dataset):
                    super().run(global_epoch)
        finally:
            there = f"{len(dataset.share) - len(dataset)} were there already, " if dataset.skip_existing else ""
            self.logger.info(
                f"{self.num_done} of {len(dataset.share)} cases segmented, {there}{len(self.faults)} failed."
            )
            self.logger.info(f"{time.perf_counter() - start:.1f} s, without the start of Python.")
        if self.faults:
            raise InputError("\n".join([f"{len(self.faults)} of {len(dataset.share)} cases failed.", *self.faults]))


def behind(error: BaseException) -> InputError | None:
    """The ``InputError`` in an error, which MONAI's transforms wrap in errors of their own; ``None`` where it is none.

    Not the faults of the machine, such as a full disk: the next case would meet them, too.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    return cause
