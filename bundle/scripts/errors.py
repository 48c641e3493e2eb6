"""Bad input ends a run with one sentence; this is where that sentence comes from and how it is shown."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any

__all__ = ["InputError", "flag", "one_sentence", "show_one_sentence"]


CANNOT_WRITE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST),  # a file where a folder should be
)
SHARED_MEMORY = (
    "The shared memory of this machine (/dev/shm) is full: give it more (docker run --shm-size 8g), or load in the "
    "main process by --num_workers 0."
)


class InputError(ValueError):
    """Input that a run cannot go on with: one sentence that names the case, the file, the rule and the value.

    A data loader makes an error of its worker process anew, from the text of all that was raised there: the sentence
    alone is kept.
    """

    def __init__(self, text: str) -> None:
        super().__init__(_sentence_in(text) or text)


def flag(name: str, value: Any, *others: str) -> Any:
    """The value of a knob that is true or false, or one of the ``others``.

    The command line gives ``true`` and ``false`` as text, which Python takes for true both.

    Raises:
        InputError: when it is something else.
    """
    known: dict[Any, Any] = {True: True, False: False, "true": True, "false": False} | {
        other: other for other in others
    }
    key = value.lower() if isinstance(value, str) else value
    if key not in known:
        raise InputError(f"{name} should be {' or '.join(['true', 'false', *others])}, got {value}.")
    return known[key]


def one_sentence(error: BaseException) -> str | None:
    """The sentence of the ``InputError`` behind an error; ``None`` where the cause is something else.

    MONAI wraps errors of transforms and of configs in errors of its own; a worker process of a data loader hands
    them over as text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if in_worker := _sentence_in(str(cause)):
            return in_worker
        if isinstance(cause, InputError):
            return str(cause)
        of_the_machine = _of_the_machine(cause)
        if of_the_machine:
            return of_the_machine
        cause = cause.__cause__ or cause.__context__
    return None


def _sentence_in(text: str) -> str | None:
    """The sentence of an ``InputError`` in the text of a traceback."""
    found = re.search(rf"^\S*\b{InputError.__name__}: (.+)$", text, re.MULTILINE)
    return found and found[1]


def _of_the_machine(error: BaseException) -> str | None:
    """What the machine lacks, where that is the cause: room to write, shared memory, memory for a process."""
    text = str(error)
    # PyTorch's errors carry no code; one is "unable to write to file </torch_4711_0>: No space left on device".
    if re.search(r"</torch_\w+>|out of shared memory|insufficient shared memory", text):
        return SHARED_MEMORY
    from_process = any(name.startswith("multiprocessing.") for name in _modules(error))
    died = re.search(r"DataLoader worker \(pid\(?s?\)? .*(exited unexpectedly|is killed by signal)", text)
    if died or (from_process and isinstance(error, EOFError | ConnectionError)):  # it died while it handed a case over
        how = text.partition("\n")[0].rstrip(". ") or type(error).__name__
        return (
            f"A process that loads data died ({how}), often for want of memory: take a smaller num_workers, and go on "
            "by --resume true."
        )
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        if from_process:  # its locks lie there
            return SHARED_MEMORY
        return f"{error.filename or 'A file'} cannot be written: {os.strerror(error.errno)}."
    return None


def _modules(error: BaseException) -> list[str]:
    """The modules that an error passed, the one that raised it last."""
    return [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]


def show_one_sentence() -> None:
    """Lets ``python -m monai.bundle`` end with the sentence of bad input instead of a traceback.

    Where another program runs a bundle, a notebook or a server, it shows errors in its own way, and its hook stays.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is None or program.name != "monai.bundle.__main__":
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sentence = one_sentence(error)
        if sentence is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            print(f"Error: {sentence}", file=sys.stderr)

    sys.excepthook = hook
