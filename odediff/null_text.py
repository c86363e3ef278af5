"""Null-text inversion and its shortcuts: reconstruct at high guidance by choosing what "no condition" means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from odediff.code import Code, grid_nodes
from odediff.defaults import Grid
from odediff.inversion import climb, inversion_times, require_images
from odediff.model import Model
from odediff.points import components
from odediff.problem import ProbabilityFlow, require_model
from odediff.recorders import finite_status, pivots
from odediff.replay import NullConditionedFlow
from solvers import DDIM, Node, Stats
from solvers.arguments import as_number, require_whole
from solvers.sums import per_row

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def null_text(
    model: Model,
    images: Tensor,
    *,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    iterations: int = 10,
    learning_rate: float = 1e-2,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Code:
    """Optimise the null condition of every step and sample so that guided DDIM follows the unguided encoding.

    Mokady et al. 2022, "Null-text inversion for editing real images using guided diffusion models", algorithm 1. The
    pivot is DDIM's encoding at guidance 1. From its noise downwards, step i of N makes at most ``iterations`` steps of
    Adam on ``|x_b - pivot_b|^2`` per component, with the rate ``learning_rate (1 - i/(2N))``, fresh moments, and the
    previous step's null as initial value; a sample stops when its error is at most ``tolerance (1 + 2 i)``. The
    network's weights do not change. Every sample has its own null, moments and stopping point, so none depends on its
    batch mates.

    The guidance is the model's. The null condition is ``model.null_embedding()``, whose floating-point tensors replace
    those of ``model.null``.

    Raises:
        TypeError, ValueError: the model is not guided, has no embedding to optimise, or cannot be inverted.
    """
    require_model(model)
    _require_descent(iterations, learning_rate=learning_rate, tolerance=tolerance)
    times, pivot, nulls = _prepare(model, images, grid, steps, progress)
    nodes = ProbabilityFlow(model).nodes(times.flip(0).tolist())
    count = len(nodes) - 1
    x, stored, passes = pivot[0], [], 0
    for i, (a, b) in enumerate(tqdm(list(pairwise(nodes)), desc="null-text", unit="step", disable=not progress)):
        rate, bound = learning_rate * (1 - i / (2 * count)), tolerance * (1 + 2 * i)
        nulls, used = _optimise(model, a, b, x, pivot[i + 1], nulls, iterations, rate, bound)
        stored.append(nulls)
        passes += used
        with torch.no_grad():
            x = _guided_step(model, a, b, x, nulls)
    rows = {name: torch.stack([step[name] for step in stored]) for name in nulls}
    return _code(model, times, pivot[0], rows, 3 * count, passes + 3 * count, finite_status(x))


def shared_null(
    model: Model,
    images: Tensor,
    *,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    iterations: int = 10,
    learning_rate: float = 1e-2,
    progress: bool = False,
) -> Code:
    """Optimise one null condition per sample, shared by all steps.

    Mokady et al. 2022, section 4, "global null-text". Each of ``iterations`` rounds of Adam sums the gradients of all
    steps, each from the pivot's own state to the pivot's next.
    """
    require_model(model)
    _require_descent(iterations, learning_rate=learning_rate)
    times, pivot, nulls = _prepare(model, images, grid, steps, progress)
    nodes = ProbabilityFlow(model).nodes(times.flip(0).tolist())
    adam, passes = _Adam(nulls), 0
    with torch.no_grad():
        wanted = [_landing(_conditional(model), a, b, pivot[i]) for i, (a, b) in enumerate(pairwise(nodes))]
    rounds = range(iterations if len(images) else 0)
    for _ in tqdm(rounds, desc="shared null", unit="round", disable=not progress):
        gradients = {name: torch.zeros_like(value) for name, value in nulls.items()}
        for i, (a, b) in enumerate(pairwise(nodes)):
            _, found = _loss_and_gradient(model, a, b, pivot[i], pivot[i + 1], wanted[i], nulls)
            gradients = {name: gradients[name] + found[name] for name in nulls}
            passes += 1
        nulls = adam.step(nulls, gradients, torch.arange(len(images), device="cpu"), learning_rate)
    rows = {name: value[None] for name, value in nulls.items()}
    calls = 2 * (len(nodes) - 1)
    optimised = torch.cat([components(value).to(pivot) for value in nulls.values()], dim=1)
    return _code(model, times, pivot[0], rows, calls, passes + calls, finite_status(optimised))


def negative_prompt(
    model: Model,
    images: Tensor,
    *,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> Code:
    """Encode with DDIM at guidance 1, and decode with the condition in place of the null.

    Miyake et al. 2023, "Negative-prompt inversion". The two predictions that guidance compares are then identical, so
    its scale does not matter: the reconstruction is that of guidance 1, bit for bit. The method is useful for edits.
    """
    require_model(model)
    _require_guided(model)
    require_images(images)
    times = inversion_times(model, DDIM(), grid, steps, None)
    rows = {}
    for name, null in model.null.items():
        value = model.told(name, model.conditions.get(name, null), images)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"condition {name!r} is a {type(value).__name__}, but the null of each sample must be a tensor or a "
                "number; use odediff.direct_inversion"
            )
        rows[name] = value[None]
    solution = climb(ProbabilityFlow(model.condition(guidance=1.0)), DDIM(), images, times, progress=progress)
    calls = len(times) - 1
    return _code(model, times, solution.x, rows, calls, calls, solution.status)


class _Adam:
    """Adam (Kingma & Ba 2015) with moments and step counts for each sample, in float32 at least.

    In float16 `EPSILON` is 0, and so are the squares of most gradients.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.first = {name: torch.zeros_like(value, dtype=_precision(value)) for name, value in values.items()}
        self.second = {name: torch.zeros_like(moment) for name, moment in self.first.items()}
        self.count = torch.zeros(len(next(iter(values.values()))), dtype=torch.float64, device="cpu")

    def step(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rows: Tensor, rate: float
    ) -> dict[str, Tensor]:
        """The values after one step of the samples ``rows``; the gradients are theirs alone."""
        self.count[rows] += 1
        corrections = [(1 - beta ** self.count[rows]).numpy() for beta in BETAS]
        moved = {}
        for name, value in values.items():
            gradient, at = gradients[name].to(_precision(value)), rows.to(value.device)
            of_first, of_second = (per_row(correction, gradient) for correction in corrections)
            self.first[name][at] = BETAS[0] * self.first[name][at] + (1 - BETAS[0]) * gradient
            self.second[name][at] = BETAS[1] * self.second[name][at] + (1 - BETAS[1]) * gradient.square()
            size = (self.second[name][at] / of_second).sqrt() + EPSILON
            moved[name] = value.clone()
            moved[name][at] = (value[at] - rate * self.first[name][at] / of_first / size).to(value.dtype)
        return moved


