"""MISSU, the inference network: all of it but two operations in this file, in the order in which data flows.

A 3D CNN encoder, a Transformer over the tokens of its deepest stage, a UNet decoder. Beside it, ``norms.py`` holds the
norm and ``upsampling.py`` the 2x upsampling; what exists in training only (multi-scale fusion, self-distillation) lives
in ``fusion.py`` and ``self_distillation.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from .norms import InstanceNorm, Windows
from .upsampling import upsample

__all__ = ["MISSU", "windows_of_stages"]

NUM_STAGES = 4
STRIDE = 2 ** (NUM_STAGES - 1)  # of the deepest stage: every side of the input is a multiple of it
AXES = ("H", "W", "D")


class ConvBlock(nn.Sequential):
    """3x3x3 convolution, instance norm, ReLU.

    The paper is silent on the norm. This one is nnU-Net's. With eight groups the network did not learn the small
    classes in the first hundred steps (docs/about/architecture.md).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            InstanceNorm(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor, windows: Windows | None = None) -> torch.Tensor:
        return self[2](self[1](self[0](x), windows))


class EncoderStage(nn.Sequential):
    """The ConvBlocks of one stage: A^(s-1) -> A^s."""

    def forward(self, x: torch.Tensor, windows: Windows | None = None) -> torch.Tensor:
        for block in self:
            x = block(x, windows)
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention (the paper's MSA), by ``scaled_dot_product_attention`` in training and in eval.

    ``nn.MultiheadAttention`` takes a fused path in eval that builds the M x M matrix of each head: at 4,096 tokens
    that is 0.5 GB a layer.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, channels = tokens.shape
        # (B, M, 3 * heads * d) -> (3, B, heads, M, d)
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        # (B, heads, M, d) -> (B, M, heads * d)
        return self.projection(attended.transpose(1, 2).reshape(batch, length, channels))


class TransformerLayer(nn.Module):
    """Pre-norm Transformer layer (Eq. 2): self-attention, then a two-layer perceptron (FFN), each with a residual."""

    def __init__(self, hidden_size: int, mlp_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_dim, hidden_size),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))


