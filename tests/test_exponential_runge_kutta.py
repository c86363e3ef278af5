"""Exponential Runge-Kutta methods against the formulas of their papers, and what holds for every tableau."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from odediff.schedule import VE, RectifiedFlow, VPTable
from solvers import (
    DDIM,
    DOP853,
    ETDRK2,
    ETDRK3,
    ETDRK4,
    ODE,
    RES2S,
    RES3S,
    Adaptive,
    Data,
    DPMFast,
    DPMSolver2,
    DPMSolver3,
    DPMSolverSinglestep,
    HochbruckOstermann4,
    Node,
    Noise,
    Rotation,
    solve,
)
from solvers.phi import phi
from solvers.testing import ExactODE, Trigonometric, mild_mixture, starting_points

PATHS = {"trigonometric": Trigonometric(), "table": VPTable.linear(), "VE": VE(), "rectified flow": RectifiedFlow()}
on_every_path = pytest.mark.parametrize("path", PATHS)
in_both_directions = pytest.mark.parametrize("flipped", [False, True], ids=["sampling", "inversion"])


def problem_on(path) -> ExactODE:
    return ExactODE(mild_mixture().distribution, PATHS[path])


def times_on(path, flipped=False, steps=6) -> list[float]:
    levels = np.linspace(-2, 2.5, steps + 1) + 0.1 * np.sin(np.arange(steps + 1.0))
    times = [problem_on(path).node_at(float(level)).t for level in levels]
    return times[::-1] if flipped else times


def walk(path, rule, flipped=False, steps=6):
    """The end of the published ``rule(ode, a, b, x)``, applied along the grid."""
    ode, x = problem_on(path), starting_points()
    for a, b in pairwise(map(ode.node, times_on(path, flipped, steps))):
        x = rule(ode, a, b, x)
    return x


def end_of(solver, path, flipped=False, steps=6):
    return solve(problem_on(path), solver, starting_points(), times_on(path, flipped, steps), closing=None).x


def assert_equal(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@on_every_path
@in_both_directions
@pytest.mark.parametrize("r1", [0.5, 0.3])
def test_dpm_solver_2_is_the_algorithm_of_its_paper(path, flipped, r1):
    def rule(ode, a, b, x):
        h = b.log_snr - a.log_snr
        m = ode.node_at(a.log_snr + r1 * h)
        eps = ode.predict(a, x).eps
        u = m.alpha / a.alpha * x - m.sigma * math.expm1(r1 * h) * eps
        difference = ode.predict(m, u).eps - eps
        frozen = b.alpha / a.alpha * x - b.sigma * math.expm1(h) * eps
        return frozen - b.sigma / (2 * r1) * math.expm1(h) * difference

    assert_equal(end_of(DPMSolver2(r1=r1), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
def test_dpm_solver_3_is_the_algorithm_of_its_paper(path, flipped):
    r1, r2 = 1 / 3, 2 / 3

    def rule(ode, a, b, x):
        h = b.log_snr - a.log_snr
        m1, m2 = (ode.node_at(a.log_snr + r * h) for r in (r1, r2))
        eps = ode.predict(a, x).eps
        u1 = m1.alpha / a.alpha * x - m1.sigma * math.expm1(r1 * h) * eps
        d1 = ode.predict(m1, u1).eps - eps
        u2 = m2.alpha / a.alpha * x - m2.sigma * math.expm1(r2 * h) * eps
        u2 = u2 - m2.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = ode.predict(m2, u2).eps - eps
        frozen = b.alpha / a.alpha * x - b.sigma * math.expm1(h) * eps
        return frozen - b.sigma / r2 * (math.expm1(h) / h - 1) * d2

    assert_equal(end_of(DPMSolver3(), path, flipped), walk(path, rule, flipped))


@on_every_path
@in_both_directions
def test_dpm_solver_plus_plus_2s_is_algorithm_1_of_its_paper(path, flipped):
    r = 0.5

    def rule(ode, a, b, x):
        h = b.log_snr - a.log_snr
        m = ode.node_at(a.log_snr + r * h)
        first = ode.predict(a, x).x0
        u = m.sigma / a.sigma * x - m.alpha * math.expm1(-r * h) * first
        d = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * ode.predict(m, u).x0
        return b.sigma / a.sigma * x - b.alpha * math.expm1(-h) * d

    assert_equal(end_of(DPMSolver2(line=Data()), path, flipped), walk(path, rule, flipped))


@on_every_path
def test_kdpm2_is_dpm_solver_2(path):
    """k-diffusion's sample_dpm_2 without churn: y = x/alpha, a middle in log s, and its slope for the whole step."""

    def rule(ode, a, b, x):
        m = ode.node_at(-(math.log(a.s) + math.log(b.s)) / 2)
        y = x / a.alpha
        reached = y + (m.s - a.s) * ode.predict(a, x).eps
        return b.alpha * (y + (b.s - a.s) * ode.predict(m, m.alpha * reached).eps)

    assert_equal(end_of(DPMSolver2(), path), walk(path, rule))


