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
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple
from torch import nn

from ..data.cases import case_id_of
from ..data.labels import Convention, num_classes, regions
from ..data.patients import patient_of, patients_of
from ..errors import InputError, flag
from ..files import read_json, whole_file
from ..networks import MISSU
from ..networks.missu import STRIDE, TransformerBottleneck

__all__ = [
    "arguments_of",
    "check_channels",
    "check_contract",
    "check_settings",
    "check_unseen",
    "convention_to_write",
    "costs_of_missing",
    "describe",
    "keep_setting",
    "network_of_record",
    "read_record",
    "record_of",
    "recorded",
    "sha256",
    "temperature_of",
    "terms_of",
    "told_patients",
    "trained_patients",
    "write_record",
]

logger = logging.getLogger(__name__)

EXPORTED = (".ts", ".onnx", ".pt2")

# What would give a wrong mask without a word: the order of modalities, sizes, and the network's own arguments.
CONTRACT = ("modalities", "spacing_mm", "intensities", "roi_size", "network")
# Of these an ensemble has one.
OF_ALL_MEMBERS = (
    *(*CONTRACT, "label_convention", "softmax"),
    *("stretch", "invert_logits", "largest_component_of", "min_piece", "flip_axes"),
)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_list(value: Any, of: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and all(map(of, value)) and length in (None, len(value))


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_mapping(value: Any, of: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(value, Mapping) and all(map(of, value.values()))


# What a record has to have, and of the settings what they have to be where they are there.
FORM: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sha256": ("a text", is_text),
    "dataset": ("a text", is_text),
    "cases": ("a list of case IDs", lambda value: is_list(value, is_text)),
    "settings": ("an object", is_mapping),
    "epoch": ("a number", is_number),
    "metrics": ("an object of numbers", lambda value: is_mapping(value, is_number)),
}
OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "patients": ("an object of texts", lambda value: is_mapping(value, is_text)),
    "small_et_mm3": ("a number", is_number),
    "scan_range": (
        "the ends of volume_ml and air",
        lambda value: (
            is_mapping(value) and all(is_list(value.get(name), is_number, 2) for name in ("volume_ml", "air"))
        ),
    ),
}
NEEDED = ("modalities", "label_convention", "spacing_mm", "roi_size")
FORM_OF_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "modalities": ("different names", lambda value: is_list(value, is_text) and 0 < len(value) == len({*value})),
    "label_convention": ("a name or an object", lambda value: isinstance(value, str | Mapping)),
    "spacing_mm": ("3 numbers", lambda value: is_list(value, is_number, 3)),
    "roi_size": ("3 whole numbers", lambda value: is_list(value, lambda side: type(side) is int, 3)),
    "intensities": ("an object of objects", lambda value: is_mapping(value, is_mapping)),
    "stretch": ("a number", is_number),
    "softmax": ("true or false", lambda value: isinstance(value, bool)),
    "invert_logits": ("true or false", lambda value: str(value).lower() in ("true", "false")),
    "largest_component_of": ("a list of classes", lambda value: is_list(value, lambda number: type(number) is int)),
    "min_piece": ("a number", is_number),
    "flip_axes": (
        "different axes, 0 to 2",
        lambda value: is_list(value, lambda axis: type(axis) is int and 0 <= axis <= 2) and len(value) == len({*value}),
    ),
    "modality_dropout": ("a number", is_number),
    "temperature": (
        "a number above 0 for each region",
        lambda value: is_mapping(value, lambda number: is_number(number) and number > 0),
    ),
    "parent": (
        "the weights that it began with",
        lambda value: (
            is_mapping(value)
            and is_list(value.get("cases", []), is_text)
            and is_mapping(value.get("patients", {}), is_text)
        ),
    ),
    "network": (
        "the arguments of MISSU",
        lambda value: value is None or (is_mapping(value) and {*value} <= {*inspect.signature(MISSU).parameters}),
    ),
}


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
        InputError: when it cannot be read, lacks something, or is that of other weights.
    """
    path = Path(path)
    file = record_of(path)
    if not file.is_file() or not path.is_file():  # load_weights says that weights are missing
        return None
    record = read_json(file, f"The record of the weights {path.name},")
    check_form(file, record)
    if record["sha256"] != sha256(path):
        raise InputError(
            f"The weights {path} are not those that {file} tells of, the sha256 differs: "
            f"restore them, or delete {file}."
        )
    return record


def check_form(file: Path, record: Mapping[str, Any]) -> None:
    """Refuses a record that a training has not written so.

    Raises:
        InputError: naming the first part that is missing, or something else than it should be.
    """
    parts = [(name, name in FORM, record, form) for name, form in (FORM | OPTIONAL).items()]
    settings = record.get("settings")
    if isinstance(settings, Mapping):
        parts += [(name, name in NEEDED, settings, form) for name, form in FORM_OF_SETTINGS.items()]
    for name, is_needed, of, (what, holds) in parts:
        if is_needed and name not in of:
            has = "it has none"
        elif name in of and not holds(of[name]):
            has = f"it has {json.dumps(of[name])}"
        else:
            continue
        raise InputError(
            f"The record {file} should have {name}, {what}, {has}: restore it, or delete it and give the knobs."
        )
    network = settings.get("network") if isinstance(settings, Mapping) else None
    if network and network.get("in_channels") != len(record["settings"]["modalities"]):
        raise InputError(
            f"The record {file} should have a modality for each of the in_channels, {network.get('in_channels')}, it "
            f"has {', '.join(record['settings']['modalities'])}: restore it, or delete it and give the knobs."
        )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses settings, before a training, that could not stand in its record.

    Raises:
        InputError: naming the first that is something else than it should be.
    """
    for name, value in json.loads(json.dumps(dict(settings), default=str)).items():
        what, holds = FORM_OF_SETTINGS.get(name, ("", lambda _: True))
        if not holds(value):
            raise InputError(f"{name} should be {what}, got {json.dumps(value)}.")


