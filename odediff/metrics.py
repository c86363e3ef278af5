"""Distances between samples and data, and errors of reconstructions.

Every function takes torch tensors whose first axis counts samples, computes in float64, and raises ValueError for
shapes that do not match and values that are not finite.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from odediff.points import as_points, components, distances, finite

FEW = 16
"""The largest dimension in which distances are computed difference by difference."""
STRIP = 256
"""The number of rows of distances that `energy_test` forms at once."""


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and unbiased covariance ``(D, D)`` of features ``(N, D)``, in float64."""
    features = finite("features", features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features has shape {tuple(features.shape)}; pass (N, D) with N >= 2")
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], features.shape[1])


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982; on features, Heusel et al. 2017).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2))``. The matrix under the last root is ``A A^T`` for
    ``A = C1^(1/2) C2^(1/2)``, so the trace of its root is the sum of the singular values of A. Covariances of fewer
    samples than features are singular; their zero directions cost round-off with A, and its square root with ``A A^T``.
    """
    mean1, mean2 = finite("mean1", mean1), finite("mean2", mean2)
    covariance1, covariance2 = finite("covariance1", covariance1), finite("covariance2", covariance2)
    shapes = [tuple(tensor.shape) for tensor in (mean1, covariance1, mean2, covariance2)]
    if mean1.ndim != 1 or shapes != [mean1.shape, mean1.shape * 2] * 2:
        raise ValueError(f"means and covariances have shapes {shapes}; pass (D,), (D, D), (D,), (D, D)")
    overlap = torch.linalg.svdvals(_square_root(covariance1) @ _square_root(covariance2)).sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * overlap
    return max(0.0, distance.item())


def class_accuracy(images: Tensor, labels: Tensor, classifier: Callable[[Tensor], Tensor], batch: int = 250) -> float:
    """Share of images ``(N, ...)`` whose largest logit is that of their label ``(N,)``."""
    if labels.shape != images.shape[:1] or len(labels) == 0:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; pass one label for each of {len(images)} images")
    finite("images", images)
    with torch.no_grad():
        predicted = torch.cat([classifier(part).argmax(1) for part in images.split(batch)])
    return (predicted == labels).double().mean().item()


def round_trip_error(images: Tensor, again: Tensor) -> Tensor:
    """Root-mean-square difference of each sample, ``(N,)``, for images in [-1, 1]: 2 is black against white."""
    if images.shape != again.shape or images.ndim < 1:
        raise ValueError(
            f"images has shape {tuple(images.shape)} and again {tuple(again.shape)}; pass both in one shape, (N, ...)"
        )
    difference = finite("images", images) - finite("again", again)
    return components(difference).square().mean(1).sqrt()


def psnr(images: Tensor, again: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each sample in dB, ``20 log10(2 / rms)`` for [-1, 1]; infinite where equal."""
    return 20 * torch.log10(2 / round_trip_error(images, again))


def gaussianity(noise: Tensor) -> dict[str, float]:
    """How close a latent ``(N, C, H, W)`` is to white noise, whose mean, deviation and autocorrelation are 0, 1 and 0.

    The autocorrelation is between neighbours in the last two axes, over all samples; an axis of length 1 has none.
    """
    if noise.ndim != 4:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; pass (N, C, H, W)")
    noise = finite("noise", noise)
    centred = noise - noise.mean()
    beside = (centred[..., 1:] * centred[..., :-1], centred[..., 1:, :] * centred[..., :-1, :])
    pairs = [products.mean() for products in beside if products.numel()] or [torch.tensor(math.nan, device="cpu")]
    variance = centred.square().mean()
    return {
        "mean": float(noise.mean()),
        "std": float(variance.sqrt()),
        "autocorrelation": float(sum(pairs) / (len(pairs) * variance)),
    }


def convergence_slope(steps: Sequence[int], errors: Sequence[float], floor: float) -> float:
    """Least-squares slope of log(error) over log(steps), on the longest run of doublings above 10 times ``floor``.

    Raises:
        ValueError: that run has fewer than three doublings, too few for a slope.
    """
    runs: list[list[tuple[float, float]]] = [[]]
    for n, error in zip(steps, errors, strict=True):
        if error > 10 * floor:
            runs[-1].append((math.log(n), math.log(error)))
        else:
            runs.append([])
    longest = np.array(max(runs, key=len))
    if len(longest) < 4:
        raise ValueError(
            f"errors={list(errors)} stay above 10 times floor={floor} for fewer than three doublings; take fewer steps"
        )
    return float(np.polynomial.Polynomial.fit(longest[:, 0], longest[:, 1], deg=1).convert().coef[1])


def energy_distance(x: Tensor, y: Tensor, within: float | None = None) -> float:
    """Root of ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Székely & Rizzo 2013) between two empirical laws.

    ``x`` is ``(N, D)`` and ``y`` ``(M, D)``, or ``(N,)`` and ``(M,)``, where it equals scipy.stats.energy_distance. It
    is zero exactly when the two laws are equal. ``within`` is ``mean_distance(y, y)`` if it is known already, as for
    data that many sets of samples are compared with.
    """
    x, y = as_points(x, y)
    squared = 2 * mean_distance(x, y) - mean_distance(x, x) - (mean_distance(y, y) if within is None else within)
    return math.sqrt(max(0.0, squared))


