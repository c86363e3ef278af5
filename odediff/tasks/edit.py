"""``task=edit``: move real images of one class to another, or along the great circle between their codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from odediff import zoo
from odediff.code import Code
from odediff.files import replacing
from odediff.images import embedded_images
from odediff.inversion import decode, encode, mix_codes
from odediff.metrics import class_accuracy, psnr
from odediff.model import Model
from odediff.null_text import negative_prompt, null_text, shared_null
from odediff.pictures import labelled_grid, montage
from odediff.recorders import cycle_diffusion, direct_inversion, edit_friendly
from odediff.run import Run, build, refuse_unused
from odediff.table import text_table
from solvers import DDIM, ReversibleSolver, TrajectoryInverse
from solvers.implicit_inverse import ImplicitInverse

RECORDERS: dict[str, Callable[..., Code]] = {
    "null_text": null_text,
    "shared_null": shared_null,
    "negative_prompt": negative_prompt,
    "direct_inversion": direct_inversion,
    "edit_friendly": edit_friendly,
    "cycle_diffusion": cycle_diffusion,
}
OF_GUIDANCE = ("null_text", "shared_null", "negative_prompt")
STOCHASTIC = ("edit_friendly", "cycle_diffusion")
WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def run(config: DictConfig, method: str, shift: int) -> None:
    """Encode, reconstruct and edit ``samples`` images by ``method``; write four files.

    They are edit.png, edit.safetensors (image, reconstruction, edit), code.safetensors and run.json. The edit moves to
    the class ``shift`` places further on. ``bridge`` is a dual diffusion implicit bridge (Su et al. 2023): encode under
    one class, decode under the other, by the configured solver. ``slerp`` interpolates between each image and the next
    one of its class. The other methods are functions of `odediff`, which record what guidance needs.
    """
    _refuse_settings(method)
    run, begun = build(config), time.perf_counter()
    _check_settings(run, method)
    if method == "slerp":
        _interpolate(run)
        return
    pictures, labels = embedded_images(config.samples, run.shape)
    given = pictures.to(device=config.device, dtype=run.dtype)
    targets = (labels + shift) % len(zoo.LABELS)
    model = run.conditioned(config.samples, label=labels.tolist())
    other = run.conditioned(config.samples, label=targets.tolist())
    code = _encode(run, model, given, method)
    code.save(run.folder / "code.safetensors")
    again = decode(model, code, progress=run.progress)
    edited = decode(other, code, edit=True, progress=run.progress)
    with replacing(run.folder / "edit.safetensors") as partial:
        save_file({"image": given, "reconstruction": again, "edit": edited}, partial)
    quality = psnr(given, again)
    hits = _hits(edited, targets)
    columns = min(config.samples, 10)
    labelled_grid(
        run.folder / "edit.png",
        [[montage(v, columns)] for v in (given, again, (again - given) * 4, edited, edited - given)],
        ["image", "reconstruction", "difference x 4", "edit", "edit - image"],
        [f"{quality.median():.1f} dB, {hits:.0%} of the edits as asked"],
        f"Class swap by {method}, guidance {run.model.guidance:g}",
        inches=0.55 * -(-config.samples // columns),
    )
    run.record(
        {
            "solver": str(code.solver),
            "nfe": code.stats.nfe,
            "network_evaluations": code.stats.network_evaluations,
            "psnr": quality.tolist(),
            "classified_as_asked": hits,
            "labels": labels.tolist(),
            "targets": targets.tolist(),
        }
    )
    row = (method, code.stats.nfe, float(quality.median()), hits, round(time.perf_counter() - begun, 1))
    print(text_table(("method", "calls to encode", "PSNR [dB]", "classified as asked", "seconds"), [row]))
    print(f"table and picture of {config.samples} edits in {run.folder}")


def _refuse_settings(method: str) -> None:
    """Refuse a method that does not exist, and words of the command line that it would not use."""
    if method not in (*RECORDERS, "bridge", "slerp"):
        raise ValueError(f"task.method={method} is unknown; use bridge, slerp or one of {', '.join(RECORDERS)}")
    refuse_unused(
        ("closing",), "an inversion has no closing step: it uses the grid down to its last time above the data"
    )
    refuse_unused(("model.condition.label",), "the images have their own labels, and task.shift asks for others")
    if method not in STOCHASTIC:
        refuse_unused(("seed",), f"task.method={method} draws no random numbers")
    if method == "slerp":
        refuse_unused(("task.shift",), "task.method=slerp stays within the class")


def _check_settings(run: Run, method: str) -> None:
    """Refuse settings that the method cannot work with."""
    if run.config.nfe is not None:
        raise ValueError(f"nfe={run.config.nfe}: task=edit counts steps; give steps=...")
    if method in OF_GUIDANCE and not run.model.guided:
        raise ValueError(
            f"model.guidance={run.model.guidance}: what task.method={method} finds has an effect under guidance only; "
            "give model.guidance=7.5"
        )
    if run.config.rtol is not None and method not in ("bridge", "slerp"):
        raise ValueError(f"rtol={run.config.rtol}: task.method={method} records steps; give steps=...")
    if method in RECORDERS and run.solver != DDIM():
        refuse_unused(("solver",), f"task.method={method} records steps of DDIM; bridge and slerp take a solver")


def _encode(run: Run, model: Model, images: Tensor, method: str) -> Code:
    settings: dict[str, Any] = {"grid": run.grid, "steps": run.config.steps}
    if method == "bridge":
        return encode(model, images, solver=run.solver, progress=run.progress, **settings)
    if method in STOCHASTIC:
        return RECORDERS[method](model, images, seed=run.config.seed, **settings)
    return RECORDERS[method](model, images, progress=run.progress, **settings)


def _interpolate(run: Run) -> None:
    """Encode pairs of one class and decode between them; write slerp.png and run.json."""
    implicit = isinstance(run.solver, ImplicitInverse | TrajectoryInverse)
    if isinstance(run.solver, ReversibleSolver) and not implicit:
        raise ValueError(
            f"solver={run.solver} has a code of two states, which cannot be averaged; use a plain solver such as rk4"
        )
    pairs, most = run.config.samples, len(zoo.test_images()[0]) - 10
    if pairs > most:
        raise ValueError(
            f"samples={pairs} exceeds the {most} embedded images with a next one of their class; ask for at most {most}"
        )
    pictures, labels = embedded_images(10 * (-(-pairs // 10) + 1), run.shape)
    labels = labels[:pairs]
    model = run.conditioned(pairs, label=labels.tolist())
    first, second = (
        encode(
            model,
            some.to(device=run.config.device, dtype=run.dtype),
            solver=run.solver,
            grid=run.grid,
            steps=run.config.steps,
            progress=run.progress,
        )
        # The next image of the same class is ten rows further on.
        for some in (pictures[:pairs], pictures[10 : 10 + pairs])
    )
    between = [decode(model, mix_codes(first, second, weight), progress=run.progress) for weight in WEIGHTS]
    hits = [_hits(images, labels) for images in between]
    ends_images = (pictures[:pairs], pictures[10 : 10 + pairs])
    labelled_grid(
        run.folder / "slerp.png",
        [
            [montage(image[i : i + 1], 1) for image in (ends_images[0], *between, ends_images[1])]
            for i in range(min(pairs, 10))
        ],
        [zoo.LABELS[int(label)] for label in labels[:10]],
        ["image", *(f"{weight:g}" for weight in WEIGHTS), "image"],
        "Between the codes of two images, on the great circle",
        inches=0.6,
    )
    run.record({"nfe": first.stats.nfe, "fractions": WEIGHTS, "classified_as_asked": hits})
    rows = [(f"{weight:g}", hit) for weight, hit in zip(WEIGHTS, hits, strict=True)]
    print(text_table(("weight", "classified as asked"), rows))
    print(f"table and picture of {pairs} ways between images in {run.folder}")


def _hits(images: Tensor, labels: Tensor) -> float:
    """The share of images that the embedded classifier assigns to ``labels``."""
    return class_accuracy(images.float().cpu().clamp(-1, 1), labels, zoo.classifier())
