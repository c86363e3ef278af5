"""``task=evaluate``: the embedded network's class-conditional samples, scored by the embedded classifier."""

from __future__ import annotations

from omegaconf import DictConfig

from odediff.run import build
from odediff.table import text_table
from odediff.zoo.evaluate import evaluate

SAMPLES = 2048
"""The Frechet distance depends on the number of samples; this is the number that every figure is stated at."""
STEPS = 50


def run(config: DictConfig, guidance: list[float]) -> None:
    """Print accuracy and Frechet distance of 2,048 samples by 50-step DDIM at each guidance; write run.json."""
    run = build(config)
    scores = [evaluate(run.model, scale, SAMPLES, STEPS, config.seed, config.device) for scale in guidance]
    header = ("guidance", "classified as asked", "Frechet distance", "real against real")
    print(text_table(header, [(s.guidance, f"{s.accuracy:.2%}", s.frechet, s.real) for s in scores]))
    run.record({"scores": [s._asdict() for s in scores]})
