"""A command line: knobs that no config defines and overlays of another workflow are refused."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, run
from monai.bundle.config_item import ConfigComponent
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, merge_kv
from monai.utils import ensure_tuple

from .errors import InputError

__all__ = ["check_command", "check_knobs", "check_overlays"]

CONFIGS = Path(__file__).parents[1] / "configs"
# What ``python -m monai.bundle run`` takes itself.
OF_MONAI = {
    *("workflow_name", *inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters),
} - {"override"}


def check_command() -> None:
    """Refuses knobs that no config defines, and overlays that do not fit, where ``python -m monai.bundle run`` runs.

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
        config_files = as_list(given["config_file"])
        check_overlays(config_files, given)
        known = OF_MONAI | of_tracking(given.get("tracking"), config_files)
        check_knobs(given.keys() - known, config_files, given.get("meta_file"))


def of_tracking(tracking: Any, config_files: Sequence[str]) -> set[str]:
    """The knobs that MONAI adds to a config for ``--tracking``: a name such as ``mlflow``, settings or their file.

    Raises:
        InputError: when it is ``mlflow`` for a training: it looks for the loss in a list, the trainer's output is none.
    """
    if tracking is None:
        return set()
    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        if any(Path(file).name == "train.json" for file in config_files):
            raise InputError(
                f"--tracking should be configs/mlflow.json, whose settings fit this trainer, it is {tracking}."
            )
        tracking = DEFAULT_EXP_MGMT_SETTINGS[tracking]
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


def check_overlays(config_files: Sequence[str], given: Iterable[str] = ()) -> None:
    """Refuses an overlay of another workflow, or before its own.

    An overlay says by ``"+train": {}`` that it changes parts of ``train``. MONAI copies such a part where there is none
    to merge with, so that it is found here; a nested name alone would end in a ``KeyError`` of MONAI's.

    Args:
        config_files: a workflow and its overlays.
        given: names of knobs that are given beside them.

    Raises:
        InputError: naming the overlay, and what it changes or uses that no config has, or defines for nobody.
    """
    merged = ConfigParser(config={})
    used = {}
    new: dict[str, str] = {}
    for file in config_files:
        content = ConfigParser.load_config_file(file)
        used[file] = [*used_by(content)]  # now: a later overlay changes it in place
        for name, value in content.items():
            if file != config_files[0] and not re.search("[#:+]", name) and name not in merged and is_plain(value):
                new[name] = file
            if name.startswith("+") and name[1:] not in merged:
                raise InputError(another_workflow(file, "changes", name[1:], config_files))
            merge_kv(merged, name, value)
    defined = {*merged.get(), *(re.split("#|::", name.lstrip("+"))[0] for name in given)}
    for file, names in used.items():
        for name in names:
            if name not in defined and name not in ("", "_meta_"):  # a relative one, and the metadata
                raise InputError(another_workflow(file, "uses", name, config_files))
    of_others = {name for path in CONFIGS.glob("*.json") for name in ConfigParser.load_config_file(path)}
    for name in sorted(new.keys() - of_others - {name for names in used.values() for name in names} - {"_desc_"}):
        near = difflib.get_close_matches(name, sorted({*merged.get(), *of_others} - {name}), n=1)
        meant = f", did you mean {near[0]}?" if near else "."
        raise InputError(f"{new[name]} sets {name}, which nothing uses{meant}")


def is_plain(value: Any) -> bool:
    """Whether a part of a config is a value, nothing that is built or run."""
    return not isinstance(value, Mapping) and not re.search("[$@%]", str(value))


def another_workflow(file: str, does: str, name: str, config_files: Sequence[str]) -> str:
    others = ", ".join(str(other) for other in config_files if other != file) or "nothing"
    return (
        f"{file} {does} {name}, which is not defined by what it is given with, {others}: it is an overlay on another "
        "workflow, or comes before its own; its _desc_ says on which."
    )


def used_by(content: Any) -> Iterator[str]:
    """The top-level names that a part of a config refers to."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from used_by(value) if name != "_desc_" else ()
    elif isinstance(content, list):
        for value in content:
            yield from used_by(value)
    elif isinstance(content, str):
        yield from (name.split("::")[0] for name in ReferenceResolver.match_refs_pattern(content.replace("#", "::")))


def check_knobs(names: Iterable[str], config_files: Sequence[str], meta_file: str | None = None) -> None:
    """Refuses names that configs do not define; below a part that is built, its arguments are defined, too.

    Args:
        names: such as ``max_epochs``, ``network_def#num_heads``.
        config_files: a workflow and its overlays.
        meta_file: the metadata; by default ``metadata.json`` beside the workflow.

    Raises:
        InputError: for the first one, with the nearest name.
    """
    config = ConfigParser()
    config.read_config(list(config_files))
    metadata = Path(meta_file or Path(config_files[0]).with_name("metadata.json"))
    if metadata.is_file():
        config.read_meta(metadata)
    for name in sorted(names):
        knob = name.lstrip("+").replace("::", "#")
        if knob in config:
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
