"""What the experiments try beyond the bundle: named by ``methods.json`` as ``ideas.<name>``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.losses import DeepSupervisionLoss
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from scripts.errors import InputError
from scripts.networks import MISSU, InstanceNorm, ModalityDistillation, MultiScaleFusion, SelfDistillation, Windows
from scripts.networks.self_distillation import SelfDistillationOutput
from scripts.training import MISSULoss
from scripts.training.losses import LossOfTerms, SelfDistillationLoss
from scripts.weights.checkpoints import load_weights


class TaughtDistillation(SelfDistillation):
    """Self-distillation whose gradient stops at the teachers; they learn by the student's decoder, run on B1..B3.

    Args:
        network: the network that is kept after training.
        from_identity: whether the teachers begin as the students.
    """

    def __init__(self, network: MISSU, from_identity: bool = False) -> None:
        super().__init__(network)
        if from_identity:
            self.fusion.begin_as_identity()

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:
        *students, deepest = self.network.encode(x)
        teachers = self.fusion(students)
        bottleneck = self.network.bottleneck(deepest)
        logits = self.network.decode(bottleneck, students)
        teacher_logits = self.network.decode(bottleneck, teachers)
        # A teacher that the distillation loss could move would come down to the student.
        return SelfDistillationOutput(logits, students, [teacher.detach() for teacher in teachers], teacher_logits)


class TaughtLoss(MISSULoss):
    """``L_seg(student) + L_seg(teacher) + lambda L_sd``.

    Args:
        segmentation: loss of logits and label.
        distillation_weight: lambda.
        start: step up to which lambda is 0; a teacher has little to tell before it has learned.
        ramp_steps: steps from there in which it rises linearly.
        exponent: as for :class:`~scripts.training.SelfDistillationLoss`.
        first_stage: of those in L_sd; 0 is one convolution of the image.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        distillation_weight: float,
        start: int = 0,
        ramp_steps: int = 0,
        exponent: int = 1,
        first_stage: int = 0,
    ) -> None:
        super().__init__(segmentation, distillation_weight)
        self.distillation = SelfDistillationLoss(exponent)
        self.start = start
        self.ramp_steps = ramp_steps
        self.first_stage = first_stage
        self.num_steps: torch.Tensor
        self.register_buffer("num_steps", torch.tensor(0))  # part of the state that a training goes on from

    def forward(self, output: SelfDistillationOutput, label: torch.Tensor) -> torch.Tensor:
        self.num_steps += 1
        weight = self.distillation_weight * min(1.0, max(0, int(self.num_steps) - self.start) / max(1, self.ramp_steps))
        segmentation = self.segmentation(output.logits, label)
        teacher = self.segmentation(output.teacher_logits, label)
        distillation = self.distillation(output.students[self.first_stage :], output.teachers[self.first_stage :])
        return self.summed_up(
            loss=segmentation + teacher + weight * distillation,
            segmentation_loss=segmentation,
            teacher_loss=teacher,
            distillation_loss=distillation,
        )


class FusedEncoding(SelfDistillation):
    """In training the encoder goes on from B^s, at inference from A^s; L_sd makes the two alike.

    A reading of the paper: Eq. 6 lets L_seg depend on the weights of the fusion, which no other reading does.
    """

    def __init__(self, network: MISSU) -> None:
        super().__init__(network)
        self.fusion.begin_as_identity()

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:
        *stages, deepest = self.network.encoder
        students: list[torch.Tensor] = []
        teachers: list[torch.Tensor] = []
        for number, stage in enumerate(stages):
            x = stage(x)
            if number == 0:
                x = self.network.dropout(x)
            students.append(x)
            x = self.fusion.branches[number](x)
            if number > 0:
                x = self.fusion.same_stage[number - 1](x) + self.fusion.finer_stage[number - 1](teachers[-1])
            teachers.append(x)
        logits = self.network.decode(self.network.bottleneck(deepest(x)), students)
        return SelfDistillationOutput(logits, students, teachers)


