"""The experiment runner: what is run, what is not run again, and the numbers of its table."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from scripts.networks import MISSU, MultiScaleFusion

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def load(name: str) -> ModuleType:
    """A module of ``experiments/``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner, ideas, modalities = load("run"), load("ideas"), load("modalities")

TAUGHT = {
    "distillation_weight": 0.3,
    "self_distillation": {"_target_": "ideas.TaughtDistillation", "network": "@network"},
    "loss#_target_": "ideas.TaughtLoss",
}
TINY = {"init_filters": 4, "hidden_size": 8, "mlp_dim": 8, "num_layers": 1, "num_heads": 2}


def write_spec(folder: Path, **changes: object) -> Path:
    content = {
        "config_file": ["configs/train.json", "configs/hippocampus.json"],
        "split": {"seed": 0, "validation_fraction": 0.1, "testing_fraction": 0.3},
        "dataset": "hippocampi",
        "iterations": 2,
        "seeds": [0, 1],
        "base": "plain",
        "variants": {"plain": {}, "taught": TAUGHT},
        **changes,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(content))
    return path


def write_scores(results: Path, variant: str, seed: int, dice: dict[str, tuple[float, float]]) -> None:
    results.mkdir(exist_ok=True)
    with open(results / f"{variant}_seed{seed}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "dice_anterior", "dice_posterior", "hd95_mm_anterior"])
        rows.writerows([case, *values, 99.0] for case, values in dice.items())
    (results / f"{variant}_seed{seed}.json").write_text(json.dumps({"training_hours": 0.5}))


def table(results: Path) -> dict[str, dict[str, str]]:
    with open(results / "table.csv", newline="") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_the_table_by_hand(tmp_path, capsys):
    results = tmp_path / "results"
    write_scores(results, "plain", 0, {"a": (0.8, 0.6), "b": (0.9, 0.9)})  # cases 0.7 and 0.9
    write_scores(results, "plain", 1, {"a": (0.7, 0.7), "b": (1.0, 1.0)})  # 0.7 and 1.0
    write_scores(results, "taught", 0, {"b": (0.9, 0.9), "a": (0.8, 0.8)})  # 0.8 and 0.9, in another order
    write_scores(results, "taught", 1, {"a": (0.8, 0.8), "b": (1.0, 1.0)})  # 0.8 and 1.0
    assert runner.main([str(write_spec(tmp_path)), "--results", str(results)]) is None
    plain, taught = table(results)["plain"], table(results)["taught"]
    assert float(plain["dice"]) == pytest.approx(0.825)
    assert float(plain["std_of_seeds"]) == pytest.approx(0.05 / 2**0.5, abs=1e-4)  # means 0.8 and 0.85
    assert plain["difference"] == "nan"
    assert float(taught["difference"]) == pytest.approx(0.05)  # 0.1 for a, 0 for b, with both seeds
    assert (taught["ci95_low"], taught["ci95_high"]) == ("nan", "nan")  # of two seeds
    assert float(taught["hours"]) == 0.5
    assert "taught" in capsys.readouterr().out
    assert imread(results / "plot.png").shape[1] > 1000


def test_the_interval_is_over_the_seeds_by_hand():
    # The seeds' differences are 0.01, 0.02, 0.03: mean 0.02, standard deviation 0.01, t of 2 degrees 4.3027.
    cases = np.array([-0.05, 0.0, 0.05])  # apart from each other, the same in each seed
    scores = np.array([[0.01], [0.02], [0.03]]) + cases
    expected = (0.02, 0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5)
    assert runner.paired_difference(scores, np.zeros((3, 3))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_no_interval(seeds):
    mean, low, high = runner.paired_difference(np.full((seeds, 40), 0.01), np.zeros((seeds, 40)))
    assert mean == pytest.approx(0.01)
    assert np.isnan([low, high]).all()


def test_another_budget_or_data_set_is_another_result(tmp_path, monkeypatch, capsys):
    experiment = write_spec(tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    done = tmp_path / "results" / "tiny" / "hippocampi_2"
    done.mkdir(parents=True)
    for seed in (0, 1):
        write_scores(done, "plain", seed, {"a": (0.8, 0.6)})
    assert runner.main([str(experiment)]) is None
    assert "0.7000" in capsys.readouterr().out
    assert str(runner.main([str(experiment), "--iterations", "1"])).startswith("Error: There should be runs to report")


@pytest.fixture
def hippocampi(tmp_path) -> Path:
    root = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        generator = np.random.default_rng(number)
        label = np.zeros((20, 24, 18), np.uint8)
        label[6:14, 12:20, 6:12], label[6:14, 4:12, 6:12] = 1, 2
        image = (generator.normal(50, 10, label.shape) + 40 * label).astype(np.float32)
        for folder, volume in (("imagesTr", image), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(volume, np.eye(4)), root / folder / f"hippocampus_{number:03d}.nii.gz")
    return root


def test_runs_once_and_goes_on(tmp_path, hippocampi):
    small = {"network_def#" + name: value for name, value in TINY.items()} | {"roi_size": [16, 16, 16]}
    variants = {"plain": small, "taught": {**TAUGHT, **small}}
    experiment = write_spec(tmp_path, variants=variants, seeds=[0])
    # A copy, so that the runs of this test are not found beside those of the project.
    script = tmp_path / "project" / "experiments" / "run.py"
    script.parent.mkdir(parents=True)
    script.write_text((EXPERIMENTS / "run.py").read_text())
    (script.parent / "ideas.py").write_text((EXPERIMENTS / "ideas.py").read_text())
    (tmp_path / "project" / "bundle").symlink_to(EXPERIMENTS.parent / "bundle")
    results = script.parent / "results" / "tiny" / "data_2"
    command = [sys.executable, str(script), str(experiment), "--dataset_dir", str(hippocampi)]

    first = subprocess.run([*command, "--variants", "plain"], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert set(table(results)) == {"plain"}
    before = (results / "plain_seed0.csv").stat()

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert set(table(results)) == {"plain", "taught"}
    assert (results / "plain_seed0.csv").stat().st_mtime_ns == before.st_mtime_ns
    record = json.loads((results / "taught_seed0.json").read_text())
    assert (record["iterations"], record["seed"]) == (2, 0)
    assert int(table(results)["plain"]["cases"]) == 2  # 30 % of six
    log = (script.parent / "runs" / "tiny" / "data_2" / "taught_seed0" / "log.txt").read_text()
    assert "teacher_loss" in log


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"base": "other"}, "The base of"), ({"variants": {}}, "The base of"), ({}, "There should be runs to report")],
)
def test_bad_input(tmp_path, changes, sentence):
    message = runner.main([str(write_spec(tmp_path, **changes)), "--results", str(tmp_path / "none")])
    assert str(message).startswith(f"Error: {sentence}")


