"""The code of an image: its noise and everything needed to decode it, in a file that is intact or refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import solvers
from odediff.conditions import as_row_numbers, equal_conditions, nested, selected
from odediff.files import replacing
from odediff.fingerprint import fingerprint, tensors_hash
from odediff.model import Model
from odediff.serialization import put_together, read_back, taken_apart, written
from solvers import Companion, Solver, Stats
from solvers.implicit_inverse import Effort

FORMAT = 3
HEADER = "odediff"
OF_MODEL = {"path", "prediction", "guidance", "conditions", "null", "weights"}
"""The keys that describe the model that encoded."""
WRITTEN = {"format", "solver", "stats", "partner", "origin", "digest", "tensors"} | OF_MODEL
"""The keys that the JSON of a file must have."""
STEPS_TRIED = ("accepted", "rejected")
"""The counts of `solvers.Stats` that only methods with a tolerance have; older files lack them."""


@dataclass(frozen=True, eq=False)
class Code:
    """The noise of images, with everything needed to decode them.

    Args:
        x: the states at the noisiest node, ``(B, ...)``.
        nodes: time, alpha, sigma and network time of the grid's nodes, ``(N + 1, 4)`` in float64; the times ascend from
            the end nearest to the data.
        solver: the method that decodes.
        path, prediction, guidance, conditions, null, weights: those of the model that encoded; the path as its `repr`,
            the weights as their hash, followed by the name of the model's class if that overrides `Model.predict`.
        stats: the cost of encoding.
        status: how encoding ended for each sample, ``(B,)``, values of `solvers.Status`.
        state: the companion of a reversible method.
        effort: the residuals and iterations of an implicit inverse.
        offsets: what decoding adds after each step, ``(N, B, ...)``, noise first.
        nulls: the null condition of each decoding step, ``(N, B, ...)`` or ``(1, B, ...)``, noise first.
        digest: the hash of everything that must not change; computed if not given. A code whose description was altered
            afterwards cannot be constructed.
    """

    x: Tensor
    nodes: Tensor
    solver: Solver
    path: str
    prediction: str
    guidance: float | Tensor
    conditions: Mapping[str, Any]
    null: Mapping[str, Any]
    weights: str
    stats: Stats
    status: Tensor
    state: Companion | None = None
    effort: Effort | None = None
    offsets: Tensor | None = None
    nulls: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        found = self._description_hash()
        if self.digest and self.digest != found:
            raise ValueError(
                "code: its grid, solver, dtype, shape, model or condition differs from that of the encoding; encode "
                "again, or pass edit=True to decode under another condition"
            )
        object.__setattr__(self, "digest", found)

    @classmethod
    def of(cls, model: Model, nodes: Tensor, **fields: Any) -> Code:
        """A code made by ``model``."""
        # The user's tensors may change later; the code must not.
        described = {name: _copied(value) for name, value in describe_model(model).items()}
        return cls(nodes=nodes, **described, **fields)

    @property
    def times(self) -> Tensor:
        """The times of the nodes, ascending, float64."""
        return self.nodes[:, 0]

    def require_model(self, model: Model, edit: bool = False) -> None:
        """Raise `ValueError` unless ``model`` is the encoder; an edit may change its conditions and guidance."""
        remedy = "decode with the same model"
        for name, given in describe_model(model).items():
            stored = getattr(self, name)
            # Recorded nulls replace the model's own.
            editable = name in ("guidance", "conditions") or (name == "null" and not self.nulls)
            if (edit and editable) or (name == "null" and not model.guided) or equal_conditions(given, stored):
                continue
            hint = " (edit=True allows another condition and guidance)" if editable else ""
            one, other = _shown(given), _shown(stored)
            theirs = "of the same shape, with other values" if one == other else other
            raise ValueError(f"model.{name}={one} differs from the encoder's {theirs}; {remedy}{hint}")
        if model.threshold is not None:
            raise ValueError(f"model.threshold={model.threshold} cannot decode; use Model(..., threshold=None)")
        here = grid_nodes(model, self.times)
        if not torch.allclose(here, self.nodes, rtol=1e-12, atol=0):
            raise ValueError(
                "model.path has other nodes at the code's times, or model.network_time gives other network times "
                "there; decode with the same model"
            )

    def rows(self, index: Sequence[int] | Tensor) -> Code:
        """The code of the samples ``index`` alone; ``model.rows(index)`` is the model that decodes it.

        Samples decode to the same images alone as among others, to the last bit with `Model.chunk`.
        """
        at = torch.arange(len(self.x), device="cpu")[as_row_numbers(index, len(self.x)).cpu()]

        def mine(value: Tensor | None, dim: int = 0) -> Any:
            return None if value is None else value.index_select(dim, at.to(value.device))

        stats, state, effort = self.stats, self.state, self.effort
        companion = {} if state is None else {n: mine(v) for n, v in state._asdict().items() if isinstance(v, Tensor)}
        return dataclasses.replace(
            self,
            x=mine(self.x),
            guidance=selected(self.guidance, at),
            conditions=selected(dict(self.conditions), at),
            null=selected(dict(self.null), at),
            stats=dataclasses.replace(
                stats,
                nfe=max(mine(stats.evaluations).tolist(), default=0),
                evaluations=mine(stats.evaluations),
                accepted=mine(stats.accepted),
                rejected=mine(stats.rejected),
            ),
            status=mine(self.status),
            state=None if state is None else state._replace(**companion),
            effort=None
            if effort is None
            else Effort(mine(effort.residual), mine(effort.iterations), mine(effort.status)),
            offsets=mine(self.offsets, 1),
            nulls={name: mine(value, 1) for name, value in self.nulls.items()},
            digest="",
        )

    def to(self, device: str | torch.device) -> Code:
        """The code with its states on another device: that of the model that is to decode it."""
        names = ("x", "state", "effort", "offsets", "nulls")
        return dataclasses.replace(self, **{name: _moved(getattr(self, name), device) for name in names})

    def save(self, path: str | PathLike[str]) -> None:
        """Write the code to one safetensors file, atomically: tensors, and JSON in the file's metadata.

        Raises:
            TypeError: a part of the code has no safe written form, such as a solver that is not made of dataclasses.
        """
        # Two parts may share one tensor, but safetensors stores no shared memory.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._tensors().items()}
        guidance = None if isinstance(self.guidance, Tensor) else float(self.guidance)
        header = {
            "format": FORMAT,
            "solver": written(self.solver),
            "path": self.path,
            "prediction": self.prediction,
            "guidance": guidance,
            "conditions": taken_apart("conditions", self.conditions)[0],
            "null": taken_apart("null", self.null)[0],
            "weights": self.weights,
            "stats": [self.stats.nfe, self.stats.network_evaluations, self.stats.steps],
            **self._companion_places(),
            "digest": self.digest,
            "tensors": tensors_hash(tensors),
        }
        with replacing(Path(path)) as partial:
            save_file(tensors, partial, metadata={HEADER: json.dumps(header)})

    @classmethod
    def load(cls, path: str | PathLike[str], *, solver: Solver | None = None) -> Code:
        """Read a code that `save` wrote; if the solver's class is your own, pass the ``solver`` that encoded.

        Raises:
            ValueError: the file is not a code, is truncated or altered, or was made by a solver that is unknown here.
        """
        tensors, header = _read(Path(path))
        node = None if header["partner"] is None else solvers.Node(*header["partner"])
        pair = _named(tensors, "state.")
        effort = [tensors.get(f"effort.{name}") for name in Effort._fields]
        nfe, network_evaluations, steps = header["stats"]
        if solver is not None and written(solver) != header["solver"]:
            raise ValueError(
                f"solver={solver} differs from the encoder's {header['solver']}; pass the solver that encoded"
            )
        encoder = solver or read_back(header["solver"])
        return cls(
            x=tensors["x"],
            nodes=tensors["nodes"],
            solver=encoder,
            path=header["path"],
            prediction=header["prediction"],
            guidance=tensors["guidance"] if header["guidance"] is None else header["guidance"],
            conditions=put_together("conditions", header["conditions"], tensors),
            null=put_together("null", header["null"], tensors),
            weights=header["weights"],
            stats=Stats(nfe, network_evaluations, tensors["evaluations"], steps, *map(tensors.get, STEPS_TRIED)),
            status=tensors["status"],
            state=Companion(**pair, node=node, origin=header["origin"], solver=encoder) if pair else None,
            effort=None if effort[0] is None else Effort(*effort),  # type: ignore[arg-type]
            offsets=tensors.get("offsets"),
            nulls=_named(tensors, "nulls."),
            digest=header["digest"],
        )

    def _tensors(self) -> dict[str, Tensor]:
        found = {"x": self.x, "nodes": self.nodes, "status": self.status, "evaluations": self.stats.evaluations}
        for name in STEPS_TRIED:
            if (counts := getattr(self.stats, name)) is not None:
                found[name] = counts
        if isinstance(self.guidance, Tensor):
            found["guidance"] = self.guidance
        for name, values in (("conditions", self.conditions), ("null", self.null), ("nulls", self.nulls)):
            found |= taken_apart(name, values)[1]
        if self.state is not None:
            found |= {f"state.{n}": v for n, v in self.state._asdict().items() if isinstance(v, Tensor)}
        if self.effort is not None:
            found |= {f"effort.{name}": value for name, value in self.effort._asdict().items()}
        return found if self.offsets is None else found | {"offsets": self.offsets}

    def _companion_places(self) -> dict[str, Any]:
        """The node of the companion's partner, and the time of its rest."""
        state = self.state
        return {
            "partner": None if state is None or state.node is None else [float(v) for v in state.node],
            "origin": None if state is None or state.rest is None else state.origin,
        }

    def _description_hash(self) -> str:
        """The hash of model, grid, solver, and the states' dtypes, shapes, partner's node and time of the rest.

        It leaves out the states' values, the nulls, and the status and cost of encoding.
        """
        companions = [] if self.state is None else [v for v in self.state[:3] if v is not None]
        stored = [self.x, *companions, *([] if self.offsets is None else [self.offsets[0]])]
        described = {
            "solver": _described(self.solver),
            "path": self.path,
            "prediction": self.prediction,
            "weights": self.weights,
            "guidance": _hashable(self.guidance if isinstance(self.guidance, Tensor) else float(self.guidance)),
            "conditions": {name: _hashable(value) for name, value in sorted(self.conditions.items())},
            "null": {name: _hashable(value) for name, value in sorted(self.null.items())},
            "nodes": _hashable(self.nodes),
            **self._companion_places(),
            "states": [[str(v.dtype), list(v.shape)] for v in stored],
        }
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def describe_model(model: Model) -> dict[str, Any]:
    """The fields of a `Code` that describe the model that encoded."""
    kind = type(model)
    derived = "" if kind.predict is Model.predict else f" in {kind.__module__}.{kind.__qualname__}"
    return {
        "path": repr(model.path),
        "prediction": model.prediction,
        "guidance": model.guidance,
        "conditions": dict(model.conditions),
        "null": dict(model.null),
        "weights": fingerprint(model.network) + derived,
    }


