"""``task=doctor``: does a network do what its declaration says?"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from odediff.doctor import diagnose
from odediff.images import load_images
from odediff.run import build


def run(config: DictConfig, images: str | None) -> None:
    """Print the report and write doctor.txt and run.json; exit with 1 when something is wrong."""
    run = build(config)
    if config.samples < 4:
        raise ValueError(f"samples={config.samples} must be at least 4: differences are tested across samples")
    pictures, labels = load_images(images, config.samples, run.shape)
    report = diagnose(run.conditioned(config.samples, **run.labelled(labels)), pictures, seed=config.seed)
    print(report)
    run.record({"ok": report.ok, "report": str(report)})
    if not report.ok:
        sys.exit(1)
