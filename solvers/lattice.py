"""Numbers whose sums are exact, so that a step back subtracts what the step added."""

import torch
from torch import Tensor

from solvers.real import Real
from solvers.sums import combine


class Lattice:
    """The numbers that the states of a pair method are made of: multiples of ``spacing``, a power of two, in float64.

    Sums of such numbers are exact, so what one step adds the step back subtracts, to the last bit, and the network is
    asked the same questions. Rounding alone would not do: a change in the last digit of a float64 state crosses, once
    in a while, a rounding boundary of a float32 network, and a difference of 1e-7 in its answer grows on the way. A
    factor r >= 1 is undone as well, by `grow` and `shrink`: the way to the noise and back is exact where the way there
    expands, as it does in every method here but `OBELM` between steps that shrink. Levesque & Verlet 1993, "Molecular
    dynamics and time reversibility", made the leapfrog method exact in this way.

    Exactness ends where a state exceeds ``2^53 spacing``; from there on sums round as float64 does.
    """

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing

    def snap(self, z: Tensor) -> Tensor:
        """The nearest multiples of the spacing, in float64; to a derivative, the number itself."""
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
        ``r n`` as a whole could be undone in the same way, but for large n float64 leaves that product no digits after
        the point.
        """
        # 1 - 1/r would have lost the digits that r - 1 has.
        return z - self.snap(combine(((r - 1) / r, z)))

    def digits(self, scale: Real, x: Tensor, carried: Tensor | None) -> Tensor:
        """The z of ``x = scale z``: what was carried on, wherever it rounds to x, and x itself elsewhere."""
        fresh = self.snap(combine((1 / scale, x.double())))
        if carried is None:
            return fresh
        return torch.where(self.state(scale, carried, x) == x, carried, fresh)

    def state(self, scale: Real, z: Tensor, like: Tensor) -> Tensor:
        """``scale z``, rounded to the dtype of ``like``."""
        return combine((scale, z)).to(like.dtype)


FINE = Lattice(2.0**-49)
"""For methods of high order and states of a size of 1: exact up to 16, accurate to 2e-15."""
WIDE = Lattice(2.0**-38)
"""For the lines, whose x/alpha or x0 may grow large at one end, and for the x of wide paths: exact up to 32,768,
accurate to 4e-12."""
