"""``task=doctor``: does a network do what its declaration says?"""

from __future__ import annotations

from omegaconf import DictConfig

from odediff.doctor import diagnose
from odediff.images import embedded_shape, load_images
from odediff.run import build, refuse_unused

FAULTS = "the network does not do what its declaration says"


def run(config: DictConfig, images: str | None) -> int:
    """Print the report and write run.json; the exit code is 1 if something is wrong.

    Without a folder of images, a model whose shape is not the embedded images' is tested on noise alone.
    """
    refuse_unused(
        ("solver", "grid", "closing", "steps", "nfe", "rtol"), "it is the network that is tested, not a solver"
    )
    refuse_unused(
        ("schedule", "remap"), "the network is tested on the schedule that it was trained on, schedule@model.schedule"
    )
    refuse_unused(("dtype",), "the network is tested on states in float32")
    refuse_unused(("model.guidance",), "the network is tested without guidance")
    run = build(config)
    if config.samples < 4:
        raise ValueError(f"samples={config.samples} must be at least 4: differences are tested across samples")
    if images is None and run.shape != embedded_shape():
        pictures, labels = None, None
        print("no images: the network is tested on noise alone; task.images=FOLDER would tell more")
    else:
        pictures, labels = load_images(images, config.samples, run.shape)
    model = run.conditioned(config.samples, **run.labelled(labels))
    report = diagnose(model, pictures, shape=run.shape, seed=config.seed, samples=config.samples)
    print(report)
    run.record({"solver": None, "ok": report.ok, "report": str(report), **({} if report.ok else {"failed": FAULTS})})
    return 0 if report.ok else 1
