"""One run of the application: what its configuration describes, and the record that it leaves."""

from __future__ import annotations

import inspect
import json
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from odediff.defaults import AutoClosing, Grid
from odediff.device import available
from odediff.files import write_json
from odediff.fingerprint import fingerprint
from odediff.images import pictures_hash
from odediff.model import Model
from odediff.own_code import code_hash, code_parts
from odediff.schedule import Schedule
from odediff.tolerance import at_tolerance, require_one_budget
from odediff.version import __version__
from solvers import Solver

OWN_KEYS = ("shape", "condition", "guidance", "chunk")
"""Keys of a model's configuration that the application reads; the others are arguments of its ``_target_``."""
RECORD = "run.json"
"""The name of the file that describes a run."""
PASSING = ("progress", "resume")
"""Keys that do not change what a run leaves."""
WRITTEN = (".json", ".png", ".safetensors")
"""Suffixes of the files that tasks write."""
DEFAULT_SOLVER = "gp_multistep"
"""The solver that conf/config.yaml names."""
SOLVER_WORD = r"solver\b|line@solver\b"
"""Matches an override that chooses a solver or sets one of its fields."""


@dataclass(frozen=True)
class Run:
    """The model, the method and the settings of one run, and the folder for its files."""

    config: DictConfig
    model: Model
    shape: tuple[int, ...]
    condition: Mapping[str, Any]
    solver: Solver
    grid: Grid | None
    folder: Path
    started: float = field(default_factory=time.perf_counter)

    @property
    def closing(self) -> AutoClosing:
        """The closing rule."""
        return self.config.closing.value if self.config.closing else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states."""
        return getattr(torch, self.config.dtype.value)

    @property
    def progress(self) -> bool:
        """Whether to draw progress bars."""
        return self.config.progress

    @property
    def sweeping(self) -> bool:
        """Whether this run is one job of a sweep."""
        return HydraConfig.get().mode == RunMode.MULTIRUN

    def conditioned(self, count: int, guidance: float | None = None, **conditions: Any) -> Model:
        """The model under the configured condition for ``count`` samples; a list in the condition cycles over them."""
        require_room(count, self.shape, self.dtype, self.config.device)
        given = {**self.condition, **conditions}
        for name, value in given.items():
            numbers = isinstance(value, list) and value and all(isinstance(one, int | float) for one in value)
            if isinstance(value, list) and not numbers:
                raise ValueError(f"model.condition.{name}={value} must be a number, or a list of one or more numbers")
        rows = {
            k: torch.as_tensor(v)[torch.arange(count) % len(v)] if isinstance(v, list) else v for k, v in given.items()
        }
        rows = {k: v for k, v in rows.items() if v is not None}
        return self.model.condition(rows, guidance=guidance)

    def labelled(self, labels: Tensor | None) -> dict[str, Any]:
        """The condition for images of these classes, if the model takes labels."""
        return {} if labels is None or "label" not in self.model.null else {"label": labels.tolist()}

    def record(self, results: Mapping[str, Any]) -> None:
        """Write run.json, the last file of a run: what it `describes`, what was measured, and the seconds.

        The seconds are those of the whole run, unless the ``results`` have their own.
        """
        write_json(
            self.folder / RECORD,
            {
                "overrides": list(HydraConfig.get().overrides.task),
                **self.describes,
                "seconds": round(time.perf_counter() - self.started, 3),
                **results,
            },
        )

    @property
    def describes(self) -> dict[str, Any]:
        """The resolved configuration, what was made from it, the hash of the weights, and versions.

        What is of the user's own, such as a solver, a grid or a network, has no version: the hash of its `code`
        describes it. The pictures in a folder that the task reads have a hash too.
        """
        folder = self.config.task.get("images")
        code = code_hash((self.solver, *code_parts(self.model), *_named(OmegaConf.to_container(self.config))))
        return {
            "config": OmegaConf.to_container(self.config, resolve=True, enum_to_str=True),
            "solver": str(self.solver),
            "grid": None if self.grid is None else self.config.grid._target_.rpartition(".")[2],
            "schedule": str(self.model.path),
            "weights": fingerprint(self.model.network),
            **({} if code is None else {"code": code}),
            **({"pictures": pictures_hash(folder, self.config.samples)} if isinstance(folder, str) else {}),
            "versions": {
                "odediff": __version__,
                **{name: version(name) for name in ("torch", "numpy", "scipy", "torchdiffeq", "hydra-core")},
            },
            "python": platform.python_version(),
        }

    @property
    def model_code(self) -> str | None:
        """The hash of the user's own code in the model; None if there is none."""
        return code_hash((*code_parts(self.model), *_named(OmegaConf.to_container(self.config.model))))

    @property
    def is_recorded(self) -> bool:
        """Whether the folder holds the record of the same run, finished."""
        try:
            before = json.loads((self.folder / RECORD).read_text())
            now = json.loads(json.dumps(self.describes))
            for one in (before["config"], now["config"]):
                for key in PASSING:
                    one.pop(key, None)
            # Tasks with many solvers record those instead of the configured one.
            return "failed" not in before and all(before[key] == now[key] for key in now if key != "solver")
        except (OSError, ValueError, KeyError, TypeError):
            return False


