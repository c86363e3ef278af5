"""The schema of the application's configuration, and where the configuration tree lies."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf

from solvers import Solver

CHOSEN_BY = {"experiment": "+experiment", "line": "line@solver.line"}
"""Group -> the word that chooses one of it, where that is not its name: a line is a part of a solver."""


class Dtype(Enum):
    """Precision of the state; the network keeps its own."""

    float32 = "float32"
    float64 = "float64"


class Remap(Enum):
    """How a network meets a schedule that it was not trained on."""

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
    """Samples by several solvers, two paths of one noise, and an inversion.

    ``nfe`` are the columns of the picture of samples, ``images`` its width;
    ``inversion_nfe`` are the calls of the round trips, each way.
    """

    images: int = 8
    nfe: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    inversion_nfe: list[int] = field(default_factory=lambda: [10, 20, 50, 100])


@dataclass
class SampleTask(Task):
    """Draw samples.

    In a sweep they are also compared with a reference of ``reference_steps`` RK4 steps; null leaves that out.
    ``score`` asks the embedded classifier for their Frechet distance to real images, and for their classes.
    """

    reference_steps: int | None = 60
    score: bool = False


@dataclass
class InvertTask(Task):
    """Encode real images and decode them. ``images`` is a folder of pictures; the embedded test images unless given."""

    images: str | None = None


@dataclass
class JointTask(Task):
    """The joint law of noise and data by DDIM with each eta, on Gaussian data, where it is a closed form."""

    etas: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.5, 1.0])


@dataclass
class CompareTask(Task):
    """Rank the solver against all others on exact problems, by default those that methods may be chosen on."""

    problems: list[str] | None = None
    nfe: list[int] = field(default_factory=lambda: [6, 10, 20, 40])
    samples: int = 256


@dataclass
class EditTask(Task):
    """Move real images to the class ``shift`` further on, by ``method``; see `odediff.tasks.edit.run`."""

    method: str = "null_text"
    shift: int = 1


@dataclass
class InversionTableTask(Task):
    """Compare ways to the noise and back: ``methods`` are solvers by name."""

    methods: dict[str, Any] = MISSING
    reference_steps: int = 100


@dataclass
class DoctorTask(Task):
    """Test a network against its declaration, on ``samples`` images."""

    images: str | None = None


@dataclass
class SolversTask(Task):
    """Print the table of all solvers."""


@dataclass
class Data:
    """Where the IDX files of Fashion-MNIST lie."""

    root: str = "/usr/share/datasets/fashion-mnist"


@dataclass
class TrainTask(Task):
    """Train the embedded network and classifier from ``data.root`` into ``folder``; a second run resumes the first."""

    folder: str = "training"


@dataclass
class EvaluateTask(Task):
    """Score class-conditional samples of the embedded network at each of these guidance scales."""

    guidance: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 2.5, 3.0])


@dataclass
class Config:
    """The whole configuration. ``steps``, ``nfe`` and ``rtol`` exclude each other.

    Without any of them there are 20 steps, or those that an adaptive solver's own tolerance asks for. ``resume`` keeps
    the jobs of a sweep that was stopped in ``hydra.sweep.dir``: those of the same configuration, network and versions;
    what files hold that are named there, such as a folder of images, is not looked at.
    """

    model: Any = MISSING
    solver: Any = MISSING
    grid: Any = None
    schedule: Any = None
    task: Any = MISSING
    steps: int | None = None
    nfe: int | None = None
    rtol: float | None = None
    samples: int = 16
    seed: int = 0
    closing: Closing | None = Closing.auto
    remap: Remap | None = None
    device: str = "cpu"
    dtype: Dtype = Dtype.float32
    progress: bool = True
    resume: bool = False
    data: Data = field(default_factory=Data)


def register() -> None:
    """Put the schemas where Hydra's defaults lists find them."""
    store = ConfigStore.instance()
    store.store("schema", Config)
    for name, schema in (
        ("demo", DemoTask),
        ("sample", SampleTask),
        ("invert", InvertTask),
        ("joint", JointTask),
        ("compare", CompareTask),
        ("edit", EditTask),
        ("inversion_table", InversionTableTask),
        ("doctor", DoctorTask),
        ("solvers", SolversTask),
        ("train", TrainTask),
        ("evaluate", EvaluateTask),
    ):
        store.store(f"schema_{name}", schema)
    OmegaConf.register_new_resolver("odediff.groups", groups, replace=True)


def groups() -> str:
    """What `--help` shows of the tree: a line of names for each group, by the word that chooses one."""
    with _tree():
        loader = GlobalHydra.instance().config_loader()
        found = [name for name in sorted(loader.get_group_options("", ObjectType.GROUP)) if name != "hydra"]
    return "\n".join(f"{CHOSEN_BY.get(name, name)}: {', '.join(known(name))}" for name in found)


def conf_folder() -> Path:
    """The configuration tree: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def configured_solvers(chosen: Iterable[str] | None = None) -> dict[str, Solver]:
    """The chosen solvers of the tree by the names of their files, those of the user's ``--config-dir`` among them.

    All of them unless given, which takes a second or two.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    return _members("solver", chosen)


def configured_grids(chosen: Iterable[str] | None = None) -> dict[str, Callable[..., Any]]:
    """The same for the grids."""
    return _members("grid", chosen)


def known(group: str) -> list[str]:
    """The names of a group of the tree, those of the user's ``--config-dir`` among them."""
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
    """The running application's configuration tree; the packaged one where none is running."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield
