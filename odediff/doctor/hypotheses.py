"""What a network might be instead of what it is declared to be: other clocks, schedules or image ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from torch import Tensor

from odediff.doctor.evidence import Answer, Probe, ask, nearest_entry
from odediff.model import Model
from odediff.schedule import (
    VE,
    RectifiedFlow,
    Schedule,
    SubVP,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    VPTable,
)
from solvers import Node, combine
from solvers.real import Real

Clock = Callable[[float], float]
"""A function from a time of the path to what the network is told."""

RANGE = "image range"
TIME = "schedule and time"


@dataclass(frozen=True)
class Hypothesis:
    """One alternative to the declaration: a model, and images as ``gain x0 + offset``.

    ``check`` is the part of the declaration that it contradicts; ``remedy`` is what to declare if it is true.
    """

    name: str
    model: Model
    remedy: str = ""
    check: str = ""
    gain: float = 1.0
    offset: float = 0.0

    def node(self, level: float) -> Node:
        """The node at which the scaled images have the same half log-SNR as the given ones at ``level``."""
        node = self.model.path.node_at(level - math.log(self.gain))
        return nearest_entry(self.model.path, node) if self.model.integer_time else node

    def answers(self, probe: Probe) -> list[Answer | None]:
        """The network's output at each level; None where the hypothesis has no such level or the network raises."""
        return [self._answer(probe, index) for index in range(len(probe.levels))]

    def _answer(self, probe: Probe, index: int) -> Answer | None:
        try:
            node = self.node(probe.levels[index])
            data = probe.images * self.gain + self.offset
            x = combine((node.alpha, data), (node.sigma, probe.noise[index]))
            return Answer(node, x, ask(self.model, node, x), probe.noise[index])
        except Exception:  # a network told a wrong time may fail in any way
            return None


def told(model: Model) -> Clock:
    """The clock of a model: its own, or its path's."""
    return cast(Clock, model.network_time or model.path.network_time)


def telling(model: Model, clock: Clock) -> Model:
    """The same model with another clock."""
    return replace(model, network_time=cast(Callable[[Real], Real], clock))


def alternatives(model: Model, images: Tensor) -> list[Hypothesis]:
    """Everything that a declaration is commonly confused with, one change at a time, without duplicates."""
    distinct = [Hypothesis("declared", model)]
    for other in (*_clocks(model), *_schedules(model)):
        if not any(_same(other.model, known.model) for known in distinct):
            distinct.append(other)
    return [*_ranges(model, images), *distinct[1:]]


def _ranges(model: Model, images: Tensor) -> Iterator[Hypothesis]:
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        remedy = "give images in [-1, 1]: 2 * images - 1"
        yield Hypothesis("images in [0, 1]", model, remedy, RANGE, 2.0, -1.0)
    elif low >= -1 and high <= 1:
        remedy = "this network expects images in [0, 1]: wrap it, or train it on [-1, 1]"
        yield Hypothesis("a network of images in [0, 1]", model, remedy, RANGE, 0.5, 0.5)


def _clocks(model: Model) -> Iterator[Hypothesis]:
    """The same schedule, with another convention for the time that the network is told."""
    path = model.path
    conventions: dict[str, Clock] = {
        **_of_time("t", lambda t: t / path.latest),
        # On a shifted rectified flow most networks are told the noise level tau, which is not t.
        **(_of_time("tau", path.sigma) if isinstance(path, RectifiedFlow) else {}),
        "sigma": path.sigma,
        "sigma / alpha": lambda t: math.exp(-path.log_snr(t)),
        "log(sigma / alpha) / 4": lambda t: -0.25 * path.log_snr(t),
        "log(alpha^2 / sigma^2)": lambda t: 2 * path.log_snr(t),
    }
    if isinstance(path, VPTable):
        entries = path.T
        conventions = {
            "n - 1, from 0 to T - 1": path.network_time,
            "T - n, from T - 1 to 0": lambda t: float(np.rint(entries * (1 - t))),
            **conventions,
        }
    for name, clock in conventions.items():
        if _safe(model, clock):
            remedy = f"tell the network {name}: network_time of odediff.Model{_by_custom(path, name)}"
            yield Hypothesis(f"told {name}", telling(model, clock), remedy, TIME)
    for factor, word in ((1.4, "less"), (1 / 1.4, "more")):
        remedy = f"at its times the network expects {word} noise: check the table, its betas and its length"
        name = f"told {factor:.2g} times the noise-to-signal ratio"
        yield Hypothesis(name, telling(model, _at_noise(model, factor)), remedy, TIME)


