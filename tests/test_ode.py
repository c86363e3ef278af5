import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from solvers import ODE, Node, PathODE, Prediction, combine
from solvers.counting import counted
from solvers.sums import weighted_sums
from solvers.testing import ExactODE, Gaussian, Trigonometric, mild_mixture, starting_points

coefficients = st.floats(-1e3, 1e3)


def per_sample(size):
    return hnp.arrays(np.float64, size, elements=coefficients)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@settings(max_examples=30, deadline=None)
@given(a=coefficients, b=per_sample(3), c=per_sample(3), shape=st.sampled_from([(), (3,), (2, 3), (1, 3, 3)]))
def test_combine_scales_rows_and_adds(a, b, c, shape):
    x, y, z = (random(3, *shape) + i for i in range(3))
    rows = [a * x[i] + float(b[i]) * y[i] + float(c[i]) * z[i] for i in range(3)]
    torch.testing.assert_close(combine((a, x), (b, y), (c, z)), torch.stack(rows), rtol=1e-13, atol=1e-10)


def test_combine_scales_rows_not_columns_of_a_square_batch():
    x = torch.ones(3, 3, dtype=torch.float64)
    scaled = combine((np.array([1.0, 2.0, 3.0]), x))
    assert scaled[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert scaled[0].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("coefficient", [1 / 3, np.array([1 / 3, 0.1]), np.float64(1 / 3)])
def test_combine_keeps_the_dtype_of_the_tensors(dtype, coefficient):
    x = random(2, 4, dtype=dtype)
    assert combine((coefficient, x)).dtype == dtype
    assert combine((0.5, x), (coefficient, x)).dtype == dtype
    assert combine((coefficient, x), (0.5, x)).dtype == dtype


def test_combine_keeps_the_dtype_and_shape_of_the_first_tensor():
    x, y = random(2, 3, dtype=torch.float32), random(2, 3)
    found = combine((1.0, x), (3.0, y))
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, (x + 3 * y).float())
    with pytest.raises(RuntimeError, match="shape"):
        combine((1.0, x[:, :1]), (3.0, x))


def test_combine_leaves_its_arguments_alone():
    x, y, c = random(2, 3), random(2, 3), np.array([2.0, 3.0])
    before = x.clone(), y.clone(), c.copy()
    combine((1.0, x), (c, y), (1.0, x))
    combine((1.0, x))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert (c == before[2]).all()


def test_combine_never_returns_its_argument():
    x = random(2, 3)
    assert combine((1.0, x)).data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [0.3, -1 / 3, 1e-50, -7e3, 1e300, math.inf, math.nan])
def test_a_sum_is_multiplied_as_by_a_number(factor, dtype):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(combine((factor, x)), x * factor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex128], ids=str)
def test_a_sum_of_numbers_keeps_their_dtype(dtype):
    x = torch.tensor(0.7, dtype=dtype)
    torch.testing.assert_close(combine((1 / 3, x)), x * (1 / 3), rtol=0, atol=0)
    rows = torch.stack([x, x])
    torch.testing.assert_close(torch.func.vmap(lambda row: combine((1 / 3, row)))(rows), rows * (1 / 3), rtol=0, atol=0)


