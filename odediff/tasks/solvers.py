"""``task=solvers``: print the table of all solvers."""

from __future__ import annotations

from dataclasses import fields

from omegaconf import DictConfig

from odediff.catalogue import solver_table
from odediff.config import Config
from odediff.run import refuse_unused


def run(config: DictConfig) -> None:
    """Print what every exported solver declares."""
    refuse_unused(
        {item.name for item in fields(Config)} - {"task", "progress"}, "the table has a row for every class of solvers"
    )
    print(solver_table())
