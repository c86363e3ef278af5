import math
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta as beta_law

from odediff import grid
from odediff.schedule import (
    VE,
    RectifiedFlow,
    SubVP,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    VPTable,
)
from solvers import GPMultistep

PATHS = [
    VPLinear(),
    VPScaledLinear(),
    VPCosine(),
    VPCosine(start=1.0),
    VPSigmoid(),
    VPSigmoid(start=1.0),
    SubVP(),
    VE(),
    VE(0.01, 5000.0),
    RectifiedFlow(),
    RectifiedFlow(shift=3.0),
    VPTable.linear(),
    VPTable.cosine(),
    VPTable.sigmoid(),
    VPTable.scaled_linear(100).zero_terminal_snr(),
]
GRIDS = [
    grid.uniform_t,
    grid.quadratic_t,
    grid.log_snr,
    grid.polyexponential,
    grid.karras,
    grid.beta,
    grid.angle,
    grid.plateau,
]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)
every_grid = pytest.mark.parametrize("make", GRIDS, ids=lambda make: make.__name__)


def noise_levels(path, times):
    """sigma / alpha at every time but the last, which is 0."""
    t = times[:-1].numpy()
    return path.sigma(t) / path.alpha(t)


def timesteps(path, times):
    """What the network is told at every time but the last."""
    return path.network_time(times[:-1].numpy())


@every_grid
@every_path
@given(steps=st.integers(1, 100))
@settings(max_examples=8, deadline=None)
def test_every_grid_falls_from_start_through_end_to_zero(make, path, steps):
    times = make(path, steps=steps)
    assert times.dtype == torch.float64 and times.shape == (steps + 1,)
    assert times[0] == path.start
    assert times[-1] == 0.0
    assert torch.all(times.diff() < 0)
    if steps > 1 and make is not grid.plateau:
        assert times[-2] == path.end


