"""The progress bar: over the whole run, for terminals alone, out of the way of errors and log lines."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr

import pytest
from ignite.engine import Engine, Events

from scripts.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(engine: Engine, num_batches: int, max_epochs: int = 1) -> str:
    """What a run shows at a terminal."""
    with redirect_stderr(Terminal()) as screen:
        engine.run(range(num_batches), max_epochs=max_epochs)
    return screen.getvalue()


def test_nothing_where_there_is_no_terminal(capsys):
    engine = Engine(lambda *_: None)
    ProgressBar("training").attach(engine)
    engine.run(range(3), max_epochs=2)
    assert capsys.readouterr() == ("", "")


def test_one_bar_for_the_run():
    engine = Engine(lambda *_: None)
    bar = ProgressBar("training")
    bar.attach(engine)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append((bar.bar.n, bar.bar.total)))
    shown = run(engine, 3, max_epochs=2)
    assert seen == [(step, 6) for step in range(1, 7)]  # 2 epochs of 3 iterations
    assert "training:   0%|" in shown
    assert "0/6" in shown


def test_a_resumed_run_counts_what_remains():
    engine = Engine(lambda *_: None)
    bar = ProgressBar("training")
    bar.attach(engine)
    engine.load_state_dict({"epoch": 7, "max_epochs": 10, "epoch_length": 4})
    run(engine, 4, max_epochs=10)
    assert (bar.bar.n, bar.bar.total) == (12, 12)  # epochs 8 to 10


def test_a_second_run_has_a_bar_of_its_own():
    """As a validation has, which runs again and again."""
    engine = Engine(lambda *_: None)
    bar = ProgressBar("evaluation")
    bar.attach(engine)
    for _ in range(2):
        run(engine, 3)
        assert (bar.bar.n, bar.bar.total) == (3, 3)


def test_the_bar_goes_and_the_error_stays():
    def fail(engine, _):
        if engine.state.iteration == 2:
            raise ZeroDivisionError("in the middle")

    engine = Engine(fail)
    bar = ProgressBar("training")
    bar.attach(engine)
    closed = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda _: closed.append(bool(bar.bar.disable)))
    handlers = list(logging.root.handlers)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        run(engine, 3)
    assert closed == [False, False]
    assert bar.bar.disable  # a bar that is closed draws no more
    assert logging.root.handlers == handlers


def test_log_lines_stand_alone(monkeypatch):
    """Above the bar, which is wiped first and drawn again after the line."""
    screen = Terminal()
    engine = Engine(lambda *_: logging.getLogger("trainer").warning("loss 0.5"))
    ProgressBar("training").attach(engine)
    with redirect_stderr(screen):
        monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])  # to standard error
        engine.run(range(1))
    lines = screen.getvalue().replace("\r", "\n").split("\n")
    assert "loss 0.5" in [line.rstrip() for line in lines]
