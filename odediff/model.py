"""A network with its declaration: prediction form, schedule, time convention, conditions, guidance."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odediff.conditions import (
    as_row_numbers,
    as_tensors,
    chunks,
    expanded,
    require_rows_for,
    row_count,
    selected,
    tensors,
)
from odediff.fingerprint import held_modules
from odediff.overwriting import LastOutput, is_constant, one_memory, share_memory, written
from odediff.precision import Place, precision_at, precision_place, require_one_precision
from odediff.prediction import FORMS, Form, NetworkPrediction
from odediff.schedule import Schedule, Section
from odediff.threshold import DynamicThreshold, StaticThreshold, Threshold, threshold_prediction
from odediff.unsteady import is_unsteady
from odediff.view import Views, own_path, told_time
from solvers import Node, Prediction
from solvers.arguments import require_switch, require_whole
from solvers.real import Real
from solvers.sums import per_row
from solvers.transfer import placed

Network = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that turns ``network(x, network_time, **condition)`` into predictions of data and noise.

    Args:
        network: called with ``x`` ``(B, ...)``, the network time ``(B,)`` and the values of the conditions, each
            ``(B, ...)``; returns a tensor in the shape of ``x``. A module receives them in its own precision; a
            function receives the state as it is, and casts for the modules that it calls.
        path: the schedule that the states follow.
        prediction: what the network returns: "epsilon", "x0" (as EDM's denoiser), "v" (alpha eps - sigma x0), "flow"
            (eps - x0) or "score" (-eps / sigma). A network that returns x0 - eps, with the data at t = 1, must be
            negated and given the time 1 - t.
        conditions: keyword arguments of every call. A number stands for all samples and reaches the network as a
            tensor: an integer in int64, a float in the network's precision but at least float32. A tensor or an array,
            also inside a dict, a list or a tuple, has one row for each sample and keeps its precision. Lists of numbers
            are passed unchanged.
        null: the conditions that mean "no condition"; guidance needs them.
        guidance: the scale w of classifier-free guidance, ``u + w (c - u)`` (1 + w in Ho & Salimans 2022); one
            number, or one per sample, which the default solver treats as strong guidance. w = 1 is the conditional
            prediction, bit for bit; given as a number, it takes a single pass.
        threshold: keeps the predicted data in the range of images; sampling is then not invertible.
        chunk: the number of rows in every call of the network. Networks round differently at different batch sizes;
            calls of one size make a sample's bits independent of the batch around it.
        continuous: declares that the network can be evaluated at all times down to 0. Otherwise, on any path, no solve
            evaluates it below the schedule's end, and a solve to a tolerance extrapolates from there.
        integer_time: declares that the network takes integer times only, such as the rows of an embedding table.
        network_time: maps a time of the path (a float or, where samples keep their own times, a float64 array of them:
            use numpy) to the time that the network receives; default: the path's own convention.
        trained_path: the schedule that the network was trained on, if ``path`` is another one: states are matched by
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
    _last_output: LastOutput = field(default_factory=LastOutput, init=False, repr=False)
    _views: Views = field(default_factory=Views, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise TypeError(f"network={self.network!r} must be callable as network(x, network_time, **condition)")
        if isinstance(self.network, type):
            raise TypeError(f"network={self.network!r} is a class; pass an instance, {self.network.__name__}(...)")
        if not isinstance(self.path, Schedule):
            raise TypeError(
                f"path must be a schedule, not a {type(self.path).__name__}; pass one such as "
                "odediff.VPTable(alphas_cumprod)"
            )
        if self.prediction not in FORMS:
            raise ValueError(f"prediction={self.prediction!r} is unknown; use one of {', '.join(FORMS)}")
        if self.chunk is not None:
            require_whole("chunk", self.chunk, 1, hint=", or None")
        if not isinstance(self.trained_path, Schedule | None):
            raise TypeError(f"trained_path={self.trained_path!r} is not a schedule; model.remap(path) sets it")
        if self.network_time is not None and not callable(self.network_time):
            raise TypeError(f"network_time={self.network_time!r} must be a function of the path's time, or None")
        for name in ("continuous", "integer_time"):
            require_switch(name, getattr(self, name))
        if self.threshold is not None and not isinstance(self.threshold, StaticThreshold | DynamicThreshold):
            raise TypeError(f"threshold={self.threshold!r} must be a StaticThreshold, a DynamicThreshold or None")
        _require_guidance(self.guidance)
        for name in ("conditions", "null"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise TypeError(f"{name}={given!r} must be keyword arguments of the network, such as {{'label': 3}}")
            object.__setattr__(self, name, as_tensors(dict(given)))
        if self.guided and not self.null:
            raise ValueError(
                f'guidance={self.guidance!r} needs null=..., the conditions that mean "no condition"; without them '
                "only guidance=1 is possible"
            )

    @cached_property
    def guided(self) -> bool:
        """Whether a prediction takes a second pass, without the condition."""
        return isinstance(self.guidance, Tensor) or self.guidance != 1.0

    @property
    def passes(self) -> int:
        """The number of network passes for each prediction."""
        return 2 if self.guided else 1

    @cached_property
    def amplification(self) -> float:
        """Factor by which guidance amplifies the error of one pass, sqrt(w^2 + (w-1)^2) for independent errors.

        Samples with scales of their own share the value for w = 3, since no sample may depend on the others.
        """
        scale = self.guidance.detach() if isinstance(self.guidance, Tensor) else self.guidance
        w = 3.0 if np.ndim(scale) else float(scale)
        return math.hypot(w, w - 1)

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters, or of the modules that a function holds; the CPU without any."""
        return next((parameter.device for parameter in _parameters(self.network)), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision in which the network, or the modules that a function holds, take a state; None without any."""
        place = precision_place(held_modules(self.network))
        return None if place is None else precision_at(place)

    @property
    def unsteady(self) -> bool:
        """Whether the network's output depends on chance, such as dropout, or on the statistics of the batch."""
        return any(is_unsteady(part) for module in held_modules(self.network) for part in module.modules())

    def condition(
        self, named: Mapping[str, Any] | None = None, /, *, guidance: float | Tensor | None = None, **conditions: Any
    ) -> Model:
        """The same model under these conditions: ``model.condition(label=3, guidance=2.0)``.

        Those whose names are no keywords, or are ``guidance`` as in networks that are told their scale, are ``named``
        in a mapping. A negative prompt is another null condition: ``dataclasses.replace(model, null={"text":
        negative})``.
        """
        conditions = {**(named or {}), **conditions}
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
        """The null condition's floating-point tensors, which `odediff.null_text` optimises: one row, ``(...)``, each.

        A tensor with a row for every sample stays as it is.

        Raises:
            TypeError: the null condition has no such tensor.
        """
        found = {
            name: value for name, value in self.null.items() if isinstance(value, Tensor) and value.is_floating_point()
        }
        if not found:
            raise TypeError(
                f"null={dict(self.null)!r} has no floating-point tensor to optimise, those inside of dicts and lists "
                "apart; give the null condition as an embedding that the network accepts"
            )
        return {name: value[0] if value.ndim and len(value) == 1 else value for name, value in found.items()}

    def remap(self, path: Schedule) -> Model:
        """The same network on another schedule: it is evaluated at equal signal-to-noise ratio, on rescaled states.

        States of equal ratio differ only by a factor, so any schedule is another parametrisation of the one that the
        network was trained on, as far as its noise levels reach (Karras et al. 2022, section 2 and appendix B).
        """
        if not isinstance(path, Schedule):
            raise TypeError(f"path={path!r} is not a schedule; pass one such as odediff.VPCosine()")
        trained = own_path(self)
        return replace(self, path=Section(path, trained), trained_path=trained)

    def rows(self, index: Sequence[int] | Tensor) -> Model:
        """The same model for the samples ``index`` alone."""
        # Checking the range of an index on a GPU would mean waiting for the GPU.
        is_readable = not isinstance(index, Tensor) or index.is_cpu
        index = as_row_numbers(index, row_count([self.conditions, self.null, self.guidance]) if is_readable else None)

        def select(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: selected(value, index) for name, value in values.items()}

        return replace(
            self,
            conditions=select(self.conditions),
            null=select(self.null),
            guidance=selected(self.guidance, index),
        )

    def require_batch(self, batch: int) -> None:
        """Raise `ValueError` if a condition or the guidance has neither one row nor one for each sample."""
        conditions = {f"condition {name!r}": value for name, value in self.conditions.items()}
        nulls = {f"null condition {name!r}": value for name, value in self.null.items()}
        for name, value in {**nulls, **conditions, "guidance": self.guidance}.items():
            require_rows_for(name, value, batch)

    def predict(self, node: Node, x: Tensor) -> Prediction:
        """Split ``x`` at ``node`` into data and noise: one pass of the network, or two under guidance.

        The node's time, alpha and sigma are floats, or ``(B,)`` arrays where samples keep their own time (``rtol``); a
        subclass that steers by the time must be ready for both. A `Code` is decoded by the subclass that made it alone.
        """
        time, scale, data, noise = self._views.at(self, node)
        x_seen = x if scale is None else x * (scale if isinstance(scale, float) else per_row(scale, x))
        output = self._call(x_seen, time, self.conditions)
        if self.guided:
            unconditional = self._call(x_seen, time, {**self.conditions, **self.null})
            if share_memory(unconditional, output) and not share_memory(output, x_seen):
                raise one_memory(self.network, "the pass without the condition overwrites the other one")
            output = _guided(unconditional, output, self.guidance)
        prediction = NetworkPrediction(x_seen, output, data, noise)
        return threshold_prediction(self.threshold, node, prediction) if self.threshold else prediction

    def told(self, name: str, value: Any, x: Tensor) -> Any:
        """What the network receives for this value of the condition ``name``: a row for each of the samples ``x``."""
        return expanded(f"condition {name!r}", value, len(x), x.device, _clock_dtype(self._computes_in(x)))

    def told_at(self, node: Node) -> Real:
        """The time that the network receives at ``node``."""
        return told_time(self, node)

    def _call(self, x: Tensor, time: Real, conditions: Mapping[str, Any]) -> Tensor:
        """The network's output in the dtype of ``x``, in one pass or chunk by chunk."""
        batch, dtype = x.shape[0], self._computes_in(x)
        if batch == 0:  # no row could fill a chunk, and some of torch's layers refuse an empty batch
            return torch.empty_like(x)
        clock = _clock_dtype(dtype)
        keywords = {
            name: expanded(f"condition {name!r}", value, batch, x.device, clock) for name, value in conditions.items()
        }
        given = x if x.dtype is dtype else x.to(dtype)
        run = self._whole if self.chunk is None else self._chunked
        output = run(given, self._row_times(time, x, clock), keywords)
        return output if output.dtype is x.dtype else output.to(x.dtype)

    def _row_times(self, time: Real, x: Tensor, clock: torch.dtype) -> Tensor:
        """The network time of each sample, ``(B,)``."""
        if self.integer_time:
            whole = np.broadcast_to(np.round(time), len(x)).astype(np.int64)
            return placed(torch.from_numpy(whole), x.device)
        if isinstance(time, int | float):
            return torch.full(x.shape[:1], time, dtype=clock, device=x.device)
        return placed(torch.from_numpy(np.asarray(time)), x.device, clock).expand(len(x))

    def _whole(self, x: Tensor, times: Tensor, keywords: Mapping[str, Any]) -> Tensor:
        """One pass of the whole batch, refused if it writes to its input."""
        told = [(name, part) for name, value in keywords.items() for part in tensors(value)] if keywords else []
        watched = [x, *(part for _, part in told)] if told else [x]
        before = written(watched)
        output = self._pass((x, times), keywords)
        if (after := written(watched)) != before:
            names = ["its input, which is the solver's state", *(f"the condition {name!r}" for name, _ in told)]
            wrong = next(name for name, one, other in zip(names, before, after, strict=True) if one != other)
            raise ValueError(
                f"network {type(self.network).__name__} writes to {wrong}; let it work on a clone, or make its first "
                "operation out of place"
            )
        return output

    def _chunked(self, x: Tensor, times: Tensor, keywords: Mapping[str, Any]) -> Tensor:
        """Passes of `chunk` rows each."""
        parts: list[Tensor] = []
        for arguments, conditions in chunks(self.chunk or len(x), (x, times), keywords):
            output = self._pass(arguments, conditions)
            if parts and share_memory(parts[-1], output) and not is_constant(output, (), self.network):
                raise one_memory(self.network, "one chunk of samples overwrites another")
            parts.append(output)
        return torch.cat(parts)[: len(x)]

    def _pass(self, arguments: tuple[Tensor, ...], keywords: Mapping[str, Any]) -> Tensor:
        """One pass of the network, whose output is checked."""
        x = arguments[0]
        try:
            output = self.network(*arguments, **keywords)
        except RuntimeError as error:
            if re.search("same device|expected device", str(error)):
                raise _elsewhere(self.network, x) from error
            # A function casts the state itself, and may have forgotten it.
            if self._place and re.search("same dtype|should be the same|scalar type", str(error)):
                require_one_precision(x.dtype, keywords, error)
            raise
        if not isinstance(output, Tensor) or output.shape != x.shape or not output.is_floating_point():
            got = f"{tuple(output.shape)} of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"network returned {got} for a state of {tuple(x.shape)}; it must return a real floating-point tensor "
                'of that shape (odediff.custom.Selected(network, "sample") selects a part of the output, '
                "learned_variance=True drops the variances)"
            )
        if output.device != x.device:
            raise _elsewhere(self.network, x, output.device)
        self._last_output.replace(output, (*arguments, *keywords.values()), self.network)
        return output

    def _computes_in(self, x: Tensor) -> torch.dtype:
        """The precision in which the network receives ``x``: a module's own."""
        if (place := self._place) is None:
            return x.dtype
        try:
            return precision_at(place)
        except (KeyError, AttributeError):  # it was removed
            del self.__dict__["_place"]
            return self._computes_in(x)

    @cached_property
    def _place(self) -> Place | None:
        """The place of a parameter in the precision in which a module computes."""
        module = getattr(self.network, "__self__", self.network)
        return precision_place([module] if isinstance(module, nn.Module) else [])


