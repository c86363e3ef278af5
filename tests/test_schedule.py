import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from odediff.schedule import (
    VE,
    VP,
    RectifiedFlow,
    Schedule,
    Section,
    SubVP,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    VPTable,
)

CONTINUOUS = [
    VPLinear(),
    VPLinear(0.5, 3.0),
    VPScaledLinear(),
    VPCosine(),
    VPCosine(start=1.0),
    VPSigmoid(),
    VPSigmoid(-1.0, 6.0, 0.5, start=1.0),
    SubVP(),
    VE(),
    VE(0.01, 5000.0),
    RectifiedFlow(),
    RectifiedFlow(shift=3.0, time_scale=1000.0),
]
TABLES = [
    VPTable.linear(),
    VPTable.scaled_linear(),
    VPTable.cosine(),
    VPTable.sigmoid(),
    VPTable.linear().zero_terminal_snr(),
    VPTable.cosine(40).zero_terminal_snr(),
    VPTable([0.9, 0.4]),
    VPTable([0.9, 0.0]),
]
SCHEDULES = CONTINUOUS + TABLES
every_schedule = pytest.mark.parametrize("path", SCHEDULES, ids=repr)
every_table = pytest.mark.parametrize("path", TABLES, ids=repr)
every_continuous = pytest.mark.parametrize("path", CONTINUOUS, ids=repr)


