"""Methods of others on MISSU's parts: named by ``methods.json`` as ``rivals.<name>``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.self_distillation import SelfDistillationOutput
from scripts.training.losses import LossOfTerms


class OneChannel(nn.Module):
    """A network that gets one of the image's channels; of all of them, so that nothing else has to know.

    Args:
        channel: its index.
        network: of one channel.
    """

    def __init__(self, channel: int, network: nn.Module) -> None:
        super().__init__()
        self.channel = channel
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x[:, self.channel : self.channel + 1])


class TaughtByAllModalities(nn.Module):
    """KD-Net (Hu et al., MICCAI 2020): a network that sees one modality, and in training a teacher that sees all.

    KD-Net trains its teacher first and keeps it as it is. Here both are trained at once, by their own losses, so that
    it is one training; no gradient of the student's reaches the teacher.

    Args:
        network: the student, which is kept after training.
        teacher: a network of all channels.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.teacher = teacher

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:
        return SelfDistillationOutput(self.network(x), [], [], self.teacher(x))


class KDNetLoss(LossOfTerms):
    """``L_seg(student) + L_seg(teacher) + w T^2 KL(teacher / T || student / T)``, the mean over voxels.

    KD-Net's second term, between the latent spaces of two variational encoders, is left out: ours are not variational.

    Args:
        segmentation: loss of logits and label.
        weight: w.
        temperature: T.
    """

    def __init__(self, segmentation: nn.Module, weight: float = 0.5, temperature: float = 5.0) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.weight = weight
        self.temperature = temperature

    def forward(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        if output.teacher_logits is None:
            raise ValueError("The output should be of TaughtByAllModalities, its teacher has no logits.")
        segmentation = self.segmentation(output.logits, label)
        teacher = self.segmentation(output.teacher_logits, label)
        soft = (output.teacher_logits.detach().float() / self.temperature).log_softmax(1)
        student = (output.logits.float() / self.temperature).log_softmax(1)
        divergence = F.kl_div(student, soft, reduction="none", log_target=True).sum(1).mean()
        return self.summed_up(
            loss=segmentation + teacher + self.weight * self.temperature**2 * divergence,
            segmentation_loss=segmentation,
            teacher_loss=teacher,
            distillation_loss=divergence,
        )