@every_grid
@every_path
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_every_grid_ends_where_it_is_told(make, path, data):
    if isinstance(path, VPTable):
        end = data.draw(st.integers(1, path.T // 2)) / path.T
    else:
        end = path.start * 10.0 ** data.draw(st.floats(-5, -0.5))
    times = make(path, steps=7, end=end)
    assert (times[0], times[-2], times[-1]) == (path.start, end, 0.0)
    assert torch.all(times.diff() < 0)


def plateau_density(s, calls, pure):
    """Per unit of log s, as the docstring has it, with the constants that it was published with."""
    if calls >= 34 and pure:
        return 1 / ((1 + (0.3 / s) ** 0.6) * (1 + (s / (0.3 * calls)) ** 0.7))
    if calls >= 22:
        some, most = min(1, (calls - 22) / 8), min(1, max(0, (calls - 30) / 20))
        low, power = 0.15 + 0.15 * some, 0.8 - 0.2 * some
        return 1 / ((1 + (low / s) ** power) * (1 + (s / (0.78 * calls)) ** (0.7 - 0.4 * some - 0.1 * most)))
    many = min(1, max(0, (calls - 11) / 7))
    low, power = 0.18 + 0.1 * many, 0.7 - 0.3 * many
    high = 14 + 1.75 * (min(13, max(5, calls)) - 5)
    return 1 / ((1 + (low / s) ** power) * (1 + (s / high) ** 0.9))


@pytest.mark.parametrize("steps", [4, 11, 22, 51])
def test_a_plateau_that_sets_out_from_a_given_end_has_more_nodes_there(steps):
    path = VPTable.linear()
    levels = noise_levels(path, grid.plateau(path, steps, end=path.end)[1:])
    assert levels[-1] == pytest.approx(path.sigma(path.end) / path.alpha(path.end))

    def density(v):
        return 1 / ((1 + (0.04 / math.exp(v)) ** 0.6) * (1 + (math.exp(v) / (2 * (steps - 1))) ** 0.5))

    parts = [quad(density, math.log(low), math.log(high), epsabs=1e-12)[0] for high, low in pairwise(levels)]
    np.testing.assert_allclose(parts, np.mean(parts), rtol=1e-4)


def test_a_plateau_may_end_above_its_first_level():
    path = VPCosine()
    end = path.time(-math.log(90.0))
    times = grid.plateau(path, 3, end=end)
    assert (times[0], times[2], times[3]) == (path.start, end, 0.0)
    assert times[0] > times[1] > times[2]


MANY = (4, 10, 11, 15, 17, 21, 22, 23, 25, 31, 34, 35, 60)
PLATEAUS = [(path, steps) for path in (VPTable.linear(), VPTable.cosine(), VE(), RectifiedFlow()) for steps in MANY]
PLATEAUS += [(path, steps) for path in (VPTable.scaled_linear(), VE(0.02, 20.0)) for steps in MANY[:6]]


@pytest.mark.parametrize(("path", "steps"), PLATEAUS, ids=repr)
def test_the_plateau_holds_equally_much_of_its_density_between_nodes(path, steps):
    node = path.node(path.start)
    first = min(72 * max(1, (steps - 1) / 8) ** 0.6, max(72, 0.95 * float(node.s)))
    above = node.s > first
    levels = noise_levels(path, grid.plateau(path, steps)[above:])
    assert levels[0] == pytest.approx(first if above else node.s)
    calls = steps - above
    many = min(1, max(0, (calls - 11) / 7))
    last = (1 - many) * 0.048 * (8.5 / (calls - 1.5)) ** 1.57 + many * 0.058 * (10 / calls) ** 2.2
    end = path.sigma(path.end) / path.alpha(path.end)
    if calls >= 22:
        last = max(0.011 - 0.008 * min(1, (calls - 22) / 8), min(2 * end, 0.013))
    assert levels[-1] == pytest.approx(max(last, end))
    parts = [
        quad(
            lambda v: plateau_density(math.exp(v), calls, node.alpha == 0), math.log(low), math.log(high), epsabs=1e-12
        )[0]
        for high, low in pairwise(levels)
    ]
    np.testing.assert_allclose(parts, np.mean(parts), rtol=1e-4)


@pytest.mark.parametrize("path", [VPTable.scaled_linear(), VE(0.03, 14.0), VE(0.03, 70.0)], ids=repr)
@pytest.mark.parametrize("steps", [22, 23, 51])
def test_between_the_ends_of_a_path_that_is_cut_off_the_plateau_has_the_nodes_of_karras(path, steps):
    assert torch.equal(grid.plateau(path, steps), grid.karras(path, steps))
    assert not torch.equal(grid.plateau(path, 21), grid.karras(path, 21))


@pytest.mark.parametrize("path", [VE(0.03, 80.0), VE(0.002, 14.0), VPTable.linear()], ids=repr)
def test_a_path_that_is_cut_off_at_one_end_has_a_plateau_of_its_own(path):
    assert not any(torch.equal(grid.plateau(path, steps), grid.karras(path, steps)) for steps in range(3, 60))


@every_path
def test_the_plateau_pays_for_every_number_of_calls(path):
    calls = [GPMultistep().calls_over(None, path.nodes(grid.plateau(path, n).tolist())) for n in range(2, 60)]
    assert np.array_equal(np.diff(calls), np.ones(57))


@every_path
def test_log_snr_is_uniform_in_the_half_log_snr(path):
    levels = path.log_snr(grid.log_snr(path, 12)[:-1].numpy())[1:]  # the first may be -inf
    np.testing.assert_allclose(np.diff(levels), np.diff(levels).mean(), rtol=1e-10)


@every_path
def test_angle_is_uniform_in_the_angle(path):
    t = grid.angle(path, 12)[:-1].numpy()
    angles = np.arctan2(path.sigma(t), path.alpha(t))
    np.testing.assert_allclose(np.diff(angles), np.diff(angles).mean(), rtol=1e-10)


def test_karras_is_equation_5_of_edm():
    i = np.arange(18)
    sigmas = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid.karras(VE(), 18).numpy(), np.append(sigmas, 0.0), rtol=1e-13)


def test_polyexponential_is_the_power_of_a_ramp_in_log_sigma():
    sigmas = np.exp(np.linspace(1, 0, 9) ** 2.5 * (math.log(80) - math.log(0.002)) + math.log(0.002))
    np.testing.assert_allclose(grid.polyexponential(VE(), 9, rho=2.5).numpy(), np.append(sigmas, 0.0), rtol=1e-13)
    np.testing.assert_allclose(grid.polyexponential(VE(), 9), grid.log_snr(VE(), 9), rtol=1e-13)


def test_beta_takes_quantiles_of_the_noise_level():
    sigmas = 0.002 + beta_law.ppf(1 - np.linspace(0, 1, 11), 0.6, 0.6) * (80 - 0.002)
    np.testing.assert_allclose(grid.beta(VE(), 11).numpy(), np.append(sigmas, 0.0), rtol=1e-11)


def test_beta_takes_its_two_exponents_in_the_order_of_the_law():
    sigmas = 0.002 + beta_law.ppf(1 - np.linspace(0, 1, 11), 0.5, 2.0) * (80 - 0.002)
    np.testing.assert_allclose(grid.beta(VE(), 11, a=0.5, b=2.0).numpy(), np.append(sigmas, 0.0), rtol=1e-11)


@pytest.mark.parametrize("steps", [2, 10, 25])
@pytest.mark.parametrize(
    ("make", "option"),
    [
        (grid.karras, "use_karras_sigmas"),
        (grid.log_snr, "use_exponential_sigmas"),
        (grid.beta, "use_beta_sigmas"),
    ],
)
def test_noise_levels_are_those_of_diffusers(make, option, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **{option: True}
    )
    scheduler.set_timesteps(steps)
    path = VPTable.scaled_linear()
    # float32 there: 1e-6 in alpha-bar is 4e-4 in the smallest sigma
    np.testing.assert_allclose(noise_levels(path, make(path, steps)), scheduler.sigmas[:-1].numpy(), rtol=1e-3)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("T", [1000, 117])
def test_uniform_timesteps_are_those_of_diffusers_for_every_number_of_steps(T, spacing):
    diffusers = pytest.importorskip("diffusers")
    path = VPTable.linear(T, 0.1 / T, 20 / T)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    for steps in range(2, T + 1):
        scheduler.set_timesteps(steps)
        times = grid.uniform_t(path, steps, spacing=spacing)
        theirs = scheduler.timesteps.numpy()[:steps]  # an arange of floats: one too many at times
        np.testing.assert_array_equal(times[:-1].numpy(), (theirs + 1) / T)
        np.testing.assert_array_equal(timesteps(path, times), theirs)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_one_uniform_step_starts_from_the_noise_whatever_the_spacing(spacing):
    for path in (VPTable.linear(), VPLinear()):
        assert grid.uniform_t(path, 1, spacing=spacing).tolist() == [1.0, 0.0]


def test_the_time_after_the_last_timestep_is_the_data_not_a_stride_below():
    # A stride of 1000 // 300 = 3 would lead from 996 to 993, which is not a node of the grid.
    times = grid.uniform_t(VPTable.linear(), 300, spacing="trailing")
    assert timesteps(VPTable.linear(), times)[:4].tolist() == [999, 996, 992, 989]
    assert times[-2] == 0.003 and times[-1] == 0.0


def test_uniform_spacings_of_a_continuous_path():
    path = VPLinear()
    np.testing.assert_allclose(grid.uniform_t(path, 4, end=0.2), [1.0, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2, 0.0])
    np.testing.assert_allclose(grid.uniform_t(path, 4, end=0.2, spacing="leading"), [0.8, 0.6, 0.4, 0.2, 0.0])
    np.testing.assert_allclose(grid.uniform_t(path, 4, spacing="trailing"), [1.0, 0.75, 0.5, 0.25, 0.0])


def test_leading_keeps_its_stride_above_a_given_end():
    path = VPTable.linear()
    assert timesteps(path, grid.uniform_t(path, 4, end=0.201, spacing="leading")).tolist() == [800, 600, 400, 200]


def test_quadratic_times_are_squares():
    roots = np.sqrt(grid.quadratic_t(RectifiedFlow(), 20)[:-1].numpy())
    np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-12)


