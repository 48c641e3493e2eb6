"""nnU-Net's own trainer with a schedule that ends where the budget does; run by the Python that nnunetv2 is in.

    python fitted.py train <data set> <epochs> <seed>
    python fitted.py predict <folder of the trained model> <images> <masks>

It is kept out of the way where it would cost nnU-Net minutes of a short budget: no checkpoint but the last, no plot
after each epoch, no prediction of the validation cases at the end. All else, such as plan, network, loss, augmentation
and the five training steps to one of validation, is as it is.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CONFIGURATION, LAST = "3d_fullres", "checkpoint_final.pth"
STEPS_PER_EPOCH = 5  # of 250 in nnU-Net: its learning rate falls by the epoch


class FittedTrainer(nnUNetTrainer):
    """``EPOCHS`` and ``SEED`` come from the environment, as nnU-Net makes its trainers itself."""

    # Named one by one: nnU-Net looks up each argument by its name.
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get("EPOCHS", self.num_epochs))
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = STEPS_PER_EPOCH, 1
        self.logger.plot_progress_png = lambda folder: None
        seed = int(os.environ.get("SEED", 0))
        for seeded in (random.seed, np.random.seed, torch.manual_seed):
            seeded(seed)

    def save_checkpoint(self, filename: str) -> None:
        if Path(filename).name == LAST:
            super().save_checkpoint(filename)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        pass


def train(dataset: str, epochs: str, seed: str) -> None:
    os.environ |= {"EPOCHS": epochs, "SEED": seed}
    run_training(dataset, CONFIGURATION, 0, FittedTrainer.__name__, device=torch.device("cpu"))


def predict(model: str, images: str, masks: str) -> None:
    """With nnU-Net's mirroring, as by default."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, (0,), LAST)
    predictor.predict_from_files_sequential(images, masks)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    {"train": train, "predict": predict}[sys.argv[1]](*sys.argv[2:])
