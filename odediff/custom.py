"""Your own network: a function that builds it, a safetensors file, and a declaration."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from odediff.device import available
from odediff.model import Model
from odediff.one_line import one_line
from odediff.prediction import Form
from odediff.schedule import RectifiedFlow, Schedule, VPTable
from odediff.threshold import Threshold
from solvers.arguments import as_number, require_switch
from solvers.real import Real, native

_SNAP = 1e-6


def load(
    factory: str,
    weights: str | Path | None = None,
    *,
    schedule: Schedule,
    prediction: Form = "epsilon",
    time_scale: float | None = None,
    time_offset: float = 0.0,
    integer_time: bool = False,
    continuous: bool = False,
    conditions: Mapping[str, Any] | None = None,
    null: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    threshold: Threshold | None = None,
    chunk: int | None = None,
    output: str | int | None = None,
    learned_variance: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Build a network, load its weights, and declare what it predicts.

    The network is called as ``network(x, network_time, **condition)``, in eval mode and without gradients for its
    weights.

    Args:
        factory: the location of the function (or class) that returns the network, as ``"package.module:build"`` or
            ``"package.module.build"``; it is called without arguments.
        weights: a ``.safetensors`` file with the network's state dict, loaded strictly; None keeps what the factory
            returns.
        schedule: the schedule that the network was trained on; see also `table_from_file`.
        prediction: what the network returns: "epsilon", "x0", "v", "flow" or "score".
        time_scale: with ``time_offset``, the network's time at time t: ``time_scale t + time_offset``; default: the
            schedule's own convention, which is n - 1 at entry n of a table (t = n/T). A network that counts from 1
            takes ``time_scale=T``; one with times in [0, 1] takes 1; one with its data at time 1 takes -1 and offset 1.
            On a rectified flow, t means the noise level here, whatever the shift.
        time_offset: see ``time_scale``, which it needs.
        integer_time: whether the network takes integer times only.
        continuous: whether the network can be evaluated at all times down to 0, not only at those of a table.
        conditions: keyword arguments of every call, such as ``{"label": 3}``.
        null: the conditions that mean "no condition"; guidance needs them.
        guidance: the scale of classifier-free guidance.
        threshold: an `odediff.StaticThreshold` or `odediff.DynamicThreshold`.
        chunk: the number of rows in every call of the network.
        output: the attribute, key or position of the prediction in what the network returns, if that is not a tensor:
            ``"sample"`` for the networks of diffusers.
        learned_variance: whether the network returns twice the state's channels, of which the second half are variances
            (Nichol & Dhariwal 2021); they are dropped.
        device: the device on which the network runs.
        dtype: the precision in which it computes.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message is one line and names the remedy.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule={schedule!r} is not a schedule; give one such as odediff.VPTable.linear()")
    for name, value in (("conditions", conditions), ("null", null)):
        if not isinstance(value, Mapping | None):
            raise TypeError(f"{name}={value!r} must be keyword arguments of the network, such as {{'label': 3}}")
    require_switch("learned_variance", learned_variance)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype!r} is not a floating-point dtype; use torch.float32, or torch.float16 on a GPU")
    place = available(device)
    # The declaration is checked first, since the network may take minutes to build.
    declared = Model(
        nn.Identity(),
        schedule,
        prediction,
        conditions=dict(conditions or {}),
        null=dict(null or {}),
        guidance=guidance,
        threshold=threshold,
        chunk=chunk,
        continuous=continuous,
        integer_time=integer_time,
        network_time=_clock(time_scale, time_offset, schedule),
    )
    network = build(factory)
    if weights is not None:
        load_weights(network, weights)
    if output is not None or learned_variance:
        network = Selected(network, output, learned_variance)
    return replace(declared, network=network.to(place, dtype).eval().requires_grad_(False))


def build(factory: str) -> nn.Module:
    """Import the function at a dotted path and return the network that it builds; the random state is unchanged."""
    function = _located(factory)
    if not callable(function):
        raise ValueError(f"factory={factory!r} is a {type(function).__name__}; name a function that builds the network")
    try:
        with torch.random.fork_rng(devices=[]):
            network = function()
    except Exception as error:
        raise ValueError(
            f"factory={factory!r} failed when called without arguments: {one_line(error)}; wrap it in a function that "
            "takes none"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"factory={factory!r} returned a {type(network).__name__}; it must return a torch.nn.Module")
    return network


def load_weights(network: nn.Module, weights: str | Path) -> None:
    """Copy a safetensors file into ``network``, strictly; nothing is copied unless every tensor fits."""
    if not isinstance(weights, str | Path):
        raise TypeError(f"weights={weights!r} is not a path; give that of a .safetensors file")
    stored = _read(Path(weights))
    expected = network.state_dict()
    # A tensor that the network has under two names is stored under one; loading that one fills both.
    filled = {_place(expected[name]) for name in stored if name in expected}
    missing = [name for name, value in expected.items() if name not in stored and _place(value) not in filled]
    unexpected = [name for name in sorted(stored) if name not in expected]
    shaped = [
        f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in sorted(stored.items())
        if name in expected and value.shape != expected[name].shape
    ]
    faults = [
        f"{what} {_few(names)}"
        for what, names in (("lacks", missing), ("has unexpected", unexpected), ("has", shaped))
        if names
    ]
    if faults:
        raise ValueError(
            f"weights={str(weights)!r} does not fit the network: the file {'; '.join(faults)}; save the state dict of "
            "the network that the factory builds"
        )
    network.load_state_dict(stored, strict=False)


def table_from_file(path: str | Path) -> VPTable:
    """Return the table whose alpha-bars are in a file: a JSON list, or a one-dimensional ``.npy`` array.

    Raises:
        ValueError: the file is missing or of another kind, or its numbers are not a table (see `VPTable`).
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            entries = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".npy":
            entries = np.load(path, allow_pickle=False)
        else:
            raise ValueError(f"suffix {path.suffix!r} is unknown")
        entries = np.asarray(entries, dtype=np.float64)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"table file {str(path)!r} cannot be read ({one_line(error)}); give a .json list or a .npy array of the "
            "alphas_cumprod"
        ) from error
    return VPTable(entries)