def describe(path: str | Path) -> str:
    """One line on where weights come from, by their record."""
    record = read_record(path)
    if record is None:
        return (
            f"{path}: of unknown origin, there is no {record_of(Path(path)).name} beside it. "
            "Knobs that are not given have the config's defaults."
        )
    metrics = "".join(f", {name} {value:.3f}" for name, value in record["metrics"].items())
    of = f"{record['dataset']} ({len(record['cases'])} cases)"
    terms = terms_of(record)
    told = f" Terms: {terms}." if terms else ""
    return f"{path}: trained on {of}, epoch {record['epoch']}{metrics}.{told}"


def terms_of(record: Mapping[str, Any]) -> str:
    """The terms of weights by their record, and of those that they began with; empty where it tells none."""
    of_parent = (record.get("settings", {}).get("parent") or {}).get("license")
    return "; ".join(dict.fromkeys(str(terms) for terms in (record.get("license"), of_parent) if terms))


def arguments_of(network: nn.Module) -> dict[str, Any] | None:
    """What a :class:`~scripts.networks.MISSU` was made with, but for ``dropout`` and ``skips``; else ``None``.

    ``dropout`` changes nothing at inference, ``skips`` have weights that say so.
    """
    if type(network) is not MISSU:  # of a subclass the class would have to be recorded, too
        return None
    arguments: dict[str, Any] = {
        "in_channels": network.in_channels,
        "out_channels": network.head.out_channels,
        "init_filters": network.feature_channels[0],
        "blocks_per_stage": [len(list(stage.children())) for stage in network.encoder],
        "num_layers": 0,
    }
    bottleneck = network.bottleneck
    if isinstance(bottleneck, TransformerBottleneck):
        layer: Any = bottleneck.layers[0]  # all are alike
        arguments |= {
            "img_size": [STRIDE * side for side in bottleneck.position_embedding.shape[2:]],
            "hidden_size": bottleneck.patch_embedding.out_features,
            "num_layers": len(bottleneck.layers),
            "mlp_dim": layer.mlp[0].out_features,
            "num_heads": layer.attention.num_heads,
        }
    return arguments