class TransformerBottleneck(nn.Module):
    """Transformer over the voxels of the deepest stage: A4 -> Z4 of the same shape (paper's Eq. 1 and 2).

    Args:
        channels: channels of A4.
        grid_size: spatial size of A4 for which the position table is learned.
        hidden_size: token width d.
        mlp_dim: width of the FFN.
        num_layers: Transformer layers L.
        num_heads: heads of the self-attention.
        dropout: dropout rate of tokens, attention and FFN.
    """

    def __init__(
        self,
        channels: int,
        grid_size: Sequence[int],
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(channels, hidden_size)
        # Kept as a volume, so that another grid than the learned one needs a resampling and nothing else.
        self.position_embedding = nn.Parameter(torch.empty(1, hidden_size, *grid_size))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *[TransformerLayer(hidden_size, mlp_dim, num_heads, dropout) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.projection = nn.Linear(hidden_size, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width, depth = x.shape
        # The identity on the learned grid.
        position = F.interpolate(
            self.position_embedding, size=(height, width, depth), mode="trilinear", align_corners=False
        )
        tokens = self.patch_embedding(x.flatten(2).transpose(1, 2))  # (B, C, H, W, D) -> (B, M, d)
        tokens = self.dropout(tokens + position.flatten(2).transpose(1, 2))
        tokens = self.projection(self.norm(self.layers(tokens)))
        return tokens.transpose(1, 2).reshape(batch, channels, height, width, depth)  # (B, M, C) -> (B, C, H, W, D)


class UpsampleBlock(nn.Module):
    """One decoder stage: trilinear 2x upsampling, concatenation with the skip A^s, one ConvBlock."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv = ConvBlock(in_channels + skip_channels, skip_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, windows: Windows | None = None) -> torch.Tensor:
        x = torch.cat([skip, upsample(x).to(skip.dtype)], dim=1)  # (B, C_s, ...), (B, 2 C_s, ...) -> (B, 3 C_s, ...)
        return self.conv(x, windows)


class MISSU(nn.Module):
    """MISSU of *MISSU: 3D Medical Image Segmentation via Self-distilling TransUNet* (Wang et al., 2022).

    The defaults are the paper's network for BraTS: 10.40 M parameters, and 130.6 GMAC in convolutions and linear
    layers at 4 x 128^3 (the paper's Table III: 10.50 M and 132.11 G). Where the paper is silent (convolutions per
    stage, heads, FFN width, norm) they are the choice that comes nearest to that table.

    Args:
        in_channels: image modalities C.
        out_channels: classes, the background among them.
        img_size: spatial size for which the position table is learned: the crop of the training, an integer or one
            per axis. Other sizes are accepted by ``forward``, the table is then resampled trilinearly.
        init_filters: channels of the first stage; stage s has 2^(s-1) times as many.
        blocks_per_stage: convolutions of the four stages; the first one of stages 2 to 4 has stride 2.
        hidden_size: token width d.
        mlp_dim: width of the Transformer's FFN.
        num_layers: Transformer layers L. With 0 nothing is left of the Transformer, its tokens and its position table:
            the network is the base UNet of the paper's Table IV.
        num_heads: heads of the self-attention.
        dropout: dropout rate in the Transformer and after the first stage; the paper names none.
        skips: what makes the decoder's skips of A1..A3, at inference too; ``None`` hands them on as they are. A
            :class:`MultiScaleFusion` is the paper's "MS-output" (Table III). Nothing is left to distill then.

    Raises:
        InputError: when a side of ``img_size`` is not a positive multiple of 8, ``init_filters`` not positive,
            ``num_layers`` negative, ``hidden_size`` not a multiple of ``num_heads``, or ``blocks_per_stage`` not four
            positive integers.

    Attributes:
        takes_windows: says to an inferer that ``forward`` takes windows.

    Example:
        >>> logits = MISSU(in_channels=4, out_channels=4, img_size=128)(torch.rand(1, 4, 128, 128, 128))
        >>> logits.shape
        torch.Size([1, 4, 128, 128, 128])
    """

    takes_windows = True

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        img_size: int | Sequence[int] = 128,
        init_filters: int = 16,
        blocks_per_stage: Sequence[int] = (1, 2, 3, 3),
        hidden_size: int = 512,
        mlp_dim: int = 512,
        num_layers: int = 4,
        num_heads: int = 8,
        dropout: float = 0.0,
        skips: nn.Module | None = None,
    ) -> None:
        super().__init__()
        sides = [img_size] * len(AXES) if isinstance(img_size, int) else list(img_size)
        if len(sides) != len(AXES):
            raise InputError(f"img_size should be one integer or {len(AXES)}, got {sides}.")
        for axis, side in zip(AXES, sides):
            if side < STRIDE or side % STRIDE:
                raise InputError(f"img_size should be a positive multiple of {STRIDE} on each axis, {axis} is {side}.")
        if init_filters < 1:
            raise InputError(f"init_filters should be positive, got {init_filters}.")
        if num_layers < 0:
            raise InputError(f"num_layers should be 0 or more, got {num_layers}.")
        if num_heads < 1 or hidden_size % num_heads:
            raise InputError(f"hidden_size should be divisible by num_heads, got {hidden_size} and {num_heads}.")
        if len(blocks_per_stage) != NUM_STAGES or min(blocks_per_stage) < 1:
            raise InputError(
                f"blocks_per_stage should be {NUM_STAGES} positive integers, got {list(blocks_per_stage)}."
            )

        self.in_channels = in_channels
        self.feature_channels = [init_filters * 2**stage for stage in range(NUM_STAGES)]
        self.encoder = nn.ModuleList()
        for stage, num_blocks in enumerate(blocks_per_stage):
            width = self.feature_channels[stage]
            first = ConvBlock(in_channels, width) if stage == 0 else ConvBlock(width // 2, width, stride=2)
            self.encoder.append(EncoderStage(first, *[ConvBlock(width, width) for _ in range(num_blocks - 1)]))
        self.dropout = nn.Dropout3d(dropout)
        self.bottleneck: nn.Module = nn.Identity()
        if num_layers:
            self.bottleneck = TransformerBottleneck(
                channels=self.feature_channels[-1],
                grid_size=[side // STRIDE for side in sides],
                hidden_size=hidden_size,
                mlp_dim=mlp_dim,
                num_layers=num_layers,
                num_heads=num_heads,
                dropout=dropout,
            )
        self.skips = skips
        self.decoder = nn.ModuleList(UpsampleBlock(2 * width, width) for width in reversed(self.feature_channels[:-1]))
        self.head = nn.Conv3d(init_filters, out_channels, kernel_size=1)

    def encode(self, x: torch.Tensor, windows: list[Windows] | None = None) -> list[torch.Tensor]:
        """Features A1..A4 of an image (B, C, H, W, D), from full resolution to 1/8.

        Raises:
            ValueError: when the image has another number of channels, or a side that 8 does not divide.
        """
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"The input should have shape (B, {self.in_channels}, H, W, D), got {list(x.shape)}.")
        for i, axis in enumerate(("H", "W", "D")):
            if x.shape[2 + i] % 8 != 0:
                raise ValueError(f"Each side of the input should be divisible by 8, {axis} is {x.shape[2 + i]}.")
        features: list[torch.Tensor] = []
        for i, stage in enumerate(self.encoder):
            x = stage(x, windows[i] if windows is not None else None)
            if i == 0:
                x = self.dropout(x)
            features.append(x)
        return features

    def decode(self, x: torch.Tensor, skips: list[torch.Tensor], windows: list[Windows] | None = None) -> torch.Tensor:
        """Logits at full resolution from Z4 and the skips A1..A3."""
        for i, block in enumerate(self.decoder):
            stage = len(skips) - 1 - i
            x = block(x, skips[stage], windows[stage] if windows is not None else None)
        return self.head(x)

    def forward(self, x: torch.Tensor, windows: list[Windows] | None = None) -> torch.Tensor:
        """Logits (B, classes, H, W, D) of an image (B, C, H, W, D) whose sides are divisible by 8.

        Args:
            x: the image.
            windows: one for each of the four stages, where the norms are to take their statistics from windows of the
                training's size (:func:`windows_of_stages`) instead of the whole image.
        """
        features = self.encode(x, windows)
        skips = features[:-1]
        if self.skips is not None:
            skips = self.skips(skips)
        return self.decode(self.bottleneck(features[-1]), skips, windows)


def windows_of_stages(
    image_size: Sequence[int],
    window_size: Sequence[int],
    crop: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[Windows]:
    """The windows of each stage of :class:`MISSU`, from full resolution to 1/8; arguments as for :meth:`Windows.of`."""
    return [Windows.of(image_size, window_size, crop, 2**stage, device) for stage in range(NUM_STAGES)]