class AlreadyRecordedError(Exception):
    """A job of a resumed sweep has nothing left to do."""


def build(config: DictConfig) -> Run:
    """Make a `Run` of a configuration; whatever is wrong with it is found here, before anything is computed.

    Raises:
        TypeError, ValueError: the configuration cannot be used.
        AlreadyRecordedError: it belongs to a resumed sweep, and this job has already finished.
    """
    _check_counts(config)
    _check_resume(config)
    refuse_unused(("data",), "only task=train reads the files of Fashion-MNIST")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]} must be given, as in {missing[0]}=...")
    run = Run(
        config=config,
        folder=_usable_folder(),
        condition=_condition(config.model),
        model=_model(config),
        solver=_solver(config),
        grid=None if config.grid is None else _grid(config.grid),
        shape=_checked_shape(config.model.get("shape")),
    )
    if config.resume and run.is_recorded:
        raise AlreadyRecordedError
    return run


def _check_counts(config: DictConfig) -> None:
    if config.samples < 1:
        raise ValueError(f"samples={config.samples} must be at least 1")
    require_one_budget(config.steps, config.nfe, config.rtol)


def _check_resume(config: DictConfig) -> None:
    job = HydraConfig.get()
    names_folder = any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in job.overrides.hydra)
    if config.resume and (job.mode != RunMode.MULTIRUN or not names_folder):
        raise ValueError("resume=true needs a sweep: give -m and its folder, hydra.sweep.dir=FOLDER")


def _usable_folder() -> Path:
    """The folder of the run, without folders in the place of its files."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if in_the_way := [path for path in folder.glob("*.*") if path.suffix in WRITTEN and path.is_dir()]:
        key = f"hydra.{'sweep' if HydraConfig.get().mode == RunMode.MULTIRUN else 'run'}.dir"
        raise ValueError(f"{in_the_way[0]} is a folder; choose another place with {key}=FOLDER")
    return folder


def _condition(config: DictConfig) -> dict[str, Any]:
    condition = config.get("condition")
    if not isinstance(condition, Mapping | None):
        raise TypeError(f"model.condition={condition!r} must name what to set, as in model.condition.label=3")
    return _plain(condition or {})


def _model(config: DictConfig) -> Model:
    """The model on the requested schedule, with the configured guidance and chunk."""
    device = available(config.device)
    arguments = OmegaConf.masked_copy(config.model, [key for key in config.model if key not in OWN_KEYS])
    model = instantiate(arguments, device=device)
    if not isinstance(model, Model):
        name = type(model).__name__
        raise TypeError(f"model._target_={config.model._target_} must return an odediff.Model, not a {name}")
    if "chunk" in config.model:
        model = replace(model, chunk=config.model.chunk)
    guidance = config.model.get("guidance")
    if guidance is not None:
        if isinstance(guidance, bool) or not isinstance(guidance, int | float):
            raise TypeError(f"model.guidance={guidance!r} must be a number; 1 is the conditional prediction")
        model = model.condition(guidance=float(guidance))
    return _on_schedule(model, config)


def _solver(config: DictConfig) -> Solver:
    line = config.solver.get("line")
    if isinstance(line, str):
        raise TypeError(f"solver.line={line} is not a line; choose one by its name with line@solver.line={line}")
    solver = instantiate(config.solver)
    if not isinstance(solver, Solver):
        name = type(solver).__name__
        raise TypeError(f"solver._target_={config.solver._target_} must make a solvers.Solver, not a {name}")
    return solver if config.rtol is None else at_tolerance(solver if _solver_is_chosen() else None, config.rtol)


def _grid(config: DictConfig) -> Grid:
    """The grid that is described: a function of the run's path and steps, or the result of a call that makes one."""
    if placed := [key for key in ("path", "steps") if key in config]:
        raise ValueError(f"grid.{placed[0]}={config[placed[0]]} belongs to the run; give steps=N or nfe=N")
    try:
        target = get_object(config._target_)
        is_grid = not isinstance(target, type) and "steps" in inspect.signature(target).parameters
    except Exception:  # instantiating it reports what is wrong, in Hydra's words
        is_grid = False
    grid: Grid = instantiate(config, _partial_=True) if is_grid else instantiate(config)
    return grid


