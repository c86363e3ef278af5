"""``task=solvers``: print the table of all solvers."""

from __future__ import annotations

from omegaconf import DictConfig

from odediff.catalogue import solver_table


def run(config: DictConfig) -> None:
    """Print what every exported solver declares."""
    print(solver_table())