def _precision(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _prepare(
    model: Model, images: Tensor, grid: Grid | Tensor | None, steps: int | None, progress: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The times, the pivot, and the initial null of every sample."""
    _require_guided(model)
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode() records no gradients, which optimising the null needs; call this outside it"
        )
    require_images(images)
    start = model.null_embedding()
    times = inversion_times(model, DDIM(), grid, steps, None)
    nulls = {
        # A null with a row for each sample is used as it is; any other is one row for all.
        name: (value if value is model.null.get(name) and value.ndim else value.expand(len(images), *value.shape))
        .detach()
        .clone()
        for name, value in start.items()
    }
    return times, pivots(model, images, times, DDIM(), progress)[0], nulls


def _require_descent(iterations: int, **settings: float) -> None:
    require_whole("iterations", iterations, 0)
    for name, value in settings.items():
        if not 0 <= as_number(value) < math.inf:
            raise ValueError(f"{name}={value!r} must be a finite number of at least 0")


def _require_guided(model: Model) -> None:
    if not model.guided:
        raise ValueError(
            f"model.guidance={model.guidance!r}: the null condition matters only under guidance; "
            "use model.condition(guidance=7.5), or odediff.encode"
        )


def _optimise(
    model: Model,
    a: Node,
    b: Node,
    x: Tensor,
    target: Tensor,
    nulls: Mapping[str, Tensor],
    iterations: int,
    rate: float,
    bound: float,
) -> tuple[dict[str, Tensor], int]:
    """The optimised nulls of one step, and the number of network passes that they took."""
    with torch.no_grad():
        wanted = _landing(_conditional(model), a, b, x)
    adam, values = _Adam(nulls), dict(nulls)
    active, passes = torch.arange(len(x), device="cpu"), 1
    for _ in range(iterations if len(x) else 0):
        at = active.to(x.device)
        some = {name: value[active.to(value.device)] for name, value in values.items()}
        loss, gradients = _loss_and_gradient(model.rows(at), a, b, x[at], target[at], wanted[at], some)
        passes += 1
        left = loss > bound
        active = active[left]
        if not len(active):
            break
        kept = {name: gradient[left.to(gradient.device)] for name, gradient in gradients.items()}
        values = adam.step(values, kept, active, rate)
    return values, passes


def _loss_and_gradient(
    model: Model, a: Node, b: Node, x: Tensor, target: Tensor, wanted: Tensor, nulls: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean squared error of each sample's guided step, ``(B,)``, and its gradient in the null condition.

    The step is affine in the prediction, so guidance can mix the end points of the two predictions instead:
    ``u + w (c - u)``, where ``wanted`` is the conditional end point c.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in nulls.items()}
        bare = replace(model, conditions={**model.conditions, **model.null, **leaves}, guidance=1.0)
        free = _landing(bare, a, b, x)
        weight = per_row(torch.as_tensor(model.guidance, dtype=torch.float64, device="cpu").detach().numpy(), x)
        loss = components(free + weight * (wanted - free) - target).square().mean(1)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach().cpu(), dict(zip(leaves, gradients, strict=True))


def _conditional(model: Model) -> Model:
    return model.condition(guidance=1.0)


def _landing(model: Model, a: Node, b: Node, x: Tensor) -> Tensor:
    """The end point of the DDIM step from a to b."""
    return model.predict(a, x).mix(b.alpha, b.sigma)


def _guided_step(model: Model, a: Node, b: Node, x: Tensor, nulls: Mapping[str, Tensor]) -> Tensor:
    """One step, exactly as decoding will make it."""
    flow = NullConditionedFlow(model, [float(a.t), float(b.t)], {k: v[None] for k, v in nulls.items()})
    return DDIM().step(flow, a, b, x).x


def _code(
    model: Model, times: Tensor, x: Tensor, nulls: dict[str, Any], calls: int, passes: int, status: Tensor
) -> Code:
    return Code.of(
        model,
        grid_nodes(model, times),
        x=x,
        solver=DDIM(),
        stats=Stats(calls, passes, torch.full((len(x),), calls, device="cpu"), len(times) - 1),
        status=status,
        nulls=nulls,
    )
