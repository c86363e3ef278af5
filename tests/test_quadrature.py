"""The weights of multistep formulas against the integrals that define them, in thirty digits."""

import math

import mpmath
import numpy as np
import pytest

from solvers import Data, Node, Noise, Rotation
from solvers.quadrature import adams_weights
from solvers.testing import Trigonometric

PATH = Trigonometric()
SPACING = (0.0, 0.9, 2.1, 2.9)
"""Where the nodes lie behind a, in steps: unevenly."""


@pytest.fixture(autouse=True)
def thirty_digits():
    with mpmath.workdps(30):
        yield


def one_step(*nodes):
    """The same nodes, as those of a single step: every value ``(1,)``."""
    return [Node(*(np.array([value]) for value in node)) for node in nodes]


def weights_of(line, variable, a, b, others, corrector):
    a, b, *others = one_step(a, b, *others)
    nodes = [b, a, *others] if corrector else [a, *others]
    return [float(weight[0]) for weight in adams_weights(PATH, line, variable, a, b, nodes)]


def polynomial(j, nodes):
    """The Lagrange polynomial of node j."""

    def at(v):
        factors = ((v - other) / (nodes[j] - other) for i, other in enumerate(nodes) if i != j)
        return mpmath.fprod(factors)

    return at


@pytest.mark.parametrize("corrector", [False, True], ids=["predictor", "corrector"])
@pytest.mark.parametrize("h", [1e-7, -1e-7, 0.3, -0.3, 3.7, -12.0, 30.0])
@pytest.mark.parametrize("line", [Noise(), Data()], ids=str)
def test_weights_in_log_snr_are_accurate_for_tiny_and_for_huge_steps(line, h, corrector):
    # Not the whole way to a huge log-SNR of the history: there is no such path.
    levels = [-0.4 - min(max(h, -2), 2) * place for place in SPACING]
    a, *others = (PATH.node_at(level) for level in levels)
    b = PATH.node_at(-0.4 + h)
    found = weights_of(line, "log_snr", a, b, others, corrector)
    offsets = [mpmath.mpf(node.log_snr) - mpmath.mpf(a.log_snr) for node in (a, *others)]
    end = mpmath.mpf(b.log_snr) - mpmath.mpf(a.log_snr)
    offsets = [end, *offsets] if corrector else offsets
    sign = 1 if isinstance(line, Data) else -1
    for j in range(1, len(offsets)):
        basis = polynomial(j, offsets)
        pieces = mpmath.linspace(0, end, 2 + int(abs(h)))
        expected = mpmath.quad(lambda u, basis=basis: sign * mpmath.exp(sign * u) * basis(u), pieces) * line.q(a)
        assert found[j] == pytest.approx(float(expected), rel=1e-12)
    assert sum(found) == pytest.approx(line.q(b) - line.q(a), rel=1e-14, abs=1e-14 * max(map(abs, found)))


def value_at(variable, theta, line):
    """The variable at an angle of the trigonometric path."""
    if variable in ("t", "angle"):
        return theta
    if variable == "asinh":
        return mpmath.asinh(mpmath.tan(theta) / (line.c if isinstance(line, Rotation) else 1))
    return mpmath.tan(theta) if variable == "s" else -mpmath.log(mpmath.tan(theta))


def rate_of(line, theta):
    """dq/dtheta along a line of the trigonometric path."""
    if isinstance(line, Noise):
        return 1 / mpmath.cos(theta) ** 2
    if isinstance(line, Data):
        return -1 / mpmath.sin(theta) ** 2
    c = line.c
    return c / (mpmath.sin(theta) ** 2 + c**2 * mpmath.cos(theta) ** 2)


