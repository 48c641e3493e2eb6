"""Federated learning by MONAI FL: see ``configs/fl_filters.json``."""

from __future__ import annotations

from typing import Any

from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject

__all__ = ["BothNames"]

PREFIX = "network."  # of the weights of MISSU within SelfDistillation
TRAINING_ONLY = "fusion."


class BothNames:
    """Filter for weights that reach a client: MISSU's get both of their names.

    MONAI FL sends one set of weights to the trainer, whose network is ``SelfDistillation``, and to the evaluator, whose
    network is the MISSU in it. Each takes what it knows by name. So the server may send either what the clients
    return, or a plain ``model.pt``.
    """

    def __call__(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        weights = dict(data.weights or {})
        for key in list(weights):
            if key.startswith(PREFIX):
                weights[key.removeprefix(PREFIX)] = weights[key]
            elif not key.startswith(TRAINING_ONLY):
                weights[PREFIX + key] = weights[key]
        return ExchangeObject(weights=weights, weight_type=data.weight_type or WeightType.WEIGHTS)