def _parameters(network: Any) -> Iterator[nn.Parameter]:
    """The parameters of a network, or of the modules that a function holds."""
    return (parameter for module in held_modules(network) for parameter in module.parameters())


def _require_guidance(guidance: Any) -> None:
    if isinstance(guidance, bool) or not isinstance(guidance, int | float | np.number | Tensor):
        raise TypeError(f"guidance={guidance!r} must be a number, or a tensor with one for each sample")
    if isinstance(guidance, Tensor) and (guidance.dtype == torch.bool or guidance.is_complex()):
        raise TypeError(f"guidance has dtype {guidance.dtype}; give real numbers")
    if isinstance(guidance, Tensor) and guidance.ndim > 1:
        raise ValueError(f"guidance has shape {tuple(guidance.shape)}; give one number for each sample, (B,)")
    if not (guidance.isfinite().all() if isinstance(guidance, Tensor) else math.isfinite(guidance)):
        raise ValueError(f"guidance={guidance!r} must be finite; 1 is the conditional prediction")


def _elsewhere(network: Any, x: Tensor, output: torch.device | None = None) -> ValueError:
    """The error for a network that is not on the device of the state."""
    what = f"returns its output on {output}" if output else "computes with tensors on another device"
    # Of a network with parts on several devices, or with none, model.device may be where the state is already.
    there = next(_parameters(network), x).device == x.device
    instead = f"; model.device is {x.device} as well: name the network's device in its place" if there else ""
    return ValueError(
        f"network {type(network).__name__} {what}, but the state is on {x.device}; bring them together, a state by "
        f"x.to(model.device), a code by code.to(model.device){instead}"
    )


def _clock_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which a network of ``dtype`` receives times and numbers: in bfloat16, 999 would be 1000."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.promote_types(dtype, torch.float32)


def _guided(unconditional: Tensor, conditional: Tensor, guidance: float | Tensor) -> Tensor:
    """``u + w (c - u)``; for samples with w = 1, c itself, bit for bit."""
    direction = conditional - unconditional
    if not isinstance(guidance, Tensor):
        return unconditional + guidance * direction
    scales = expanded("guidance", guidance.to(direction.dtype), len(direction), direction.device)
    weight = scales.reshape(-1, *(1,) * (direction.ndim - 1))
    return torch.where(weight == 1, conditional, unconditional + weight * direction)