def published_path(path: Schedule, t: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    """(alpha, sigma) as the papers write them, without care for cancellation: 60 digits pay for it."""
    m = mpmath
    if isinstance(path, (VPLinear, SubVP)):
        low, high = m.mpf(path.beta_min), m.mpf(path.beta_max)
        log_alpha = -(t**2) * (high - low) / 4 - t * low / 2
        alpha = m.exp(log_alpha)
        return alpha, 1 - alpha**2 if isinstance(path, SubVP) else m.sqrt(1 - alpha**2)
    if isinstance(path, VPScaledLinear):
        low, high = m.sqrt(m.mpf(path.beta_min)), m.sqrt(m.mpf(path.beta_max))
        integral = ((low + t * (high - low)) ** 3 - low**3) / (3 * (high - low))
        return m.exp(-integral / 2), m.sqrt(1 - m.exp(-integral))
    if isinstance(path, VPCosine):
        s = m.mpf(path.s)
        alpha = m.cos((t + s) / (1 + s) * m.pi / 2) / m.cos(s / (1 + s) * m.pi / 2)
        return alpha, m.sqrt(1 - alpha**2)
    if isinstance(path, VPSigmoid):
        low, high, tau = m.mpf(path.low), m.mpf(path.high), m.mpf(path.tau)
        first, last, here = (1 / (1 + m.exp(-w / tau)) for w in (low, high, low + t * (high - low)))
        gamma = (last - here) / (last - first)
        return m.sqrt(gamma), m.sqrt(1 - gamma)
    if isinstance(path, VE):
        return m.mpf(1), t
    assert isinstance(path, RectifiedFlow)
    tau = path.shift * t / (1 + (m.mpf(path.shift) - 1) * t)
    return 1 - tau, tau


@every_schedule
def test_time_zero_is_the_data_exactly(path):
    assert path.alpha(0.0) == 1.0
    assert path.sigma(0.0) == 0.0
    assert path.log_snr(0.0) == math.inf
    assert path.time(math.inf) == 0.0
    assert path.node(0.0) == (0.0, 1.0, 0.0)
    assert path.node_at(math.inf) == (0.0, 1.0, 0.0)


@every_schedule
def test_floats_give_floats_and_arrays_give_equal_arrays(path):
    times = path.start * np.array([[0.0, 0.002, 0.3], [0.7, 0.99, 1.0]])
    levels = path.log_snr(times)
    for method, argument in (
        (path.alpha, times),
        (path.sigma, times),
        (path.log_snr, times),
        (path.time, levels),
        (lambda t: path.rates(t)[0], times),
        (lambda t: path.rates(t)[1], times),
        (lambda level: path.node_at(level).alpha, levels),
        (lambda level: path.node_at(level).sigma, levels),
    ):
        result = method(argument)
        assert isinstance(result, np.ndarray) and result.dtype == np.float64 and result.shape == times.shape
        singly = [method(float(value)) for value in argument.ravel()]
        assert all(type(value) is float for value in singly)
        np.testing.assert_allclose(result.ravel(), singly, rtol=1e-15)
    assert all(type(value) is float for value in path.node(float(times[0, 1])))


@every_schedule
def test_the_nodes_of_a_grid_are_its_nodes_one_by_one(path):
    times = (path.start * np.array([1.0, 0.99, 0.7, 0.3, 0.002, 0.0])).tolist()
    nodes = path.nodes(times)
    assert all(type(value) is float for node in nodes for value in node)
    np.testing.assert_allclose(nodes, [path.node(t) for t in times], rtol=1e-15)
    with pytest.raises(ValueError, match="not on this path"):
        path.nodes([*times, math.nan])


@every_continuous
def test_alpha_and_sigma_are_the_published_formulas_to_their_last_digits(path):
    with mpmath.workdps(60):
        for fraction in (1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 2**-40):
            t = path.latest * fraction
            alpha, sigma = published_path(path, mpmath.mpf(t))
            assert path.alpha(t) == pytest.approx(float(alpha), rel=3e-15)
            assert path.sigma(t) == pytest.approx(float(sigma), rel=3e-15)
            assert path.log_snr(t) == pytest.approx(float(mpmath.log(alpha / sigma)), rel=1e-14, abs=1e-14)


@every_continuous
def test_rates_are_derivatives_of_the_published_formulas(path):
    with mpmath.workdps(60):
        for fraction in (1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999):
            t = path.latest * fraction
            truth = [float(mpmath.diff(lambda u, part=part: published_path(path, u)[part], t)) for part in (0, 1)]
            assert path.rates(t) == pytest.approx(truth, rel=1e-13)


@pytest.mark.parametrize("path", [VPLinear(), VPScaledLinear(), SubVP()], ids=repr)
@pytest.mark.parametrize("t", [1e-3, 0.2, 0.6, 1.0])
def test_rates_are_those_of_the_sde_with_drift_and_diffusion_from_beta(path, t):
    alpha, sigma = path.alpha(t), path.sigma(t)
    alpha_rate, sigma_rate = path.rates(t)
    # dx = -beta/2 x dt + g dw has the mean's rate -beta/2 and d(sigma^2)/dt = g^2 - beta sigma^2.
    diffusion = path.beta(t) * (1 - alpha**4 if isinstance(path, SubVP) else 1.0)
    assert alpha_rate / alpha == pytest.approx(-path.beta(t) / 2, rel=1e-14)
    assert 2 * sigma * sigma_rate == pytest.approx(diffusion - path.beta(t) * sigma**2, rel=1e-9)


def test_rates_at_the_data_are_infinite_only_where_sigma_starts_like_a_square_root():
    assert VPLinear().rates(0.0) == (-0.05, math.inf)
    assert VPCosine().rates(0.0)[1] == math.inf
    assert VPTable.linear().zero_terminal_snr().rates(0.0)[1] == math.inf
    assert SubVP().rates(0.0) == (-0.05, 0.1)
    assert RectifiedFlow().rates(0.0) == (-1.0, 1.0)
    assert VE().rates(0.0) == (0.0, 1.0)


@every_table
@pytest.mark.parametrize("t", [0.01337, 0.25035, 0.61037, 0.98763])  # between the entries
def test_table_rates_are_central_differences(path, t):
    h = 1e-5
    for value, rate in zip((path.alpha, path.sigma), path.rates(t), strict=True):
        stencil = (8 * (value(t + h) - value(t - h)) - (value(t + 2 * h) - value(t - 2 * h))) / (12 * h)
        assert rate == pytest.approx(stencil, rel=1e-6, abs=1e-9)


@every_schedule
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_time_inverts_the_log_snr(path, data):
    t = data.draw(st.one_of(st.floats(0, 1), st.floats(-12, 0).map(lambda e: 10.0**e))) * path.latest
    assert path.time(path.log_snr(t)) == pytest.approx(t, rel=1e-12, abs=1e-300)


@every_schedule
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_node_at_keeps_its_log_snr_and_lies_on_the_path(path, data):
    level = data.draw(st.floats(max(path.log_snr(path.start), -6.0), 20.0))
    node = path.node_at(level)
    assert math.log(node.alpha / node.sigma) == pytest.approx(level, abs=1e-14)
    assert node.alpha == pytest.approx(path.alpha(node.t), rel=1e-11)
    assert node.sigma == pytest.approx(path.sigma(node.t), rel=1e-11)
    if isinstance(path, VP):
        assert node.alpha**2 + node.sigma**2 == pytest.approx(1.0, rel=1e-15)


@every_schedule
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_noise_grows_and_the_log_snr_falls(path, data):
    early, late = sorted(data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
    if late - early > 1e-9:
        early, late = early * path.latest, late * path.latest
        assert path.log_snr(early) > path.log_snr(late)
        assert path.alpha(early) >= path.alpha(late)
        assert path.sigma(early) <= path.sigma(late)


@pytest.mark.parametrize("path", [VPCosine(), VPSigmoid(), RectifiedFlow(), VPTable.linear().zero_terminal_snr()])
def test_paths_that_lose_the_signal_end_at_alpha_zero_exactly(path):
    assert path.alpha(1.0) == 0.0
    assert path.sigma(1.0) == 1.0
    assert path.log_snr(1.0) == -math.inf
    assert path.time(-math.inf) == pytest.approx(1.0, abs=1e-15)
    assert path.node_at(-math.inf)[1:] == (0.0, 1.0)


def test_cosine_and_sigmoid_start_where_epsilon_still_says_something():
    for path in (VPCosine(), VPSigmoid()):
        assert path.alpha(path.start) > 5e-3
        assert type(path)(start=1.0).start == 1.0


def test_start_end_and_first_defined():
    assert (VPLinear().start, VPLinear().end, VPLinear().first_defined) == (1.0, 1e-3, 0.0)
    assert (VE().start, VE().end, VE().first_defined) == (80.0, 0.002, 0.0)
    table = VPTable.linear(400)
    assert (table.start, table.end, table.first_defined) == (1.0, 1 / 400, 1 / 400)


def test_network_time_is_t_or_the_noise_level_or_the_entry():
    assert VPLinear().network_time(0.3) == 0.3
    assert SubVP().network_time(0.3) == 0.3
    assert VE().network_time(7.5) == 7.5
    flow = RectifiedFlow(shift=3.0, time_scale=1000.0)
    assert flow.network_time(0.25) == pytest.approx(1000 * flow.sigma(0.25)) == pytest.approx(500.0)
    table = VPTable.linear()
    every_entry = table.network_time(np.arange(1, 1001) / 1000)
    np.testing.assert_array_equal(every_entry, np.arange(1000.0))
    assert type(table.network_time(0.5)) is float
    assert table.network_time(0.5005) == pytest.approx(499.5)
    assert table.network_time(np.array([0.5003, 0.25])) == pytest.approx([499.3, 249.0])
    assert table.network_time(0.001 - 1e-15) == 0.0


def test_rectified_flow_noise_levels_are_those_of_stable_diffusion_3():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    path = RectifiedFlow(shift=3.0, time_scale=1000.0)
    t = np.arange(1000, 0, -1) / 1000
    np.testing.assert_allclose(path.sigma(t), scheduler.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(path.network_time(t), scheduler.timesteps.numpy(), rtol=1e-6)


@every_table
def test_table_entries_are_reproduced(path):
    entries = path.alpha(np.arange(1, path.T + 1) / path.T) ** 2
    np.testing.assert_allclose(entries, path.alphas_cumprod, rtol=3e-15, atol=3e-16)


@pytest.mark.parametrize(
    ("table", "schedule"),
    [(VPTable.linear(), "linear"), (VPTable.scaled_linear(), "scaled_linear"), (VPTable.cosine(), "squaredcos_cap_v2")],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_tables_are_those_of_diffusers(table, schedule):
    diffusers = pytest.importorskip("diffusers")
    betas = dict(beta_start=0.00085, beta_end=0.012) if schedule == "scaled_linear" else {}
    plain = diffusers.DDIMScheduler(beta_schedule=schedule, **betas)
    np.testing.assert_allclose(table.alphas_cumprod, plain.alphas_cumprod.numpy(), rtol=2e-4)  # float32 betas
    rescaled = diffusers.DDIMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=True, **betas)
    np.testing.assert_allclose(
        table.zero_terminal_snr().alphas_cumprod, rescaled.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9
    )


def test_sigmoid_table_follows_the_continuous_schedule_up_to_its_cut():
    table, path = VPTable.sigmoid(), VPSigmoid()
    n = np.arange(1, 1000)
    np.testing.assert_allclose(table.alphas_cumprod[:-1], path.alpha(n / 1000) ** 2, rtol=1e-12)
    assert table.alphas_cumprod[-1] == pytest.approx(1e-3 * table.alphas_cumprod[-2])


def test_zero_terminal_snr_keeps_the_first_entry_and_is_idempotent():
    table = VPTable.linear()
    rescaled = table.zero_terminal_snr()
    assert rescaled.alphas_cumprod[0] == pytest.approx(table.alphas_cumprod[0], rel=1e-15)
    assert rescaled.alphas_cumprod[-1] == 0.0
    np.testing.assert_allclose(rescaled.zero_terminal_snr().alphas_cumprod, rescaled.alphas_cumprod, rtol=1e-15)


def test_tables_approach_the_continuous_schedules_that_they_discretise():
    t = np.array([0.1, 0.5, 0.9])
    for table, path in ((VPTable.linear, VPLinear()), (VPTable.scaled_linear, VPScaledLinear())):
        coarse, fine = (
            np.abs(np.log(table(T, path.beta_min / T, path.beta_max / T).alpha(t) / path.alpha(t))).max()
            for T in (1000, 4000)
        )
        assert fine < 0.3 * coarse < 0.3 * 0.03


def test_between_entries_log_alpha_bar_is_the_c2_spline_through_the_data_point():
    table = VPTable.linear(50, 0.01, 0.2)
    spline = CubicSpline(np.arange(51), np.concatenate([[0.0], np.log(table.alphas_cumprod)]))
    n = np.linspace(0.01, 49.99, 173)
    np.testing.assert_allclose(2 * np.log(table.alpha(n / 50)), spline(n), rtol=1e-11)
    alpha_rate, _ = table.rates(n / 50)
    np.testing.assert_allclose(2 * alpha_rate / table.alpha(n / 50), 50 * spline(n, 1), rtol=1e-11)


def test_between_entries_of_a_zero_terminal_snr_table_the_squared_angle_is_the_spline():
    table = VPTable.linear(50, 0.01, 0.2).zero_terminal_snr()
    angles = np.arccos(np.sqrt(np.concatenate([[1.0], table.alphas_cumprod])))
    spline = CubicSpline(np.arange(51), angles**2)
    n = np.linspace(0.01, 49.99, 173)
    np.testing.assert_allclose(np.arctan2(table.sigma(n / 50), table.alpha(n / 50)) ** 2, spline(n), rtol=1e-11)


@pytest.mark.parametrize(
    "jumpy",
    [[0.999, 0.998, 0.997, 0.3, 0.299, 0.298, 0.297, 0.01], np.exp([-5.0, -5.2, -7.2, -10.3])],
    ids=["at its knots", "between them alone"],
)
def test_a_table_on_which_the_spline_would_swing_stays_monotone(jumpy):
    knots = CubicSpline(np.arange(len(jumpy) + 1), np.concatenate([[0.0], np.log(jumpy)]))
    assert np.any(knots(np.linspace(0, len(jumpy), 1000), 1) > 0)
    table = VPTable(jumpy)
    t = np.linspace(0, 1, 2001)
    levels = table.log_snr(t)
    assert np.all(np.diff(levels) < 0)
    np.testing.assert_allclose(table.time(levels), t, rtol=1e-10)


@pytest.mark.parametrize(
    "table",
    [
        VPTable.linear(),
        VPTable.linear().zero_terminal_snr(),
        VPTable([0.999, 0.998, 0.997, 0.3, 0.299, 0.298, 0.297, 0.01]),
    ],
    ids=["linear", "zero terminal", "uneven"],
)
def test_the_times_of_many_levels_have_the_bits_of_each(table):
    levels = np.random.default_rng(0).uniform(table.log_snr(1.0) if table.alpha(1.0) else -9.0, 20.0, 500)
    assert table.time(levels).tolist() == [table.time(level) for level in levels.tolist()]


def test_tables_compare_by_content_and_cannot_be_changed():
    given_table = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    table = VPTable(given_table)
    same = VPTable([0.9, 0.5, 0.1])
    assert table == same and hash(table) == hash(same)
    assert table != VPTable([0.9, 0.5, 0.2]) and table != VPLinear()
    given_table[0] = 0.8
    assert table == same
    assert pickle.loads(pickle.dumps(table)) == copy.deepcopy(table) == same
    with pytest.raises(ValueError, match="read-only"):
        table.alphas_cumprod[0] = 0.8
    with pytest.raises(AttributeError):
        table.alphas_cumprod = np.array([0.5])


def test_equal_parameters_make_equal_schedules():
    assert VPLinear() == VPLinear(0.1, 20.0) != VPLinear(0.1, 19.0)
    assert len({RectifiedFlow(), RectifiedFlow(1.0), RectifiedFlow(2.0)}) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.9, 0.5]], r"shape \(1, 2\)"),
        ([0.9], "at least 2"),
        ([0.9, math.nan, 0.1], r"alphas_cumprod\[1\] = nan"),
        ([1.0, 0.5], r"alphas_cumprod\[0\] = 1.0"),
        ([0.9, 0.0, 0.0], r"alphas_cumprod\[1\] = 0.0"),
        ([0.9, 0.5, -0.1], r"alphas_cumprod\[2\] = -0.1"),
        ([0.9, 0.5, 0.5], "strictly decreasing"),
        ([0.1, 0.5, 0.9], "least noise first"),
    ],
)
def test_a_bad_table_is_refused_by_its_first_bad_entry(table, message):
    with pytest.raises(ValueError, match=message):
        VPTable(table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, np.float16])
