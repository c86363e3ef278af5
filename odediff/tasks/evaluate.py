"""``task=evaluate``: the embedded network's class-conditional samples, scored by the embedded classifier."""

from __future__ import annotations

from omegaconf import DictConfig

from odediff.images import embedded_shape
from odediff.run import build, refuse_unused
from odediff.table import text_table
from odediff.zoo.evaluate import evaluate
from solvers import DDIM

SAMPLES = 2048
"""The number of samples behind every figure: the Frechet distance depends on it."""
STEPS = 50


def run(config: DictConfig, guidance: list[float]) -> None:
    """Print accuracy and Frechet distance of 2,048 samples by 50-step DDIM at each guidance; write run.json."""
    refuse_unused(
        ("solver", "grid", "closing", "steps", "nfe", "rtol", "samples", "dtype", "model.guidance", "model.condition"),
        f"the figures are for {SAMPLES} samples of all classes by {STEPS} steps of DDIM at task.guidance=[1,2,...]; "
        "task=sample task.score=true scores others",
    )
    if not guidance:
        raise ValueError("task.guidance=[] leaves nothing to score; give one or more, such as task.guidance=[1,2]")
    run = build(config)
    if run.shape != embedded_shape() or "label" not in run.model.null:
        raise ValueError(
            f"model._target_={config.model._target_}: the embedded classifier knows images of shape {embedded_shape()} "
            "and their labels; leave model out to score the embedded network"
        )
    scores = [evaluate(run.model, scale, SAMPLES, STEPS, config.seed, config.device) for scale in guidance]
    header = ("guidance", "classified as asked", "Frechet distance", "real against real")
    print(text_table(header, [(s.guidance, f"{s.accuracy:.2%}", s.frechet, s.real) for s in scores]))
    run.record({"solver": str(DDIM()), "steps": STEPS, "scores": [s._asdict() for s in scores]})