def mean_distance(x: Tensor, y: Tensor) -> float:
    """The mean Euclidean distance between the points of ``x`` ``(N, D)`` and those of ``y`` ``(M, D)``.

    In more than `FEW` dimensions it uses matrix products, which are several times faster and lose 1e-8 of the spread
    of the points where two coincide, too little to show in a mean.
    """
    x, y = as_points(x, y)
    if x.shape[1] <= FEW:
        total = sum(distances(rows, y).sum().item() for rows in x.split(1024))
    else:
        centre = y.mean(0)
        x, y = x - centre, y - centre
        parts = (torch.cdist(rows, y, compute_mode="use_mm_for_euclid_dist") for rows in x.split(1024))
        total = sum(part.sum().item() for part in parts)
    return total / (len(x) * len(y))


def energy_test(x: Tensor, y: Tensor, permutations: int = 500, seed: int = 0, block: int = 2000) -> float:
    """p-value of "x and y, ``(N, D)`` each, are independent samples of one law".

    The statistic is the squared energy distance within blocks of ``block`` rows of x and as many of y, averaged over
    the blocks (Zaremba, Gretton & Blaschko 2013 do so for kernel tests): the cost is linear in N, and the deviation
    under the null falls with the number of blocks. For the 2 n points z of a block and signs s, +1 for x and -1 for y,
    the statistic is ``-s^T D s / n^2`` with ``D_ij = |z_i - z_j|``.

    *Null distribution.* If the hypothesis holds, the points of a block are exchangeable: shuffling its signs draws from
    the conditional null law of its statistic, for large n a weighted sum of chi-squares (Székely & Rizzo 2013). Blocks
    are independent, so the cumulants of the average follow from those of the blocks, each estimated from
    ``permutations`` shuffles, and their errors average out as well. A shifted gamma law with these first three
    cumulants (Pearson's type III) gives the p-value, even below ``1 / permutations``. Without the third the gamma law
    (Gretton et al. 2009) is anti-conservative: for ten blocks it gives 4e-5 for 1e-4, and this one 1.3e-4.

    x and y must be independent of each other and row by row; samples that start from the same noises are not.

    Raises:
        ValueError: x and y differ in shape, or ``block`` does not divide their number of rows.
    """
    x, y = as_points(x, y)
    if x.shape != y.shape or block < 2 or len(x) % block or permutations < 2:
        raise ValueError(
            f"x {tuple(x.shape)}, y {tuple(y.shape)}, block={block}, permutations={permutations}: pass x and y of one "
            "shape, a block of at least 2 that divides their rows, and at least 2 permutations"
        )
    random = np.random.default_rng(seed)
    blocks = list(zip(x.split(block), y.split(block), strict=True))
    signs = np.repeat([1.0, -1.0], block)
    observed = mean = variance = third = 0.0
    for part_x, part_y in blocks:
        pooled = torch.cat((part_x, part_y))
        shuffles = (random.permutation(signs) for _ in range(permutations))
        columns = torch.from_numpy(np.stack([signs, *shuffles], axis=1))
        statistics = -_quadratic_forms(pooled, columns).numpy() / block**2
        null = statistics[1:] / len(blocks)
        observed += statistics[0] / len(blocks)
        mean += null.mean()
        variance += null.var(ddof=1)
        third += ((null - null.mean()) ** 3).mean()
    if variance == 0:
        raise ValueError("in every block all rows of x and y are one point, so nothing can be tested; pass samples")
    from scipy.stats import pearson3  # importing it takes a third of a second; only this function needs it

    return float(pearson3.sf(observed, third / variance**1.5, loc=mean, scale=math.sqrt(variance)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of m tests at once, in the order given (Holm 1979).

    The i-th smallest, i = 0, 1, ..., is multiplied by m - i, then made at least as large as those before it and at most
    1. Rejecting where the result is below a level keeps the chance of any false rejection below that level, whatever
    the dependence between the tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values={p_values!r} are not a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted.tolist()


def _quadratic_forms(z: Tensor, signs: Tensor) -> Tensor:
    """``s^T D s`` for every column s of ``signs`` ``(N, S)``, with ``D_ij = |z_i - z_j|``.

    All columns share one product for each strip of D. As D is symmetric, the part of a strip to the right of the
    diagonal is never formed, and the part to its left counts twice.
    """
    found = torch.zeros(signs.shape[1], dtype=torch.float64, device="cpu")
    for first in range(0, len(z), STRIP):
        strip = distances(z[first : first + STRIP], z[: first + STRIP])
        strip[:, :first] *= 2
        found += (signs[first : first + STRIP] * (strip @ signs[: first + STRIP])).sum(0)
    return found


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues that round-off made negative count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