class DeepSupervision(nn.Module):
    """A plain MISSU with a head on each coarser stage of its decoder, in training only."""

    def __init__(self, network: MISSU) -> None:
        super().__init__()
        self.network = network
        widths = reversed(network.feature_channels[1:-1])
        self.heads = nn.ModuleList(nn.Conv3d(width, network.head.out_channels, kernel_size=1) for width in widths)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Logits from full resolution to the coarsest."""
        *skips, deepest = self.network.encode(x)
        x = self.network.bottleneck(deepest)
        logits = []
        for block, skip, head in zip(self.network.decoder, reversed(skips), [*self.heads, self.network.head]):
            x = block(x, skip)
            logits.append(head(x))
        return logits[::-1]


class DeepSupervisedLoss(LossOfTerms):
    """Loss of each resolution, half as much from one to the next (nnU-Net's weights); and of a teacher of them.

    The teacher is the mean of the logits of all resolutions, stopped. Each learns from it near the foreground.

    Args:
        segmentation: loss of logits and label.
        distillation_weight: of the divergence from the teacher; 0 for none.
        temperature: T.
        reach: how many voxels from the foreground, along each axis.
    """

    def __init__(
        self, segmentation: nn.Module, distillation_weight: float, temperature: float = 3.0, reach: int = 3
    ) -> None:
        super().__init__()
        self.segmentation = DeepSupervisionLoss(segmentation, weights=[4 / 7, 2 / 7, 1 / 7])
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.reach = reach

    def forward(self, logits: list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        if isinstance(logits, torch.Tensor):
            raise ValueError("The logits should be a list, from DeepSupervision.")
        label = label.float()
        segmentation = self.segmentation(logits, label)
        if not self.distillation_weight:
            return self.summed_up(loss=segmentation)
        full = [F.interpolate(of.float(), size=label.shape[2:], mode="trilinear") for of in logits]
        teacher = (torch.stack(full).mean(0).detach() / self.temperature).log_softmax(1)
        near = F.max_pool3d((label > 0).float(), 2 * self.reach + 1, stride=1, padding=self.reach)[:, 0]
        divergences = [
            (F.kl_div((of / self.temperature).log_softmax(1), teacher, reduction="none", log_target=True).sum(1) * near)
            for of in full
        ]
        distillation = self.temperature**2 * torch.stack(divergences).mean(0).sum() / near.sum().clamp_min(1)
        return self.summed_up(
            loss=segmentation + self.distillation_weight * distillation,
            segmentation_loss=segmentation,
            distillation_loss=distillation,
        )


class TaughtByAnother(ModalityDistillation):
    """A network and a frozen teacher that sees what the network sees."""

    def forward(self, x: torch.Tensor) -> SelfDistillationOutput:  # type: ignore[override]
        return super().forward(x, x)


class MeanOfFused(nn.Module):
    """Logarithms of the mean probabilities of trained networks with fused skips ("MS-output").

    Args:
        weights: a file for each.
        arguments: of :class:`MISSU`.

    Raises:
        InputError: when a file is not there.
    """

    def __init__(self, weights: Sequence[str], **arguments: Any) -> None:
        super().__init__()
        self.networks = nn.ModuleList()
        for path in map(Path, weights):
            if not path.is_file():
                raise InputError(f"The teacher should be {path}, it is not there: run ms-output with its seed first.")
            network = MISSU(**arguments)
            network.skips = MultiScaleFusion(network.feature_channels[:-1])
            load_weights(network, path)
            self.networks.append(network)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(x).float().softmax(1) for network in self.networks]).mean(0).log()


class AverageOfSteps:
    """Handler: a network ends as the moving average of its weights over the steps.

    Args:
        network: what is trained.
        momentum: the share of the newest weights.
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        self.network = network
        self.momentum = momentum
        self.average = deepcopy(network).requires_grad_(False).eval()
        self.engine: Engine
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        self.engine = engine
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.follow()
        state = engine.state
        if state.iteration == state.max_epochs * state.epoch_length:
            self.network.load_state_dict(self.average.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """Takes in the weights of a step, once: a checkpoint may be written before or after this handler is called."""
        if self.steps < self.engine.state.iteration:
            self.steps = self.engine.state.iteration
            for mean, newest in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.mul_(1 - self.momentum).add_(newest, alpha=self.momentum)

    def state_dict(self) -> dict[str, Any]:
        self.follow()
        return {"average": self.average.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.steps = state["steps"]


class IdentityFusion(MultiScaleFusion):
    """Fusion whose B1..B3 begin as A1..A3."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.begin_as_identity()


class DeepestSkips(nn.Module):
    """The deepest ``number`` of the skips A1..A3, and zeros in place of the others (Figure 5 of the paper).

    The decoder keeps its weights for what is zero; they are never moved, and change nothing.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, skips: list[torch.Tensor]) -> list[torch.Tensor]:
        left_out = len(skips) - self.number
        return [torch.zeros_like(skip) if stage < left_out else skip for stage, skip in enumerate(skips)]


class ResidualStage(nn.Sequential):
    """A stage whose convolutions after the first are residual: no further parameters."""

    def forward(self, x: torch.Tensor, windows: Windows | None = None) -> torch.Tensor:
        first, *rest = self
        x = first(x, windows)
        for block in rest:
            x = x + block(x, windows)
        return x


class ResidualMISSU(MISSU):
    """MISSU with residual convolutions in the encoder; arguments as for :class:`MISSU`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.encoder = nn.ModuleList(ResidualStage(*stage) for stage in self.encoder)


class EightGroups(nn.GroupNorm):
    """A norm of eight groups, called as :class:`~scripts.networks.InstanceNorm` is, but never with windows."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_groups=8, num_channels=num_channels)

    def forward(self, x: torch.Tensor, windows: None = None) -> torch.Tensor:
        return super().forward(x)


class GroupNormMISSU(MISSU):
    """MISSU with norms of eight groups in place of instance norms; arguments as for :class:`MISSU`."""

    takes_windows = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name, module in list(self.named_modules()):
            if isinstance(module, InstanceNorm):
                self.set_submodule(name, EightGroups(module.num_channels))


class ViTInitMISSU(MISSU):
    """MISSU with the first weights of ViT (linear layers normal, 0.02) and of He et al. (convolutions)."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def warm_up_poly(optimizer: torch.optim.Optimizer, total_iters: int, power: float, warm_up_iters: int) -> LambdaLR:
    """Poly decay per step after a linear rise of the learning rate."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warm_up_iters)
        return rise * (1 - min(step, total_iters) / total_iters) ** power

    return LambdaLR(optimizer, factor)
