"""The schema of the application's configuration, and where to find the configuration tree."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf

from solvers import Solver

CHOSEN_BY = {"experiment": "+experiment", "line": "line@solver.line"}
"""Group -> the word that chooses one of its members, where that is not the group's name: a line belongs to a solver."""

T = TypeVar("T")


class Dtype(Enum):
    """Precision of the state; the network keeps its own."""

    float32 = "float32"
    float64 = "float64"


class Remap(Enum):
    """How to use a network on a schedule that it was not trained on."""

    snr = "snr"


class Closing(Enum):
    """What happens on the last interval, to the data: see `odediff.sample`."""

    auto = "auto"
    denoise = "denoise"
    extrapolate = "extrapolate"


@dataclass
class Task:
    """What to do with the model; `_target_` is called with the run."""

    _target_: str = MISSING


@dataclass
class DemoTask(Task):
    """Draw samples by several solvers, two paths of one noise, and an inversion.

    ``nfe`` are the columns of the picture of samples and ``images`` its width; ``inversion_nfe`` are the calls of the
    round trips, each way.
    """

    images: int = 8
    nfe: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    inversion_nfe: list[int] = field(default_factory=lambda: [10, 20, 50, 100])


@dataclass
class SampleTask(Task):
    """Draw samples.

    In a sweep they are also compared with a reference of ``reference_steps`` RK4 steps, for a network of whole times of
    twice as many of Heun's; null skips this.
    ``score`` adds their Frechet distance to real images and their classes, both by the embedded classifier.
    """

    reference_steps: int | None = 60
    score: bool = False


@dataclass
class InvertTask(Task):
    """Encode real images and decode them. ``images`` is a folder of pictures; default: the embedded test images."""

    images: str | None = None


@dataclass
class JointTask(Task):
    """Measure the joint law of noise and data by DDIM with each eta. The data are Gaussian: it has a closed form."""

    etas: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.5, 1.0])


@dataclass
class CompareTask(Task):
    """Rank the solver against all others on exact problems; default: those that methods may be chosen on."""

    problems: list[str] | None = None
    nfe: list[int] = field(default_factory=lambda: [6, 10, 20, 40])
    samples: int = 256


@dataclass
class EditTask(Task):
    """Move real images to another class. For ``method`` and ``shift`` see `odediff.tasks.edit.run`."""

    method: str = "null_text"
    shift: int = 1


@dataclass
class InversionTableTask(Task):
    """Compare ways to the noise and back. ``methods`` are solvers by name."""

    methods: dict[str, Any] = MISSING
    reference_steps: int = 100


@dataclass
class DoctorTask(Task):
    """Test a network against its declaration. ``samples`` images are used."""

    images: str | None = None


@dataclass
class SolversTask(Task):
    """Print the table of all solvers."""


@dataclass
class Data:
    """Where the IDX files of Fashion-MNIST are."""

    root: str = "/usr/share/datasets/fashion-mnist"


@dataclass
class TrainTask(Task):
    """Train the embedded network and classifier from ``data.root`` into ``folder``; a second run resumes the first."""

    folder: str = "training"


@dataclass
class EvaluateTask(Task):
    """Score class-conditional samples of the embedded network at several guidance scales."""

    guidance: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 2.5, 3.0])


TASKS: dict[str, type[Task]] = {
    "compare": CompareTask,
    "demo": DemoTask,
    "doctor": DoctorTask,
    "edit": EditTask,
    "evaluate": EvaluateTask,
    "inversion_table": InversionTableTask,
    "invert": InvertTask,
    "joint": JointTask,
    "sample": SampleTask,
    "solvers": SolversTask,
    "train": TrainTask,
}
"""Name -> the schema of the task."""


def explained(default: T, phrase: str) -> T:
    """A field with what `--help` says about it."""
    return field(default=default, metadata={"phrase": phrase})


