"""The networks beside each other, all of 4 channels and 4 classes, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.networks.nets import UNETR, BasicUNet, DynUNet, SegResNet, SwinUNETR, VNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.networks import MISSU

CHANNELS = CLASSES = 4


def dynunet(_: int) -> nn.Module:
    """nnU-Net's plan 3d_fullres for BraTS."""
    return DynUNet(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=CLASSES,
        kernel_size=[3] * 6,
        strides=[1, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 5,
        filters=[32, 64, 128, 256, 320, 320],
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "MISSU": lambda side: MISSU(CHANNELS, CLASSES, img_size=side),
    "SegResNet": lambda _: SegResNet(
        in_channels=CHANNELS, out_channels=CLASSES, init_filters=16, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)
    ),
    "UNETR": lambda side: UNETR(CHANNELS, CLASSES, img_size=side),
    "SwinUNETR": lambda _: SwinUNETR(CHANNELS, CLASSES, feature_size=48),
    "DynUNet": dynunet,
    "BasicUNet": lambda _: BasicUNet(in_channels=CHANNELS, out_channels=CLASSES),
    "VNet": lambda _: VNet(in_channels=CHANNELS, out_channels=CLASSES),
    # TransBTS has its encoder and its Transformer; a stand-in, not TransBTS.
    "TransBTS-sized": lambda side: MISSU(CHANNELS, CLASSES, img_size=side, blocks_per_stage=(5, 3, 3, 4), mlp_dim=4096),
}


def gmac(network: Callable[[torch.Tensor], object], side: int) -> float:
    """Multiply-accumulates of convolutions and matrix products (attention's among them), in 10^9, without computing."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, CHANNELS, side, side, side))
    return counter.get_total_flops() / 2e9
