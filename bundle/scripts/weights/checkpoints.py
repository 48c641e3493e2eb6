"""Weights on disk: written whole or not at all, loaded only where they fit, with a record of what they come from."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..data.cases import case_id_of, first_file, folder_of
from ..errors import InputError
from ..files import read_json, whole_file
from ..networks import Ensemble
from .record import arguments_of, check_settings, describe, record_of, told_patients, write_record
from .versions import versions

__all__ = [
    "CheckpointLoader",
    "WeightsSaver",
    "fold_checkpoints",
    "load_weights",
    "read_state",
    "save_weights",
    "write_state",
]

logger = logging.getLogger(__name__)


def write_state(state: Mapping[str, Any], path: Path, outdated: Path | None = None) -> None:
    """Writes what ``state_dict`` gave, for :func:`read_state`; a file that was there is replaced at the end, at once.

    Args:
        state: tensors and plain values.
        path: file to write.
        outdated: a file about the one that is replaced, removed just before.

    Raises:
        InputError: when it cannot be written; what was there is there still.
    """
    content = io.BytesIO()  # torch.save hides why a write to a file failed
    torch.save(state, content)
    try:
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
            if outdated is not None:
                outdated.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error


def read_state(path: Path) -> dict[str, Any]:
    """Reads tensors and plain values; a file that would run code when it is read is refused.

    Raises:
        InputError: when it is damaged or no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in zipfile, pickle or torch, each with errors of its own
        raise InputError(f"{path} cannot be read as a state_dict ({type(error).__name__}).") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} should hold a state_dict, it holds a {type(state).__name__}.")
    return state


def save_weights(network: nn.Module, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
    """Writes a network's ``state_dict``; a file that was there is replaced at the end, in one step.

    The record of the weights goes beside them, with their sha256: ``model.json`` beside ``model.pt``. At no time is
    there a record of other weights.
    """
    path = Path(path)
    write_state(network.state_dict(), path, outdated=record_of(path))
    if record is not None:
        write_record(path, record)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Loads a ``state_dict`` into a network that has exactly its keys and shapes.

    Raises:
        InputError: when the file is not there, is no file of weights, belongs to another network, or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The weights {path} are not there: train first, or name others by --checkpoint.")
    weights = read_state(path)
    wanted = network.state_dict()
    for rule, keys in (("lack", wanted.keys() - weights.keys()), ("have too much", weights.keys() - wanted.keys())):
        if keys:
            raise InputError(
                f"The weights {path} are of another network: they {rule}: {len(keys)} keys, such as {min(keys)}."
            )
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise InputError(f"The weights {path} should be finite, {key} holds NaN or infinity: train them anew.")
        if value.shape != wanted[key].shape:
            raise InputError(
                f"The weights {path} are of another network: {key} has shape {list(value.shape)}, the network wants "
                f"{list(wanted[key].shape)}; modalities, roi_size and label_convention should be those of the training."
            )
    network.load_state_dict(weights)


def fold_checkpoints(folder: str | Path) -> list[str]:
    """The weights of each fold below the ``output_dir`` of ``python -m scripts cross_validation``.

    Raises:
        InputError: when there are none, or not yet those of all folds.
    """
    found = sorted(Path(folder).glob("fold*/model_final.pt"))
    split = Path(folder) / "datalist.json"
    if found and split.is_file():
        for fold in range(read_json(split, "The split of the folds,").get("folds", 0)):
            if not (Path(folder) / f"fold{fold}" / "model_final.pt").is_file():
                raise InputError(f"folds_dir should hold the weights of all folds, {folder} has none of fold {fold}.")
    if not found:
        raise InputError(f"folds_dir should hold weights such as fold0/model_final.pt, {folder} does not.")
    return [str(path) for path in found]


class CheckpointLoader:
    """Handler that loads weights when an engine starts. Named as MONAI's, so that MONAI FL recognizes it.

    Args:
        load_path: the weights; for an :class:`~scripts.networks.Ensemble` those of each member.
        network: what they are loaded into.
    """

    def __init__(self, load_path: str | Sequence[str], network: nn.Module) -> None:
        self.load_paths = [load_path] if isinstance(load_path, str) else list(load_path)
        self.networks = list(network.members) if isinstance(network, Ensemble) else [network]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        for path, network in zip(self.load_paths, self.networks, strict=True):
            load_weights(network, path)
            line = describe(path)
            if idist.get_rank() == 0:
                logger.info(line)


class WeightsSaver:
    """Handler that saves a network: with each best value of the key metric, or when the run is completed.

    MONAI's ``CheckpointSaver`` writes in place: a run that is killed there leaves half a file.

    Args:
        path: file to write.
        network: the network whose weights are kept.
        only_best: ``True`` for a validation, whose key metric decides; ``False`` for the end of a training.
        data: the list of cases trained on, for the record beside the weights; ``None`` for no record.
        settings: what else the record tells of the training.

    Raises:
        InputError: when a setting could not be read from the record again.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        only_best: bool,
        data: Iterable[Mapping[str, Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.network = network
        self.only_best = only_best
        self.data = data
        self.settings = settings or {}
        check_settings(self.settings)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED if self.only_best else Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        is_due = not self.only_best or state.best_metric_epoch == state.epoch
        if is_due and idist.get_rank() == 0:
            save_weights(self.network, self.path, None if self.data is None else self.record(state))

    def record(self, state: Any) -> dict[str, Any]:
        items = list(self.data or ())
        told = told_patients(items)
        return {
            "dataset": Path(os.path.commonpath([folder_of(first_file(item)) for item in items])).name,
            "cases": sorted(map(case_id_of, items)),
            **({"patients": told} if told else {}),
            "settings": {**self.settings, "network": arguments_of(self.network)},
            "epoch": state.epoch,
            "metrics": {name: float(value) for name, value in state.metrics.items()},
            "versions": versions(),
        }
