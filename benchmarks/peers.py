"""The samplers of other installed libraries, the peers of a study."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from benchmarks import diffusers_schedulers, k_diffusion_samplers
from benchmarks.methods import Method


class Library(NamedTuple):
    """A library: its package, the names of its samplers, and how to install it."""

    package: str
    names: tuple[str, ...]
    remedy: str


DIFFUSERS = Library("diffusers", tuple(diffusers_schedulers.SCHEDULERS), "pip install 'odediff[bench]'")
K_DIFFUSION = Library("k_diffusion", k_diffusion_samplers.SAMPLERS, "pip install k-diffusion")
LIBRARIES = (DIFFUSERS, K_DIFFUSION)
NAMES = tuple(name for library in LIBRARIES for name in library.names)
GRIDS = diffusers_schedulers.GRIDS
"""k-diffusion's grids are among those of diffusers, under the same names."""


def peers(chosen: Sequence[str] | None, grids: Sequence[str]) -> list[Method]:
    """The chosen samplers (None: all of them) on every chosen grid that they support.

    Each missing library is reported in one line on stderr.
    """
    names = NAMES if chosen is None else chosen
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ValueError(f"peers={unknown[0]} is unknown; use one of {', '.join(NAMES)}, or [] for none")
    of = {library: [name for name in names if name in library.names and present(library)] for library in LIBRARIES}
    return [
        *diffusers_schedulers.schedulers(of[DIFFUSERS], grids),
        *k_diffusion_samplers.samplers(of[K_DIFFUSION], grids),
    ]


def present(library: Library) -> bool:
    """Whether the library is installed; if it is not, one line on stderr says so, once."""
    if available(library.package):
        return True
    say_once(f"{library.package.replace('_', '-')} is not installed: its rows are skipped ({library.remedy})")
    return False


def available(package: str) -> bool:
    """Whether a peer's package is installed."""
    return find_spec(package) is not None


@cache
def say_once(line: str) -> None:
    """Print a line on stderr, once however often it is requested."""
    print(line, file=sys.stderr)
