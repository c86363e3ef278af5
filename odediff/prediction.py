"""Prediction forms: how a network's output determines data and noise.

A network that sees ``x = alpha x0 + sigma eps`` may be trained to return any combination of the two. Together with
``x``, each of these determines both:

    epsilon   F = eps                      x0 = (x - sigma F) / alpha
    x0        F = x0                       eps = (x - alpha F) / sigma
    v         F = alpha eps - sigma x0     x0 = (alpha x - sigma F) / r^2, eps = (sigma x + alpha F) / r^2
    flow      F = eps - x0                 x0 = (x - sigma F) / (alpha + sigma), eps = (x + alpha F) / (alpha + sigma)
    score     F = -eps / sigma             x0 = (x + sigma^2 F) / alpha

with r^2 = alpha^2 + sigma^2. v is Salimans & Ho 2022, "Progressive distillation", section 4; flow is the velocity of
Liu et al. 2023, "Flow straight and fast".
"""

from typing import Literal, get_args

from torch import Tensor

from solvers import Node, Prediction, combine
from solvers.real import Real, anywhere, is_zero
from solvers.sums import Terms, total

Form = Literal["epsilon", "x0", "v", "flow", "score"]
FORMS: tuple[str, ...] = get_args(Form)

LEAST_SIGNAL = 1e-6
"""The share of the state's scale below which float32 retains nothing of the part that a form has to recover."""


Coefficients = tuple[Real, Real]
"""The coefficients of a state and of the network's output there."""


class NetworkPrediction(Prediction):
    """Data and noise as linear combinations of the state and the network's output.

    ``data`` and ``noise`` are the pairs of coefficients of ``(x, output)`` that give x0 and eps.
    """

    __slots__ = ("_known", "data", "noise", "output", "x")

    def __init__(self, x: Tensor, output: Tensor, data: Coefficients, noise: Coefficients) -> None:
        # No closure over self: a cycle would keep every state of a solve until the garbage collector runs.
        self.x, self.output, self.data, self.noise = x, output, data, noise
        self._known: dict[str, Tensor] = {}

    @property
    def x0(self) -> Tensor:
        """The predicted data."""
        return self._once("x0", 1.0, 0.0)

    @property
    def eps(self) -> Tensor:
        """The predicted noise."""
        return self._once("eps", 0.0, 1.0)

    def terms(self, data: Real, noise: Real) -> Terms:
        """``data x0 + noise eps`` as a sum of the state and the output, without computing x0 or eps."""
        # At the ends of time, the coefficients of the part that is not needed may be infinite.
        if is_zero(noise):
            of_x, of_output = data * self.data[0], data * self.data[1]
        elif is_zero(data):
            of_x, of_output = noise * self.noise[0], noise * self.noise[1]
        else:
            of_x = data * self.data[0] + noise * self.noise[0]
            of_output = data * self.data[1] + noise * self.noise[1]
        return [(of_output, self.output)] if is_zero(of_x) else [(of_x, self.x), (of_output, self.output)]

    def _once(self, name: str, data: Real, noise: Real) -> Tensor:
        if name not in self._known:
            self._known[name] = total(self.terms(data, noise))
        return self._known[name]


def predict(form: Form, node: Node, x: Tensor, output: Tensor) -> NetworkPrediction:
    """Split ``x`` at ``node`` into data and noise, given the network's ``output`` in this form."""
    return NetworkPrediction(x, output, *coefficients(form, node))


def coefficients(form: Form, node: Node) -> tuple[Coefficients, Coefficients]:
    """The coefficients that give x0, and those that give eps, for a network of this form at ``node``."""
    alpha, sigma = node.alpha, node.sigma
    if form == "epsilon":
        return (1 / alpha, -sigma / alpha), (0.0, 1.0)
    if form == "x0":
        return (0.0, 1.0), (1 / sigma, -alpha / sigma)
    if form == "score":
        return (1 / alpha, sigma**2 / alpha), (0.0, -sigma)
    if form == "v":
        square = alpha**2 + sigma**2
        return (alpha / square, -sigma / square), (sigma / square, alpha / square)
    total = alpha + sigma
    return (1 / total, -sigma / total), (1 / total, alpha / total)


def network_output(form: Form, node: Node, known: Prediction) -> Tensor:
    """The output of a perfect network of this form for ``known`` data and noise: the inverse of `predict`."""
    if form == "epsilon":
        return known.eps
    if form == "x0":
        return known.x0
    if form == "v":
        return known.mix(-node.sigma, node.alpha)
    if form == "flow":
        return known.mix(-1.0, 1.0)
    if anywhere(node.sigma == 0):
        raise ValueError(
            f'prediction="score" is -eps / sigma, which is undefined at sigma = 0 (t={node.t}): end the grid above 0, '
            'or use the form "epsilon"'
        )
    return combine((-1 / node.sigma, known.eps))


def require_information(form: Form, node: Node) -> None:
    """Raise `ValueError` at an end of time where ``form`` does not determine both data and noise.

    At alpha = 0 the state is the noise, so epsilon says nothing about the data; at sigma = 0 the reverse holds for x0.
    """
    alpha, sigma = node.alpha, node.sigma
    if form in ("epsilon", "score") and anywhere(alpha < LEAST_SIGNAL * sigma):
        raise ValueError(
            f'prediction="{form}" carries no information at alpha = 0 (t={node.t}): the state is pure noise there; use '
            'a network of the form "v", "flow" or "x0", or start the grid later'
        )
    if form == "x0" and anywhere(sigma < LEAST_SIGNAL * alpha):
        raise ValueError(
            f'prediction="x0" carries no information at sigma = 0 (t={node.t}): the state is the data there; use a '
            'network of the form "v", "flow" or "epsilon", or end the grid above 0'
        )
