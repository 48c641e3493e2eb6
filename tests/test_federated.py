"""Federated learning by ``MonaiAlgo``: two clients with their own cases make one network that is better than before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from scripts.networks import MISSU, SelfDistillation
from scripts.sources.phantom import write_phantoms

pytestmark = pytest.mark.clients

BUNDLE = Path(__file__).parents[1] / "bundle"
TINY = {"init_filters": 8, "hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
KNOBS = {
    "roi_size": [32, 32, 32],
    "batch_size": 2,
    "learning_rate": 0.003,
    "cache_rate": 1.0,
    "distillation_weight": 0.3,
    "num_workers": 0,
}


def client(name: str, seed: int, folder: Path) -> MonaiAlgo:
    write_phantoms(folder / "cases", 6, (32, 32, 32), seed)
    paths = {"dataset_dir": "cases", "ckpt_dir": "models", "output_dir": "eval"}
    options = {key: str(folder / path) for key, path in paths.items()} | KNOBS
    options |= {f"network_def#{key}": value for key, value in TINY.items()}
    algo = MonaiAlgo(
        bundle_root=str(BUNDLE),
        local_epochs=16,
        send_weight_diff=False,
        train_kwargs=dict(options),
        eval_kwargs=dict(options),
        config_filters_filename="configs/fl_filters.json",
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: name})
    return algo


def mean_dice(clients: list[MonaiAlgo], weights: dict[str, torch.Tensor]) -> float:
    metrics = [algo.evaluate(ExchangeObject(weights=weights)).metrics["dice"] for algo in clients]
    return sum(metrics) / len(metrics)


def test_two_clients_average_weights_and_dice_rises(tmp_path, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    clients = [client(f"site_{seed}", seed, tmp_path / f"site_{seed}") for seed in (1, 2)]
    torch.manual_seed(0)
    plain = MISSU(img_size=32, **TINY)
    weights = plain.state_dict()  # as in a model.pt: the server knows nothing of the training-only parts
    before = mean_dice(clients, weights)
    for _ in range(2):
        returned = []
        for algo in clients:
            algo.train(ExchangeObject(weights=weights))
            returned.append(algo.get_weights().weights)
        weights = {key: sum(one[key] for one in returned) / len(returned) for key in returned[0]}
    assert weights.keys() == SelfDistillation(plain).state_dict().keys()
    after = mean_dice(clients, weights)
    assert after > before + 0.1
    for algo in clients:
        trained = algo.evaluator.network.state_dict()
        assert all(torch.equal(trained[key], weights[f"network.{key}"]) for key in trained)
        algo.finalize()
