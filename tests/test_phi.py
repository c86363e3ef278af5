"""The phi functions against mpmath, at 60 digits."""

import math

import mpmath
import numpy as np
import pytest

from solvers.phi import phi

ARGUMENTS = [
    0.0,
    *(sign * size for sign in (1, -1) for size in (1e-300, 1e-9, 1e-3, 0.3, 1.9999, 2.0, 3.7, 12.0, 36.0)),
]


def exact(k: int, z: float) -> float:
    with mpmath.workdps(60):
        if z == 0:
            return float(1 / mpmath.factorial(k))
        # k! phi_k(z) is Kummer's function M(1, k + 1, z).
        return float(mpmath.hyp1f1(1, k + 1, mpmath.mpf(z)) / mpmath.factorial(k))


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("z", ARGUMENTS)
def test_phi_equals_mpmath(k, z):
    found = phi(k, z)
    assert isinstance(found, float)
    assert found == pytest.approx(exact(k, z), rel=4e-15)


def test_the_recursion_alone_would_lose_every_digit_of_a_small_step():
    z = 1e-4
    naive = ((math.exp(z) - 1) / z - 1) / z
    naive = (naive - 1 / 2) / z
    assert abs(naive - exact(3, z)) > 1e-8 * exact(3, z)
    assert phi(3, z) == pytest.approx(exact(3, z), rel=1e-15)


def test_phi_of_an_array_is_phi_of_its_elements():
    z = np.array(ARGUMENTS)
    assert phi(2, z).tolist() == [phi(2, float(value)) for value in z]
