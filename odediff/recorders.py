"""Exact by storage: the error of each decoding step is recorded, and added back when the code is decoded.

Each function returns a `Code` with offsets. Decoded under the same condition it gives the images back, up to rounding,
at any guidance; decoded under another one, with ``edit=True``, it gives an edit that keeps what the offsets contain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from odediff.code import Code, grid_nodes
from odediff.defaults import Grid
from odediff.inversion import climb, inversion_times, require_images
from odediff.model import Model
from odediff.points import components
from odediff.problem import ProbabilityFlow, require_model
from odediff.replay import mean_step
from solvers import DDIM, Node, NoiseStream, Solver, Stats, Status, combine
from solvers.counting import counted
from solvers.exponential import direction, posterior_std
from solvers.solver import require_solver


def direct_inversion(
    model: Model,
    images: Tensor,
    *,
    solver: Solver | None = None,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> Code:
    """Record by how much each step at the model's guidance misses the path that was encoded without guidance.

    Ju et al. 2023, "Direct inversion: boosting diffusion-based editing with 3 lines of code". ``solver`` is a one-step
    method (default: DDIM); ``grid`` and ``steps`` are those of `odediff.encode`.
    """
    require_model(model)
    solver = DDIM() if solver is None else solver
    require_solver(solver)
    if not solver.one_step:
        raise ValueError(
            f"direct_inversion needs a one-step method, not {type(solver).__name__}; use DDIM(), Heun() or RK4()"
        )
    require_images(images)
    times = inversion_times(model, solver, grid, steps, None)
    pivot, climbing = pivots(model, images, times, solver, progress)
    return _record(model, solver, times, pivot[0], pivot[1:], climbing)


def edit_friendly(
    model: Model,
    images: Tensor,
    *,
    eta: float = 1.0,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Code:
    """Record the noises of a stochastic sampler whose states are the images, noised independently at every node.

    Huberman-Spiegelglas et al. 2024, "An edit friendly DDPM noise space": ``x_t = alpha x0 + sigma eps_t`` with fresh
    eps_t; the offset is ``x_b - mean(x_a)``, the paper's sigma z. ``eta = 1`` is DDPM.
    """
    require_model(model)
    return _record_noises(model, images, _independent_states, eta, grid, steps, seed, samples)


def cycle_diffusion(
    model: Model,
    images: Tensor,
    *,
    eta: float = 1.0,
    grid: Grid | Tensor | None = None,
    steps: int | None = None,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Code:
    """Record the noises of a stochastic sampler along one draw of its posterior chain, given the images.

    Wu & De la Torre 2023, "A latent space of stochastic diffusion models" (CycleDiffusion): ``x_a`` at pure noise is
    drawn once, then ``x_b ~ q(x_b | x_a, x0)``, so successive states are as strongly correlated as a sampler's.
    """
    require_model(model)
    return _record_noises(model, images, _posterior_states, eta, grid, steps, seed, samples)


def pivots(model: Model, images: Tensor, times: Tensor, solver: Solver, progress: bool = False) -> tuple[Tensor, Stats]:
    """The states of an unguided encoding at all nodes, noise first, ``(N + 1, B, ...)``, and its cost."""
    plain = ProbabilityFlow(model.condition(guidance=1.0))
    solution = climb(plain, solver, images, times, progress=progress, trajectory=True)
    assert solution.trajectory is not None
    return solution.trajectory.flip(0), solution.stats


def finite_status(x: Tensor) -> Tensor:
    """The status of each sample, ``(B,)``, judged by its end state."""
    finite = components(x).isfinite().all(1).cpu()
    return torch.where(finite, int(Status.SUCCESS), int(Status.NON_FINITE))


def _record(
    model: Model,
    solver: Solver,
    times: Tensor,
    first: Tensor,
    targets: Iterable[Tensor],
    climbing: Stats | None = None,
) -> Code:
    """Step from ``first`` towards the data and record each step's distance to its target, after ``climbing``."""
    flow = ProbabilityFlow(model)
    ode = counted(flow, len(first), budget=None)
    nodes = flow.nodes(times.flip(0).tolist())
    x, offsets = first, []
    with torch.no_grad():
        for (a, b), target in zip(pairwise(nodes), targets, strict=True):
            mean = mean_step(solver, ode, a, b, x)
            offsets.append(target - mean)
            # Continue from the state that decoding will reach, rounding included, not from the target.
            x = mean + offsets[-1]
    before = climbing or Stats(0, 0, torch.zeros(len(first), dtype=torch.int64, device="cpu"), 0)
    here = ode.ledger.stats(len(offsets))
    return Code.of(
        model,
        grid_nodes(model, times),
        x=first,
        solver=solver,
        stats=Stats(
            nfe=before.nfe + here.nfe,
            network_evaluations=before.network_evaluations + here.network_evaluations,
            evaluations=before.evaluations + here.evaluations,
            steps=here.steps,
        ),
        status=finite_status(x),
        offsets=torch.stack(offsets),
    )


def _record_noises(
    model: Model,
    images: Tensor,
    draw_states: Callable[[list[Node], Tensor, NoiseStream, float], list[Tensor]],
    eta: float,
    grid: Grid | Tensor | None,
    steps: int | None,
    seed: int,
    samples: Sequence[int] | None,
) -> Code:
    """Record what DDIM(eta) lacks to pass through the states that ``draw_states`` returns, and then the images."""
    images = require_images(images).detach()
    solver = DDIM(eta)
    if solver.deterministic:
        raise ValueError("eta=0 leaves no noise to record; give eta in (0, 1], or use odediff.direct_inversion")
    times = inversion_times(model, DDIM(), grid, steps, None)
    stream = NoiseStream(seed, None if samples is None else tuple(samples))
    first, *others = draw_states(model.path.nodes(times.flip(0).tolist())[:-1], images, stream, eta)
    return _record(model, solver, times, first, [*others, images])


def _independent_states(nodes: list[Node], images: Tensor, stream: NoiseStream, eta: float) -> list[Tensor]:
    """``alpha x0 + sigma eps`` with fresh noise at every node."""
    states = []
    for node in nodes:
        noise, stream = stream.draw(images)
        states.append(combine((node.alpha, images), (node.sigma, noise)))
    return states


def _posterior_states(nodes: list[Node], images: Tensor, stream: NoiseStream, eta: float) -> list[Tensor]:
    """A chain of posterior draws, each given the state before it and the images."""
    noise, stream = stream.draw(images)
    states = [combine((nodes[0].alpha, images), (nodes[0].sigma, noise))]
    for a, b in pairwise(nodes):
        noise, stream = stream.draw(images)
        states.append(_posterior_draw(a, b, states[-1], images, noise, eta))
    return states


def _posterior_draw(a: Node, b: Node, x: Tensor, data: Tensor, noise: Tensor, eta: float) -> Tensor:
    """``alpha_b x0 + sqrt(sigma_b^2 - std^2) eps + std z`` with the true noise ``eps = (x - alpha_a x0)/sigma_a``."""
    kept = direction(a, b, eta) / a.sigma
    return combine((b.alpha - kept * a.alpha, data), (kept, x), (eta * posterior_std(a, b), noise))