@on_every_path
@in_both_directions
def test_etdrk4_is_cox_and_matthews(path, flipped):
    """Cox & Matthews 2002, eqs. 26 to 29, for u' = c u + F on the data line: u = x/alpha, c = -1, F = x0."""

    def rule(ode, a, b, x):
        h, c = b.log_snr - a.log_snr, -1.0
        m = ode.node_at(a.log_snr + h / 2)

        def data(node, u):
            return ode.predict(node, node.alpha * u).x0

        u, half, whole = x / a.alpha, math.exp(c * h / 2), math.exp(c * h)
        n0 = data(a, u)
        an = u * half + (half - 1) * n0 / c
        na = data(m, an)
        bn = u * half + (half - 1) * na / c
        nb = data(m, bn)
        cn = an * half + (half - 1) * (2 * nb - n0) / c
        nc = data(b, cn)
        z = c * h
        first = -4 - z + whole * (4 - 3 * z + z**2)
        middle = 2 * (2 + z + whole * (-2 + z))
        last = -4 - 3 * z - z**2 + whole * (4 - z)
        return b.alpha * (u * whole + (first * n0 + middle * (na + nb) + last * nc) / (h**2 * c**3))

    assert_equal(end_of(ETDRK4(), path, flipped), walk(path, rule, flipped), 1e-11)


@on_every_path
def test_res_2s_is_the_formula_of_its_paper(path):
    """Zhang et al. 2023, with c2 = 1/2 on the data line, in the variables x/alpha and -log s."""

    def rule(ode, a, b, x):
        h, c2 = b.log_snr - a.log_snr, 0.5
        phi1, phi2 = -math.expm1(-h) / h, (math.exp(-h) - 1 + h) / h**2
        m = ode.node_at(a.log_snr + c2 * h)
        y, first = x / a.alpha, ode.predict(a, x).x0
        middle = math.exp(-c2 * h) * y - math.expm1(-c2 * h) * first
        second = ode.predict(m, m.alpha * middle).x0
        return b.alpha * (math.exp(-h) * y + h * ((phi1 - phi2 / c2) * first + phi2 / c2 * second))

    assert_equal(end_of(RES2S(), path), walk(path, rule))


@in_both_directions
def test_res_2s_with_its_stage_at_the_end_is_etdrk2(flipped):
    assert_equal(end_of(RES2S(c2=1.0), "table", flipped), end_of(ETDRK2(), "table", flipped))


@pytest.mark.parametrize(("last", "calls"), [((2, 1), 15), ((1,), 16), ((2,), 17), ((), 18)])
def test_dpm_fast_takes_its_orders_one_after_the_other(last, calls):
    ode, times, x = problem_on("table"), times_on("table"), starting_points()
    methods = {1: DDIM(), 2: DPMSolver2(), 3: DPMSolver3()}
    for order, (a, b) in zip((*(3,) * (6 - len(last)), *last), pairwise(map(ode.node, times)), strict=True):
        x = methods[order].step(ode, a, b, x).x
    found = solve(ode, DPMFast(last=last), starting_points(), times)
    assert_equal(found.x, x)
    assert found.stats.nfe == calls == DPMFast(last=last).calls(6)


def test_dpm_fast_over_fewer_steps_than_it_has_last_orders_keeps_the_last():
    assert [DPMFast(last=(2, 1)).calls(steps) for steps in (0, 1, 2, 3)] == [0, 1, 3, 6]


# What holds for every tableau

ALL = [DPMSolver2(), DPMSolver2(r1=0.7), RES2S(), RES2S(c2=0.8), ETDRK2(), ETDRK3(), ETDRK4(), HochbruckOstermann4()]
ALL += [DPMSolver3(form=form, r1=0.4) for form in ("published", "taylor", "diffusers")]
ALL += [RES3S(), RES3S(c2=0.4, c3=0.9)]


