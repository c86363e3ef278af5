"""A small convolutional classifier: it scores class-conditional samples, and its features give Fréchet distances."""

import torch.nn.functional as F
from torch import Tensor, nn

from odediff.zoo.unet import CLASSES


class Classifier(nn.Module):
    """Map grey images ``(B, 1, 28, 28)`` in [-1, 1] to logits ``(B, 10)``.

    The pixel-unshuffle stem is the U-Net's: at full resolution the first layers would cost most of the work. Garments
    are centred, so a 3 x 3 grid of positions is kept before one linear layer mixes them into features.
    """

    def __init__(self, features: int = 96) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(4, 32),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 96),
            *_convolution(96, 96),
            nn.AvgPool2d(3, stride=2),
            nn.Flatten(),
            nn.Linear(3 * 3 * 96, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features, ``(B, 96)`` and not negative."""
        return self.body(F.pixel_unshuffle(x, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """3 x 3 convolution, batch normalisation (Ioffe & Szegedy 2015), ReLU; the normalisation has the bias."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
