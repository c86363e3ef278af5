"""A small convolutional classifier: it scores class-conditional samples, and its features give Fréchet distances."""

import torch.nn.functional as F
from torch import Tensor, nn

from odediff.zoo.unet import CLASSES


class Classifier(nn.Module):
    """Map grey images ``(B, 1, 28, 28)`` in [-1, 1] to logits ``(B, 10)``.

    The penultimate layer is the mean over pixels of the last feature maps, so that features hardly move when the image
    is shifted. The pixel-unshuffle stem is the U-Net's: at full resolution the first layers would cost most.
    """

    def __init__(self, width: int = 32, features: int = 96) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(4, width),
            *_convolution(width, width),
            *_convolution(width, features, stride=2),
            *_convolution(features, features),
            *_convolution(features, features),
        )
        self.head = nn.Linear(features, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features, ``(B, 96)`` and not negative."""
        return self.body(F.pixel_unshuffle(x, 2)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """3 x 3 convolution, batch normalisation (Ioffe & Szegedy 2015), ReLU; the normalisation brings the bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