def values(solver, z):
    """The tableau at ``z``: stages, rows and weights as arrays."""
    c, rows, weights = solver.tableau
    number = [[sum(w * phi(k, part * z) for w, k, part in weight) for weight in row] for row in (*rows, weights)]
    a = np.zeros((len(c), len(c)))
    for i, row in enumerate(number[:-1]):
        a[i, : len(row)] = row
    return np.array(c), a, np.array(number[-1])


@pytest.mark.parametrize("solver", ALL, ids=str)
@pytest.mark.parametrize("z", [-1.3, 0.0, 0.8])
def test_frozen_slopes_are_integrated_exactly_at_every_stage(solver, z):
    c, a, b = values(solver, z)
    assert a.sum(1) == pytest.approx([ci * phi(1, ci * z) for ci in c], abs=1e-14)
    assert b.sum() == pytest.approx(phi(1, z), abs=1e-14)


@pytest.mark.parametrize("solver", [s for s in ALL if not isinstance(s, DPMSolver2)], ids=str)
@pytest.mark.parametrize("z", [-1.3, 0.8])
def test_linear_slopes_are_integrated_exactly_by_the_weights(solver, z):
    """The second stiff order condition (Hochbruck & Ostermann 2005, table 1), which DPM-Solver-2 misses."""
    c, _, b = values(solver, z)
    assert b @ c == pytest.approx(phi(2, z), abs=1e-14)


def test_dpm_solver_2_meets_that_condition_for_small_steps_only():
    c, _, b = values(DPMSolver2(), 0.0)
    assert b @ c == 0.5
    c, _, b = values(DPMSolver2(), -1.3)
    assert abs(b @ c - phi(2, -1.3)) > 0.03


@pytest.mark.parametrize("z", [-1.3, 0.8])
def test_the_further_stiff_conditions_of_hochbruck_and_ostermann(z):
    """Hochbruck & Ostermann 2005, table 1, for order 4: the stages that the weights read are themselves of order 3."""
    c, a, b = values(HochbruckOstermann4(), z)
    assert b @ c**2 == pytest.approx(2 * phi(3, z), abs=1e-13)
    read = b != 0
    assert (a @ c)[read] == pytest.approx([ci**2 * phi(2, ci * z) for ci in c[read]], abs=1e-14)
    c, _, b = values(HochbruckOstermann4(), 0.0)
    assert b @ c**3 == pytest.approx(1 / 4, abs=1e-14)


@pytest.mark.parametrize("solver", [DPMSolver2(), DPMSolver3(line=Data()), ETDRK4()], ids=str)
def test_samples_with_their_own_nodes_take_their_own_steps(solver):
    ode, x = problem_on("trigonometric"), starting_points()
    # Three regular steps, and one from pure noise: that row alone is a DDIM step.
    ends = [(1.2, 0.8), (1.35, 0.9), (0.5, 0.7), (math.pi / 2, 1.1)]
    a, b = (Node(*map(np.array, zip(*map(ode.node, times), strict=True))) for times in zip(*ends, strict=True))
    together = solver.step(ode, a, b, x).x
    for row, (start, end) in enumerate(ends):
        alone = solver.step(ode, ode.node(start), ode.node(end), x[row : row + 1]).x
        assert_equal(together[row : row + 1], alone, 1e-14)
    start, end = (ode.node(t) for t in ends[-1])
    assert_equal(together[3:], DDIM().step(ode, start, end, x[3:]).x, 1e-15)


