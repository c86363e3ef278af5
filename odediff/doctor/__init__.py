"""Test a network against its declaration, by forward calls alone: what fits, what does not, and what to declare.

`odediff.doctor.evidence` says how hypotheses are weighed. Besides a wrong form, one mistake is found at a time: fix it
and test again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from odediff.doctor.contract import check_condition, check_contract
from odediff.doctor.evidence import READINGS, Answer, Reading, ask, make_probe
from odediff.doctor.hypotheses import RANGE, TIME, Hypothesis, alternatives
from odediff.doctor.offset import check_offset
from odediff.doctor.report import Finding, Report
from odediff.doctor.verdict import check_against, check_form, check_noise_variance, check_skill, compare
from odediff.model import Model
from odediff.prediction import network_output
from odediff.sampling import checked_shape
from odediff.schedule import VPTable
from solvers import Prediction, combine
from solvers.arguments import require_whole

__all__ = ["Finding", "Report", "diagnose"]


def diagnose(
    model: Model,
    images: Tensor | None = None,
    *,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    samples: int = 64,
) -> Report:
    """Test ``model`` against its declaration.

    It costs about 120 calls of ``samples`` rows, or 70 with ``integer_time=True``, which declares a network that looks
    times up in an embedding: other conventions are then tried only inside its table.

    Args:
        model: the network as it is declared. Conditions may have a row for each image.
        images: real data of the kind that the network was trained on, ``(N, ...)`` in [-1, 1]; ``samples`` of them are
            used, evenly spaced. Without them the network can only be tested on pure noise, which tells little.
        shape: the shape of one sample, ``(C, H, W)``, if there are no images.
        seed: fixes the noise.
        samples: the number of images to use, at least 4.

    Raises:
        TypeError, ValueError: an argument cannot be used. What the network does is a finding, never an error.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"model must be an odediff.Model, not a {type(model).__name__}; wrap the network: "
            "odediff.Model(network, path)"
        )
    require_whole("samples", samples, 4, hint=": differences are tested across samples")
    if model.trained_path is not None:
        model = replace(model, path=model.trained_path, trained_path=None)
    if images is None:
        if shape is None:
            raise ValueError("images, shape: give images to test on, or at least the shape of one, such as (1, 28, 28)")
        sizes = checked_shape(shape, "that of one sample, (C, H, W),", "(1, 28, 28)")
        model.require_batch(samples)
        return Report(tuple(_without_images(model, torch.zeros(samples, *sizes, device=model.device), seed)))
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (N, ...) in [-1, 1], not a {type(images).__name__}")
    if images.ndim < 2 or len(images) < 4:
        raise ValueError(f"images of shape {tuple(images.shape)}: give at least 4, such as (N, D) or (N, C, H, W)")
    model.require_batch(len(images))
    index = torch.linspace(0, len(images) - 1, min(samples, len(images)), device="cpu").round().long()
    chosen = images[index.to(images.device)].to(model.device)
    data = chosen if chosen.dtype == torch.float64 else chosen.float()
    if not torch.isfinite(data).all():
        raise ValueError("images contain values that are not finite; remove them")
    return Report(tuple(_with_images(model.rows(index), data, seed)))


def _with_images(model: Model, images: Tensor, seed: int) -> Iterator[Finding]:
    images, range_finding = _in_range(images)
    probe = make_probe(model.path, images, seed)
    declared = Hypothesis("declared", model)
    kept = yield from check_contract(declared, probe)
    if not kept:
        yield Finding("the rest", "cannot tell", "not tested", "fix what is wrong above, and test again")
        return
    answers = [answer for answer in declared.answers(probe) if answer]
    verdict = compare(declared, alternatives(model, images), probe)
    spread = f"from {images.min():.3g} to {images.max():.3g}"
    skill = check_skill(verdict, probe)
    yield skill
    if skill.status == "wrong":
        yield range_finding or Finding(RANGE, "cannot tell", spread)
        yield Finding("the rest", "cannot tell", "no skill to tell by", "fix what is wrong above, and test again")
        return
    yield range_finding or check_against(verdict, RANGE, spread)
    yield check_noise_variance(answers, Reading(model.prediction))
    yield check_form(verdict)
    yield check_against(verdict, TIME, "as declared")
    yield from check_offset(verdict, images, seed)
    yield from check_condition(model, answers[len(answers) // 2])


def _without_images(model: Model, nothing: Tensor, seed: int) -> Iterator[Finding]:
    declared = Hypothesis("declared", model)
    probe = make_probe(model.path, nothing, seed)
    kept = yield from check_contract(declared, probe)
    if not kept:
        return
    node = model.path.node(0.999 * model.path.start if not isinstance(model.path, VPTable) else model.path.start)
    noise = probe.noise[0]
    x = combine((node.sigma, noise))
    yield _check_noise_end(model, Answer(node, x, ask(model, node, x), noise))
    yield from check_condition(model, declared.answers(probe)[-1])
    yield Finding(
        f"{RANGE}, {TIME}", "cannot tell", "no images", "give images: they show which times match which noise"
    )


def _in_range(images: Tensor) -> tuple[Tensor, Finding | None]:
    """The images, scaled for the other checks if they are plainly bytes."""
    low, high = float(images.min()), float(images.max())
    if low < 0 or not 1.5 < high <= 255:
        return images, None
    finding = Finding(RANGE, "wrong", f"from {low:.3g} to {high:.3g}", "give images in [-1, 1]: images / 127.5 - 1")
    return images / 127.5 - 1, finding


def _check_noise_end(model: Model, answer: Answer) -> Finding:
    """Compare the share of the noise in the output with that in each form; there x0 looks like v, epsilon like flow."""
    share = float((answer.output * answer.noise).double().sum() / answer.noise.double().square().sum())
    noise = Prediction(
        torch.zeros(1, dtype=torch.float64, device="cpu"), torch.ones(1, dtype=torch.float64, device="cpu")
    )
    shares = {reading: reading.sign * float(network_output(reading.form, answer.node, noise)) for reading in READINGS}
    likely = [str(r) for r, ideal in shares.items() if abs(share - ideal) <= 0.2 * max(abs(ideal), abs(share), 0.1)]
    measured = f"{share:.3g} of pure noise returned, as {' or '.join(likely) or 'no form'} would"
    if model.prediction not in likely:
        remedy = f"declare one of {', '.join(likely)}" if likely else "is the network trained, and told the right time?"
        return Finding("prediction form", "wrong", measured, remedy)
    if len(likely) == 1:
        return Finding("prediction form", "ok", measured)
    return Finding("prediction form", "cannot tell", measured, "give images: they tell these forms apart")
