"""Knobs on the command line: one that no config defines is refused, with the nearest name."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.bundle.config_item import ConfigComponent
from monai.utils import ensure_tuple

from .errors import InputError

__all__ = ["check_command", "check_knobs"]

# What ``python -m monai.bundle run`` takes itself.
OF_MONAI = {
    *("workflow_name", *inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters),
} - {"override"}


def check_command() -> None:
    """Refuses knobs that no config defines, where this process is ``python -m monai.bundle run``.

    MONAI adds an override under any name to the config, where nothing reads it. Python code that does the same knows
    what it does, and is not asked.

    Raises:
        InputError: when there is one.
    """
    program, *arguments = sys.argv
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py") or arguments[:1] != ["run"]:
        return
    given = flags(arguments)
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if "config_file" in given:
        check_knobs(given.keys() - OF_MONAI - of_tracking(given.get("tracking")), as_list(given["config_file"]))


def of_tracking(tracking: Any) -> set[str]:
    """The knobs that MONAI adds to a config for ``--tracking``, of settings or their file.

    Raises:
        InputError: when it is ``mlflow``: MONAI's settings look for the loss in a list, the trainer's output is none.
    """
    if tracking is None:
        return set()
    if tracking == "mlflow":
        raise InputError("--tracking should be configs/mlflow.json, whose settings fit this trainer, it is mlflow.")
    return set((ConfigParser.load_config_file(tracking) if isinstance(tracking, str) else tracking)["configs"])


def flags(arguments: Iterable[str]) -> dict[str, str]:
    """Flags as ``fire`` reads them: ``--name value``, ``--name=value``, ``--name`` alone, ``-name``; values as text."""
    found: dict[str, str] = {}
    name = None
    for argument in arguments:
        if argument == "--":  # what follows is for fire
            break
        if re.match("--|-[a-zA-Z]", argument):  # no negative number
            name, _, value = argument.lstrip("-").partition("=")
            name = name.replace("-", "_")
            found[name] = value
        elif name is not None:
            found[name] = argument
            name = None
    return found


def as_list(config_file: str | Sequence[str]) -> list[str]:
    if isinstance(config_file, str) and config_file.lstrip().startswith(("[", "(")):
        config_file = ast.literal_eval(config_file.strip())
    return list(ensure_tuple(config_file))


def check_knobs(names: Iterable[str], config_files: Sequence[str]) -> None:
    """Refuses names that configs do not define; below a part that is built, its arguments are defined, too.

    Args:
        names: such as ``max_epochs``, ``network_def#num_heads``.
        config_files: a workflow and its overlays.

    Raises:
        InputError: for the first one, with the nearest name.
    """
    config = ConfigParser()
    config.read_config(list(config_files))
    for name in sorted(names):
        knob = name.lstrip("+").replace("::", "#")
        if knob in config or knob.startswith("_meta_"):
            continue
        *above, last = knob.split("#")
        parent = "#".join(above)
        known = known_below(config[parent] if not parent or parent in config else {})
        if known is None or last in known:
            continue
        near = difflib.get_close_matches(last, known, n=1) if parent in config or not parent else []
        meant = f", did you mean --{'#'.join([*above, *near])}?" if near else "."
        raise InputError(f"--{name} is no knob of {', '.join(map(str, config_files))}{meant}")


def known_below(content: Any) -> list[str] | None:
    """The names below a part of a config; ``None`` where it takes any."""
    if not isinstance(content, Mapping):
        return []
    known = [str(key) for key in content]
    if not ConfigComponent.is_instantiable(content):
        return known
    target = ConfigComponent(dict(content)).resolve_module_name()
    module, _, attribute = str(target).rpartition(".")
    built = getattr(sys.modules.get(module) or __import__(module, fromlist=[attribute]), attribute)
    parameters = inspect.signature(built).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [*known, *(parameter.name for parameter in parameters), *ConfigComponent.non_arg_keys]