def _moved(value: Any, device: str | torch.device) -> Any:
    """A tensor, or the tensors of a mapping or a named tuple, on that device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return type(value)(*(_moved(one, device) for one in value)) if isinstance(value, tuple) else value


def _copied(value: Any) -> Any:
    """The value with its tensors copied; a mapping of a class of its own becomes a dict."""

    def copied(part: Any) -> Any:
        if isinstance(part, Mapping):
            return _copied(dict(part))
        return part.detach().clone() if isinstance(part, Tensor) else part

    return nested(copied, value)


def grid_nodes(model: Model, times: Tensor) -> Tensor:
    """Time, alpha, sigma and network time at ``times``, ``(N + 1, 4)`` in float64."""
    nodes = model.path.nodes(times.tolist())
    return torch.tensor([(*node, model.told_at(node)) for node in nodes], dtype=torch.float64, device="cpu")


def _described(solver: Solver) -> Any:
    """The written form of a solver, in which equal numbers look equal, or its `repr` if it has none."""
    try:
        return written(solver)
    except TypeError:
        return repr(solver)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file, both verified to be unaltered."""
    remedy = "encode again, and save with code.save(path)"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); {remedy}") from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} holds tensors but not a code; {remedy}") from error
    if isinstance(header, dict) and header.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path} has format {header['format']}, but this version reads {FORMAT}; {remedy}")
    if not isinstance(header, dict) or not set(header) >= WRITTEN or not header["digest"]:
        raise ValueError(f"{path} is altered: its description is incomplete; {remedy}")
    if tensors_hash(tensors) != header["tensors"]:
        raise ValueError(f"{path} is altered: its tensors are not those that were written; {remedy}")
    return tensors, header


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _hashable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable(part) for part in value]
    if not isinstance(value, Tensor):
        return value if isinstance(value, bool | int | float | str) else repr(value)
    return [str(value.dtype), list(value.shape), tensors_hash({"": value})]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        parts = ", ".join(repr(one) if isinstance(one, str) else _shown(one) for one in value)
        return f"({parts})" if isinstance(value, tuple) else f"[{parts}]"
    if isinstance(value, Tensor) and value.numel() > 10:
        return f"tensor of shape {tuple(value.shape)}"
    return str(value.tolist() if isinstance(value, Tensor) else value)