@dataclass(frozen=True)
class Clock:
    """The network time ``scale t + offset``, rounded when within 1e-6 of an integer.

    On a rectified ``flow``, t is the noise level, which a shift moves to another time.
    """

    scale: float
    offset: float = 0.0
    flow: RectifiedFlow | None = None

    def __call__(self, t: Real) -> Real:
        told = self.scale * np.asarray(t if self.flow is None else self.flow.sigma(t)) + self.offset
        whole = np.rint(told)
        return native(np.where(np.abs(told - whole) <= _SNAP, whole, told))


class Selected(nn.Module):
    """A network whose prediction is only a part of what it returns.

    Args:
        network: called with the state, the time and the conditions.
        output: the attribute, key or position of the part; None for all of it.
        learned_variance: whether the part has twice the state's channels; the second half, the variances, is dropped.
    """

    def __init__(self, network: nn.Module, output: str | int | None = None, learned_variance: bool = False) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"network={network!r} must be a torch.nn.Module, whose precision, device and weights count; let a "
                "function select the part itself: lambda x, t, **condition: network(x, t, **condition).sample"
            )
        self.network, self.output, self.learned_variance = network, output, learned_variance

    def forward(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        """The prediction alone, in the shape of ``x``."""
        returned = self.network(x, time, **condition)
        if self.output is not None:
            returned = self._part(returned)
        if not self.learned_variance:
            return returned
        if not isinstance(returned, Tensor) or returned.shape[1:2] != (2 * x.shape[1],):
            got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            raise ValueError(
                f"learned_variance=True expects {2 * x.shape[1]} channels for a state of {tuple(x.shape)}, but the "
                f"network returned {got}; leave it out, or give output="
            )
        return returned[:, : x.shape[1]]

    def _part(self, returned: Any) -> Any:
        try:
            if isinstance(self.output, str) and not isinstance(returned, Mapping):
                return getattr(returned, self.output)
            return returned[self.output]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"output={self.output!r} is not a part of the {type(returned).__name__} that the network returned; "
                "name an attribute, a key or a position of it"
            ) from error


def _clock(scale: float | None, offset: float, schedule: Schedule) -> Callable[[Real], Real] | None:
    if scale is None:
        if offset != 0:
            raise ValueError(
                f"time_offset={offset!r} needs time_scale; for a network that counts from 1 give "
                "time_scale=T, time_offset=0"
            )
        return None
    if not np.isfinite(as_number(scale)) or scale == 0 or not np.isfinite(as_number(offset)):
        raise ValueError(f"time_scale={scale!r}, time_offset={offset!r}: give finite numbers and a scale other than 0")
    return Clock(float(scale), float(offset), schedule if isinstance(schedule, RectifiedFlow) else None)


def _located(factory: str) -> Any:
    if not isinstance(factory, str):
        raise TypeError(f"factory={factory!r} is not a path to a function; write it as package.module:build")
    module, separator, name = factory.partition(":") if ":" in factory else factory.rpartition(".")
    if not (module and separator and name):
        raise ValueError(f"factory={factory!r} is not a path to a function; write it as package.module:build")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"factory={factory!r}: importing {module} needs {error.name}; install it") from error
        raise ValueError(
            f"factory={factory!r}: there is no module {error.name}; install it, or add its folder to PYTHONPATH"
        ) from error
    except Exception as error:
        raise ValueError(
            f"factory={factory!r}: importing {module} failed: {one_line(error)}; fix the module"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            own = [
                key
                for key, value in getattr(found, "__dict__", {}).items()
                if getattr(value, "__module__", None) == module
            ]
            raise ValueError(f"factory={factory!r}: {module} has no {name}; it defines {_few(own) or 'nothing'}")
        found = getattr(found, part)
    return found


def _read(weights: Path) -> dict[str, Tensor]:
    if weights.suffix != ".safetensors":
        raise ValueError(
            f"weights={str(weights)!r} is not a .safetensors file, and a pickle could run any code; convert it once: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        )
    try:
        return load_bytes(weights.read_bytes())
    except OSError as error:
        raise ValueError(f"weights={str(weights)!r} cannot be read ({error.strerror}); check the path") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"weights={str(weights)!r} is truncated or not a safetensors file ({one_line(error)}); copy it or save it "
            "again"
        ) from error


def _place(value: Tensor) -> tuple[int, tuple[int, ...]]:
    """The memory and shape of a tensor, equal for two names of one tensor."""
    return value.data_ptr(), tuple(value.shape)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