@pytest.mark.parametrize("line", [Noise(), Data()], ids=str)
def test_steps_at_both_ends_are_ddim_steps_and_are_counted_as_such(line):
    ode, times = problem_on("trigonometric"), [math.pi / 2, 1.3, 0.6, 0.0]
    found = solve(ode, DPMSolver3(line=line), starting_points(), times, closing=None, trajectory=True)
    first, last = (ode.node(t) for t in times[:2]), (ode.node(t) for t in times[2:])
    assert torch.equal(found.trajectory[1], DDIM().step(ode, *first, starting_points()).x)
    assert torch.equal(found.x, DDIM().step(ode, *last, found.trajectory[2]).x)
    assert found.stats.nfe == 5 == DPMSolver3(line=line).calls_over(ode, [ode.node(t) for t in times])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver2(r1=0.0), r"DPMSolver2: r1=0.0 must lie in \(0, 1\]"),
        (lambda: DPMSolver3(r1=0.5, r2=0.5), r"r1=0.5 and r2=0.5 must differ"),
        (lambda: DPMSolver3(form="heun"), r"form='heun' is unknown; use \"published\""),
        (lambda: DPMSolver3(r2=1.5), r"DPMSolver3: r2=1.5"),
        (lambda: RES2S(c2=-1.0), r"RES2S: c2=-1.0"),
        (lambda: RES3S(c2=2 / 3), r"RES3S: c2=0.66.* must be neither"),
        (lambda: ETDRK4(line=Rotation()), r"ETDRK4: line=Rotation.* use Noise\(\) or Data"),
        (lambda: ETDRK2(line=None), r"ETDRK2: line=None"),
        (lambda: DPMFast(last=(4,)), r"DPMFast: last=\(4,\) must hold orders of 1, 2 or 3"),
        (lambda: DPMFast(line=Rotation()), r"DPMFast: line=Rotation"),
        (lambda: DPMSolverSinglestep(4), r"DPMSolverSinglestep: intervals=4 must be a whole number from 1 to 3"),
        (lambda: DPMSolverSinglestep(form="taylor"), r"form='taylor' is unknown; use \"midpoint\""),
        (lambda: DPMSolverSinglestep(line=Rotation()), r"DPMSolverSinglestep: line=Rotation"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_groups_of_intervals_begin_anew_after_a_ddim_step():
    """From pure noise on: DDIM, then a group of three, one of two, and DDIM to the data."""
    ode = mild_mixture()
    times = [math.pi / 2, *(ode.node_at(level).t for level in (-2.0, -1.4, -0.9, -0.2, 0.3, 1.1)), 0.0]
    found = solve(ode, DPMSolverSinglestep(), starting_points(), times, closing=None, trajectory=True)
    nodes, states = found.nodes, found.trajectory
    assert_equal(states[1], DDIM().step(ode, *nodes[:2], starting_points()).x)
    two, three = DPMSolver2(Data(), r1=6 / 11), DPMSolver3(Data(), r1=6 / 18, r2=11 / 18)
    assert_equal(states[2], DDIM().step(ode, *nodes[1:3], states[1]).x)
    assert_equal(states[3], two.step(ode, nodes[1], nodes[3], states[1]).x)
    # Its own second stage is that of phi_2, and the group's second node that of DPM-Solver-2.
    assert_equal(states[4], replace(three, form="diffusers").step(ode, nodes[1], nodes[4], states[1]).x)
    assert_equal(states[5], DDIM().step(ode, *nodes[4:6], states[4]).x)
    assert_equal(found.x, DDIM().step(ode, *nodes[-2:], states[-2]).x)
    assert found.stats.nfe == 7


@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9])
def test_nodes_that_nearly_coincide_do_no_harm_to_groups(form, apart):
    ode, levels = mild_mixture(), np.linspace(-2.0, 2.5, 13)
    solver, ends = DPMSolverSinglestep(form=form), [ode.node_at(float(level)).t for level in (-2.0, 2.5)]
    exact = solve(ode, Adaptive(DOP853(), 1e-10), starting_points(), ends, closing=None).x

    def error(levels):
        times = [ode.node_at(float(level)).t for level in levels]
        return float((solve(ode, solver, starting_points(), times, closing=None).x - exact).abs().max())

    for i in (5, 6, 7):
        # The groups after it begin one interval earlier, and have other errors.
        assert error(np.insert(levels, i + 1, levels[i] + apart * (levels[1] - levels[0]))) < 0.015
    assert error(levels) < 0.007


def test_groups_of_intervals_want_one_grid_for_all_samples():
    ode = mild_mixture()
    nodes = [ode.node(np.array(times)) for times in ([1.2, 1.1], [0.8, 0.9])]
    with pytest.raises(TypeError, match=r"nodes: DPMSolverSinglestep\(.*give each node one time"):
        DPMSolverSinglestep().start(ode, nodes, starting_points()[:2])


def test_a_plain_ode_is_refused():
    class Decay(ODE):
        def __call__(self, t, x):
            return -x

    with pytest.raises(TypeError, match="PathODE"):
        solve(Decay(), ETDRK4(), starting_points(), [1.0, 0.5])
