"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = ["check_new", "check_writable", "read_json", "remove_unfinished", "unwound_by_sigterm", "whole_file"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` at the end of the block.

    Where the block fails, what was at ``path`` before is still there, and nothing else; where the machine fails, either
    of the two. The folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the same ending: some writers go by it
    try:
        yield temporary
        flush(temporary)  # or a power cut could leave the name without the content
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM, which clusters send before they kill, end the block as an error would: temporary files go.

    Python would end at once, and leave half a file, and scans of patients in a temporary folder.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: when it cannot be read or holds something else, with the ``name`` of what it should be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{name} {path} should be JSON, it is not: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} {path} should hold an object, it holds a {type(content).__name__}.")
    return content


def flush(path: Path) -> None:
    """Waits until a file, or the list of names of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path, name: str) -> None:
    """Removes what processes that were killed left of a :func:`whole_file` whose name matches the pattern ``name``."""
    for unfinished in folder.glob(f".[0-9]*.{name}"):
        unfinished.unlink()


def check_new(name: str, path: Path, extension: str) -> None:
    """Refuses a file to write, by the ``name`` of its knob, that ends otherwise or is there already."""
    if not path.name.endswith(extension):
        raise InputError(f"{name} should end with {extension}, it is {path}.")
    if path.exists():
        raise InputError(f"{name} should be a new file, {path} exists.")


def check_writable(folder: Path, name: str) -> None:
    """Makes a folder, and sees that files can be written to it: hours before the first one is.

    Raises:
        InputError: when they cannot, with the ``name`` of the knob.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name} {folder} cannot be written to: {error.strerror}.") from error
