"""``--tracking configs/mlflow.json``: what a training and an evaluation leave in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_workflows import BUNDLE, configs, phantoms, run, training  # noqa: F401

pytestmark = pytest.mark.clients
tracking = pytest.importorskip("mlflow.tracking", reason="pip install -r requirements-optional.txt")
SETTINGS = ("--tracking", str(BUNDLE / "configs" / "mlflow.json"), "--experiment_name", "gliomas")


def test_losses_scores_and_tables(phantoms, tmp_path: Path):  # noqa: F811
    result = run("training", "--config_file", configs("train"), *training(phantoms, tmp_path, *SETTINGS))
    assert result.returncode == 0, result.stderr
    paths = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(tmp_path / "models"), "--output_dir", str(tmp_path)]
    scored = ["--num_workers", "0", "--metrics", "['dice']", "--run_name", "scored"]
    result = run("evaluating", "--config_file", configs("train", "evaluate"), *paths, *scored, *SETTINGS)
    assert result.returncode == 0, result.stderr
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("gliomas")
    runs = {each.info.run_name == "scored": each for each in client.search_runs([experiment.experiment_id])}
    assert runs[False].info.status == "FINISHED"
    assert runs[False].data.metrics.keys() >= {"loss", "dice"}
    tables = {each.path for each in client.list_artifacts(runs[True].info.run_id)}
    assert tables == {"lesions.csv", "metrics.csv", "summary.csv"}
