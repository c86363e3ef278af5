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
from odediff.config import configured_grids, configured_solvers
from solvers import Solver

T = TypeVar("T")


def plan(config: DictConfig) -> list[list[Cell]]:
    """The cells of the study, in groups that share a problem and a seed.

    Raises:
        ValueError: a name is unknown (the message lists the valid ones), or a number makes no sense.
    """
    select("images.problems", config.images.problems, NETWORKS)
    names = list(select("problems", config.problems, PROBLEMS))
    if config.problem is not None:
        names = list(select("problem", [config.problem], PROBLEMS))
    solvers, grids = configured_solvers(config.solvers), configured_grids(config.grids)
    every = methods_of(config, solvers, grids, None)
    limits = config.networks
    first = dict(list(grids.items())[: limits.grids])
    limited = [m for m in methods_of(config, solvers, first, limits.peer_grids) if m.deterministic or limits.stochastic]
    for key in ("nfe", "tolerances", "seeds"):
        values = list(config[key])
        if not values and key != "tolerances":
            raise ValueError(f"{key}=[] leaves nothing to do; give at least one, as in {key}=[0]")
        if any(value < 0 or (value == 0 and key != "seeds") for value in values):
            raise ValueError(f"{key}={values} must be positive")
    for family, count in config.samples.items():
        if count < 2:
            raise ValueError(f"samples.{family}={count} must be at least 2")
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
                costs += [(method, None, tolerance) for tolerance in config.tolerances if tolerance >= least]
            else:
                costs += [(method, nfe, None) for nfe in config.nfe if nfe <= most and method.affordable(one, nfe)]
        groups += [[Cell(one, m, seed, count, nfe, tolerance) for m, nfe, tolerance in costs] for seed in config.seeds]
    return groups


def image_cells(config: DictConfig, groups: Sequence[Sequence[Cell]], store: Store) -> list[list[Cell]]:
    """The cells of many images, for the methods that the finished cells show to be best."""
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
    """The solvers on the grids, and the chosen peers on all of theirs or the first few."""
    if not solvers and not config.variants and config.peers == []:
        raise ValueError("solvers=[] and peers=[] leave nothing to measure; name some, or null for all")
    others = peers.peers(
        None if config.peers is None else list(config.peers),
        list(select("peer_grids", config.peer_grids, peers.GRIDS))[:peer_grids],
    )
    return [*ours(solvers, grids, list(config.closings), config.variants), *others]


def select(key: str, chosen: Iterable[str] | None, known: Mapping[str, T]) -> dict[str, T]:
    """The chosen entries; all of them for None."""
    if chosen is None:
        return dict(known)
    for name in (chosen := list(chosen)):
        if name not in known:
            raise ValueError(f"{key}={name} is unknown; use one of {', '.join(known)}")
    return {name: known[name] for name in chosen}


def in_order(groups: Sequence[Sequence[Any]], worker: int) -> list[Any]:
    """The cells in a worker's own order: worker 0 takes them as they come, the others shuffle groups and cells.

    Groups stay together, for they share the exact flow.
    """
    if worker == 0:
        return [cell for group in groups for cell in group]
    own = random.Random(worker)
    return [cell for group in own.sample(groups, len(groups)) for cell in own.sample(group, len(group))]
