"""The contract: what every network must do, whatever it predicts, and what its condition must do."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from odediff.conditions import equal_conditions
from odediff.doctor.evidence import Answer, Probe, ask
from odediff.doctor.hypotheses import Hypothesis, told
from odediff.doctor.report import Finding
from odediff.model import Model
from odediff.one_line import one_line
from solvers import combine


def check_contract(declared: Hypothesis, probe: Probe) -> Generator[Finding, None, bool]:
    """Check shape, finite values, repeatability and independent rows; return whether all of them hold."""
    answer = yield from _check_output(declared, probe)
    if answer is None:
        return False
    node, x, output, _ = answer
    tolerance = torch.finfo(declared.model.dtype or output.dtype).eps ** 0.5
    again = _relative(ask(declared.model, node, x), output)
    remedy = "put the network into eval mode: it uses dropout or other random numbers"
    yield _small("repeatable", again, tolerance, remedy)
    remedy = "the rows of a batch affect each other: put batch normalisation into eval mode"
    try:
        alone = ask(declared.model.rows(torch.arange(1, device="cpu")), node, x[:1])
    except Exception as error:
        yield Finding("rows alone", "wrong", f"one row was refused, {one_line(error)}", remedy)
        return False
    change = _relative(alone, output[:1])
    yield _small("rows alone", change, tolerance, remedy)
    return max(again, change) <= tolerance


def _check_output(declared: Hypothesis, probe: Probe) -> Generator[Finding, None, Answer | None]:
    """Check shape and finite values at every level; return the last answer, or None if a level fails."""
    answer = None
    for index, level in enumerate(probe.levels):
        node = declared.node(level)
        x = combine((node.alpha, probe.images), (node.sigma, probe.noise[index]))
        try:
            output = ask(declared.model, node, x)
        except Exception as error:
            yield Finding("output", "wrong", f"at t={node.t:.4g}, {one_line(error)}", _refusal(declared.model, error))
            return None
        if not torch.isfinite(output).all():
            bad = int((~torch.isfinite(output)).flatten(1).any(1).sum())
            time = told(declared.model)(float(node.t))
            measured = f"not finite in {bad} of {len(x)} samples at t={node.t:.4g}, network time {time:.6g}"
            remedy = "check the weights and the time convention, or compute in a wider dtype"
            yield Finding("output", "wrong", measured, remedy)
            return None
        answer = Answer(node, x, output, probe.noise[index])
    yield Finding("output", "ok", f"finite, in the shape of the state, at {len(probe.levels)} times")
    return answer


def _small(name: str, change: float, tolerance: float, remedy: str) -> Finding:
    measured = f"relative change {change:.1e}"
    return Finding(name, "ok", measured) if change <= tolerance else Finding(name, "wrong", measured, remedy)


def check_condition(model: Model, answer: Answer | None) -> Iterator[Finding]:
    """Check that the null is accepted, and that the condition changes the output."""
    if answer is None or not model.null:
        return
    try:
        unconditional = ask(replace(model, conditions={**model.conditions, **model.null}), answer.node, answer.x)
    except Exception as error:
        remedy = f"{', '.join(model.null)} of null is not a condition of this network; guidance needs one that is"
        yield Finding("condition", "wrong", f"null was refused, {one_line(error)}", remedy)
        return
    if all(equal_conditions(model.conditions.get(name), value) for name, value in model.null.items()):
        remedy = "test under a condition: diagnose(model.condition(...), images)"
        yield Finding("condition", "cannot tell", "the condition is the null", remedy)
        return
    effect = _relative(answer.output, unconditional)
    if effect > 1e-5:
        yield Finding("condition", "ok", f"changes the output by {effect:.2g}, relative")
        return
    remedy = "the network ignores its condition, so guidance has no effect: check how it is passed, and the null"
    yield Finding("condition", "wrong", f"changes the output by {effect:.1e}, relative", remedy)


def _relative(one: Tensor, other: Tensor) -> float:
    one, other = one.cpu().double(), other.cpu().double()
    return float((one - other).norm() / other.norm().clamp(min=1e-300))


def _refusal(model: Model, error: Exception) -> str:
    """The remedy for a failed call: a time between the rows of a table, or another signature."""
    if not model.integer_time and re.search(r"scalar types: Long, Int; but got|indices must be long", str(error)):
        return "the network looks times up in a table: declare integer_time=True, so that it is told whole times"
    return "the call is network(x, time, **conditions), and the output a tensor in the shape of x"
