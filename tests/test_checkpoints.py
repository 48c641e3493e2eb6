"""Weights on disk: whole or not at all, loaded where they fit, and a sentence where they do not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts.errors import InputError
from scripts.weights.checkpoints import CheckpointLoader, WeightsSaver, load_weights, save_weights


def network(value: float = 0.0, width: int = 2, bias: bool = True) -> nn.Module:
    layer = nn.Linear(width, 1, bias=bias)
    for weight in layer.parameters():
        nn.init.constant_(weight, value)
    return nn.Sequential(layer)


def value_in(path: Path) -> float:
    return torch.load(path, weights_only=True)["0.weight"][0, 0].item()


class RunsCode:
    """Unpickling an instance makes the folder ``owned``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "new" / "models" / "model.pt"
    save_weights(network(3.0), path)
    loaded = network()
    load_weights(loaded, path)
    assert all((weight == 3).all() for weight in loaded.parameters())
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_a_save_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_weights(network(1.0), path)

    def fail_midway(_, file):
        file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail_midway)
    with pytest.raises(OSError, match="No space left"):
        save_weights(network(2.0), path)
    monkeypatch.undo()
    assert value_in(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def write_truncated(path: Path) -> None:
    save_weights(network(), path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (lambda path: None, ["are not there", "--checkpoint"]),
        (lambda path: path.mkdir(), ["are not there"]),
        (write_truncated, ["cannot be read"]),
        (lambda path: path.write_bytes(b""), ["cannot be read"]),
        (lambda path: path.write_text("no weights"), ["cannot be read"]),
        (lambda path: torch.save([1, 2], path), ["should hold a state_dict, it holds a list"]),
        (lambda path: torch.save(network(), path), ["cannot be read"]),  # a whole module, not its weights
        (
            lambda path: save_weights(network(bias=False), path),
            ["of another network", "lack", "1 key", "0.bias"],
        ),
        (
            lambda path: save_weights(network().append(nn.Linear(1, 1)), path),
            ["of another network", "2 keys", "1.bias"],
        ),
        (
            lambda path: save_weights(network(width=5), path),
            ["of another network", "0.weight has shape [1, 5]", "wants [1, 2]"],
        ),
    ],
    ids=["missing", "folder", "truncated", "empty", "text", "list", "module", "fewer keys", "more keys", "other shape"],
)
def test_weights_that_do_not_fit(tmp_path, write, parts):
    path = tmp_path / "model.pt"
    write(path)
    target = network(7.0)
    with pytest.raises(InputError) as raised:
        load_weights(target, path)
    for part in (str(path), *parts):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all((weight == 7).all() for weight in target.parameters())


@pytest.mark.parametrize(
    "write",
    [
        lambda code, path: torch.save({"0.weight": code}, path),
        lambda code, path: path.write_bytes(pickle.dumps(code, protocol=2)),
    ],
    ids=["torch.save", "pickle"],
)
def test_code_in_a_file_is_not_run(tmp_path, write):
    path, owned = tmp_path / "model.pt", tmp_path / "owned"
    write(RunsCode(owned), path)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(network(), path)
    assert not owned.exists()


def test_loaded_when_an_engine_starts(tmp_path):
    save_weights(network(4.0), tmp_path / "model.pt")
    target = network()
    seen = []
    engine = Engine(lambda *_: seen.append(target[0].weight[0, 0].item()))
    CheckpointLoader(str(tmp_path / "model.pt"), target).attach(engine)
    assert target[0].weight[0, 0] == 0
    engine.run([0])
    assert seen == [4]


def test_only_the_best_of_a_validation(tmp_path):
    """Epoch by epoch, as MONAI's evaluator says after each of its runs which epoch was the best."""
    path = tmp_path / "model.pt"
    target = network()
    engine = Engine(lambda *_: None)
    WeightsSaver(str(path), target, only_best=True).attach(engine)
    kept = []
    for epoch, best in ((1, 1), (2, 2), (3, 2), (4, 4), (5, 4)):
        nn.init.constant_(target[0].weight, epoch)
        engine.state.best_metric_epoch = best
        engine.state.epoch, engine.state.max_epochs = epoch - 1, epoch
        engine.run([0], max_epochs=epoch)
        kept.append(value_in(path))
    assert kept == [1, 2, 2, 4, 4]


def test_the_last_of_a_training(tmp_path):
    path = tmp_path / "model_final.pt"
    target = network()
    existed = []

    def step(engine, _):
        existed.append(path.exists())
        nn.init.constant_(target[0].weight, engine.state.epoch)

    engine = Engine(step)
    WeightsSaver(str(path), target, only_best=False).attach(engine)
    engine.run([0], max_epochs=3)
    assert existed == [False] * 3
    assert value_in(path) == 3