def test_a_table_in_half_precision_is_refused(dtype):
    table = VPTable.scaled_linear().alphas_cumprod
    rounded = table.astype(dtype) if dtype is np.float16 else torch.tensor(table).to(dtype)
    with pytest.raises(ValueError, match=r"alphas_cumprod has dtype b?float16, which has lost"):
        VPTable(rounded)


class Scheduler:
    alphas_cumprod = torch.linspace(0.9, 0.1, 5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Scheduler(), r"alphas_cumprod is a Scheduler: give .*: pass scheduler\.alphas_cumprod"),
        ("linear", "alphas_cumprod is a str: give T numbers"),
        ([0.9, "a"], "alphas_cumprod is a list: give T numbers"),
    ],
)
def test_what_is_no_table_is_refused_with_the_remedy(table, message):
    with pytest.raises(TypeError, match=message):
        VPTable(table)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPLinear(beta_min=0.0), "beta_min=0.0"),
        (lambda: VPLinear(beta_min=20.0, beta_max=0.1), "beta_min=20.0 must be below beta_max"),
        (lambda: VPScaledLinear(beta_max=math.nan), "beta_max=nan"),
        (lambda: SubVP(beta_min=-1.0), "beta_min=-1.0"),
        (lambda: VPCosine(s=0.0), "s=0.0"),
        (lambda: VPCosine(start=1.5), "start=1.5"),
        (lambda: VPCosine(start=0.0), "start=0.0"),
        (lambda: VPSigmoid(tau=0.0), "tau=0.0"),
        (lambda: VPSigmoid(tau=0.004), "tau=0.004 is too small for low=-3.0 and high=3.0: .* give a larger tau"),
        (lambda: VPSigmoid(high=2000.0), "tau=1.0 is too small for low=-3.0 and high=2000.0"),
        (lambda: VPSigmoid(low=3.0, high=-3.0), "low=3.0 must be below high"),
        (lambda: VE(sigma_min=100.0), "sigma_min=100.0 must be below sigma_max"),
        (lambda: VE(sigma_min=80.0), "sigma_min=80.0 must be below sigma_max"),
        (lambda: RectifiedFlow(shift=0.0), "shift=0.0"),
        (lambda: RectifiedFlow(time_scale=math.inf), "time_scale=inf"),
        (lambda: VE(sigma_max="a"), "sigma_min=0.002 must be below sigma_max='a'"),
        (lambda: RectifiedFlow(shift="a"), "shift='a' must be a positive, finite number"),
        (lambda: VPLinear(beta_min="a"), "beta_min='a' must be a positive, finite number"),
        (lambda: VPLinear(beta_max=None), "beta_min=0.1 must be below beta_max=None; give finite numbers"),
        (lambda: VPTable.linear(1), "T=1"),
        (lambda: VPTable.linear(beta_end=1.0), "beta_end=1.0"),
        (lambda: VPTable.cosine(max_beta=0.0), "max_beta=0.0"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_schedule
@pytest.mark.parametrize("t", [-1e-9, math.nan, math.inf])
def test_times_off_the_path_are_refused(path, t):
    for method in (path.alpha, path.sigma, path.rates, path.log_snr, path.node, path.network_time):
        with pytest.raises(ValueError, match="is not on this path"):
            method(t)
        with pytest.raises(ValueError, match="is not on this path"):
            method(np.array([0.5, t]))


@every_schedule
def test_round_off_alone_past_the_noise_end_counts_as_the_noise_end(path):
    assert path.node(path.latest * (1 + 3e-16))[1:] == path.node(path.latest)[1:]
    assert path.time(path.log_snr(path.latest) - 1e-8) == path.latest
    with pytest.raises(ValueError, match="is not on this path"):
        path.alpha(path.latest * 1.0001)


@pytest.mark.parametrize("path", [VPLinear(), VPScaledLinear(), VPTable.linear(), SubVP(), VE()], ids=repr)
def test_log_snrs_beyond_the_noise_are_refused(path):
    with pytest.raises(ValueError, match="half log-SNRs run from"):
        path.time(path.log_snr(path.latest) - 1e-3)
    with pytest.raises(ValueError, match="half log-SNRs run from"):
        path.node_at(np.array([0.0, -50.0]))
    with pytest.raises(ValueError, match="half log-SNRs run from"):
        path.time(np.full(40, -20.0))
    for ask in (path.time, path.node_at):
        with pytest.raises(ValueError, match="log_snr = -inf is not on this path"):
            ask(-math.inf)


@every_schedule
def test_a_log_snr_that_is_not_a_number_is_refused(path):
    with pytest.raises(ValueError, match="log_snr = nan"):
        path.time(math.nan)


def test_other_types_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"t is a Tensor.*\.numpy\(\)"):
        VPLinear().alpha(torch.tensor(0.5))
    with pytest.raises(TypeError, match="dtype float32"):
        VPLinear().alpha(np.array([0.5], dtype=np.float32))
    with pytest.raises(TypeError, match="log_snr is a str"):
        VPLinear().time("0.5")


