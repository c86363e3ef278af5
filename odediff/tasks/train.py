"""``task=train``: train the embedded network and classifier anew, from Fashion-MNIST's files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from omegaconf import DictConfig

from odediff.config import Config
from odediff.run import refuse_unused
from odediff.schedule import VPTable
from odediff.zoo import dataset, train_classifier, train_network
from odediff.zoo.export import export


def run(config: DictConfig, folder: str) -> None:
    """Train both, or resume from their checkpoints in ``folder``, and export the assets to ``folder``/weights."""
    refuse_unused(
        {item.name for item in fields(Config)} - {"task", "data", "device", "progress"},
        "the embedded network has one recipe, odediff.zoo.train_network.Recipe; only data.root and task.folder vary",
    )
    root, target = Path(config.data.root), Path(folder)
    images, labels = dataset.load(root, "train")
    images = dataset.to_network(images)
    target.mkdir(parents=True, exist_ok=True)
    network, classifier = target / "network.safetensors", target / "classifier.safetensors"
    train_classifier.train(images, labels, train_classifier.Recipe(), classifier, config.device)
    chain = torch.from_numpy(VPTable.linear().alphas_cumprod.copy())
    train_network.train(images, labels, chain, train_network.Recipe(), network, config.device)
    export(root, network, classifier, target / "weights")
    print(f"weights in {target / 'weights'}")
