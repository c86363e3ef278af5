"""Evaluate a network on known data and noise, and weigh its outputs.

The network is evaluated at a state ``alpha x0 + sigma eps`` of known data and noise. Read in its own form, told the
time in its own way, on its own schedule, a trained network returns the posterior mean of eps, and **no function of the
state has a smaller mean-square error**. So the right hypothesis has the least error at every noise level, and
hypotheses are compared on the same data and noise at equal signal-to-noise ratios by

    advantage = mean over levels of log(E_declared / E_other),    E = mean over samples of |eps_hat - eps|^2,

whose standard error follows from the samples' paired differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odediff.model import Model
from odediff.prediction import FORMS, Form, NetworkPrediction, predict
from odediff.schedule import Schedule, VPTable
from solvers import Node, NoiseStream

Errors = NDArray[np.float64]
"""The mean square of eps_hat - eps over a sample's components, ``(levels, samples)``; NaN where there is no output."""

NOISE_TO_SIGNAL = (0.05, 5.0)
"""The range of sigma/alpha in which hypotheses are compared: beyond it, any network can see the data or the noise."""
LEVELS = 5
"""The number of noise levels at which hypotheses are compared."""

_LEAST_ERROR = 1e-10
"""The round-off of a float32 network, added to every error: errors below it count as equal."""


class Reading(NamedTuple):
    """The form in which a network's output is read, and its sign: some networks return x0 - eps, or minus the noise."""

    form: Form
    sign: int = 1

    def __str__(self) -> str:
        return self.form if self.sign > 0 else f"-{self.form}"


READINGS = tuple(Reading(cast(Form, form), sign) for sign in (1, -1) for form in FORMS)


@dataclass(frozen=True)
class Probe:
    """Known data ``(n, ...)``, known noise ``(levels, n, ...)`` and the half log-SNRs at which they are mixed."""

    images: Tensor
    noise: Tensor
    levels: tuple[float, ...]


class Answer(NamedTuple):
    """A state, its true noise, and what the network returned for it."""

    node: Node
    x: Tensor
    output: Tensor
    noise: Tensor

    def implied_noise(self, reading: Reading) -> Tensor:
        """The noise that the network predicts if its output is read in this way."""
        return predict(reading.form, self.node, self.x, reading.sign * self.output).eps


def ask(model: Model, node: Node, x: Tensor) -> Tensor:
    """The output of the conditional network itself, in its own form, without guidance and thresholding."""
    bare = replace(model, prediction="flow", guidance=1.0, threshold=None)  # flow is defined at both ends of time
    with torch.no_grad():
        return cast(NetworkPrediction, bare.predict(node, x)).output


def make_probe(path: Schedule, images: Tensor, seed: int) -> Probe:
    """Noise from ``seed``, and levels evenly spaced in log(sigma/alpha), in `NOISE_TO_SIGNAL` and on the path."""
    least = math.exp(-path.log_snr(max(path.first_defined, 1e-6 * path.latest)))
    most = math.exp(-path.log_snr(path.start))
    bounds = max(NOISE_TO_SIGNAL[0], least), min(NOISE_TO_SIGNAL[1], most)
    nodes = [nearest_entry(path, path.node_at(-math.log(s))) for s in np.geomspace(*bounds, LEVELS).tolist()]
    # Not by torch's generator: images that it drew from the same seed would equal the noise.
    noise = torch.stack([NoiseStream(seed, counter=level).draw(images)[0] for level in range(LEVELS)])
    return Probe(images, noise, tuple(float(node.log_snr) for node in nodes))


def errors(answers: list[Answer | None], reading: Reading) -> Errors:
    """The errors of the noise that the outputs predict in this reading."""
    samples = next((len(answer.x) for answer in answers if answer), 0)
    return np.array(
        [
            mean_square(answer.implied_noise(reading) - answer.noise) if answer else np.full(samples, np.nan)
            for answer in answers
        ]
    ).reshape(len(answers), samples)


def mean_square(difference: Tensor) -> NDArray[np.float64]:
    """The mean square over all components of each sample, ``(B,)``."""
    return difference.double().square().flatten(1).mean(1).cpu().numpy()


class Advantage(NamedTuple):
    """How much smaller the errors of the other hypothesis are: the mean log ratio, and its standard error."""

    log_ratio: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether the errors are at least 5 % smaller, at five standard errors.

        So strict because up to 260 alternatives are compared.
        """
        return self.log_ratio > 0.05 and self.log_ratio > 5 * self.error


NO_ADVANTAGE = Advantage(-math.inf, 0.0)


def advantage(declared: Errors, other: Errors) -> Advantage:
    """Compare over the levels that both have, at least three; the standard error is that of paired differences."""
    if declared.shape != other.shape:
        return NO_ADVANTAGE
    known = np.isfinite(declared).all(1) & np.isfinite(other).all(1)
    if known.sum() < 3:
        return NO_ADVANTAGE
    first, second = declared[known] + _LEAST_ERROR, other[known] + _LEAST_ERROR
    means = first.mean(1, keepdims=True), second.mean(1, keepdims=True)
    # The influence of one sample on a difference of logarithms of means.
    influence = (first / means[0] - second / means[1]).mean(0)
    error = influence.std(ddof=1) / math.sqrt(len(influence)) if len(influence) > 1 else math.inf
    return Advantage(float(np.log(means[0] / means[1]).mean()), float(error))


def nearest_entry(path: Schedule, node: Node) -> Node:
    """The trained entry nearest to ``node`` if ``path`` is a table, else ``node`` itself."""
    if not isinstance(path, VPTable):
        return node
    return path.node(max(1.0, round(float(node.t) * path.T)) / path.T)
