"""Bad input ends a run with one sentence; this is where that sentence comes from and how it is shown."""

from __future__ import annotations

import re
import sys
from types import TracebackType

__all__ = ["InputError", "one_sentence", "show_one_sentence"]


class InputError(ValueError):
    """Input that a run cannot go on with: one sentence that names the case, the file, the rule and the value."""


def one_sentence(error: BaseException) -> str | None:
    """The sentence of the ``InputError`` behind an error; ``None`` where the cause is something else.

    MONAI wraps errors of transforms and of configs in errors of its own; a worker process of a data loader hands
    them over as text.
    """
    cause: BaseException | None = error
    while cause is not None:
        in_worker = re.search(rf"^\S*\b{InputError.__name__}: (.+)$", str(cause), re.MULTILINE)
        if in_worker:
            return in_worker.group(1)
        if isinstance(cause, InputError) or (isinstance(cause, ValueError) and _raised_here(cause)):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _raised_here(error: BaseException) -> bool:
    """Whether an error comes from this package, such as the network's about its arguments."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals["__name__"].startswith(f"{__package__}.")


def show_one_sentence() -> None:
    """Makes an uncaught error that comes from bad input print its sentence instead of a traceback."""

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sentence = one_sentence(error)
        if sentence is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            print(f"Error: {sentence}", file=sys.stderr)

    sys.excepthook = hook
