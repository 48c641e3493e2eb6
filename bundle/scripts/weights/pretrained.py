"""Weights of one task as the start of another: what fits by name and shape, modalities and classes by their names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from ..data.labels import Convention, class_names, regions
from ..data.patients import patient_of
from ..errors import InputError, flag
from ..networks import MISSU
from .checkpoints import load_weights, read_state
from .record import (
    check_contract,
    network_of_record,
    read_record,
    recorded,
    sha256,
    terms_of,
    trained_patients,
)

__all__ = ["frozen_teacher", "intensities_like", "load_pretrained", "network_like", "parent_of"]

logger = logging.getLogger(__name__)

FIRST, HEAD, POSITIONS = "encoder.0.0.0.weight", "head", "bottleneck.position_embedding"
LEAST_LOADED = 0.5  # of all weights; with less, it is a training from scratch that only looks like a fine-tuning


def parent_of(pretrained: str) -> dict[str, Any]:
    """What the record of fine-tuned weights says of those they began with: whose cases were trained on, too.

    Their terms go on with them, such as those of data that is not for commercial use.

    Raises:
        InputError: when there is no such file.
    """
    if not Path(pretrained).is_file():
        raise InputError(f"pretrained should be a file of weights, {pretrained} is not there.")
    record = read_record(pretrained) or {}
    patients = trained_patients(record or None)
    terms = terms_of(record)
    told = {case_id: patient for case_id, patient in patients.items() if patient != patient_of(case_id)}
    return {
        "file": Path(pretrained).name,
        "sha256": sha256(Path(pretrained)),
        "cases": sorted(patients),
        **({"patients": told} if told else {}),
        **({"license": terms} if terms else {}),
    }


def intensities_like(pretrained: str, modalities: Sequence[str]) -> dict[str, dict[str, float]]:
    """How other weights normalize channels that have units, such as a CT, of those modalities that are here, too.

    Args:
        pretrained: the weights.
        modalities: names of the channels.
    """
    of = recorded(pretrained, "intensities", {})
    return {name: of[name] for name in modalities if name in of}


def network_like(pretrained: str, **arguments: Any) -> MISSU:
    """A network as that of other weights, by their record, but for the arguments that are given.

    Args:
        pretrained: the weights.
        arguments: of :class:`~scripts.networks.MISSU`, such as other ``in_channels``.
    """
    return MISSU(**{**recorded(pretrained, "network", {}), **arguments})


def frozen_teacher(
    teacher: str,
    modalities: Sequence[str],
    spacing_mm: Sequence[float],
    intensities: Mapping[str, Any],
    label_convention: Convention,
    out_channels: int,
) -> MISSU:
    """The network of weights that teach another one, for :class:`~scripts.networks.ModalityDistillation`.

    It reads what the other one is trained on, so its record has to agree with the knobs of the training; its crop may
    be another.

    Args:
        teacher: the weights, with their record beside them.
        modalities: of the images, in the order of their channels.
        spacing_mm: of their voxels.
        intensities: how their channels are normalized.
        label_convention: of the classes.
        out_channels: of the logits: classes, or regions.

    Raises:
        InputError: when there are no such weights, they have no record, or a knob is another there.
    """
    path = Path(teacher)
    crop: Any = settings_of_weights(path, "teacher").get("roi_size")
    contract = check_contract(teacher, modalities, modalities, spacing_mm, intensities, crop, label_convention)
    network = network_of_record(contract, in_channels=len(modalities), out_channels=out_channels)
    load_weights(network, path)
    return network


def settings_of_weights(path: Path, knob: str) -> dict[str, Any]:
    """The settings in the record of weights that a knob names, which needs them."""
    if not path.is_file():
        raise InputError(f"{knob} should be a file of weights, {path} is not there.")
    record = read_record(path)
    if record is None:
        raise InputError(
            f"The weights {path} have no record, {path.with_suffix('.json').name}, that tells their modalities and "
            f"classes: {knob} needs it."
        )
    settings: dict[str, Any] = record["settings"]
    return settings


def names_of_head(label_convention: Convention, softmax: bool) -> list[str]:
    """What the channels of the logits are called: classes, or regions."""
    return class_names(label_convention) if softmax else list(regions(label_convention))


def load_pretrained(
    network: MISSU,
    pretrained: str,
    modalities: Sequence[str],
    label_convention: Convention,
    softmax: bool = True,
    freeze_encoder: bool = False,
) -> list[str]:
    """Starts a network from the weights of another, and says what it did not take from them.

    A weight is taken where name and shape agree. The first convolution takes the channels of the modalities that both
    have, the head those of the classes, or regions, that both have; the position table is resampled where its grid is
    another.

    Args:
        network: the network to be trained.
        pretrained: the weights, with their record beside them.
        modalities: of the network, in the order of its channels.
        label_convention: of the network's classes.
        softmax: whether the network has a channel for each class, and not for each region.
        freeze_encoder: whether the encoder stays as it is.

    Returns:
        What was not loaded, one line each.

    Raises:
        InputError: when there are no such weights, they have no record, hardly any of them fits, or a part of the
            encoder that is to stay as it is would stay random.
    """
    path = Path(pretrained)
    settings = settings_of_weights(path, "pretrained")
    old = read_state(path)
    new = {key: weight.clone() for key, weight in network.state_dict().items()}  # loaded whole, or not at all
    softmax = flag("softmax", softmax)
    had_softmax = settings.get("softmax", True)
    head = (0, names_of_head(settings["label_convention"], had_softmax), names_of_head(label_convention, softmax))
    names = {
        FIRST: (1, settings["modalities"], list(modalities)),
        f"{HEAD}.weight": head,
        f"{HEAD}.bias": head,
    }
    for key, (axis, had, _) in names.items():
        if key in old and old[key].shape[axis] != len(had):
            raise InputError(
                f"The record of {path} should name each channel of the weights, {key} has {old[key].shape[axis]}, it "
                f"names {', '.join(had)}."
            )
    fresh: list[str] = []  # begins at random
    num_loaded = 0
    for key, weight in new.items():
        if key not in old:
            fresh.append(f"{key}: not in it")
        elif key.startswith(f"{HEAD}.") and had_softmax != softmax:
            has, has_not = ("classes", "regions") if had_softmax else ("regions", "classes")
            fresh.append(f"{key}: its channels are {has}, not {has_not}")
        elif key in names and names[key][1] != names[key][2]:
            axis, had, wanted = names[key]
            shared = [name for name in wanted if name in had]
            for name in shared:
                weight.select(axis, wanted.index(name)).copy_(old[key].select(axis, had.index(name)))
            num_loaded += weight.numel() * len(shared) // len(wanted)
            fresh += [f"{key}: {name} is new" for name in wanted if name not in had]
        elif key == POSITIONS and old[key].shape[1] == weight.shape[1]:
            weight.copy_(F.interpolate(old[key].float(), size=weight.shape[2:], mode="trilinear", align_corners=False))
            num_loaded += weight.numel()
        elif old[key].shape != weight.shape:
            fresh.append(f"{key}: its shape is {list(old[key].shape)}, not {list(weight.shape)}")
        else:
            weight.copy_(old[key])
            num_loaded += weight.numel()
    unused = [f"{key}: unknown to this network" for key in old if key not in new]
    unused += [f"{key}: {name} is left out" for key in names for name in names[key][1] if name not in names[key][2]]
    lacking = fresh + unused
    share = num_loaded / sum(weight.numel() for weight in new.values())
    if share < LEAST_LOADED:
        raise InputError(
            f"pretrained should be weights of such a network, {share:.0%} of it could be loaded from {path}: "
            f"{lacking[0]}."
        )
    freeze_encoder = flag("freeze_encoder", freeze_encoder)
    if freeze_encoder and (of_encoder := [line for line in fresh if line.startswith("encoder.")]):
        raise InputError(
            f"freeze_encoder needs an encoder that {path} has wholly, this would stay random: {of_encoder[0]}."
        )
    network.load_state_dict(new)
    network.encoder.requires_grad_(not freeze_encoder)
    logger.info("\n".join([f"Begins with {share:.1%} of its weights from {path}; not loaded:", *(lacking or ["none"])]))
    return lacking