def test_a_fusion_that_begins_as_the_identity():
    skips = [torch.randn(1, 4, 16, 16, 16), torch.randn(1, 8, 8, 8, 8), torch.randn(1, 16, 4, 4, 4)]
    fusion = MultiScaleFusion([4, 8, 16])
    assert not torch.allclose(fusion(skips)[2], skips[2], atol=0.1)
    fusion.begin_as_identity()
    assert all(torch.equal(fused, skip) for fused, skip in zip(fusion(skips), skips))
    sum(fused.square().sum() for fused in fusion(skips)).backward()
    last = fusion.branches[0].branches[3][-1].weight
    assert last.grad.abs().sum() > 0  # it can leave the identity


def test_an_encoder_of_fused_features_begins_as_the_plain_one():
    torch.manual_seed(0)
    network = MISSU(img_size=16, **TINY)
    x = torch.randn(1, 4, 16, 16, 16)
    output = ideas.FusedEncoding(network)(x)
    assert torch.equal(output.logits, network(x))
    output.logits.square().sum().backward()
    assert all(
        stage.weight.grad.abs().sum() > 0 for stage in network.encoder[3][0].modules() if hasattr(stage, "dilation")
    )


def test_logits_of_each_resolution_and_their_loss():
    torch.manual_seed(0)
    network = MISSU(img_size=16, **TINY)
    x, label = torch.randn(1, 4, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    label[..., :8] = 2
    logits = ideas.DeepSupervision(network)(x)
    assert [tuple(of.shape) for of in logits] == [(1, 4, side, side, side) for side in (16, 8, 4)]
    assert torch.equal(logits[0], network(x))

    def cross_entropy(of: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(of, truth[:, 0].long())

    expected = sum(
        weight * cross_entropy(of, label[..., ::step, ::step, ::step])
        for weight, of, step in zip((4 / 7, 2 / 7, 1 / 7), logits, (1, 2, 4))
    )
    loss = ideas.DeepSupervisedLoss(cross_entropy, distillation_weight=0.0)
    assert loss(logits, label).item() == pytest.approx(float(expected), rel=1e-5)
    loss = ideas.DeepSupervisedLoss(cross_entropy, distillation_weight=0.5)
    assert loss([torch.ones_like(of) for of in logits], label).item() == pytest.approx(np.log(4), rel=1e-5)
    assert loss(logits, label).item() > float(expected)


def test_residual_stages_skip_a_convolution_that_gives_nothing():
    torch.manual_seed(0)
    network = ideas.ResidualMISSU(img_size=16, **TINY).eval()
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in MISSU(img_size=16, **TINY).parameters()
    )
    first, second = network.encoder[1]
    x = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(network.encoder[1](x), first(x) + second(first(x)))
    torch.nn.init.constant_(second[1].weight, 0)
    assert torch.equal(network.encoder[1](x), first(x))


def test_norms_of_eight_groups():
    network = ideas.GroupNormMISSU(img_size=16)
    groups = [module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert groups == [8] * 12  # nine convolutions in the encoder, three in the decoder
    assert network(torch.randn(1, 4, 16, 16, 16)).shape == (1, 4, 16, 16, 16)


def test_warm_up_ends_in_the_poly_decay_of_torch():
    def rates(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = make(optimizer)
        of_steps = []
        for _ in range(20):
            of_steps.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return np.array(of_steps)

    poly = rates(lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9))
    warm = rates(lambda optimizer: ideas.warm_up_poly(optimizer, total_iters=20, power=0.9, warm_up_iters=4))
    assert warm[4:] == pytest.approx(poly[4:])
    assert warm[:4] / poly[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.slow
def test_self_distillation_at_a_tenth_of_the_budget(real_data, tmp_path):
    """The command of docs/about/experiments.md with 40 steps instead of 400."""
    experiment, results = EXPERIMENTS / "self_distillation.json", tmp_path / "results"
    arguments = ["--dataset_dir", str(real_data / "hippocampus"), "--iterations", "40", "--results", str(results)]
    assert runner.main([str(experiment), *arguments]) is None
    rows = table(results)
    named = ["plain", "literal", "taught", "taught-ramp", "ms-output"]
    named += ["taught-identity", "ms-output-identity"]
    assert list(rows) == [*named, "repaired", "fused-encoding", "deep-supervision", "deep-supervision-taught"]
    assert all((row["seeds"], row["cases"]) == ("3", "60") for row in rows.values())
    assert all(0.2 < float(row["dice"]) < 0.95 for row in rows.values())


def write_subsets(results: Path, variant: str, fold: int, seed: int, dice: dict[str, float]) -> None:
    """The same Dice with each subset and of each region, but 0.2 more of WT with all four."""
    rows = [
        [case, name, region, value + 0.2 * (name == modalities.NAMES[-1] and region == "wt")]
        for case, value in dice.items()
        for name in modalities.NAMES
        for region in ("tc", "wt", "et")
    ]
    modalities.write_csv(
        results / f"{variant}_fold{fold}_seed{seed}.csv", [["case", "modalities", "region", "dice"], *rows]
    )


def test_the_table_of_modalities_pairs_cases(tmp_path):
    write_subsets(tmp_path, "dropout", 0, 0, {"a": 0.3, "b": 0.5})
    write_subsets(tmp_path, "dropout", 0, 1, {"a": 0.4, "b": 0.4})
    write_subsets(tmp_path, "frozen", 0, 0, {"a": 0.5, "b": 0.7})
    write_subsets(tmp_path, "frozen", 0, 1, {"a": 0.4, "b": 0.8})
    write_subsets(tmp_path, "frozen", 1, 0, {"c": 0.6})  # without a base: it counts for the mean alone
    modalities.report(tmp_path)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {(row["variant"], row["modalities"], row["region"]): row for row in csv.DictReader(file)}
    row = rows["frozen", "t1ce", "et"]
    assert (row["seeds"], row["cases"], float(row["dice"])) == ("2", "3", pytest.approx(3.0 / 5, abs=1e-4))
    # a: the mean of 0.2 and 0, b: of 0.2 and 0.4; mean 0.2, standard error 0.1; t of one degree of freedom is 12.706
    assert float(row["difference"]) == pytest.approx(0.2)
    assert float(row["low_of_cases"]) == pytest.approx(0.2 - 1.2706, abs=1e-4)
    assert row["low_of_folds"] == "nan"  # one fold alone
    assert float(rows["dropout", modalities.NAMES[-1], "wt"]["dice"]) == pytest.approx(0.6)
    assert float(rows["dropout", modalities.MEAN, "mean"]["dice"]) == pytest.approx(0.4 + 0.2 / 45, abs=1e-4)
    assert {path.name for path in tmp_path.glob("*.png")} == {"dropout.png", "frozen.png"}


def test_a_fused_network_begins_as_the_plain_one(tmp_path):
    weights = modalities.BUNDLE / "models" / "synthetic.pt"
    plain, fused = (modalities.network_of(weights, fused=of).eval() for of in (False, True))
    image = torch.randn(1, 4, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(plain(image), fused(image))
    state = modalities.mean_state(fused, modalities.network_of(weights, fused=True))
    assert all(torch.equal(weight, state[name]) for name, weight in fused.state_dict().items() if "skips" not in name)