def settings_of(checkpoint: str | Sequence[str]) -> dict[str, Any]:
    """The settings in the record of weights; of an ensemble, those that its members share. Empty without a record.

    Raises:
        InputError: when the members differ in what they ask of their use, or some of them do not say it.
    """
    settings = {path: record["settings"] for path in ensure_tuple(checkpoint) if (record := read_record(path))}
    if not settings:
        return {}
    first, shared = next(iter(settings.items()))
    for path in ensure_tuple(checkpoint):
        if path not in settings and Path(path).is_file():
            raise InputError(
                f"The weights {path} have no record {record_of(Path(path)).name}, {first} has one: all weights of an "
                "ensemble need theirs, or none has one and the knobs are given."
            )
    for path, of_member in settings.items():
        for name in OF_ALL_MEMBERS:
            if of_member.get(name) != shared.get(name):
                raise InputError(
                    f"{name} should be the same for all weights of an ensemble, {path} has {of_member.get(name)}, "
                    f"{first} has {shared.get(name)}."
                )
    return dict(shared)


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
    softmax: bool | str = True,
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
        softmax: whether the network's channels are classes; else they are regions.

    Returns:
        The network's own arguments in the record, for :func:`network_of_record`; none without a record.

    Raises:
        InputError: when one differs.
    """
    settings = settings_of(checkpoint)
    modalities, network_modalities = names_of(modalities), names_of(network_modalities)
    for name in modalities:
        if name not in network_modalities:
            raise InputError(
                f"modalities should be some of {network_modalities}, with which the weights were "
                f"trained, got {modalities}: leave it out, or take other weights."
            )
    if len(set(modalities)) < len(modalities):
        raise InputError(f"modalities should be different ones, got {modalities}.")
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
    if settings.get("softmax", flag("softmax", softmax)) != flag("softmax", softmax):
        has, overlays = ("class", "without") if settings["softmax"] else ("region", "with")
        raise InputError(
            f"The weights have a channel for each {has}, their record says so (softmax): use them {overlays} "
            "configs/regions_inference.json, and configs/regions.json where they are trained or scored."
        )
    missing = [name for name in network_modalities if name not in modalities]
    for sentence in costs_of_missing(missing, bool(settings.get("modality_dropout")), label_convention):
        logger.warning(sentence)
    return settings.get("network") or {}


def costs_of_missing(missing: Sequence[str], seen_in_training: bool, label_convention: Convention) -> list[str]:
    """What missing modalities cost, in sentences; none where none is missing."""
    if not missing:
        return []
    names = ", ".join(missing)
    costs = [f"Without {names}: zero in the channels of the network, and worse masks than with all modalities."]
    if not seen_in_training:
        costs.append(
            f"The weights never saw a case without {names}, by their record (modality_dropout): such masks are likely "
            "to be wrong. A training with modality_dropout, or with teacher.json, is for that."
        )
    if "t1ce" in missing and "et" in regions(label_convention):
        costs.append(
            "Enhancing tumor without t1ce is below 0.50 Dice for every published method: do not rely on the region et."
        )
    return costs


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


def check_channels(
    network: nn.Module, network_modalities: str | Sequence[str], label_convention: Convention, num_regions: int = 0
) -> None:
    """Refuses a network with other channels than the data has; asks nothing of another class than MISSU.

    Args:
        network: to be trained or used.
        network_modalities: a channel of the input each.
        label_convention: has a class for each channel of the output.
        num_regions: number of the channels of the output where they are regions instead.

    Raises:
        InputError: when there are more or fewer.
    """
    if not isinstance(network, MISSU):
        return
    names = names_of(network_modalities)
    if network.in_channels != len(names):
        raise InputError(
            f"network_def#in_channels should be {len(names)}, one for each of {', '.join(names)}, it is "
            f"{network.in_channels}."
        )
    what, wanted = ("regions", num_regions) if num_regions else ("classes", num_classes(label_convention))
    if network.head.out_channels != wanted:
        raise InputError(
            f"network_def#out_channels should be {wanted}, the {what} of label_convention, it is "
            f"{network.head.out_channels}."
        )


def names_of(modalities: str | Sequence[str]) -> list[str]:
    """The names of modalities as a list.

    Raises:
        InputError: when it is one text, whose letters would be taken for names.
    """
    if isinstance(modalities, str):
        raise InputError(f"modalities should be a list of names, such as ['{modalities}'], got {modalities}.")
    return list(modalities)


def told_patients(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The patients of cases that a list tells and their names do not, by case ID."""
    patients = {case_id_of(entry): str(entry["patient"]) for entry in entries if entry.get("patient")}
    return {case_id: patient for case_id, patient in patients.items() if patient != patient_of(case_id)}


def trained_patients(record: Mapping[str, Any] | None, dataset_dir: str | Path | None = None) -> dict[str, str]:
    """The patient of each case that weights were trained on, also by those they began with or were taught by."""
    if record is None:
        return {}
    sources = [record, *(record["settings"].get(name) or {} for name in ("parent", "teacher"))]
    patients = patients_of([case_id for source in sources for case_id in source.get("cases", ())], dataset_dir)
    for source in reversed(sources):
        patients |= source.get("patients", {})
    return patients


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
    entries = list(entries)
    scored = patients_of(map(case_id_of, entries), dataset_dir) | told_patients(entries)
    for path in ensure_tuple(checkpoint):
        record = read_record(path)
        if record is None:
            logger.warning(f"Whether the weights {path} were trained on these cases is unknown, they have no record.")
        trained = trained_patients(record, dataset_dir)
        of_training = {*trained.values()}
        seen = [case_id for case_id in scored if case_id in trained or scored[case_id] in of_training]
        if seen:
            of_dataset = f" (data set {record['dataset']})" if record and record.get("dataset") else ""
            raise InputError(
                f"{len(seen)} of the {len(scored)} cases to score, such as {seen[0]}, are by their IDs of patients "
                f"that the weights {path} were trained on, or those that they began with{of_dataset}: name others by "
                "--split or --dataset_dir. Where another data set has the same IDs, or to score them all the same: "
                "--allow_training_cases true."
            )
