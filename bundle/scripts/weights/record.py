"""The record beside weights is the contract of how they are used: knobs come from it, and one that differs is refused.

``training`` writes ``model.json`` beside ``model.pt`` with the settings that inference and evaluation depend on, and
the cases that were trained on. ``inference.json`` and ``evaluate.json`` read their knobs from there. A knob that is
given by hand has to be the record's, or the run ends in one sentence; free are those of the post-processing,
``label_convention`` among conventions of the same regions, and ``modalities`` among those of the record: a missing one
is zero, and a warning says so. Weights without a record need the knobs: those that are not
given have the config's defaults.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple
from torch import nn

from ..data.cases import case_id_of
from ..data.labels import Convention, regions
from ..data.patients import patients_of
from ..errors import InputError, flag
from ..files import whole_file
from ..networks import MISSU
from ..networks.missu import STRIDE

__all__ = [
    "arguments_of",
    "check_contract",
    "check_unseen",
    "convention_to_write",
    "describe",
    "keep_setting",
    "network_of_record",
    "read_record",
    "record_of",
    "recorded",
    "sha256",
    "temperature_of",
    "write_record",
]

logger = logging.getLogger(__name__)

EXPORTED = (".ts", ".onnx", ".pt2")

# What would give a wrong mask without a word: the order of modalities, sizes, and the network's own arguments.
CONTRACT = ("modalities", "spacing_mm", "intensities", "roi_size", "network")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_of(path: Path) -> Path:
    """The file of a record: ``model.json`` beside ``model.pt``, ``model.ts.json`` beside the exported ``model.ts``."""
    return path.with_name(f"{path.name}.json") if path.suffix in EXPORTED else path.with_suffix(".json")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of weights that are there."""
    with whole_file(record_of(path)) as temporary:
        temporary.write_text(json.dumps({**record, "sha256": sha256(path)}, indent=2) + "\n")


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record beside weights; ``None`` where there is none.

    Raises:
        InputError: when it cannot be read, or is that of other weights.
    """
    path = Path(path)
    file = record_of(path)
    if not file.is_file() or not path.is_file():  # load_weights says that weights are missing
        return None
    try:
        record = json.loads(file.read_text())
        digest = record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The record {file} of the weights {path} cannot be read: delete it to go on without."
        ) from error
    if digest != sha256(path):
        raise InputError(
            f"The weights {path} are not those that {file} tells of, the sha256 differs: "
            f"restore them, or delete {file}."
        )
    return record


def describe(path: str | Path) -> str:
    """One line on where weights come from, by their record."""
    record = read_record(path)
    if record is None:
        return (
            f"{path}: of unknown origin, there is no {record_of(Path(path)).name} beside it. "
            "Knobs that are not given have the config's defaults."
        )
    metrics = "".join(f", {name} {value:.3f}" for name, value in record["metrics"].items())
    return f"{path}: trained on {record['dataset']} ({len(record['cases'])} cases), epoch {record['epoch']}{metrics}."


def arguments_of(network: nn.Module) -> dict[str, Any] | None:
    """What a :class:`~scripts.networks.MISSU` was made with, but for ``dropout`` and ``skips``; else ``None``.

    ``dropout`` changes nothing at inference, ``skips`` have weights that say so.
    """
    if type(network) is not MISSU:  # of a subclass the class would have to be recorded, too
        return None
    bottleneck = network.bottleneck
    arguments: dict[str, Any] = {
        "in_channels": network.in_channels,
        "out_channels": network.head.out_channels,
        "img_size": [STRIDE * side for side in bottleneck.position_embedding.shape[2:]],
        "init_filters": network.feature_channels[0],
        "blocks_per_stage": [len(list(stage.children())) for stage in network.encoder],
        "hidden_size": bottleneck.patch_embedding.out_features,
        "num_layers": len(bottleneck.layers),
    }
    layer: Any
    for layer in bottleneck.layers:  # all alike; none without a Transformer
        arguments |= {"mlp_dim": layer.mlp[0].out_features, "num_heads": layer.attention.num_heads}
    return arguments


def settings_of(checkpoint: str | Sequence[str]) -> dict[str, Any]:
    """The settings in the record of weights; of an ensemble, those that its members share. Empty without a record.

    Raises:
        InputError: when the members differ in what they ask of their use.
    """
    shared: dict[str, Any] = {}
    first = None
    for path in ensure_tuple(checkpoint):
        record = read_record(path)
        if record is None:
            continue
        settings = record["settings"]
        if first is None:
            first, shared = path, settings
        for name in (*CONTRACT, "label_convention"):
            if settings.get(name) != shared.get(name):
                raise InputError(
                    f"{name} should be the same for all weights of an ensemble, {path} has {settings.get(name)}, "
                    f"{first} has {shared.get(name)}."
                )
    return shared


def recorded(checkpoint: str | Sequence[str], name: str, default: Any) -> Any:
    """A knob's value in the record of weights, or the default where there is no record, or none of this knob.

    Args:
        checkpoint: the weights; those of each member of an ensemble.
        name: of the knob.
        default: its value without a record.
    """
    return settings_of(checkpoint).get(name, default)


def keep_setting(checkpoint: Path, name: str, value: Any) -> None:
    """Puts a knob's value into the record of weights.

    Raises:
        InputError: when there is no record.
    """
    record = read_record(checkpoint)
    if record is None:
        raise InputError(f"The weights {checkpoint} should have a record, {record_of(checkpoint)} is not there.")
    write_record(checkpoint, {**record, "settings": {**record["settings"], name: value}})


def temperature_of(checkpoint: str | Sequence[str]) -> dict[str, float]:
    """What the logits of each region are divided by; none of an ensemble, of which it was not fitted."""
    paths = ensure_tuple(checkpoint)
    return dict(recorded(paths, "temperature", {})) if len(paths) == 1 else {}


def convention_to_write(checkpoint: str | Sequence[str], default: Convention) -> Convention:
    """The label convention of masks: the default where it has the regions of the training's, else the training's."""
    trained = settings_of(checkpoint).get("label_convention", default)
    return default if same_regions(trained, default) else trained


def same_regions(trained: Convention, given: Convention) -> bool:
    """Whether two conventions have the same regions in the same order, as the channels of a network may be regions."""
    return list(regions(trained).items()) == list(regions(given).items())


def check_contract(
    checkpoint: str | Sequence[str],
    modalities: str | Sequence[str],
    network_modalities: str | Sequence[str],
    spacing_mm: Sequence[float],
    intensities: Mapping[str, Any],
    roi_size: Sequence[int],
    label_convention: Convention,
) -> dict[str, Any]:
    """Compares knobs with the record of the weights.

    Args:
        checkpoint: the weights; those of each member of an ensemble.
        modalities: those that the cases have; some of the network's. Of those that are missing a warning tells.
        network_modalities: in the order of the network's channels.
        spacing_mm: that of the network's voxels.
        intensities: how channels are normalized, see :class:`scripts.data.NormalizeChannelsd`.
        roi_size: the crop of the training, in voxels.
        label_convention: any with the regions of the training's.

    Returns:
        The network's own arguments in the record, for :func:`network_of_record`; none without a record.

    Raises:
        InputError: when one differs.
    """
    settings = settings_of(checkpoint)
    for name in ensure_tuple(modalities):
        if name not in ensure_tuple(network_modalities):
            raise InputError(
                f"modalities should be some of {list(ensure_tuple(network_modalities))}, with which the weights were "
                f"trained, got {list(ensure_tuple(modalities))}: leave it out, or take other weights."
            )
    if len(set(ensure_tuple(modalities))) < len(ensure_tuple(modalities)):
        raise InputError(f"modalities should be different ones, got {list(ensure_tuple(modalities))}.")
    refuse_other("network_modalities", settings.get("modalities"), network_modalities)
    given = {"spacing_mm": spacing_mm, "intensities": intensities, "roi_size": roi_size}
    for name, value in given.items():
        refuse_other(name, settings.get(name), value)
    trained = settings.get("label_convention", label_convention)
    if not same_regions(trained, label_convention):
        raise InputError(
            f"label_convention should have the regions of {trained}, the record of the weights says so, "
            f"{label_convention} has others."
        )
    missing = [name for name in ensure_tuple(network_modalities) if name not in ensure_tuple(modalities)]
    if missing:
        warn_of_missing(missing, bool(settings.get("modality_dropout")), "et" in regions(label_convention))
    return settings.get("network") or {}


def warn_of_missing(missing: Sequence[str], seen_in_training: bool, has_enhancing_tumor: bool) -> None:
    """Says in the log what a missing modality costs."""
    names = ", ".join(missing)
    logger.warning(f"Without {names}: zero in the channels of the network, and worse masks than with all modalities.")
    if not seen_in_training:
        logger.warning(
            f"The weights never saw a case without {names}, by their record (modality_dropout): such masks are likely "
            "to be wrong. A training with modality_dropout, or with teacher.json, is for that."
        )
    if has_enhancing_tumor and "t1ce" in missing:
        logger.warning(
            "Enhancing tumor without t1ce is below 0.50 Dice for every published method: do not rely on the region et."
        )


def refuse_other(name: str, wanted: Any, given: Any) -> None:
    """Raises an ``InputError`` where a value is given that the record contradicts."""
    if wanted is None:
        return
    wanted, given = (list(ensure_tuple(value)) if isinstance(wanted, list) else value for value in (wanted, given))
    if wanted != given:
        raise InputError(
            f"{name} should be {wanted}, with which the weights were trained (their record says so), got {given}: "
            f"leave it out, or take other weights."
        )


def network_of_record(contract: Mapping[str, Any], **arguments: Any) -> MISSU:
    """The network of weights: its arguments in the record, and those that are given.

    Args:
        contract: the arguments in the record, from :func:`check_contract`.
        arguments: of :class:`~scripts.networks.MISSU`.

    Raises:
        InputError: when an argument is given that the record contradicts.
    """
    for name, value in arguments.items():
        wanted = contract.get(name)
        one_for_all = isinstance(wanted, list) and isinstance(value, int)  # an img_size
        refuse_other(f"network_def#{name}", wanted, [value] * len(wanted or ()) if one_for_all else value)
    return MISSU(**{**contract, **arguments})


def check_unseen(
    checkpoint: str | Sequence[str],
    entries: Iterable[Mapping[str, Any]],
    dataset_dir: str,
    allow_training_cases: bool | str = False,
) -> None:
    """Refuses to score cases whose patients the weights were trained on, by the record of the weights.

    Args:
        checkpoint: the weights; of an ensemble, none of its members may have been trained on a case.
        entries: the cases to score.
        dataset_dir: where BraTS's tables of patients lie.
        allow_training_cases: scores them all the same, knowingly.

    Raises:
        InputError: when there is one.
    """
    if flag("allow_training_cases", allow_training_cases):
        return
    for path in ensure_tuple(checkpoint):
        trained = set((read_record(path) or {}).get("cases", ()))
        scored = [case_id_of(entry) for entry in entries]
        patients = patients_of([*trained, *scored], dataset_dir)
        of_training = {patients[case_id] for case_id in trained}
        seen = [case_id for case_id in scored if patients[case_id] in of_training]
        if seen:
            raise InputError(
                f"{len(seen)} of the {len(scored)} cases to score, such as {seen[0]}, are of patients that the weights "
                f"{path} were trained on: name others by --split or --dataset_dir, or score them all the same by "
                "--allow_training_cases true."
            )
