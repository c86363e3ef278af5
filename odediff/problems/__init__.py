"""Problems with known answers: distributions in place of a network, and the standard problems that rank solvers."""

from odediff.problems.base import Problem, Reference
from odediff.problems.exact import Distribution, ExactNetwork, KernelDensity, exact_model
from odediff.problems.standard import (
    STANDARD,
    ExactProblem,
    gaussian,
    mixture,
    standard,
)

__all__ = [
    "STANDARD",
    "Distribution",
    "ExactNetwork",
    "ExactProblem",
    "KernelDensity",
    "Problem",
    "Reference",
    "exact_model",
    "gaussian",
    "mixture",
    "standard",
]
