"""Turn training checkpoints and the data set into the embedded assets and their manifest."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from odediff import metrics
from odediff.version import __version__
from odediff.zoo import dataset, train_classifier, train_network
from odediff.zoo.assets import MANIFEST
from odediff.zoo.convnet import Classifier
from odediff.zoo.unet import CLASSES

REAL_SAMPLES = 2048


def export(root: Path, network: Path, classifier: Path, folder: Path) -> None:
    """Write every asset and ``manifest.json`` into ``folder``.

    Args:
        root: the folder of Fashion-MNIST's IDX files.
        network: checkpoint of `train_network.train`, finished or not; its averaged weights are taken.
        classifier: checkpoint of `train_classifier.train`.
        folder: the package's ``weights`` folder.
    """
    images, labels = dataset.load(root, "test")
    network_file = _weights(network, "average", train_network.Recipe())
    classifier_file = _weights(classifier, "network", train_classifier.Recipe())
    features = _features(classifier_file, dataset.to_network(images))
    files = {
        "network.safetensors": network_file,
        "classifier.safetensors": classifier_file,
        "features.safetensors": save(_statistics(features, labels)),
        "test_images.safetensors": save(_test_images(images, labels)),
    }
    manifest = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    folder.mkdir(exist_ok=True)
    for name, content in {**files, MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}.items():
        partial = folder / f"{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, folder / name)


def by_class(labels: Tensor) -> Tensor:
    """The order of rows that takes the classes in turn, each in its own order, until one of them is used up."""
    rows = [torch.nonzero(labels == label).flatten() for label in range(CLASSES)]
    shortest = min(len(row) for row in rows)
    return torch.stack([row[:shortest] for row in rows], dim=1).flatten()


def _weights(checkpoint: Path, prefix: str, recipe: train_network.Recipe | train_classifier.Recipe) -> bytes:
    """One network of a checkpoint, rounded to float16, with its origin."""
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint} is missing; train it with python -m odediff task=train")
    tensors = load_file(checkpoint)
    steps = int(tensors["step"])
    weights = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
    if not weights:
        raise ValueError(f"{checkpoint} holds no tensor {prefix}.*; are network and classifier exchanged?")
    rounded = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    if not all(value.isfinite().all() for value in rounded.values()):
        raise ValueError(f"{checkpoint} holds weights that float16 cannot hold; train it again")
    origin = {
        "version": __version__,
        "recipe": dataclasses.asdict(recipe),
        "steps": steps,
        "images_seen": steps * recipe.batch,
    }
    # One key: safetensors writes several keys in a random order, so the file would change with every export.
    return save(rounded, metadata={"origin": json.dumps(origin)})


def _features(classifier_file: bytes, images: Tensor) -> Tensor:
    """Features by the rounded classifier, which is the one that users have."""
    network = Classifier()
    network.load_state_dict(load(classifier_file))
    network.eval()
    with torch.no_grad():
        return torch.cat([network.features(part) for part in images.split(250)])


def _statistics(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Statistics of all features, and the distance of real images, below which samples cannot be expected to go.

    That floor is the Fréchet distance of `REAL_SAMPLES` test images, classes in turn, to the rest of the test split.
    """
    chosen = by_class(labels)[:REAL_SAMPLES]
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    mean, covariance = metrics.feature_statistics(features)
    few, others = metrics.feature_statistics(features[chosen]), metrics.feature_statistics(features[rest])
    floor = metrics.frechet_distance(*few, *others)
    return {"mean": mean, "covariance": covariance, "real_distance": torch.tensor(floor, dtype=torch.float64)}


def _test_images(images: Tensor, labels: Tensor, per_class: int = 100) -> dict[str, Tensor]:
    """The first images of every class, classes in turn, and their rows in the test split."""
    rows = by_class(labels)[: per_class * CLASSES]
    return {"images": images[rows], "labels": labels[rows], "rows": rows}