HALF_PI = math.pi / 2
CASES = [
    (Noise(), "t", (1.2, 1.29, 1.41), 0.9),
    (Noise(), "angle", (0.2, 0.11, 0.05), 0.5),
    (Noise(), "t", (1.5, 1.53, 1.56), 0.1),
    (Noise(), "t", (0.3, 0.45, 0.8), 0.0),
    (Data(), "s", (1.2, 1.29, 1.41), 0.9),
    (Data(), "s", (0.4, 0.3, 0.15), 1.3),
    (Data(), "angle", (0.7, 0.8, 1.1), 0.05),
    (Data(), "t", (1.4, 1.2, 1.1), HALF_PI),
    (Rotation(), "log_snr", (1.2, 1.29, 1.41), 0.9),
    (Rotation(0.5), "log_snr", (0.2, 0.11, 0.05), 1.4),
    (Rotation(0.5), "s", (1.3, 1.4, 1.5), 0.2),
    (Rotation(0.5), "t", (1.2, 1.3, 1.5), 0.0),
    (Rotation(), "angle", (HALF_PI, 1.7, 2.0), 0.0),
    (Rotation(0.4), "asinh", (1.5, 1.52, 1.55), 0.6),
    (Rotation(0.4), "asinh", (0.2, 0.6, 0.9), 0.0),
    (Noise(), "asinh", (0.2, 0.6, 0.9), 0.0),
]


@pytest.mark.parametrize(("line", "variable", "history", "end"), CASES, ids=str)
def test_weights_in_any_variable_are_the_integrals_of_the_lagrange_polynomials(line, variable, history, end):
    a, *others, b = (PATH.node(theta) for theta in (*history, end))
    # At pure noise itself: the cosine of the float pi/2 is 6e-17.
    a, b = (node._replace(alpha=0.0) if node.t == HALF_PI else node for node in (a, b))
    found = weights_of(line, variable, a, b, others, corrector=False)
    nodes = [value_at(variable, mpmath.mpf(theta), line) for theta in history]
    middle = (history[0] + end) / 2
    for j in range(1, len(nodes)):
        basis = polynomial(j, nodes)

        def integrand(theta, basis=basis):
            return rate_of(line, theta) * basis(value_at(variable, theta, line))

        assert found[j] == pytest.approx(float(mpmath.quad(integrand, [history[0], middle, end])), rel=1e-11)


@pytest.mark.parametrize(
    ("count", "numerators", "denominator"),
    [(2, (3, -1), 2), (3, (23, -16, 5), 12), (4, (55, -59, 37, -9), 24), (5, (1901, -2774, 2616, -1274, 251), 720)],
)
def test_constant_weights_are_those_of_adams_and_bashforth(count, numerators, denominator):
    a, b, *others = (PATH.node(theta) for theta in (1.0, 0.8, 1.1, 1.3, 1.35, 1.4))
    found = weights_of(Noise(), "index", a, b, others[: count - 1], corrector=False)
    step = b.s - a.s
    assert found == pytest.approx([step * number / denominator for number in numerators], rel=1e-12)


def test_constant_weights_of_a_corrector_are_those_of_adams_and_moulton():
    a, b, older = (PATH.node(theta) for theta in (1.0, 0.8, 1.1))
    found = weights_of(Noise(), "index", a, b, [older], corrector=True)
    assert found == pytest.approx([(b.s - a.s) * number / 12 for number in (5, 8, -1)], rel=1e-12)


def test_the_weights_of_a_step_do_not_depend_on_the_other_steps():
    nodes = [PATH.node(np.linspace(1.4, 0.1, 9)[i : i + 4]) for i in (2, 3, 1, 0)]
    nodes[1] = nodes[1]._replace(**PATH.node(np.array([0.6, 0.05, 0.01, 0.001]))._asdict())
    a, b, *older = nodes
    for line, variable in ((Noise(), "t"), (Data(), "log_snr"), (Rotation(), "log_snr")):
        together = adams_weights(PATH, line, variable, a, b, [a, *older])
        for i in range(4):
            alone = [Node(*(values[i : i + 1] for values in node)) for node in (a, b, *older)]
            weights = adams_weights(PATH, line, variable, alone[0], alone[1], [alone[0], *alone[2:]])
            assert [float(w[0]) for w in weights] == [float(w[i]) for w in together]
