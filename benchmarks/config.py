"""The schema of the study's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from odediff import config


@dataclass
class Samples:
    """Samples per seed, by family of problems; half as many under guidance, where a call takes two passes."""

    exact: int = 342
    kernel: int = 128
    network: int = 44


@dataclass
class Images:
    """Frechet distances, and other measures that take thousands of images.

    They are computed on each of ``problems``, at each of ``nfe``, for one seed: for the ``ours`` best solvers and the
    ``peers`` best schedulers by median error there, and for the solvers in ``also``.
    """

    problems: list[str] = field(default_factory=lambda: ["network_1"])
    samples: int = 2048
    nfe: list[int] = field(default_factory=lambda: [5, 6, 8, 10, 20])
    ours: int = 2
    peers: int = 3
    also: list[str] = field(default_factory=lambda: ["ddim"])


@dataclass
class Networks:
    """Limits for the networks, which are the most expensive problems.

    Only the first ``grids`` and ``peer_grids`` are used, at most ``nfe`` calls, and no tolerance below ``tolerance``;
    null means no limit. ``stochastic`` methods are left out unless asked for: they have no error against the flow, and
    what a few dozen images show of their law is less than its scatter.
    """

    grids: int | None = 1
    peer_grids: int | None = 2
    nfe: int | None = 10
    tolerance: float | None = 1e-2
    stochastic: bool = False


@dataclass
class StudyConfig:
    """What is measured, and where the files are.

    ``problem`` and ``worker`` are for sweeps: one of the problems, and the number of a worker, which only sets the
    order in which it visits the cells.
    """

    problems: list[str] | None = None
    problem: str | None = None
    solvers: list[str] | None = None
    variants: bool = False
    grids: list[str] | None = field(default_factory=lambda: ["karras", "log_snr"])
    closings: list[str] = field(default_factory=lambda: ["denoise"])
    peers: list[str] | None = None
    peer_grids: list[str] | None = field(default_factory=lambda: ["karras", "trailing", "linspace"])
    nfe: list[int] = field(default_factory=lambda: [5, 6, 8, 10, 20, 40])
    networks: Networks = field(default_factory=Networks)
    tolerances: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    samples: Samples = field(default_factory=Samples)
    images: Images = field(default_factory=Images)
    folder: str = "outputs/nfe_quality"
    worker: int = 0
    threads: int = 1
    compute: bool = True
    progress: bool = True
    data: config.Data = field(default_factory=config.Data)


def register() -> None:
    """Put the schema where Hydra's defaults list finds it."""
    config.register()
    ConfigStore.instance().store("schema_nfe_quality", StudyConfig)
