"""Numbers whose sums are exact, so that a reversed step subtracts what the step added."""

import torch
from torch import Tensor

from solvers.real import Real
from solvers.sums import combine


class Lattice:
    """The numbers that the states of a pair method are made of: multiples of ``spacing``, a power of two, in float64.

    Sums of such numbers are exact, so the reversed step subtracts what the step added, to the last bit, and the network
    receives identical inputs. Rounding alone would not do: now and then a change in the last digit of a float64 state
    crosses a rounding boundary of a float32 network, and a difference of 1e-7 in its output grows from step to step. A
    factor r >= 1 is undone as well, by `grow` and `shrink`: the solve to the noise and back is exact if the first half
    expands, as it does in every method here except `OBELM` between shrinking steps. Levesque & Verlet 1993, "Molecular
    dynamics and time reversibility", made the leapfrog method exact in this way.

    Exactness ends where a state exceeds ``2^53 spacing``; beyond, sums are rounded as usual in float64.
    """

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing

    def snap(self, z: Tensor) -> Tensor:
        """The nearest multiples of the spacing, in float64; for derivatives, the identity."""
        z = z.double()
        fixed = z.detach()
        # Where z is finite the difference is exact, and so is the sum.
        return z + torch.round(fixed / self.spacing).mul_(self.spacing).sub_(fixed)

    def grow(self, z: Tensor, r: Real) -> Tensor:
        """``r z`` for r >= 1, on the lattice: ``n + round((r - 1) n)`` for z = n times the spacing."""
        return z + self.snap(combine((r - 1, z)))

    def shrink(self, z: Tensor, r: Real) -> Tensor:
        """``z / r`` for r >= 1, which undoes `grow`: ``m - round((r - 1)/r m)``.

        With ``(r - 1) n = k + e``, k whole and |e| <= 1/2, the number rounded here is ``k + e/r``. Rounding
        ``r n`` as a whole could be undone in the same way, but for large n that product has no digits left after the
        point in float64.
        """
        # 1 - 1/r would lose the digits that r - 1 has.
        return z - self.snap(combine(((r - 1) / r, z)))

    def digits(self, scale: Real, x: Tensor, carried: Tensor | None) -> Tensor:
        """The z of ``x = scale z``: ``carried`` wherever it rounds to x, and x itself elsewhere."""
        fresh = self.snap(combine((1 / scale, x.double())))
        if carried is None:
            return fresh
        return torch.where(self.state(scale, carried, x) == x, carried, fresh)

    def state(self, scale: Real, z: Tensor, like: Tensor) -> Tensor:
        """``scale z``, rounded to the dtype of ``like``."""
        return combine((scale, z)).to(like.dtype)


FINE = Lattice(2.0**-49)
"""The lattice for methods of high order and states of size 1: exact up to 16, accurate to 2e-15."""
WIDE = Lattice(2.0**-38)
"""The lattice for the lines, whose x/alpha or x0 may grow large at one end, and for the x of wide paths: exact up to
32,768, accurate to 4e-12."""
