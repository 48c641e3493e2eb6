"""A training that goes on where it stopped, to the same weights as if it had not (see ``data/seeded.py``)."""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..data.cases import case_id_of
from ..errors import InputError, flag
from ..files import check_writable, remove_unfinished
from ..weights.checkpoints import read_state, write_state

__all__ = ["TrainingState"]

logger = logging.getLogger(__name__)


class TrainingState:
    """Handler that saves the whole state of a training, and takes it up again.

    ``checkpoint_iteration=N.pt`` in ``ckpt_dir`` is written every ``interval`` epochs, after the last one, and when the
    run is asked to end (SIGTERM, Ctrl-C): then after the step that is under way. The last two are kept. A second Ctrl-C
    ends at once. Attach it after the validation and the learning rate, whose work belongs to the state.

    Args:
        ckpt_dir: folder of the checkpoints.
        resume: ``True`` goes on from the newest checkpoint, ``"auto"`` does where there is one, ``False`` starts anew.
        interval: epochs between checkpoints.
        objects: what has a ``state_dict``, by name; ``network`` among them.
        evaluator: the engine of the validation, whose best metric decides which weights are kept.
        settings: what has to be the same where a training goes on.
        data: likewise, the lists of cases by their use.

    Raises:
        InputError: at the start, when ``ckpt_dir`` cannot be written, or the checkpoint is not there, unreadable or of
            another training; later, when a checkpoint cannot be written.
    """

    def __init__(
        self,
        ckpt_dir: str,
        resume: bool | str,
        interval: int,
        objects: Mapping[str, Any],
        evaluator: Engine,
        settings: Mapping[str, Any],
        data: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        if interval < 1:
            raise InputError(f"checkpoint_interval should be at least 1 epoch, got {interval}.")
        self.ckpt_dir = Path(ckpt_dir)
        self.resume = flag("resume", resume, "auto")
        self.interval = interval
        self.objects = objects
        self.evaluator = evaluator
        self.settings = settings
        self.data = data
        self.own: list[Path] = []  # the checkpoints of this run, and the one it goes on from
        self.random_state: Mapping[str, Any] | None = None
        self.asked_to_end: int | None = None
        self.previous_handlers: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self.iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.restore_signals)

    def started(self, engine: Any) -> None:
        check_writable(self.ckpt_dir, "ckpt_dir")
        if idist.get_rank() == 0:
            remove_unfinished(self.ckpt_dir, "*.pt")
        if self.resume:
            self.take_up(engine)
        loader, iteration = engine.data_loader, engine.state.iteration
        loader.sampler.start_at(iteration // len(loader), iteration % len(loader) * loader.batch_size)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous_handlers[number] = signal.signal(number, self.asked)

    def asked(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.asked_to_end == number:
            raise KeyboardInterrupt
        self.asked_to_end = number

    def restore_signals(self, _: Engine) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def iteration_started(self, _: Engine) -> None:
        # Here and not at the start: making the data loader's iterator may draw random numbers.
        if self.random_state is not None:
            set_random_state(self.random_state)
            self.random_state = None

    def iteration_completed(self, engine: Any) -> None:
        # The last step of an epoch belongs with its validation.
        if self.asked_to_end is not None and engine.state.iteration % engine.state.epoch_length:
            self.end(engine)

    def epoch_completed(self, engine: Any) -> None:
        if self.asked_to_end is not None:
            self.end(engine)
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self.save(engine)

    def end(self, engine: Any) -> None:
        self.save(engine)
        if idist.get_rank() == 0:
            logger.info(f"Asked to end: saved {self.own[-1]}, go on from there by --resume true.")
        sys.exit(128 + int(self.asked_to_end or 0))

    def found(self) -> list[Path]:
        """The checkpoints that are there, the newest first."""
        paths = self.ckpt_dir.glob("checkpoint_iteration=*.pt")
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def save(self, engine: Any) -> None:
        if idist.get_rank() != 0:
            return
        state = {name: each.state_dict() for name, each in self.objects.items()}
        if engine.scaler is not None:
            state["scaler"] = engine.scaler.state_dict()
        state["trainer"] = {"iteration": engine.state.iteration, "epoch_length": engine.state.epoch_length}
        state["best"] = {name: getattr(self.evaluator.state, name) for name in ("best_metric", "best_metric_epoch")}
        state["random"] = random_state()
        state["of"] = self.identity()
        path = self.ckpt_dir / f"checkpoint_iteration={engine.state.iteration}.pt"
        write_state(state, path)
        self.own = [*(other for other in self.own if other != path), path][-2:]
        for other in self.found():
            if other not in self.own:
                other.unlink()

    def identity(self) -> dict[str, Any]:
        """What tells this training from others, as it can stand in a checkpoint."""
        cases = {name: sorted(map(case_id_of, items)) for name, items in self.data.items()}
        return {"settings": {name: plain(value) for name, value in self.settings.items()}, "cases": cases}

    def take_up(self, engine: Any) -> None:
        found = self.found()
        if not found:
            if self.resume == "auto":
                return
            raise InputError(f"resume needs a checkpoint_iteration=*.pt in {self.ckpt_dir}, there is none.")
        for path in found:
            try:
                state = read_state(path)
                break
            except InputError as error:
                if path == found[-1]:
                    raise
                logger.warning(f"{error} Goes on from the one before.")
        self.check(path, state, engine)
        for name, each in self.objects.items():
            each.load_state_dict(state[name])
        if engine.scaler is not None and "scaler" in state:
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.iteration = state["trainer"]["iteration"]
        engine.state.epoch = engine.state.iteration // engine.state.epoch_length
        for name, value in state["best"].items():
            setattr(self.evaluator.state, name, value)
        self.own = [path]
        if idist.get_rank() == 0:  # whose numbers they are; the other processes draw others
            self.random_state = state["random"]
            logger.info(f"Goes on from {path}, after {engine.state.iteration} steps.")

    def check(self, path: Path, state: Mapping[str, Any], engine: Any) -> None:
        """Refuses the state of another training.

        Raises:
            InputError: naming the first difference.
        """
        there, here = state["of"], self.identity()
        advice = "resume with the same, or take another ckpt_dir"
        for name, value in here["settings"].items():
            if there["settings"].get(name) != value:
                raise InputError(
                    f"The checkpoint {path} is of a training with {name} {there['settings'].get(name)}, this one has "
                    f"{value}: {advice}."
                )
        for name, cases in here["cases"].items():
            different = sorted(set(cases) ^ set(there["cases"][name]))
            if different:
                which = "is new in this one" if different[0] in cases else "is not in this one"
                raise InputError(
                    f"The checkpoint {path} is of a training with other {name} cases, {different[0]} {which}: {advice}."
                )
        was, is_now = (
            {key: list(tensor.shape) for key, tensor in weights.items()}
            for weights in (state["network"], self.objects["network"].state_dict())
        )
        for key in is_now | was:
            if was.get(key) != is_now.get(key):
                raise InputError(
                    f"The checkpoint {path} is of another network, {key} is {was.get(key, 'not there')} in it and "
                    f"{is_now.get(key, 'not there')} in this one: {advice}."
                )
        length = state["trainer"]["epoch_length"]
        if length != engine.state.epoch_length:
            raise InputError(
                f"The checkpoint {path} is of a training with {length} steps an epoch, this one has "
                f"{engine.state.epoch_length}: {advice}, on as many processes."
            )


def plain(value: Any) -> Any:
    """A setting as text, so that a checkpoint holds no objects: 0.3, a list of names, a device."""
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def random_state() -> dict[str, Any]:
    """The states of Python, NumPy and torch, as ``torch.load`` reads them without unpickling objects."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the state that transforms of others may use
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
