"""``task=invert``: real images to noise and back."""

from __future__ import annotations

from omegaconf import DictConfig
from safetensors.torch import save_file

from odediff.files import replacing
from odediff.images import load_images
from odediff.inversion import decode, encode
from odediff.metrics import psnr, round_trip_error
from odediff.pictures import labelled_grid, montage
from odediff.run import build, refuse_unused, rms
from odediff.table import text_table


def run(config: DictConfig, images: str | None) -> None:
    """Encode and decode ``samples`` images; write inversion.safetensors, inversion.png and run.json."""
    refuse_unused(
        ("closing",), "an inversion has no closing step: it uses the grid down to its last time above the data"
    )
    refuse_unused(("seed",), "an inversion draws no random numbers")
    run, count = build(config), config.samples
    pictures, labels = load_images(images, count, run.shape)
    if labels is not None and "label" in run.model.null:
        refuse_unused(("model.condition.label",), "the embedded images are inverted under their own labels")
    model = run.conditioned(count, **run.labelled(labels))
    given = pictures.to(device=config.device, dtype=run.dtype)
    code = encode(
        model,
        given,
        solver=run.solver,
        grid=run.grid,
        steps=config.steps,
        nfe=config.nfe,
        rtol=config.rtol,
        progress=run.progress,
    )
    again = decode(model, code, progress=run.progress)
    errors, quality = round_trip_error(given, again), psnr(given, again)
    error = rms(errors)
    with replacing(run.folder / "inversion.safetensors") as partial:
        save_file({"image": given, "noise": code.x, "reconstruction": again}, partial)
    columns = min(count, 16)
    labelled_grid(
        run.folder / "inversion.png",
        [[montage(v, columns)] for v in (given, code.x / 3, again, (again - given) * 4)],
        ["image", "noise", "reconstruction", "difference x 4"],
        [f"{code.stats.nfe} calls each way, rms error {error:.1e}"],
        f"Inversion by {type(run.solver).__name__}",
        inches=0.5 * -(-count // columns),
    )
    run.record(
        {
            "nfe": code.stats.nfe,
            "network_evaluations": code.stats.network_evaluations,
            "error": error,
            "errors": errors.tolist(),
            "psnr": quality.tolist(),
            "times": code.times.tolist(),
        }
    )
    if run.sweeping:
        return
    row = (
        str(run.solver),
        code.stats.nfe,
        float(errors.mean()),
        float(quality.median()),
        float(code.x.mean()),
        float(code.x.std()),
    )
    print(text_table(("solver", "calls", "rms error", "PSNR [dB]", "noise mean", "noise std"), [row]))
    print(f"{count} round trips in {run.folder}")