def _named(described: Any) -> Iterator[Any]:
    """What ``_target_`` and ``factory`` name in a configuration; a name of nothing is reported where it is used."""
    inner = described.values() if isinstance(described, dict) else described if isinstance(described, list) else ()
    for one in inner:
        yield from _named(one)
    for key in ("_target_", "factory"):
        if isinstance(described, dict) and isinstance(name := described.get(key), str):
            with suppress(Exception):
                yield get_object(name.replace(":", "."))


def refuse_unused(unused: Iterable[str], remedy: str) -> None:
    """Refuse words of the command line that set one of the ``unused`` keys, or a key below one.

    A task that accepted and ignored them would answer another question than the one that was asked.
    """
    for word in HydraConfig.get().overrides.task:
        key = re.split(r"[.:]", word.lstrip("+~").partition("=")[0].rpartition("@")[2])
        if any(key[: len(own)] == own for own in (name.split(".") for name in unused)):
            raise ValueError(f"{word} has no effect here: {remedy}")


def require_room(count: int, shape: Sequence[int], dtype: torch.dtype, device: str) -> None:
    """Refuse more samples than fit into the memory, before anything is computed."""
    try:
        torch.empty(count, *shape, dtype=dtype, device=device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"samples={count} of shape {tuple(shape)} do not fit into the memory of device={device}; ask for fewer"
        ) from error


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, list | tuple | ListConfig) else ()
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"model.shape={shape} must be the shape of one sample, such as model.shape=[1,28,28]")
    return sizes


def _solver_is_chosen() -> bool:
    """Whether the command line says anything about the solver, or an experiment replaces the default one."""
    job = HydraConfig.get()
    words = (word.lstrip("+~").partition("=")[0] for word in job.overrides.task)
    return job.runtime.choices["solver"] != DEFAULT_SOLVER or any(re.match(SOLVER_WORD, word) for word in words)


def _on_schedule(model: Model, config: DictConfig) -> Model:
    """The model on the requested schedule: its own, or another one by an explicit remapping."""
    if config.schedule is None:
        words = [word.partition("=")[0] for word in HydraConfig.get().overrides.task]
        if config.remap is not None and "schedule" not in words:  # one of a sweep may be null
            refuse_unused(("remap",), "without another schedule there is nothing to remap; give schedule=NAME")
        return model
    path: Schedule = instantiate(config.schedule)
    if path == model.path:
        return model
    if config.remap is None:
        raise ValueError(
            f"schedule={path} is not the one that the network was trained on, {model.path}; the schedule belongs to "
            "the model: leave schedule out, or add remap=snr to evaluate the network at equal signal-to-noise ratio; "
            "for model=custom, schedule@model.schedule=NAME declares the schedule that it was trained on"
        )
    return model.remap(path)


def _plain(condition: DictConfig | ListConfig | Mapping[str, Any]) -> dict[str, Any]:
    return OmegaConf.to_container(condition, resolve=True) if OmegaConf.is_config(condition) else dict(condition)  # type: ignore[return-value]


def rms(values: Tensor) -> float:
    """The root of the mean square."""
    return float(values.double().square().mean().sqrt())