@dataclass
class Config:
    """The whole configuration. ``steps``, ``nfe`` and ``rtol`` exclude each other.

    Without any of them there are 20 steps, or as many as an adaptive solver's own tolerance needs. ``resume`` keeps the
    finished jobs of a sweep that was stopped in ``hydra.sweep.dir``: those of the same configuration, weights, pictures
    and versions, and of the same code of solvers, grids, schedules and networks of one's own.
    """

    model: Any = explained(MISSING, "the network, its condition and its guidance scale")
    solver: Any = explained(MISSING, "the method")
    grid: Any = explained(None, "where the steps lie; default: the solver's own grid")
    schedule: Any = explained(None, "another schedule than the model's own; needs remap=snr")
    task: Any = explained(MISSING, "what to do with the model")
    steps: int | None = explained(None, "the number of steps, the closing one included; default: 20")
    nfe: int | None = explained(None, "at most so many evaluations, instead of steps")
    rtol: float | None = explained(
        None, "the relative error allowed to each step, instead of steps; default solver: adams"
    )
    samples: int = explained(16, "the number of samples")
    seed: int = explained(0, "fixes the noise of every sample")
    closing: Closing | None = explained(Closing.auto, "the last step, to the data: auto, denoise, extrapolate or null")
    remap: Remap | None = explained(
        None, "snr evaluates the network at equal signal-to-noise ratio on another schedule"
    )
    device: str = explained("cpu", "where to compute, such as cpu or cuda")
    dtype: Dtype = explained(Dtype.float32, "the precision of the state: float32 or float64")
    progress: bool = explained(True, "whether to draw progress bars")
    resume: bool = explained(False, "whether a sweep that was stopped keeps its finished jobs")
    data: Data = field(default_factory=Data, metadata={"phrase": "data.root is the folder of Fashion-MNIST's files"})


def register() -> None:
    """Put the schemas where Hydra's defaults lists find them."""
    store = ConfigStore.instance()
    store.store("schema", Config)
    for name, schema in TASKS.items():
        store.store(f"schema_{name}", schema)
    for part in (groups, tasks, keys):
        OmegaConf.register_new_resolver(f"odediff.{part.__name__}", part, replace=True)


def groups() -> str:
    """The part of `--help` on the tree: a line of names for each group, after the word that chooses one."""
    with _tree():
        loader = GlobalHydra.instance().config_loader()
        found = [name for name in sorted(loader.get_group_options("", ObjectType.GROUP)) if name != "hydra"]
    return "\n".join(f"{CHOSEN_BY.get(name, name)}: {', '.join(known(name))}" for name in found)


def tasks() -> str:
    """The part of `--help` on the tasks: the first sentence of each schema's docstring."""
    first = {name: re.split(r"[.;](?:\s|$)", inspect.getdoc(schema) or "")[0] for name, schema in TASKS.items()}
    return "\n".join(f"{name}: {text[0].lower()}{text[1:]}".replace("``", "") for name, text in first.items())


def keys() -> str:
    """The part of `--help` on the keys of the top level: a phrase for each."""
    return "\n".join(f"{one.name}: {one.metadata['phrase']}" for one in fields(Config))


def conf_folder() -> Path:
    """The configuration tree: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def configured_solvers(chosen: Iterable[str] | None = None) -> dict[str, Solver]:
    """The chosen solvers of the tree by the names of their files, including those of the user's ``--config-dir``.

    Default: all of them, which takes a second or two.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    return _members("solver", chosen)


def configured_grids(chosen: Iterable[str] | None = None) -> dict[str, Callable[..., Any]]:
    """The chosen grids of the tree, likewise."""
    return _members("grid", chosen)


def known(group: str) -> list[str]:
    """The names of a group of the tree, including those of the user's ``--config-dir``."""
    with _tree():
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG))


def _members(group: str, chosen: Iterable[str] | None) -> dict[str, Any]:
    every = known(group)
    names = every if chosen is None else list(dict.fromkeys(chosen))
    for name in names:
        if name not in every:
            raise ValueError(f"{group}s={name} is unknown; use one of {', '.join(every)}")
    with _tree():
        # One composition for all: composing the whole configuration takes a good part of a second each time.
        config = compose(None, [f"+{group}@{name}={name}" for name in names])
        return {str(name): instantiate(member) for name, member in config.items()}


@contextmanager
def _tree() -> Iterator[None]:
    """The running application's configuration tree; the packaged one if no application is running."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield
