"""A training that goes on where it stopped, to the same weights as if it had not (see ``data/seeded.py``)."""

from __future__ import annotations

import logging
import random
import re
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
from ..progress import at_the_end
from ..weights.checkpoints import read_state, write_state
from ..weights.record import sha256

__all__ = ["TrainingState"]

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint_iteration={}.pt"
WEIGHTS = ("model.pt", "model_final.pt")  # as the configs call them


class TrainingState:
    """Handler that saves the whole state of a training, and takes it up again.

    ``checkpoint_iteration=N.pt`` in ``ckpt_dir`` is written every ``interval`` epochs, before each validation, after
    the last epoch, and when the run is asked to end (SIGTERM, Ctrl-C): then after the step that is under way, the same
    in all processes. The last two are kept. A second Ctrl-C ends at once; a second SIGTERM changes nothing, until the
    process has ended. Attach it after the learning rate, whose work belongs to the state, and before the validation,
    which may fail: a training that goes on from the end of an epoch begins with the validation of that epoch.

    Args:
        ckpt_dir: folder of the checkpoints.
        resume: ``True`` goes on from the newest checkpoint, ``"auto"`` does where there is one, ``False`` starts anew.
        interval: epochs between checkpoints.
        objects: what has a ``state_dict``, by name; ``network`` among them.
        evaluator: the engine of the validation, whose best metric decides which weights are kept.
        val_interval: epochs between validations.
        settings: what has to be the same where a training goes on.
        data: likewise, the lists of cases by their use.

    Raises:
        InputError: at the start, when ``ckpt_dir`` cannot be written or holds a checkpoint of another training, the
            first validation case cannot be read, or the checkpoint is not there, unreadable or of another training;
            later, when a checkpoint cannot be written.
    """

    def __init__(
        self,
        ckpt_dir: str,
        resume: bool | str,
        interval: int,
        objects: Mapping[str, Any],
        evaluator: Engine,
        val_interval: int,
        settings: Mapping[str, Any],
        data: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        if interval < 1:
            raise InputError(f"checkpoint_interval should be at least 1 epoch, got {interval}.")
        self.ckpt_dir = Path(ckpt_dir)
        self.resume = flag("resume", resume, "auto")
        self.interval = interval
        self.objects = objects
        self.evaluator: Any = evaluator
        self.val_interval = val_interval
        self.settings = settings
        self.data = data
        self.own: list[Path] = []  # the checkpoints of this run, and the one it goes on from
        self.random_state: Mapping[str, Any] | None = None
        self.asked_to_end = 0
        self.ends = False
        self.previous_handlers: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self.iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        at_the_end(engine, self.restore_signals)

    def started(self, engine: Any) -> None:
        check_writable(self.ckpt_dir, "ckpt_dir")
        is_first = idist.get_rank() == 0
        if is_first:
            remove_unfinished(self.ckpt_dir, "*.pt")
            cases = self.evaluator.data_loader.dataset
            if len(cases):
                cases[0]  # or its fault would come to light after epochs
        newest = self.newest() if self.resume else None
        if newest is not None:
            self.take_up(engine, newest)
        elif is_first and not self.own:
            self.keep_what_is_there()
        loader, iteration = engine.data_loader, engine.state.iteration
        loader.sampler.start_at(iteration // len(loader), iteration % len(loader) * loader.batch_size)
        self.asked_to_end, self.ends = 0, False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous_handlers[number] = signal.signal(number, self.asked)

    def asked(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.asked_to_end == number:
            raise KeyboardInterrupt
        self.asked_to_end = number

    def restore_signals(self) -> None:
        for number, handler in self.previous_handlers.items():
            if self.ends and number == signal.SIGTERM:
                # It may come later to this process than to those by whose wish it ends, or twice; ignored, as Python
                # takes a handler of its own away before it has ended.
                handler = signal.SIG_IGN
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's
        self.previous_handlers = {}

    def iteration_started(self, _: Engine) -> None:
        # Here and not at the start: making the data loader's iterator may draw random numbers.
        if self.random_state is not None:
            set_random_state(self.random_state)
            self.random_state = None

    def iteration_completed(self, engine: Any) -> None:
        if engine.state.iteration % engine.state.epoch_length:  # else the epoch is completed, too
            self.end_if_asked(engine)

    def epoch_completed(self, engine: Any) -> None:
        self.end_if_asked(engine)
        epoch, is_last = engine.state.epoch, engine.state.epoch == engine.state.max_epochs
        if epoch % self.interval == 0 or epoch % self.val_interval == 0 or is_last:
            self.save(engine)

    def end_if_asked(self, engine: Any) -> None:
        """Ends all processes after the same step, as soon as one was asked to: they get a signal at different times."""
        number = int(idist.all_reduce(float(self.asked_to_end), "MAX"))
        if not number:
            return
        self.save(engine)
        if idist.get_rank() == 0:
            logger.info(f"Asked to end: saved {self.own[-1]}, go on from there by --resume true.")
        idist.barrier()  # who ends first would have the others ended, too
        self.ends = True
        sys.exit(128 + number)

    def found(self) -> list[Path]:
        """The checkpoints that are there, the newest first: by the number in their names, which a copy keeps."""
        numbered = {}
        for path in self.ckpt_dir.glob(CHECKPOINT.format("*")):
            if number := re.fullmatch(CHECKPOINT.format(r"(\d+)"), path.name):
                numbered[int(number[1])] = path
        return [numbered[number] for number in sorted(numbered, reverse=True)]

    def newest(self) -> Path | None:
        """The newest checkpoint that can be read, as the first process finds it; ``None`` where none is needed.

        Raises:
            InputError: when there is none, or none can be read.
        """
        name = ""
        if idist.get_rank() == 0:
            found = self.found()
            if not found and self.resume != "auto":
                raise InputError(f"resume needs a {CHECKPOINT.format('*')} in {self.ckpt_dir}, there is none.")
            for path in found:
                try:
                    read_checkpoint(path)
                except InputError as error:
                    if path == found[-1]:
                        raise
                    logger.warning(f"{error} Goes on from the one before.")
                else:
                    name = path.name
                    break
        name = str(idist.broadcast(name, src=0))
        return self.ckpt_dir / name if name else None

    def keep_what_is_there(self) -> None:
        """Refuses the folder of another training that could go on; weights alone, such as shipped ones, are set aside.

        Neither where this training begins with these weights, as fine-tuning in place does.

        Raises:
            InputError: naming a checkpoint that would be lost.
        """
        weights = [path for name in WEIGHTS if (path := self.ckpt_dir / name).exists()]
        if any(map(self.begins_with, weights)):
            return
        if there := self.found():
            raise InputError(
                f"ckpt_dir {self.ckpt_dir} holds {there[0].name} of another training, which this one would replace: "
                "go on with that training by --resume true, or take another ckpt_dir."
            )
        for path in weights:
            aside = path.with_stem(f"{path.stem}-{sha256(path)[:8]}")
            logger.warning(f"{path} is of another training: kept as {aside.name}.")
            for suffix in (".json", ".pt"):  # the record first: never weights with a record of others
                if path.with_suffix(suffix).exists():
                    path.with_suffix(suffix).replace(aside.with_suffix(suffix))

    def begins_with(self, path: Path) -> bool:
        """Whether the network has the weights of a file."""
        try:
            weights = read_state(path)
        except InputError:
            return False
        own = self.evaluator.network.state_dict()
        return own.keys() == weights.keys() and all(
            own[key].shape == weights[key].shape and torch.equal(own[key].to(weights[key]), weights[key]) for key in own
        )

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
        path = self.ckpt_dir / CHECKPOINT.format(engine.state.iteration)
        write_state(state, path)
        self.own = [*(other for other in self.own if other != path), path][-2:]
        for other in self.found():
            if other not in self.own:
                other.unlink()

    def identity(self) -> dict[str, Any]:
        """What tells this training from others, as it can stand in a checkpoint."""
        cases = {name: sorted(map(case_id_of, items)) for name, items in self.data.items()}
        return {"settings": {name: plain(value) for name, value in self.settings.items()}, "cases": cases}

    def take_up(self, engine: Any, path: Path) -> None:
        state = read_checkpoint(path)
        self.check(path, state, engine)
        for name, each in self.objects.items():
            each.load_state_dict(state[name])
        if engine.scaler is not None and "scaler" in state:
            engine.scaler.load_state_dict(state["scaler"])
        iteration = engine.state.iteration = state["trainer"]["iteration"]
        engine.state.epoch = iteration // engine.state.epoch_length
        for name, value in state["best"].items():
            setattr(self.evaluator.state, name, value)
        self.own = [path]
        if idist.get_rank() == 0:  # whose numbers they are; the other processes draw others
            self.random_state = state["random"]
            logger.info(f"Goes on from {path}, after {iteration} steps.")
        if iteration and iteration % engine.state.epoch_length == 0 and engine.state.epoch % self.val_interval == 0:
            if self.random_state is not None:
                set_random_state(self.random_state)
            self.evaluator.run(engine.state.epoch)  # it was to follow, and is the same if it did
            if self.random_state is not None:
                self.random_state = random_state()

    def check(self, path: Path, state: Mapping[str, Any], engine: Any) -> None:
        """Refuses the state of another training.

        Raises:
            InputError: naming the first difference.
        """
        there, here = state["of"], self.identity()
        advice = "resume with the same, or take another ckpt_dir"
        if lacking := [name for name in (*self.objects, "network") if name not in state]:
            raise InputError(f"The checkpoint {path} lacks the state of {lacking[0]}, this training has one: {advice}.")
        for name, value in here["settings"].items():
            was = there.get("settings", {}).get(name)
            if was != value:
                raise InputError(
                    f"The checkpoint {path} is of a training with {name} {was}, this one has {value}: {advice}."
                )
        for name, cases in here["cases"].items():
            different = sorted(set(cases) ^ set(there.get("cases", {}).get(name, ())))
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, whose name says how far the training was.

    Raises:
        InputError: when it cannot be read, lacks a part, or is another one than its name says.
    """
    state = read_state(path)
    if lacking := [name for name in ("trainer", "best", "random", "of") if not isinstance(state.get(name), dict)]:
        raise InputError(f"{path} should be a checkpoint of a training, it lacks {', '.join(lacking)}.")
    iteration = state["trainer"].get("iteration")
    if path.name != CHECKPOINT.format(iteration):
        raise InputError(f"{path} should be the checkpoint that its name says, it holds {iteration}.")
    return state


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
