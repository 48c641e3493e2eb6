"""What a mask was made of and by what, beside the mask: a result that could be wrong says so to who reads it later."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import ensure_tuple

from ..checks.faults import Fault
from ..data.cases import case_id_of, mask_of, mask_record_of
from ..files import whole_file
from ..progress import at_the_end
from ..weights.record import costs_of_missing, read_record, sha256
from ..weights.versions import versions

__all__ = ["MaskRecord"]


class MaskRecord:
    """Handler that writes ``<case>_seg.json`` beside ``<case>_seg.nii.gz``, once the mask is there.

    It has the weights with their sha256 and what they were trained on, the settings, the command, the files of the
    case, the versions, what missing modalities cost, the faults of its headers, and each warning that the log has of
    this case, such as of a smaller window for want of memory. One of an earlier mask is removed at the start: none is
    of another mask.

    Args:
        output_dir: where the masks go.
        checkpoint: the weights; those of each member of an ensemble.
        settings: knobs by their names, on which a mask depends; ``label_convention`` among them.
        faults: of all cases, by :func:`scripts.checks.check_before_run`.
    """

    def __init__(
        self,
        output_dir: str,
        checkpoint: str | Sequence[str],
        settings: Mapping[str, Any],
        faults: Sequence[Fault] = (),
    ) -> None:
        self.output_dir = output_dir
        self.checkpoint = [Path(path) for path in ensure_tuple(checkpoint)]
        self.settings = settings
        self.faults = faults
        self.warnings = KeepsWarnings()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        at_the_end(engine, self.completed)

    def started(self, engine: Any) -> None:
        records = [read_record(path) or {} for path in self.checkpoint]
        self.seen_in_training = all(record.get("settings", {}).get("modality_dropout") for record in records)
        self.shared = {
            "weights": [
                {"file": str(path), "sha256": sha256(path), "trained_on": record.get("dataset")}
                for path, record in zip(self.checkpoint, records)
            ],
            "settings": self.settings,
            "command": shlex.join(sys.argv),
            "versions": versions(),
        }
        self.entries = {case_id_of(item): item for item in engine.data_loader.dataset.data}
        for case_id in self.entries:
            self.path_of(case_id).unlink(missing_ok=True)
        self.warnings.sentences.clear()
        self.warnings.start()

    def iteration_completed(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, _ in zip(state.batch, state.output):  # no output: the case was refused
            meta = item["image"].meta
            missing = [name for name in meta.get("missing", "").split(", ") if name]
            costs = costs_of_missing(missing, self.seen_in_training, self.settings["label_convention"])
            of_headers = [f"{each.fault}: {each.detail}" for each in self.faults if each.is_of(meta["case_id"])]
            content = {
                "case": meta["case_id"],
                "image": self.entries[meta["case_id"]]["image"],
                "missing": missing,
                "warnings": [*costs, *of_headers, *self.warnings.sentences],
                **self.shared,
            }
            with whole_file(self.path_of(meta["case_id"])) as temporary:
                temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
        self.warnings.sentences.clear()

    def path_of(self, case_id: str) -> Path:
        return mask_record_of(mask_of(self.output_dir, case_id))

    def completed(self) -> None:
        self.warnings.stop()


class KeepsWarnings(logging.Handler):
    """Keeps the sentences of warnings and errors between start and stop, or of a block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def start(self) -> None:
        logging.getLogger("scripts").addHandler(self)

    def stop(self) -> None:
        logging.getLogger("scripts").removeHandler(self)

    def __enter__(self) -> KeepsWarnings:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)  # Python shows warnings that no handler takes: this one hides none