@given(T=st.integers(2, 300), data=st.data())
@settings(max_examples=60, deadline=None)
def test_quadratic_entries_of_a_table_are_distinct_and_near_their_squares(T, data):
    steps = data.draw(st.integers(2, T))
    path = VPTable(np.linspace(0.99, 0.01, T))
    entries = timesteps(path, grid.quadratic_t(path, steps)) + 1
    squares = np.linspace(math.sqrt(T), 1.0, steps) ** 2
    assert (entries[0], entries[-1]) == (T, 1) and np.all(np.diff(entries) <= -1)
    assert np.all(entries == np.round(entries)) and np.all(entries >= np.round(squares))
    spread = np.diff(-squares) > 1.5
    if spread.all():
        np.testing.assert_array_equal(entries, np.round(squares))


@pytest.mark.parametrize("make", [grid.log_snr, grid.karras])
@pytest.mark.parametrize("path", [RectifiedFlow(), VPCosine(start=1.0), VPTable.linear().zero_terminal_snr()], ids=repr)
def test_where_the_signal_vanishes_the_start_stands_in_for_a_thousandfold_noise(make, path):
    exponent = 1 / 7 if make is grid.karras else 0
    high, low = 1e3, path.sigma(path.end) / path.alpha(path.end)
    f = np.linspace(0, 1, 10)
    truth = (
        (high**exponent + f * (low**exponent - high**exponent)) ** 7
        if exponent
        else np.exp(math.log(high) + f * math.log(low / high))
    )
    times = make(path, 10)
    assert times[0] == path.start and path.alpha(path.start) == 0.0
    np.testing.assert_allclose(noise_levels(path, times[1:]), truth[1:], rtol=1e-9)


