"""The problems of the study: the standard exact ones, a kernel density over real images, and the embedded network.

Parameters and seeds were fixed before any tuning. Methods and defaults are chosen on the problems whose purpose is
"choosing"; the others are left for reporting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from torch import Tensor

from odediff import grid, zoo
from odediff.fingerprint import fingerprint
from odediff.model import Model
from odediff.problems import STANDARD, KernelDensity, Problem, exact_model, gaussian, mixture
from odediff.problems.base import Flow, Purpose
from odediff.problems.standard import COMPONENTS, MIXTURE_SEEDS
from odediff.schedule import VPTable
from odediff.zoo import dataset
from solvers import DPMpp

__all__ = [
    "COMPONENTS",
    "KERNEL_WIDTH",
    "MIXTURE_SEEDS",
    "NETWORKS",
    "PROBLEMS",
    "classifier",
    "gaussian",
    "kernel_density",
    "mixture",
    "problem",
    "training_images",
]

KERNEL_WIDTH = 0.1
"""The deviation of the kernel around every image, in units where images span [-1, 1]."""
KERNEL_MEMORY = 2**30
"""The bytes that one call of the kernel density may use beside its images."""
IMAGE_SHAPE = (1, 28, 28)


def kernel_density() -> KernelDensity:
    """A kernel around each of the 1,000 embedded test images, like a network that memorised them all."""
    return KernelDensity(_test_images(), KERNEL_WIDTH)


@cache
def training_images(root: str) -> Tensor | None:
    """The 60,000 training images, float32 in [-1, 1]; None where they are not installed."""
    try:
        images, _ = dataset.load(root, "train")
    except ValueError:
        return None
    return dataset.to_network(images)


class ImageProblem(Problem):
    """Images of 28 x 28 pixels; the data are the embedded test images."""

    shape = IMAGE_SHAPE
    dtype = torch.float32
    most_data = 1000

    @property
    def deviation(self) -> float:
        """The deviation of the embedded test images."""
        return float(_test_images().double().var(0).mean().sqrt())

    def data(self, count: int) -> Tensor:
        images = _test_images()
        if count > len(images):
            raise ValueError(f"count={count} exceeds the {len(images)} embedded images; ask for at most {len(images)}")
        return images[:count].double()


@dataclass(frozen=True, eq=False)
class KernelProblem(ImageProblem):
    """A kernel around every training image, or around the embedded ones where those are not installed."""

    name: str
    purpose: Purpose
    distribution: KernelDensity
    family: str = "kernel"

    def model(self, rows: range) -> Model:
        return self._model

    @cached_property
    def _model(self) -> Model:
        return exact_model(self.distribution, VPTable.linear())

    def modes(self, x: Tensor) -> Tensor:
        """The nearest image."""
        return self.distribution.nearest(x)

    def digest(self) -> str:
        content = self.distribution.images.numpy().tobytes() + repr(self.distribution.width).encode()
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, eq=False)
class NetworkProblem(ImageProblem):
    """The embedded network, one image of every class in turn, at one guidance scale."""

    name: str
    purpose: Purpose
    guidance: float
    family: str = "network"
    # A trained network is rough in time, so that short steps gain more than a high order: in 240 calls this leaves an
    # rms error of 1.6e-4 of the data's deviation, and RK4 6.7e-4.
    flow: Flow = Flow(DPMpp(2), grid.karras, 240)

    def model(self, rows: range) -> Model:
        return _network().condition(label=self.labels(rows), guidance=self.guidance)

    def labels(self, rows: range) -> Tensor:
        """The classes asked for."""
        return torch.tensor(rows) % len(zoo.LABELS)

    def modes(self, x: Tensor) -> Tensor:
        """The classifier's class."""
        with torch.no_grad():
            return torch.cat([classifier()(part).argmax(1) for part in x.float().clamp(-1, 1).split(250)])

    def digest(self) -> str:
        return fingerprint(_network().network)


@cache
def _test_images() -> Tensor:
    return zoo.test_images()[0]


@cache
def _network() -> Model:
    return zoo.fashion_mnist()


@cache
def classifier() -> zoo.Classifier:
    """The embedded classifier."""
    return zoo.classifier()


def _kernel_problem(root: str) -> KernelProblem:
    images = training_images(root)
    density = KernelDensity(_test_images() if images is None else images, KERNEL_WIDTH, KERNEL_MEMORY)
    return KernelProblem("kernel_density", "reporting", density)


def _network_problem(root: str, *, name: str, purpose: Purpose, guidance: float) -> NetworkProblem:
    return NetworkProblem(name, purpose, guidance)


def _standard(root: str, *, name: str) -> Problem:
    return STANDARD[name]()


NETWORKS: dict[str, Callable[[str], Problem]] = {
    "network_1": partial(_network_problem, name="network_1", purpose="choosing", guidance=1.0),
    "network_2": partial(_network_problem, name="network_2", purpose="reporting", guidance=2.0),
}
PROBLEMS: dict[str, Callable[[str], Problem]] = {
    **{name: partial(_standard, name=name) for name in STANDARD},
    "kernel_density": _kernel_problem,
    **NETWORKS,
}
"""Name -> the problem, given the folder of the training images."""


@cache
def problem(name: str, root: str) -> Problem:
    """The study's problem of that name; ``root`` is the folder of the training images."""
    return PROBLEMS[name](root)
