"""Which hypothesis explains the outputs best, and what this means for the declaration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from odediff.doctor.evidence import (
    NO_ADVANTAGE,
    READINGS,
    Advantage,
    Answer,
    Errors,
    Probe,
    Reading,
    advantage,
    errors,
    mean_square,
)
from odediff.doctor.hypotheses import Hypothesis
from odediff.doctor.report import Finding, Status

GROSS = math.log(1.25)
"""The log ratio of errors from which another time or range is "wrong"; less may be the network's weakness."""


@dataclass(frozen=True)
class Verdict:
    """Which hypothesis explains the outputs best, read in which form, and how all others compare with it."""

    declared: Hypothesis
    best: Hypothesis
    reading: Reading
    gain: Advantage
    """The advantage over the declaration; `NO_ADVANTAGE` if the declaration is the best."""
    table: dict[tuple[Hypothesis, Reading], Errors]

    @property
    def fault(self) -> Status:
        """The status of a departure from the declaration."""
        return "wrong" if self.gain.log_ratio >= GROSS else "suspicious"

    @property
    def error(self) -> float:
        """The mean-square error of the noise, averaged geometrically over the levels."""
        return _level_mean(self.table[self.best, self.reading])

    def next_best(self, hypotheses: Sequence[Hypothesis], readings: Sequence[Reading]) -> str:
        """The error, and the closest of these alternatives with its error in units of the best one's."""
        best = self.table[self.best, self.reading]
        ratios = {
            name: math.exp(-advantage(best, other).log_ratio)
            for name, other in (
                (str(reading) if hypothesis == self.best else hypothesis.name, found)
                for (hypothesis, reading), found in self.table.items()
                if hypothesis in hypotheses and reading in readings and found is not best
            )
        }
        closest = min(ratios, key=lambda name: ratios[name])
        return f"noise error {self.error:.3g}; next: {closest}, {ratios[closest]:.3g} times that"


def compare(declared: Hypothesis, others: Sequence[Hypothesis], probe: Probe) -> Verdict:
    """Read the outputs of every hypothesis in every form; depart from the declaration only for a clear advantage.

    First one part of it may change, the form or the rest; then both, if that is clearly better again.
    """
    table: dict[tuple[Hypothesis, Reading], Errors] = {}
    for hypothesis in (declared, *others):
        answers = hypothesis.answers(probe)
        table |= {(hypothesis, reading): errors(answers, reading) for reading in READINGS}
    start = current = declared, Reading(declared.model.prediction)
    for keys in ([key for key in table if key[0] == start[0] or key[1] == start[1]], list(table)):
        gains = {key: advantage(table[current], table[key]) for key in keys}
        clear = [key for key in keys if gains[key].clear]
        current = max(clear, key=lambda key: gains[key].log_ratio) if clear else current
    gain = NO_ADVANTAGE if current == start else advantage(table[start], table[current])
    return Verdict(declared, *current, gain, table)


def check_form(verdict: Verdict) -> Finding:
    """Check that the outputs are what they are declared to be: epsilon, x0, v, flow or score."""
    declared = Reading(verdict.declared.model.prediction)
    if verdict.reading == declared:
        return Finding("prediction form", "ok", f"{declared}; {verdict.next_best([verdict.best], READINGS)}")
    remedy = f'declare prediction="{verdict.reading.form}"'
    if verdict.reading.sign < 0:
        remedy += ", and wrap the network to negate its output"
    return Finding("prediction form", "wrong", _departure(verdict, f"{verdict.reading}, not {declared}"), remedy)


def check_against(verdict: Verdict, check: str, expected: str) -> Finding:
    """Check that the best hypothesis does not contradict this part of the declaration."""
    if verdict.best.check == check:
        return Finding(check, verdict.fault, _departure(verdict, verdict.best.name), verdict.best.remedy)
    rivals = [h for h, reading in verdict.table if h.check == check and reading == verdict.reading]
    return Finding(check, "ok", f"{expected}; {verdict.next_best(rivals, [verdict.reading])}" if rivals else expected)


def _departure(verdict: Verdict, what: str) -> str:
    declared = _level_mean(verdict.table[verdict.declared, Reading(verdict.declared.model.prediction)])
    return f"{what}: noise error {verdict.error:.3g}, as declared {declared:.3g}"


def check_noise_variance(answers: Sequence[Answer], reading: Reading) -> Finding:
    """Check that the mean squares of predicted noise and error add up to 1, as those of a posterior mean do."""
    sums, errors_of_sums, squares = [], [], []
    for answer in answers:
        noise = answer.implied_noise(reading)
        per_sample = 2 * (noise * (noise - answer.noise)).double().flatten(1).mean(1).cpu().numpy()
        sums.append(1 + per_sample.mean())
        errors_of_sums.append(per_sample.std(ddof=1) / math.sqrt(len(per_sample)))
        squares.append(mean_square(noise).mean())
    off = np.abs(np.array(sums) - 1)
    significant = off > 5 * np.array(errors_of_sums)
    measured = (
        f"variance + error {min(sums):.3g} to {max(sums):.3g} (ideal 1); variance {squares[-1]:.3g} at sigma/alpha = "
        f"{answers[-1].node.s:.2g}"
    )
    worst = float((off * significant).max())
    if worst <= 0.1:
        return Finding("noise variance", "ok", measured)
    remedy = "the predicted noise does not have the size of noise: see the other findings, or train the network longer"
    return Finding("noise variance", "wrong" if worst > 0.3 else "suspicious", measured, remedy)


def check_skill(verdict: Verdict, probe: Probe) -> Finding:
    """Check that the network predicts noise better than the best scaling of the state, and better than its form alone.

    An output of 0, read as v or flow, already is a good scaling of the state, although the network predicts nothing.
    """
    answers = [answer for answer in verdict.best.answers(probe) if answer]
    silent = _level_mean(errors([answer._replace(output=0 * answer.output) for answer in answers], verdict.reading))
    scaled = []
    for answer in answers:
        factor = (answer.x * answer.noise).mean() / answer.x.square().mean()
        scaled.append(mean_square(factor * answer.x - answer.noise))
    linear = _level_mean(np.array(scaled))
    measured = f"noise error {verdict.error:.3g}; scaling the state leaves {linear:.3g}, an output of 0 {silent:.3g}"
    if verdict.error <= min(1.05 * linear, 0.95 * silent):
        return Finding("skill", "ok", measured)
    remedy = (
        "no form and no time convention explains the outputs: is the network trained, are these its weights and data?"
    )
    return Finding("skill", "wrong", measured, remedy)


def _level_mean(found: Errors) -> float:
    means = found[np.isfinite(found).all(1)].mean(1)
    return float(np.exp(np.log(means + 1e-300).mean())) if len(means) else math.inf