def _by_custom(path: Schedule, name: str) -> str:
    """How the command line declares it, if it can: its clocks are linear in t, or in a rectified flow's noise level."""
    other = isinstance(path, RectifiedFlow) and path.shift != 1 and "tau" not in name
    bent = "log" in name or ("/" in name and not isinstance(path, VE))
    bent |= name == "sigma" and not isinstance(path, VE | RectifiedFlow)
    return "" if other or bent else ", time_scale and time_offset of custom"


def _of_time(name: str, time: Clock) -> dict[str, Clock]:
    """The conventions for a time between 0 and 1: forwards and backwards, as it is and times 1000."""
    return {
        f"{name}, from 0 to 1": time,
        f"1 - {name}": lambda t: 1 - time(t),
        f"1000 {name}": lambda t: 1000 * time(t),
        f"1000 (1 - {name})": lambda t: 1000 * (1 - time(t)),
    }


def _schedules(model: Model) -> Iterator[Hypothesis]:
    """Other schedules: those of the declared kind with the declared convention, the others with their own."""
    discrete = isinstance(model.path, VPTable)
    length = model.path.T if isinstance(model.path, VPTable) else 1000
    known: dict[str, Schedule] = {
        f"VPTable.{make.__name__}({length})": make(length)
        for make in (VPTable.linear, VPTable.scaled_linear, VPTable.cosine, VPTable.sigmoid)
    }
    if not discrete:
        vp = (VPLinear(), VPScaledLinear(), VPCosine(), VPSigmoid(), SubVP())
        known |= {f"{type(path).__name__}()": path for path in vp}
    if not model.integer_time:
        known |= {"RectifiedFlow()": RectifiedFlow(), "RectifiedFlow(time_scale=1000)": RectifiedFlow(1.0, 1000.0)}
        known |= {"VE()": VE()}
    for name, path in known.items():
        clock = model.network_time if isinstance(path, VPTable) == discrete else None
        other = replace(model, path=path, network_time=clock)
        remedy = f"declare the schedule odediff.{name}, schedule@model.schedule of custom"
        yield Hypothesis(f"trained on {name}", other, remedy, TIME)


def _at_noise(model: Model, factor: float) -> Clock:
    """The clock of a network that is told ``factor`` times the state's noise-to-signal ratio."""
    path, clock = model.path, told(model)

    def shifted(t: float) -> float:
        level = max(path.log_snr(t) - math.log(factor), path.log_snr(path.start))
        time = clock(max(path.time(level), path.first_defined))
        return float(np.rint(time)) if model.integer_time else time

    return shifted


def _safe(model: Model, clock: Clock) -> bool:
    """Whether a network of whole times has all of these; an index outside an embedding would crash a GPU."""
    ends = model.path.first_defined, model.path.start
    if not model.integer_time:
        return True
    asked, declared = ([one(t) for t in ends] for one in (clock, told(model)))
    return min(asked) >= min(declared) and max(asked) <= max(declared)


def _same(one: Model, other: Model) -> bool:
    """Whether two models have one path and tell the network times that differ by less than 0.5 % of their range."""
    if one.path != other.path:
        return False
    times = np.linspace(max(0.1 * one.path.latest, one.path.first_defined), 0.9 * one.path.latest, 7)
    first, second = (np.array([told(model)(t) for t in times.tolist()]) for model in (one, other))
    return bool(np.abs(first - second).max() < 0.005 * np.ptp(first))
