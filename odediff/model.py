"""A network with its declaration: prediction form, schedule, time convention, conditions, guidance."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odediff.conditions import as_row_numbers, as_tensors, chunks, expanded, require_rows_for, row_count, selected
from odediff.fingerprint import held_modules, module_of
from odediff.overwriting import LastAnswer, is_constant, one_memory, share_memory, written
from odediff.prediction import FORMS, Form, predict, require_information
from odediff.schedule import Schedule, Section, VPTable
from odediff.threshold import DynamicThreshold, StaticThreshold, Threshold, threshold_prediction
from solvers import Node, Prediction
from solvers.arguments import require_switch, require_whole
from solvers.real import Real, anywhere
from solvers.sums import per_row
from solvers.transfer import placed

Network = Callable[..., Tensor]
UNSTEADY = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
"""Modules that are to be in evaluation mode."""


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that turns ``network(x, network_time, **condition)`` into predictions of data and noise.

    Args:
        network: called with ``x`` ``(B, ...)``, the network time ``(B,)`` and the condition's values, ``(B, ...)``
            each; returns a tensor in the shape of ``x``.
        path: the schedule that the states follow.
        prediction: what the network returns: "epsilon", "x0" (as EDM's denoiser), "v" (alpha eps - sigma x0), "flow"
            (eps - x0) or "score" (-eps / sigma). A network that returns x0 - eps, with the data at t = 1, is negated
            and told 1 - t.
        conditions: keyword arguments of every call. A number stands for all samples, and reaches the network as a
            tensor: a whole one in int64, a float in the network's precision but at least float32. A tensor or an array,
            also one in a dict or a list, has a row for each, and the precision that it is given with. Lists of numbers
            are passed as they are.
        null: the conditions that mean "no condition"; guidance needs them.
        guidance: the scale w of classifier-free guidance, ``u + w (c - u)`` (Ho & Salimans 2022, there 1 + w); one
            number, or one per sample, which the default solver takes for strong ones. w = 1 is the conditional
            prediction, bit for bit; as a number, in one pass.
        threshold: keeps the predicted data in the range of images; it makes sampling non-invertible.
        chunk: the number of rows in every call of the network. Networks round differently at different batch sizes;
            calls of one size make a sample's bits independent of the batch around it.
        continuous: declares that the network may be asked at all times down to 0. Otherwise, on any path, no solve asks
            it below the schedule's end, and one to a tolerance extrapolates from there.
        integer_time: declares that the network knows whole times only, such as an embedding table's rows.
        network_time: maps a time of the path, a float or, where samples keep their own times, a float64 array of them
            (use numpy), to what the network is told; the path's own convention unless given.
        trained_path: the schedule that the network was trained on, where ``path`` is another one: states are matched by
            their signal-to-noise ratio and rescaled (see `remap`).
    """

    network: Network
    path: Schedule
    prediction: Form = "epsilon"
    conditions: Mapping[str, Any] = field(default_factory=dict)
    null: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | Tensor = 1.0
    threshold: Threshold | None = None
    chunk: int | None = None
    continuous: bool = False
    integer_time: bool = False
    network_time: Callable[[Real], Real] | None = None
    trained_path: Schedule | None = None
    _last_answer: LastAnswer = field(default_factory=LastAnswer, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise TypeError(f"network={self.network!r} must be callable as network(x, network_time, **condition)")
        if not isinstance(self.path, Schedule):
            raise TypeError(
                f"path is a {type(self.path).__name__}, no schedule; pass one such as odediff.VPTable(alphas_cumprod)"
            )
        if self.prediction not in FORMS:
            raise ValueError(f"prediction={self.prediction!r} is unknown; use one of {', '.join(FORMS)}")
        if self.chunk is not None:
            require_whole("chunk", self.chunk, 1, hint=", or None")
        if not isinstance(self.trained_path, Schedule | None):
            raise TypeError(f"trained_path={self.trained_path!r} is no schedule; model.remap(path) sets it")
        if self.network_time is not None and not callable(self.network_time):
            raise TypeError(f"network_time={self.network_time!r} must be a function of the path's time, or None")
        for name in ("continuous", "integer_time"):
            require_switch(name, getattr(self, name))
        if self.threshold is not None and not isinstance(self.threshold, StaticThreshold | DynamicThreshold):
            raise TypeError(f"threshold={self.threshold!r} must be a StaticThreshold, a DynamicThreshold or None")
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, int | float | np.number | Tensor):
            raise TypeError(f"guidance={self.guidance!r} must be a number, or a tensor with one for each sample")
        if isinstance(self.guidance, Tensor) and self.guidance.ndim > 1:
            raise ValueError(f"guidance has shape {tuple(self.guidance.shape)}; give one number for each sample, (B,)")
        finite = self.guidance.isfinite().all() if isinstance(self.guidance, Tensor) else math.isfinite(self.guidance)
        if not finite:
            raise ValueError(f"guidance={self.guidance!r} must be finite; 1 is the conditional prediction")
        for name in ("conditions", "null"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise TypeError(f"{name}={given!r} must be keyword arguments of the network, such as {{'label': 3}}")
            object.__setattr__(self, name, as_tensors(dict(given)))
        if self.guided and not self.null:
            raise ValueError(
                f"guidance={self.guidance!r} needs null=..., the conditions that mean no condition; without them only "
                "guidance=1 is possible"
            )

    @cached_property
    def guided(self) -> bool:
        """Whether a prediction takes a second pass."""
        return isinstance(self.guidance, Tensor) or self.guidance != 1.0

    @property
    def passes(self) -> int:
        """Network passes for each prediction."""
        return 2 if self.guided else 1

    @cached_property
    def amplification(self) -> float:
        """How many times as large as a pass's errors those of a prediction are: sqrt(w^2 + (w - 1)^2), if independent.

        Samples that have scales of their own share the value of w = 3: what one of them is must not depend on others.
        """
        scale = self.guidance.detach() if isinstance(self.guidance, Tensor) else self.guidance
        w = 3.0 if np.ndim(scale) else float(scale)
        return math.hypot(w, w - 1)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are, or those of the modules that a function holds; the CPU without any."""
        parameters = (parameter for module in held_modules(self.network) for parameter in module.parameters())
        return next((parameter.device for parameter in parameters), torch.device("cpu"))

    @property
    def unsteady(self) -> bool:
        """Whether dropout or statistics of the batch make the network answer otherwise from call to call."""
        parts = (part for module in held_modules(self.network) for part in module.modules())
        return any(part.training and isinstance(part, UNSTEADY) and getattr(part, "p", 1.0) > 0 for part in parts)

    @property
    def first_defined(self) -> float:
        """The smallest time at which the network may be asked: 0 if it is continuous, else the schedule's."""
        return 0.0 if self.continuous else self.path.first_defined

    def condition(self, *, guidance: float | Tensor | None = None, **conditions: Any) -> Model:
        """The same model under these conditions: ``model.condition(label=3, guidance=2.0)``."""
        known = {*self.conditions, *self.null} if self.null else {*conditions}
        if unknown := {*conditions} - known:
            raise ValueError(
                f"condition {sorted(unknown)[0]!r} is unknown to this model; it takes {', '.join(sorted(known))}"
            )
        return replace(
            self,
            conditions={**self.conditions, **conditions},
            guidance=self.guidance if guidance is None else guidance,
        )

    def null_embedding(self) -> dict[str, Tensor]:
        """The null condition as floating-point tensors, which `odediff.null_text` optimises: one row, ``(...)``, each.

        A tensor with a row for every sample stays as it is.

        Raises:
            TypeError: the null condition holds none.
        """
        found = {
            name: value for name, value in self.null.items() if isinstance(value, Tensor) and value.is_floating_point()
        }
        if not found:
            raise TypeError(
                f"null={dict(self.null)!r} holds no floating-point tensor to optimise; give the null condition as an "
                "embedding that the network accepts"
            )
        return {name: value[0] if value.ndim and len(value) == 1 else value for name, value in found.items()}

    def remap(self, path: Schedule) -> Model:
        """The same network on another schedule: it is asked at equal signal-to-noise ratio, on rescaled states.

        States of equal ratio differ by a factor alone, so any schedule is another parametrisation of the one that the
        network was trained on, as far as its noise levels reach (Karras et al. 2022, section 2 and appendix B).
        """
        if not isinstance(path, Schedule):
            raise TypeError(f"path={path!r} is no schedule; pass one such as odediff.VPCosine()")
        known = self.trained_path or self.path
        return replace(self, path=Section(path, known), trained_path=known)

    def rows(self, index: Sequence[int] | Tensor) -> Model:
        """The same model for the samples ``index`` alone."""
        # A GPU would be waited for.
        counts = not isinstance(index, Tensor) or index.is_cpu
        index = as_row_numbers(index, row_count([self.conditions, self.null, self.guidance]) if counts else None)

        def select(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: selected(value, index) for name, value in values.items()}

        return replace(
            self,
            conditions=select(self.conditions),
            null=select(self.null),
            guidance=selected(self.guidance, index),
        )

    def require_batch(self, batch: int) -> None:
        """Raise `ValueError` where a condition or the guidance has neither one row nor one for each sample."""
        conditions = {f"condition {name!r}": value for name, value in self.conditions.items()}
        nulls = {f"null condition {name!r}": value for name, value in self.null.items()}
        for name, value in {**nulls, **conditions, "guidance": self.guidance}.items():
            require_rows_for(name, value, batch)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """Split ``x`` at ``node`` into data and noise: one pass of the network, or two under guidance."""
        seen, x_seen = (node, x) if self.trained_path is None else self._as_trained(node, x)
        self._require_defined(seen)
        require_information(self.prediction, seen)
        time = self._time(seen)
        output = self._call(x_seen, time, self.conditions)
        if self.guided:
            unconditional = self._call(x_seen, time, {**self.conditions, **self.null})
            if share_memory(unconditional, output) and not share_memory(output, x_seen):
                raise one_memory(self.network, "the pass without the condition overwrites the other")
            output = _guided(unconditional, output, self.guidance)
        prediction = predict(self.prediction, seen, x_seen, output)
        return threshold_prediction(self.threshold, node, prediction) if self.threshold else prediction

    def told(self, name: str, value: Any, x: Tensor) -> Any:
        """What the network is told where the condition ``name`` has this value, a row for each of the samples ``x``."""
        return expanded(f"condition {name!r}", value, len(x), x.device, _clock_dtype(self._network_dtype or x.dtype))

    def told_at(self, node: Node) -> Real:
        """The time that the network is told at ``node``."""
        path = self.trained_path or self.path
        seen = node if self.trained_path is None else path.node_at(node.log_snr)
        return self._clock(seen.t)

    def _clock(self, t: Real) -> Real:
        """What the network is told at a time of the schedule that it was trained on."""
        path = self.trained_path or self.path
        if self.network_time is None and self.continuous and isinstance(path, VPTable):
            return t * path.T - 1  # to -1 at the data, where the table itself ends at 0
        return (self.network_time or path.network_time)(t)

    def _as_trained(self, node: Node, x: Tensor) -> tuple[Node, Tensor]:
        """The node of the training schedule with the same ratio, and the state scaled to it."""
        seen = (self.trained_path or self.path).node_at(node.log_snr)
        ratio = np.hypot(seen.alpha, seen.sigma) / np.hypot(node.alpha, node.sigma)
        return seen, x * (float(ratio) if np.ndim(ratio) == 0 else per_row(ratio, x))

    def _require_defined(self, seen: Node) -> None:
        path = self.trained_path or self.path
        first = 0.0 if self.continuous else path.first_defined
        # A grid computed in floating point may miss the first entry by round-off.
        if anywhere(seen.t < first * (1 - 1e-9)):
            raise ValueError(
                f"times: the network was asked at t={np.min(seen.t):g}, below the first time it was trained on, "
                f"{first:g}; leave 0 out of inversion grids (odediff.encode does), keep a closing rule for sampling, "
                "or declare Model(..., continuous=True)"
            )

    def _time(self, seen: Node) -> Real:
        time = self._clock(seen.t)
        if self.integer_time and anywhere((beside := np.abs(time - np.round(time))) > 1e-6):
            remedy = (
                "use a grid of table entries, such as odediff.grid.uniform_t(path, steps) or odediff.grid.subsequence, "
                "and a solver that asks at its nodes alone: DDIM, Heun or a multistep method"
            )
            raise ValueError(
                f"times: the network was declared integer_time=True and would be asked at {time}; "
                + (remedy if anywhere(beside > 1e-3) else "give the times in float64, for float32 misses entries")
            )
        return time

    def _call(self, x: Tensor, time: Real, conditions: Mapping[str, Any]) -> Tensor:
        batch, dtype = x.shape[0], self._network_dtype or x.dtype
        if batch == 0:  # An empty batch has no row to fill a chunk up with, and some of torch's layers refuse it.
            return torch.empty_like(x)
        given = x if x.dtype is dtype else x.to(dtype)
        clock = _clock_dtype(dtype)
        if self.integer_time:
            times = placed(torch.from_numpy(np.broadcast_to(np.round(time), batch).astype(np.int64)), x.device)
        elif isinstance(time, int | float):
            times = torch.full((batch,), time, dtype=clock, device=x.device)
        else:
            times = placed(torch.from_numpy(np.asarray(time)), x.device, clock).expand(batch)
        keywords = {
            name: expanded(f"condition {name!r}", value, batch, x.device, clock) for name, value in conditions.items()
        }
        if self.chunk is None:
            watched = (
                [given, *(value for value in keywords.values() if isinstance(value, Tensor))] if keywords else [given]
            )
            before = written(watched)
            output = self._pass((given, times), keywords)
            after = written(watched)
            if after != before:
                words = (f"the condition {name!r}" for name, value in keywords.items() if isinstance(value, Tensor))
                names = ["its input, which is the solver's state", *words]
                wrong = next(name for name, one, other in zip(names, before, after, strict=True) if one != other)
                raise ValueError(
                    f"network {type(self.network).__name__} writes to {wrong}; let it work on a clone, or make its "
                    "first operation one that is not in place"
                )
            return output if output.dtype is x.dtype else output.to(x.dtype)
        parts: list[Tensor] = []
        for part, told in chunks(self.chunk, (given, times), keywords):
            answer = self._pass(part, told)
            if parts and share_memory(parts[-1], answer) and not is_constant(answer, (), self.network):
                raise one_memory(self.network, "one chunk of samples overwrites another")
            parts.append(answer)
        return torch.cat(parts)[:batch].to(x.dtype)

    def _pass(self, arguments: tuple[Tensor, ...], keywords: Mapping[str, Any]) -> Tensor:
        """One pass of the network, with its output's shape checked."""
        x = arguments[0]
        try:
            output = self.network(*arguments, **keywords)
        except RuntimeError as error:
            if re.search("same device|expected device", str(error)):
                raise _elsewhere(self.network, x) from error
            raise
        if not isinstance(output, Tensor) or output.shape != x.shape or not output.is_floating_point():
            got = f"{tuple(output.shape)} of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"network returned {got} for a state of {tuple(x.shape)}; it must return a tensor of that shape, real "
                'and floating-point (odediff.custom.Selected(network, "sample") selects a part of it, '
                "learned_variance=True drops the variances)"
            )
        if output.device != x.device:
            raise _elsewhere(self.network, x, output.device)
        self._last_answer.replace(output, (*arguments, *keywords.values()), self.network)
        return output

    @property
    def _network_dtype(self) -> torch.dtype | None:
        parameter = self._parameter
        return None if parameter is None else parameter.dtype

    @cached_property
    def _parameter(self) -> Tensor | None:
        """One that has the network's precision, which may change: `torch.nn.Module.half` changes it in place."""
        module = module_of(self.network)
        parameters = iter(()) if module is None else module.parameters()
        return next((p for p in parameters if p.is_floating_point()), None)


def _elsewhere(network: Any, x: Tensor, answered: torch.device | None = None) -> ValueError:
    """What to say of a network that is not where the state is."""
    what = f"answers on {answered}" if answered else "computes with tensors on another device"
    return ValueError(
        f"network {type(network).__name__} {what}, and the state is on {x.device}; bring them together, the state by "
        "x.to(model.device), a code by code.to(model.device)"
    )


def _clock_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which times and numbers are told to a network of ``dtype``: in bfloat16 entry 999 would be 1000."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.promote_types(dtype, torch.float32)


def _guided(unconditional: Tensor, conditional: Tensor, guidance: float | Tensor) -> Tensor:
    """``u + w (c - u)``, and c itself, bit for bit, for the samples with w = 1."""
    direction = conditional - unconditional
    if not isinstance(guidance, Tensor):
        return unconditional + guidance * direction
    scales = expanded("guidance", guidance.to(direction.dtype), len(direction), direction.device)
    weight = scales.reshape(-1, *(1,) * (direction.ndim - 1))
    return torch.where(weight == 1, conditional, unconditional + weight * direction)
