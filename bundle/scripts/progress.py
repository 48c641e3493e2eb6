"""A run from without: a progress bar with the time left, for people at a terminal, and what is done at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

__all__ = ["ProgressBar", "at_the_end"]


def at_the_end(engine: Engine, function: Callable[[], None]) -> None:
    """Calls a function when a run of an engine ends: completed, with an error, or left by ``sys.exit`` or Ctrl-C.

    It may be called twice. ignite takes an error for handled where a handler knows it, and calls no other handler once
    one has raised it again; so a last one does that for all.
    """
    if engine.has_event_handler(raise_again, Events.EXCEPTION_RAISED):
        engine.remove_event_handler(raise_again, Events.EXCEPTION_RAISED)
    engine.add_event_handler(Events.COMPLETED, lambda _: function())
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: function())
    engine.add_event_handler(Events.EXCEPTION_RAISED, raise_again)


def raise_again(_: Engine, error: BaseException) -> None:
    raise error


class ProgressBar:
    """Handler: one bar over all iterations of a run, with the time left.

    ignite's bar starts anew with each epoch, so it tells the time left of an epoch, not that of the run. The bar shows
    on a terminal only, so that it never ends up in a log file, and log lines appear above it.

    Args:
        desc: what is going on, such as ``"training"``.
    """

    def __init__(self, desc: str) -> None:
        self.desc = desc
        self.open = ExitStack()
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        at_the_end(engine, self.open.close)

    def started(self, engine: Engine) -> None:
        state: Any = engine.state
        self.bar = self.open.enter_context(
            tqdm(
                # A training may go on from within an epoch.
                total=(state.max_epochs - state.epoch) * state.epoch_length - state.iteration % state.epoch_length,
                desc=self.desc,
                dynamic_ncols=True,
                leave=False,
                disable=True if idist.get_rank() else None,  # None: where standard error is not a terminal
            )
        )
        if not self.bar.disable:
            self.open.enter_context(logging_redirect_tqdm([logging.root]))

    def iteration_completed(self, _: Engine) -> None:
        if self.bar is not None:
            self.bar.update()