def test_a_variance_exploding_path_keeps_its_own_noisiest_level():
    path = VE(0.01, 5000.0)
    ratios = noise_levels(path, grid.log_snr(path, 6))
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], (0.01 / 5000) ** 0.2, rtol=1e-12)


def test_a_rho_whose_powers_are_no_numbers_is_refused():
    with pytest.raises(ValueError, match=r"rho = 0.001 is too small: .* use 7"):
        grid.karras(VPTable.linear(), 10, rho=1e-3)


def test_an_end_noisier_than_the_finite_start_is_refused():
    with pytest.raises(ValueError, match="grid.angle"):
        grid.log_snr(RectifiedFlow(), 4, end=0.9995)


@pytest.mark.parametrize(
    ("table", "published"),
    [
        (grid.AYS_STABLE_DIFFUSION, [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        (grid.AYS_STABLE_DIFFUSION_XL, [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ],
    ids=["SD", "SDXL"],
)
def test_align_your_steps_meets_the_published_timesteps(table, published):
    path = VPTable.scaled_linear()
    times = grid.align_your_steps(path, 10, table)
    np.testing.assert_allclose(timesteps(path, times), published, atol=1.0)
    np.testing.assert_allclose(noise_levels(path, times)[1:], table[1:-1], rtol=1e-12)


def test_align_your_steps_tables_are_those_in_diffusers():
    utils = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    for ours, theirs in (
        (grid.AYS_STABLE_DIFFUSION, "StableDiffusionSigmas"),
        (grid.AYS_STABLE_DIFFUSION_XL, "StableDiffusionXLSigmas"),
        (grid.AYS_STABLE_VIDEO_DIFFUSION, "StableDiffusionVideoSigmas"),
    ):
        assert list(ours[:-1]) == utils.AysSchedules[theirs][:-1]


def test_align_your_steps_interpolates_log_linearly_to_any_number_of_steps():
    path = VE(0.002, 64.0)
    times = grid.align_your_steps(path, 6, table=(64.0, 4.0, 1.0, 0.5))
    np.testing.assert_allclose(times, [64.0, 16.0, 4.0, 2.0, 1.0, 0.5**0.5, 0.0], rtol=1e-14)
    assert grid.align_your_steps(path, 1, table=(64.0, 1.0)).tolist() == [64.0, 0.0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((14.6,), "at least 2"),
        ((14.6, 0.0), "positive"),
        ((14.6, 1.0, 2.0), "strictly decreasing"),
        ((80.0, 1.0, 0.1), "made for another schedule"),
    ],
)
def test_a_bad_align_your_steps_table_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        grid.align_your_steps(VPTable.scaled_linear(), 5, table)


@pytest.mark.parametrize("factor", [0.9, 0.985, 1.015, 1.1])
def test_a_table_that_begins_elsewhere_than_the_path_is_refused_on_either_side(factor):
    levels = factor * np.array(grid.AYS_STABLE_DIFFUSION)
    with pytest.raises(ValueError, match="made for another schedule"):
        grid.align_your_steps(VPTable.scaled_linear(), 5, levels.tolist())


@given(
    T=st.integers(2, 200),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_increasing_subsequence_of_a_table_is_a_grid(T, data):
    path = VPTable(np.linspace(0.99, 0.01, T))
    indices = sorted(data.draw(st.sets(st.integers(0, T - 1), min_size=1)))
    times = grid.subsequence(path, indices)
    assert timesteps(path, times).tolist() == indices[::-1]
    assert times[-1] == 0.0


@pytest.mark.parametrize("indices", [[], [3, 2, 1], [1, 1], [-1, 4], [5, 1000]])
def test_other_subsequences_are_refused(indices):
    with pytest.raises(ValueError, match="strictly increasing sequence of entries"):
        grid.subsequence(VPTable.linear(), indices)


def test_subsequence_needs_a_table_and_integers():
    with pytest.raises(TypeError, match="VPLinear, which has no entries"):
        grid.subsequence(VPLinear(), [1, 2])
    with pytest.raises(TypeError, match="indices must be integers"):
        grid.subsequence(VPTable.linear(), [0.5])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_whole_floats_are_entries_too(kind):
    path = VPTable.linear()
    assert torch.equal(grid.subsequence(path, kind([0.0, 500.0, 999.0])), grid.subsequence(path, [0, 500, 999]))


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "HeunDiscrete", "PNDM", "UniPCMultistep"])
def test_the_readme_visits_the_nodes_of_a_scheduler(name):
    kind = getattr(pytest.importorskip("diffusers"), f"{name}Scheduler")
    scheduler = kind(timestep_spacing="leading", **{"skip_prk_steps": True} if name == "PNDM" else {})
    scheduler.set_timesteps(10)
    path = VPTable(scheduler.alphas_cumprod)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    line = re.search(r"`grid\.(subsequence\(path, .*scheduler.*)` visits", readme)[1]
    times = eval(line, {"subsequence": grid.subsequence, "path": path, "scheduler": scheduler})
    assert timesteps(path, times).tolist() == list(dict.fromkeys(int(t) for t in scheduler.timesteps))


def test_levels_of_a_scheduler_in_float32_end_at_the_first_entry():
    scheduler = pytest.importorskip("diffusers").EulerDiscreteScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(10)
    path = VPTable(scheduler.alphas_cumprod)
    times = path.time(-np.log(scheduler.sigmas[:-1].double().numpy()))
    assert 0 < path.end - times[-1] < 1e-9
    assert grid.custom(path, [*times, 0.0]).tolist() == [*times[:-1], path.end, 0.0]
    with pytest.raises(ValueError, match="collide"):
        grid.custom(path, [path.end, float(np.nextafter(path.end, 0.0)), 0.0])


def test_a_grid_in_float32_begins_at_the_noise_end():
    path = VE(0.03, 14.6146)  # in float32 14.6146002
    assert grid.custom(path, torch.tensor([14.6146, 1.0, 0.0])).tolist() == [14.6146, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"run from 14\.7 to 0\.0: stay between 14\.6146 \(noise\)"):
        grid.custom(path, [14.7, 1.0, 0.0])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_custom_returns_a_copy_of_the_times(kind):
    values = kind([1.0, 0.5, 0.25])
    times = grid.custom(VPLinear(), values)
    assert times.tolist() == [1.0, 0.5, 0.25] and times.dtype == torch.float64
    values[0] = 0.9
    assert times[0] == 1.0


def test_custom_times_may_begin_beyond_where_sampling_does():
    assert VPCosine().start < 0.999
    assert grid.custom(VPCosine(), [1.0, 0.5, 0.0]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("path", "times", "message"),
    [
        (VPLinear(), [1.0], "at least 2 times"),
        (VPLinear(), [[1.0, 0.5]], "one-dimensional"),
        (VPLinear(), [1.0, math.nan, 0.0], r"times\[1\] is not finite"),
        (VPLinear(), [0.0, 0.5, 1.0], r"times\[1\] = 0.5 is not below times\[0\] = 0.0.*flip"),
        (VPLinear(), [1.0, 0.5, 0.5], r"times\[2\] = 0.5 is not below"),
        (VPLinear(), [1.5, 0.5], "times run from 1.5"),
        (VPLinear(), [0.5, -0.5], "to -0.5"),
        (VPTable.linear(), [999, 500, 0], r"from 999.0 to 0.0: stay between 1 .*of timesteps, grid.subsequence makes"),
        (VPTable.linear(), [1.0, 0.5, 0.0005, 0.0], "0.0005, below the first time"),
    ],
)
def test_custom_refuses_what_is_not_a_grid(path, times, message):
    with pytest.raises(ValueError, match=message):
        grid.custom(path, times)


@every_grid
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(steps=0), ValueError, "steps = 0"),
        (dict(steps=-3), ValueError, "steps = -3"),
        (dict(steps=2.5), TypeError, "steps = 2.5 is not an integer"),
        (dict(steps=True), TypeError, "steps = True is not an integer"),
        (dict(steps=5, end=0.0), ValueError, "end = 0.0 is not a time of this path above 0"),
        (dict(steps=5, end=0.0004), ValueError, "end = 0.0004"),
        (dict(steps=5, end=1.0), ValueError, "end = 1.0"),
        (dict(steps=5, end=math.nan), ValueError, "end = nan"),
        (dict(steps=5, end="late"), ValueError, "end = 'late' is not a time of this path above 0"),
        (dict(steps=1, end=0.5), ValueError, "end = 0.5 needs at least 2 steps"),
    ],
)
def test_bad_arguments_are_named(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(VPTable.linear(), **arguments)


@every_grid
def test_the_data_are_no_end_of_a_path_without_a_table_either(make):
    with pytest.raises(ValueError, match="end = 0.0 is not a time of this path above 0"):
        make(VPLinear(), steps=5, end=0.0)


@every_grid
@pytest.mark.parametrize("end", [torch.tensor(0.25, dtype=torch.float64), np.float64(0.25), np.array(0.25)])
def test_the_end_may_be_a_time_of_another_grid(make, end):
    assert float(make(VPLinear(), 5, end=end)[-2]) == 0.25


@every_grid
def test_an_end_that_nobody_gave_is_named_as_the_paths(make):
    @dataclass(frozen=True)
    class Backwards(VPLinear):
        end = 2.0

    with pytest.raises(ValueError, match="path.end = 2.0 is not a time of this path above 0: give end"):
        make(Backwards(), 5)


@every_grid
def test_a_grid_needs_a_schedule(make):
    with pytest.raises(TypeError, match="path must be a schedule, not a int: give one"):
        make(1000, 10)


@pytest.mark.parametrize("make", [grid.uniform_t, grid.quadratic_t])
def test_grids_of_entries_need_enough_entries(make):
    with pytest.raises(ValueError, match="steps = 51 exceeds the 50 entries"):
        make(VPTable.linear(50), 51)
    with pytest.raises(ValueError, match="steps = 11 exceeds the 10 entries from t = 0.82 on"):
        make(VPTable.linear(50), 11, end=41 / 50)
    with pytest.raises(ValueError, match="lies between entries"):
        make(VPTable.linear(50), 5, end=0.05)


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="spacing = 'uniform' is unknown"):
        grid.uniform_t(VPLinear(), 5, spacing="uniform")
    with pytest.raises(ValueError, match="trailing"):
        grid.uniform_t(VPLinear(), 5, end=0.1, spacing="trailing")
    with pytest.raises(ValueError, match="rho = 0"):
        grid.karras(VPLinear(), 5, rho=0)
    with pytest.raises(ValueError, match="rho = nan"):
        grid.polyexponential(VPLinear(), 5, rho=math.nan)
    with pytest.raises(ValueError, match="rho = 'a' is not a positive finite number"):
        grid.karras(VPLinear(), 5, rho="a")
    for value in (-1, math.inf, "a", 1j):
        with pytest.raises(ValueError, match=f"b = {value!r} is not a positive finite number"):
            grid.beta(VPLinear(), 5, b=value)


def test_more_nodes_than_float64_can_tell_apart_are_refused():
    with pytest.raises(ValueError, match="fewer steps if they collide"):
        grid.uniform_t(VPLinear(), 10, end=1.0 - 4e-16)


@pytest.mark.parametrize("times", [["a", "b"], 3, [1.0, 0.5j, 0.0], torch.tensor([1.0 + 0j, 0.0])])
def test_times_that_are_no_real_numbers_are_named(times):
    with pytest.raises(TypeError, match=r"^times=.*are not real numbers: give"):
        grid.custom(VPLinear(), times)


@pytest.mark.parametrize(
    "times",
    [
        torch.tensor([1.0, 0.5, 0.0], dtype=torch.bfloat16),
        np.array([1.0, 0.5, 0.0], dtype=np.longdouble),
        [Fraction(1), Fraction(1, 2), 0],
    ],
)
def test_times_of_any_precision_are_times(times):
    assert grid.custom(VPLinear(), times).tolist() == [1.0, 0.5, 0.0]
