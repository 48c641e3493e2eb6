"""Weights on disk: written whole or not at all, and loaded only where they fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from .errors import InputError

__all__ = ["CheckpointLoader", "WeightsSaver", "load_weights", "save_weights"]


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Writes a network's ``state_dict``; a file that was there is replaced at the end, in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(network.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Loads a ``state_dict`` into a network that has exactly its keys and shapes.

    Raises:
        InputError: when the file is not there, is no file of weights, or belongs to another network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The weights {path} are not there: train first, or name others by --checkpoint.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in zipfile, pickle or torch, each with errors of its own
        raise InputError(f"The weights {path} cannot be read as a state_dict ({type(error).__name__}).") from error
    wanted = network.state_dict()
    if not isinstance(weights, dict):
        raise InputError(f"The weights {path} should be a state_dict, they are a {type(weights).__name__}.")
    for rule, keys in (("lack", wanted.keys() - weights.keys()), ("have too much", weights.keys() - wanted.keys())):
        if keys:
            raise InputError(
                f"The weights {path} are of another network: they {rule}: {len(keys)} keys, such as {min(keys)}."
            )
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            raise InputError(
                f"The weights {path} are of another network: {key} has shape {list(value.shape)}, the network wants "
                f"{list(wanted[key].shape)}; modalities and roi_size should be those of their training."
            )
    network.load_state_dict(weights)


class CheckpointLoader:
    """Handler that loads weights when an engine starts. Named as MONAI's, so that MONAI FL recognizes it."""

    def __init__(self, load_path: str, network: nn.Module) -> None:
        self.load_path = load_path
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        load_weights(self.network, self.load_path)


class WeightsSaver:
    """Handler that saves a network: with each best value of the key metric, or when the run is completed.

    MONAI's ``CheckpointSaver`` writes in place: a run that is killed there leaves half a file.

    Args:
        path: file to write.
        network: the network whose weights are kept.
        only_best: ``True`` for a validation, whose key metric decides; ``False`` for the end of a training.
    """

    def __init__(self, path: str, network: nn.Module, only_best: bool) -> None:
        self.path = path
        self.network = network
        self.only_best = only_best

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED if self.only_best else Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        is_due = not self.only_best or state.best_metric_epoch == state.epoch
        if is_due and idist.get_rank() == 0:
            save_weights(self.network, self.path)
