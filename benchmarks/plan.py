"""From the configuration to the list of cells."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig

from benchmarks import peers
from benchmarks.cells import Cell
from benchmarks.methods import Method, Ours, ours
from benchmarks.problems import NETWORKS, PROBLEMS, problem
from benchmarks.store import Store
from odediff.config import configured_grids, configured_solvers, known
from solvers import Solver

T = TypeVar("T")


def plan(config: DictConfig) -> list[list[Cell]]:
    """The cells of the study, in groups that share a problem and a seed.

    Raises:
        ValueError: a name is unknown (the message lists the valid ones), a number makes no sense, or nothing is left
            to measure.
    """
    _require_numbers(config)
    select("images.problems", config.images.problems, NETWORKS)
    names = list(select("problems", config.problems, PROBLEMS))
    if config.problem is not None:
        names = list(select("problem", [config.problem], PROBLEMS))
    solvers, grids = configured_solvers(config.solvers), configured_grids(config.grids)
    every = methods_of(config, solvers, grids, None)
    limits = config.networks
    first = dict(list(grids.items())[: limits.grids])
    limited = [m for m in methods_of(config, solvers, first, limits.peer_grids) if m.deterministic or limits.stochastic]
    select("images.also", config.images.also, dict.fromkeys([*known("solver"), *(m.name for m in every)]))
    nfes, tolerances, seeds = (list(dict.fromkeys(config[key])) for key in ("nfe", "tolerances", "seeds"))
    groups = []
    for name in names:
        one = problem(name, config.data.root)
        count = max(2, config.samples[one.family] // one.model(range(1)).passes)
        network = one.family == "network"
        most = limits.nfe if network and limits.nfe is not None else math.inf
        least = limits.tolerance if network and limits.tolerance is not None else 0.0
        costs: list[tuple[Method, int | None, float | None]] = []
        for method in limited if network else every:
            if method.adaptive:
                costs += [(method, None, tolerance) for tolerance in tolerances if tolerance >= least]
            else:
                costs += [(method, nfe, None) for nfe in nfes if nfe <= most and method.affordable(one, nfe)]
        groups += [[Cell(one, m, seed, count, nfe, tolerance) for m, nfe, tolerance in costs] for seed in seeds]
    if not any(groups):
        raise ValueError(
            "nothing is left to measure: problems, solvers and peers, grids, nfe and tolerances choose no cell"
        )
    return groups


def _require_numbers(config: DictConfig) -> None:
    """Raise `ValueError` for a number that makes no sense, before anything is computed."""
    if not config.folder:
        raise ValueError("folder= is empty; give a folder for the finished cells")
    counts = [("threads", config.threads, 1), ("images.samples", config.images.samples, 2)]
    counts += [(f"images.{name}", config.images[name], 0) for name in ("ours", "peers")]
    counts += [(f"networks.{name}", config.networks[name], 1) for name in ("grids", "peer_grids", "nfe")]
    counts += [(f"samples.{family}", count, 2) for family, count in config.samples.items()]
    for name, count, least in counts:
        if count is not None and count < least:
            raise ValueError(f"{name}={count} must be at least {least}")
    for name, values, least in (
        ("nfe", config.nfe, 1),
        ("images.nfe", config.images.nfe, 1),
        ("seeds", config.seeds, 0),
    ):
        if not len(values):
            raise ValueError(f"{name}=[] leaves nothing to do; give at least one, as in {name}=[5]")
        if not all(least <= value < 2**63 for value in values):
            which = "positive" if least else "0 or positive"
            raise ValueError(f"{name}={list(values)} must be {which}, and below 2**63")
    if not all(0 < tolerance < math.inf for tolerance in config.tolerances):
        raise ValueError(f"tolerances={list(config.tolerances)} must be positive and finite")
    for name in ("grids", "closings", "peer_grids"):
        if config[name] is not None and not len(config[name]):
            raise ValueError(f"{name}=[] leaves every method without one; name at least one")


def image_cells(config: DictConfig, groups: Sequence[Sequence[Cell]], store: Store) -> list[list[Cell]]:
    """The cells of many images, for the methods that are best by the finished cells."""
    wanted = config.images
    chosen = []
    for name in dict.fromkeys(group[0].problem.name for group in groups if group):
        if name in wanted.problems:
            cells = [cell for group in groups for cell in group if cell.problem.name == name]
            for method in best(cells, store, wanted):
                chosen += [
                    Cell(cells[0].problem, method, config.seeds[0], wanted.samples, nfe, kind="images")
                    for nfe in wanted.nfe
                    if method.affordable(cells[0].problem, nfe)
                ]
    return [chosen]


def best(cells: Iterable[Cell], store: Store, wanted: DictConfig) -> list[Method]:
    """The best setting of each of the best algorithms, ours and the peers', by the mean log of the median error."""
    logs: dict[Method, list[float]] = {}
    for cell in cells:
        if cell.nfe in wanted.nfe and cell.method.deterministic:
            entry = store.load(cell.key)
            median = entry.record.get("error_median") if entry else None
            logs.setdefault(cell.method, []).append(math.log(median) if median else math.inf)
    most = max(map(len, logs.values()), default=0)
    order = sorted((m for m in logs if len(logs[m]) == most), key=lambda m: sum(logs[m]) / most)
    leaders: dict[tuple[bool, str], Method] = {}
    for method in order:
        leaders.setdefault((isinstance(method, Ours), method.algorithm), method)
    mine = [m for (is_ours, _), m in leaders.items() if is_ours]
    others = [m for (is_ours, _), m in leaders.items() if not is_ours]
    also = [next(m for m in order if m.name == name) for name in wanted.also if any(m.name == name for m in order)]
    return list(dict.fromkeys([*mine[: wanted.ours], *also, *others[: wanted.peers]]))


def methods_of(
    config: DictConfig, solvers: Mapping[str, Solver], grids: Mapping[str, Callable[..., Any]], peer_grids: int | None
) -> list[Method]:
    """The solvers on the grids, and the chosen peers on all of their grids or the first few."""
    if not solvers and not config.variants and config.peers == []:
        raise ValueError("solvers=[] and peers=[] leave nothing to measure; name some, or null for all")
    others = peers.peers(
        None if config.peers is None else list(config.peers),
        list(select("peer_grids", config.peer_grids, peers.GRIDS))[:peer_grids],
    )
    return [*ours(solvers, grids, list(config.closings), config.variants), *others]


def select(key: str, chosen: Iterable[str] | None, every: Mapping[str, T]) -> dict[str, T]:
    """The chosen entries; all of them for None."""
    if chosen is None:
        return dict(every)
    for name in (chosen := list(chosen)):
        if name not in every:
            raise ValueError(f"{key}={name} is unknown; use one of {', '.join(every)}")
    return {name: every[name] for name in chosen}


def in_order(groups: Sequence[Sequence[Any]], worker: int) -> list[Any]:
    """The cells in a worker's own order: worker 0 takes them as they come and worker 1 from the other end.

    So two workers meet only once. Further workers shuffle groups and cells; the cells of a group stay together because
    they share the exact flow.
    """
    if worker < 2:
        cells = [cell for group in groups for cell in group]
        return cells[::-1] if worker else cells
    own = random.Random(worker)
    return [cell for group in own.sample(groups, len(groups)) for cell in own.sample(group, len(group))]
