"""The embedded zoo: a trained network, a classifier and real images, so that no download is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odediff.device import available
from odediff.model import Model
from odediff.schedule import VPTable
from odediff.zoo.assets import load_network, read
from odediff.zoo.convnet import Classifier
from odediff.zoo.dataset import LABELS, to_network
from odediff.zoo.unet import NULL_LABEL, UNet

__all__ = ["LABELS", "Classifier", "classifier", "fashion_mnist", "feature_statistics", "test_images"]


def fashion_mnist(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Return the embedded class-conditional epsilon model of Fashion-MNIST, ``(B, 1, 28, 28)`` in [-1, 1].

    It is unconditional until ``model.condition(label=3, guidance=2.0)``; labels are indices into `LABELS`. The
    weights were trained in float32 and rounded to float16; every ``dtype`` computes with those rounded values, except
    bfloat16, which rounds them again.
    """
    place = available(device)
    network: Any = load_network(UNet, "network.safetensors")
    # In this format convolutions on a CPU take a sixth less time, and on hundreds of images a third less.
    network.to(place, dtype, memory_format=torch.channels_last)
    none = {"label": NULL_LABEL}
    return ClassConditional(network, VPTable.linear(), prediction="epsilon", conditions=none, null=none)


@dataclass(frozen=True, eq=False)
class ClassConditional(Model):
    """A model whose condition is ``label``: an index into `LABELS`, or one for each sample; `NULL_LABEL` for none."""

    def condition(
        self, named: Mapping[str, Any] | None = None, /, *, guidance: float | Tensor | None = None, **conditions: Any
    ) -> Model:
        """The same model under these conditions.

        Raises:
            ValueError: a condition is unknown, or a label is not one of the classes.
        """
        conditions = {**(named or {}), **conditions}
        given = conditions.get("label", NULL_LABEL)
        unusable = given is None or isinstance(given, bool | str)
        labels = torch.tensor(float("nan")) if unusable else torch.as_tensor(given)
        # A label outside the embedding raises IndexError in the middle of a solve on a CPU, and breaks CUDA's context.
        if labels.ndim > 1 or labels.is_floating_point() or not ((labels >= 0) & (labels <= NULL_LABEL)).all():
            raise ValueError(
                f"label={conditions['label']!r} must be a whole number from 0 to {len(LABELS) - 1}, one of "
                f"{', '.join(LABELS)}, or {NULL_LABEL} for none"
            )
        if "label" in conditions and not isinstance(given, int):
            conditions["label"] = labels.long()
        return super().condition(conditions, guidance=guidance)

    def null_embedding(self) -> dict[str, Tensor]:
        """The embedding of "no class": the network takes it in place of a label."""
        return {"label": self.network.label.weight[NULL_LABEL]}  # type: ignore[attr-defined]


def classifier(device: str | torch.device = "cpu") -> Classifier:
    """Return the embedded classifier: ``logits = network(images)``, ``features = network.features(images)``."""
    return load_network(Classifier, "classifier.safetensors").to(available(device))


def test_images() -> tuple[Tensor, Tensor]:
    """Return 1,000 real test images ``(1000, 1, 28, 28)``, float32 in [-1, 1], and their labels ``(1000,)``.

    Row ``10 k + c`` is the k-th image of class c in the test split, so the first 10 n rows hold n of each class.
    """
    tensors = read("test_images.safetensors")
    return to_network(tensors["images"]), tensors["labels"]


def feature_statistics() -> tuple[Tensor, Tensor]:
    """Mean ``(96,)`` and covariance ``(96, 96)``, float64, of the classifier's features of all 10,000 test images."""
    tensors = read("features.safetensors")
    return tensors["mean"], tensors["covariance"]
