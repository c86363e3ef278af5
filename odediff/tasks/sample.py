"""``task=sample``: images from noise."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from odediff import zoo
from odediff.files import replacing
from odediff.fingerprint import fingerprint, tensors_hash
from odediff.metrics import class_accuracy
from odediff.model import Model
from odediff.pictures import is_picture, labelled_grid, montage
from odediff.reference import reference_end
from odediff.run import Run, build, refuse_unused, rms
from odediff.sampling import initial_noise, sample
from odediff.table import text_table
from odediff.zoo.evaluate import frechet
from odediff.zoo.unet import NULL_LABEL
from solvers import NoiseStream, Solution


def run(config: DictConfig, reference_steps: int | None, score: bool) -> None:
    """Draw ``samples`` images and write samples.safetensors, run.json and, where they are pictures, samples.png."""
    run, count = build(config), config.samples
    if reference_steps is not None and not run.sweeping:
        refuse_unused(("task.reference_steps",), "only the samples of a sweep are compared with a reference; add -m")
    if score:
        _require_scorable(run.shape, count)
    model = run.conditioned(count)
    begun = time.perf_counter()
    solution: Solution = sample(
        model,
        (count, *run.shape),
        solver=run.solver,
        grid=run.grid,
        steps=config.steps,
        nfe=config.nfe,
        rtol=config.rtol,
        seed=config.seed,
        dtype=run.dtype,
        device=config.device,
        closing=run.closing,
        progress=run.progress,
        return_solution=True,
    )
    seconds = time.perf_counter() - begun
    scores = _scores(solution.x, model.conditions.get("label")) if score else {}
    with replacing(run.folder / "samples.safetensors") as partial:
        save_file({"samples": solution.x.contiguous()}, partial)
    name, calls = type(run.solver).__name__, solution.stats.nfe
    if is_picture(run.shape):
        labelled_grid(
            run.folder / "samples.png",
            [[montage(solution.x, columns=min(count, 8))]],
            [name],
            [f"{calls} calls"],
            f"{count} samples, seed {config.seed}",
            inches=0.5 * -(-count // 8),
        )
    compared = run.sweeping and reference_steps is not None and run.solver.deterministic
    error = _error(run, model, solution, reference_steps) if compared else None  # type: ignore[arg-type]
    run.record(
        {
            "nfe": calls,
            "network_evaluations": solution.stats.network_evaluations,
            "steps": solution.stats.steps,
            "error": error,
            "seconds": round(seconds, 3),
            "times": [float(node.t) for node in solution.nodes],
            **scores,
        }
    )
    if run.sweeping:
        return
    row = (str(run.solver), calls, solution.stats.network_evaluations, *scores.values())
    print(text_table(("solver", "calls", "passes", *scores), [row]))
    print(f"{count} samples in {run.folder}")


def _require_scorable(shape: tuple[int, ...], count: int) -> None:
    embedded = tuple(zoo.test_images()[0].shape[1:])
    if shape != embedded:
        raise ValueError(
            f"task.score=true uses the embedded classifier of {embedded} images, and the model has shape {shape}; "
            "leave task.score out"
        )
    if count < 2:
        raise ValueError(f"task.score=true needs a covariance, and samples={count} has none; ask for at least 2")


def _scores(x: Tensor, label: Any) -> dict[str, float | None]:
    """The embedded classifier's scores: the Frechet distance to real images, and the share classified as asked."""
    images = x.cpu().float().clamp(-1, 1)
    labels = torch.as_tensor(NULL_LABEL if label is None else label).cpu().expand(len(images))
    asked = not (labels == NULL_LABEL).any()
    return {
        "frechet": frechet(images),
        "accuracy": class_accuracy(images, labels, zoo.classifier()) if asked else None,
    }


def _error(run: Run, model: Model, solution: Solution, reference_steps: int) -> float:
    """The rms distance to the network's exact flow from the same noise.

    The jobs of a sweep share one reference, kept beside their folders under a name that is a hash of what it is for.
    """
    noise, _ = initial_noise(solution.nodes[0], torch.empty_like(solution.x), NoiseStream(run.config.seed))
    return rms(solution.x - _shared_reference(run, model, noise, reference_steps))


def _shared_reference(run: Run, model: Model, noise: Tensor, steps: int) -> Tensor:
    """The end of the exact flow, computed once for the jobs of a sweep that declare the same model."""
    declared = OmegaConf.to_container(run.config.model, resolve=True, enum_to_str=True)
    belongs_to = (
        fingerprint(model.network),
        run.model_code,
        model.path,
        {name: value for name, value in declared.items() if name != "chunk"},  # type: ignore[union-attr]
        tensors_hash({"noise": noise.cpu()}),
        steps,
    )
    key = hashlib.sha256(repr(belongs_to).encode()).hexdigest()[:12]
    file: Path = run.folder.parent / f"reference-{key}.safetensors"
    if file.exists():
        return load_file(file)["x"].to(noise.device)
    end = reference_end(model, noise, steps, run.progress)
    with replacing(file) as partial:
        save_file({"x": end}, partial)
    return end