def test_gradients_pass_through_combine():
    x, y = (random(2, 3).requires_grad_() for _ in range(2))
    combine((2.0, x), (np.array([3.0, 4.0]), y)).sum().backward()
    assert (x.grad == 2).all()
    assert y.grad[:, 0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "several"), [((1,), 1), ((1,), 3), ((5,), 1), ((3, 7, 7), 3), ((784,), 3), ((2**14 + 1,), 3)]
)
def test_weighted_sums_do_not_depend_on_the_batch_and_have_a_gradient(shape, several, dtype):
    tensors = random(9, 11, *shape, dtype=dtype)
    weights = np.random.default_rng(0).standard_normal((several, 9, 11))
    weights[..., 4] = 0.0
    found = weighted_sums(weights, tensors)
    exact = torch.einsum("sbm,bm...->sb...", torch.from_numpy(weights), tensors.double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=100 * torch.finfo(dtype).eps)
    for rows in ([3], [8, 0, 5]):
        assert torch.equal(weighted_sums(weights[:, rows], tensors[rows].clone()), found[:, rows])
    recorded = tensors.clone().requires_grad_()
    by_terms = weighted_sums(weights, recorded)
    torch.testing.assert_close(by_terms.detach(), found, rtol=0, atol=100 * torch.finfo(dtype).eps)
    by_terms.sum().backward()
    slope = torch.from_numpy(weights.sum(0)).to(dtype).reshape(9, 11, *(1,) * len(shape)).expand_as(tensors)
    torch.testing.assert_close(recorded.grad, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("count", range(2, 15))
@pytest.mark.parametrize("several", [1, 3, 4])
def test_short_weighted_sums_of_small_samples_do_not_depend_on_the_batch(several, count, size, dtype):
    tensors = random(9, count, size, dtype=dtype)
    weights = np.random.default_rng(0).standard_normal((several, 9, count))
    found = weighted_sums(weights, tensors)
    for row in range(9):
        alone = weighted_sums(np.ascontiguousarray(weights[:, [row]]), tensors[[row]])
        assert torch.equal(alone, found[:, [row]])


def test_a_node_knows_its_ratio_log_snr_and_angle():
    node = Node(0.3, 0.8, 0.6)
    assert node.s == pytest.approx(0.75)
    assert node.log_snr == pytest.approx(math.log(4 / 3))
    assert node.angle == pytest.approx(math.asin(0.6))
    assert all(type(v) is float for v in (node.s, node.log_snr, node.angle))


def test_a_node_at_either_end_has_limits_and_no_warnings(recwarn):
    data, noise = Node(0.0, 1.0, 0.0), Node(1.0, 0.0, 1.0)
    assert (data.s, data.log_snr, data.angle) == (0.0, math.inf, 0.0)
    assert (noise.s, noise.log_snr, noise.angle) == (math.inf, -math.inf, math.pi / 2)
    assert not recwarn


def test_a_node_per_sample_agrees_with_the_nodes_one_by_one():
    alpha, sigma = np.array([1.0, 0.8, 0.0]), np.array([0.0, 0.6, 1.0])
    together = Node(np.zeros(3), alpha, sigma)
    for i in range(3):
        alone = Node(0.0, float(alpha[i]), float(sigma[i]))
        assert (together.s[i], together.log_snr[i], together.angle[i]) == (alone.s, alone.log_snr, alone.angle)


def test_a_prediction_computes_each_part_once_and_only_when_it_is_read():
    calls = []

    def part(name):
        return lambda: calls.append(name) or torch.zeros(1)

    prediction = Prediction(part("x0"), part("eps"))
    assert not calls
    assert prediction.eps is prediction.eps
    assert calls == ["eps"]
    assert prediction.x0 is prediction.x0
    assert calls == ["eps", "x0"]


@pytest.mark.parametrize("distribution", [Gaussian(), mild_mixture().distribution], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.2, math.pi / 2, np.array([0.0, 0.4, 1.1, math.pi / 2])])
def test_the_exact_problems_split_a_state_into_its_parts(distribution, t):
    problem, x = ExactODE(distribution), starting_points()
    node = problem.node(t)
    prediction = problem.predict(node, x)
    assert torch.isfinite(prediction.x0).all()
    assert torch.isfinite(prediction.eps).all()
    again = combine((node.alpha, prediction.x0), (node.sigma, prediction.eps))
    torch.testing.assert_close(again, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("t", [0.25, 1.2])
def test_the_mixture_predicts_the_posterior_mean_that_quadrature_finds(t):
    mixture, x = mild_mixture().distribution, starting_points()[:1]
    node = Trigonometric().node(t)
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    data = torch.cartesian_prod(axis, axis)
    density = sum(
        w / d**2 * torch.exp(-(data - m).square().sum(1) / (2 * d**2))
        for w, m, d in zip(mixture.weights, mixture.means, mixture.deviations, strict=True)
    )
    weight = density * torch.exp(-(x - node.alpha * data).square().sum(1) / (2 * node.sigma**2))
    mean = (weight[:, None] * data).sum(0) / weight.sum()
    torch.testing.assert_close(mixture.predict(node, x).x0[0], mean, rtol=0, atol=1e-10)


def test_one_time_per_sample_gives_what_each_time_gives_alone():
    problem, x = mild_mixture(), starting_points()
    times = np.array([0.2, 0.5, 0.9, 1.3])
    together = problem(times, x)
    for i, t in enumerate(times.tolist()):
        torch.testing.assert_close(together[i : i + 1], problem(t, x[i : i + 1]), rtol=0, atol=1e-15)


def test_the_field_is_the_derivative_of_the_path_with_the_predictions_put_in():
    problem, x, t, h = ExactODE(Gaussian()), starting_points(), 0.7, 1e-4
    nodes = [problem.node(t + step) for step in (-h, 0.0, h)]
    ends = [problem.distribution.flow(nodes[1], node, x) for node in nodes]
    torch.testing.assert_close(problem(t, x), (ends[2] - ends[0]) / (2 * h), rtol=0, atol=1e-7)


def test_the_closed_form_flow_of_the_gaussian_carries_quantiles():
    problem, x = ExactODE(Gaussian()), starting_points()
    a, b = problem.node(1.3), problem.node(0.1)
    there = problem.distribution.flow(a, b, x)
    torch.testing.assert_close(problem.distribution.flow(b, a, there), x, rtol=0, atol=1e-14)


class Labelled(PathODE):
    """A problem with a condition of its own per sample."""

    passes = 2

    def __init__(self, label):
        self.label = label

    def predict(self, node, x):
        return Prediction(self.label[:, None] * x, x)

    def node(self, t):
        return Trigonometric().node(t)

    def node_at(self, log_snr):
        return Trigonometric().node_at(log_snr)

    def rates(self, t):
        return Trigonometric().rates(t)

    def rows(self, index):
        return Labelled(self.label[index])


def test_the_counting_wrapper_forwards_everything_and_counts_by_sample():
    problem, x = Labelled(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)), starting_points()
    wrapped = counted(problem, len(x), None)
    assert wrapped.node(0.4) == problem.node(0.4)
    assert wrapped.node_at(0.4) == problem.node_at(0.4)
    assert wrapped.rates(0.4) == problem.rates(0.4)
    assert wrapped.passes == 2
    assert torch.equal(wrapped(0.4, x), problem(0.4, x))
    chosen = wrapped.rows(torch.tensor([3, 1]))
    assert torch.equal(chosen.predict(problem.node(0.4), x[[3, 1]]).x0, (torch.tensor([4.0, 2.0])[:, None] * x[[3, 1]]))
    chosen.rows(torch.tensor([1])).predict(problem.node(0.4), x[[1]])
    assert wrapped.ledger.evaluations.tolist() == [1, 3, 1, 2]
    assert wrapped.ledger.nfe == 3


def test_a_plain_ode_has_times_and_no_path():
    class Decay(ODE):
        def __call__(self, t, x):
            return -x

    node = Decay().node(0.25)
    assert node.t == 0.25
    assert math.isnan(node.alpha)
    assert math.isnan(node.sigma)
    decay = Decay()
    assert decay.rows(torch.tensor([0])) is decay


def test_the_field_is_an_abstract_method():
    with pytest.raises(TypeError, match="abstract"):
        ODE()