def test_a_table_network_is_undefined_below_its_first_entry():
    with pytest.raises(ValueError, match=r"t = 0.0005 lies below the table's first entry, t = 1/1000"):
        VPTable.linear().network_time(0.0005)


def test_noise_levels_of_a_table_that_were_rounded_to_float32_lie_on_it():
    table = VPTable.scaled_linear()
    loudest = table.node(1.0).s
    for sigma in (np.float32(loudest), np.nextafter(np.float32(loudest), np.float32(99))):
        assert table.time(-math.log(sigma)) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="is not on this path"):
        table.time(-math.log(loudest * 1.0001))


def test_a_table_whose_angles_float64_does_not_tell_apart_is_refused():
    for alphas in (VPTable.linear(beta_end=0.13).zero_terminal_snr, lambda: VPTable([0.9, 0.5, 1e-34, 1e-35, 0.0])):
        with pytest.raises(ValueError, match=r"alphas_cumprod\[\d+\] = .*let alpha-bar fall less steeply"):
            alphas()


def test_a_section_has_the_closer_of_both_ends():
    whole = VPCosine()
    wide, narrow = Section(whole, VE(1e-4, 1e4)), Section(whole, VE(0.1, 10.0))
    assert (wide.start, wide.end) == (whole.start, whole.end)
    assert narrow.start == narrow.latest == pytest.approx(whole.time(-math.log(10.0)))
    assert narrow.end == pytest.approx(whole.time(-math.log(0.1)))


def test_the_ends_of_a_section_are_computed_once(monkeypatch):
    section = Section(VPCosine(), VPTable.linear())
    ends = section.latest, section.start, section.end, section.first_defined
    section.node(0.5)

    def again(*arguments):
        raise AssertionError("an end was computed again")

    monkeypatch.setattr(Section, "_time_of", again)
    assert (section.latest, section.start, section.end, section.first_defined) == ends
    section.node(0.4)
    assert section == Section(VPCosine(), VPTable.linear()) and pickle.loads(pickle.dumps(section)) == section
