"""The embedded epsilon network: a small class-conditional U-Net for 28 x 28 grey images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
NULL_LABEL = CLASSES
"""The label whose embedding means "no class": training uses it in place of a dropped label."""


class TimeFeatures(nn.Module):
    """Sines and cosines of the network time at geometric frequencies.

    Vaswani et al. (2017), section 3.5, with the highest frequency at 0.3 radians per table entry instead of 1. Solvers
    need times between the entries of the training table, and a slower basis keeps the network smooth there.
    """

    frequencies: Tensor

    def __init__(self, size: int, highest: float = 0.3, lowest: float = 3e-4) -> None:
        super().__init__()
        ladder = torch.logspace(math.log10(highest), math.log10(lowest), size // 2, dtype=torch.float64)
        self.register_buffer("frequencies", ladder.float(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        phase = time[:, None] * self.frequencies
        return torch.cat((phase.sin(), phase.cos()), dim=1)


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions; the embedding scales and shifts between them (Dhariwal & Nichol 2021)."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))
        return self.skip(x) + hidden


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(-1, -2).reshape(x.shape))


class UNet(nn.Module):
    """Predict the noise in a noisy image: ``network(x, time, label)``.

    It has two resolutions, 14 x 14 and 7 x 7, after a pixel-unshuffle that turns the image into four planes: the full
    resolution would cost four times the work and add little.

    ``x`` is ``(B, 1, 28, 28)``; ``time`` is ``(B,)``, an index into the training table, whole or not; ``label`` is
    ``(B,)`` integer classes, `NULL_LABEL` for none, or their embeddings, ``(B, embedding)``. Returns epsilon in the
    shape of ``x``. Sides other than 28 were never trained on; those that are not multiples of 4 raise ValueError.
    """

    def __init__(self, width: int = 48, embedding: int = 192) -> None:
        super().__init__()
        wide = 3 * width
        self.time_features = TimeFeatures(width)
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(CLASSES + 1, embedding)
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.down1 = ResidualBlock(width, width, embedding)
        self.down2 = ResidualBlock(width, width, embedding)
        self.shrink = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.middle1 = ResidualBlock(wide, wide, embedding)
        self.attention = Attention(wide, heads=4)
        self.middle2 = ResidualBlock(wide, wide, embedding)
        self.grow = nn.Conv2d(wide, width, 3, padding=1)
        self.up1 = ResidualBlock(2 * width, width, embedding)
        self.up2 = ResidualBlock(2 * width, width, embedding)
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(
                f"states of shape {tuple(x.shape[1:])} do not fit the embedded network, trained on (1, 28, 28); "
                "give (B, 1, 28, 28), on the command line model.shape=[1,28,28]"
            )
        condition = label if label.is_floating_point() else self.label(label)
        embedding = F.silu(self.time(self.time_features(time).to(x.dtype)) + condition)
        stem = self.stem(F.pixel_unshuffle(x, 2))
        down1 = self.down1(stem, embedding)
        down2 = self.down2(down1, embedding)
        middle = self.middle1(self.shrink(down2), embedding)
        middle = self.middle2(self.attention(middle), embedding)
        up = self.grow(F.interpolate(middle, scale_factor=2.0, mode="nearest"))
        up = self.up1(torch.cat((up, down2), dim=1), embedding)
        up = self.up2(torch.cat((up, down1), dim=1), embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(up))), 2)
