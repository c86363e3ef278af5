"""A part of a path: the noise levels known to a network that was trained on another path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from odediff.schedule.base import Array, Schedule


@dataclass(frozen=True)
class Section(Schedule):
    """``whole``, sampled between the noise levels of ``known``: the same times, between closer ends.

    States of equal signal-to-noise ratio differ only by a factor, so a network knows another path as far as its own
    levels reach (Karras et al. 2022, section 2 and appendix B).
    """

    whole: Schedule
    known: Schedule

    @cached_property
    def latest(self) -> float:
        """The largest time: the whole path's, or that of the network's noisiest level if it is smaller."""
        return min(self.whole.latest, self._time_of(self.known.latest))

    @cached_property
    def start(self) -> float:
        """The largest time at which both paths have started."""
        return min(self.whole.start, self._time_of(self.known.start))

    @cached_property
    def end(self) -> float:
        """The smallest time at which neither path has ended."""
        return max(self.whole.end, self._time_of(self.known.end))

    @cached_property
    def first_defined(self) -> float:
        """The time of the least noisy level known to the network."""
        return self._time_of(self.known.first_defined)

    def _time_of(self, known_time: float) -> float:
        """The time at which the whole path is as noisy as the known one at ``known_time``."""
        level = self.known.log_snr(known_time)
        return self.whole.latest if level <= self.whole.log_snr(self.whole.latest) else self.whole.time(level)

    def _path(self, t: Array) -> tuple[Array, Array]:
        return self.whole._path(t)

    def _rates(self, t: Array) -> tuple[Array, Array]:
        return self.whole._rates(t)

    def _time(self, log_snr: Array) -> Array:
        return self.whole._time(log_snr)

    def _path_at(self, log_snr: Array) -> tuple[Array, Array]:
        return self.whole._path_at(log_snr)
