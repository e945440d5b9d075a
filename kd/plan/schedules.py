"""Temperature schedules: progress in [0, 1] -> temperature.

A schedule is a frozen value with one method. It knows nothing of epochs: progress is epoch / (epochs - 1), so the first
epoch trains exactly at `initial` and the last exactly at `final`, whatever the length of the run. Rising schedules
(final above initial) are allowed.

Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2, for the
temperature; Loshchilov and Hutter, "SGDR", arXiv 1608.03983, equation 5, for the cosine, without its restarts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def progress(epoch: int, epochs: int) -> float:
    """The progress of a zero-based `epoch` in a run of `epochs`: 0 at the first, 1 at the last, 0 in a run of one."""
    return epoch / (epochs - 1) if epochs > 1 else 0.0


def _check_temperature(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive, finite temperature, but got {value!r}")


def _listed(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{name} must be a list of numbers, but got {values!r}")
    return tuple(values)


class Schedule(ABC):
    """Temperature as a pure function of progress: `schedule(progress(epoch, epochs))`."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The temperature (dimensionless, above 0) at `progress` in [0, 1]."""


@dataclass(frozen=True)
class Constant(Schedule):
    """T = initial, throughout.

    >>> Constant(4.0)(0.5)
    4.0

    Raises:
        ValueError: `initial` is not a positive, finite number. All schedules validate their temperatures.
    """

    initial: float = 4.0

    def __post_init__(self) -> None:
        _check_temperature("initial", self.initial)

    def __call__(self, progress: float) -> float:
        return float(self.initial)


@dataclass(frozen=True)
class _FromTo(Schedule):
    """From `initial` at progress 0 to `final` at progress 1, both reached exactly."""

    initial: float = 4.0
    final: float = 1.0

    def __post_init__(self) -> None:
        _check_temperature("initial", self.initial)
        _check_temperature("final", self.final)

    def __call__(self, progress: float) -> float:
        if progress <= 0:
            return float(self.initial)
        if progress >= 1:
            return float(self.final)
        return self.between(progress)

    @abstractmethod
    def between(self, progress: float) -> float:
        """The temperature at `progress` strictly inside (0, 1)."""


@dataclass(frozen=True)
class Linear(_FromTo):
    """T = initial + (final - initial) p.

    >>> [Linear(4, 1)(progress(epoch, epochs=4)) for epoch in range(4)]
    [4.0, 3.0, 2.0, 1.0]
    """

    def between(self, progress: float) -> float:
        return self.initial + (self.final - self.initial) * progress


@dataclass(frozen=True)
class Cosine(_FromTo):
    """T = final + (initial - final) (1 + cos(pi p)) / 2: slow at both ends, fast in the middle.

    >>> [Cosine(4, 1)(p) for p in (0, 0.5, 1)]
    [4.0, 2.5, 1.0]
    """

    def between(self, progress: float) -> float:
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Exponential(_FromTo):
    """T = initial (final / initial)^p: the same factor every epoch.

    >>> [round(Exponential(8, 1)(progress(epoch, epochs=4)), 9) for epoch in range(4)]
    [8.0, 4.0, 2.0, 1.0]
    """

    def between(self, progress: float) -> float:
        # In logarithms, since final / initial may overflow although all temperatures between them are finite.
        return math.exp((1 - progress) * math.log(self.initial) + progress * math.log(self.final))


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Linear interpolation between (progress, temperature) points, given as two lists of equal length.

    `at` increases strictly from 0 to 1; `temperatures` holds the temperature at each of these points.

    >>> Piecewise(at=[0, 0.5, 1], temperatures=[10, 2, 1])(0.25)
    6.0
    """

    at: Sequence[float] = (0.0, 0.2, 0.8, 1.0)
    temperatures: Sequence[float] = (10.0, 8.0, 3.0, 1.0)

    def __post_init__(self) -> None:
        at, temperatures = _listed("at", self.at), _listed("temperatures", self.temperatures)
        if len(at) != len(temperatures) or len(at) < 2:
            raise ValueError(
                f"at and temperatures must be lists of equal length, at least 2, but got {len(at)} and "
                f"{len(temperatures)}"
            )
        if (
            not all(isinstance(moment, int | float) for moment in at)
            or at[0] != 0
            or at[-1] != 1
            or not all(a < b for a, b in pairwise(at))
        ):
            raise ValueError(f"at must increase strictly from 0 to 1, but got {list(at)}")
        for index, temperature in enumerate(temperatures):
            _check_temperature(f"temperatures[{index}]", temperature)
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "temperatures", temperatures)

    def __call__(self, progress: float) -> float:
        if progress >= 1:
            return float(self.temperatures[-1])
        end = next(index for index, moment in enumerate(self.at) if moment > max(progress, 0.0))
        (p0, p1), (t0, t1) = self.at[end - 1 : end + 1], self.temperatures[end - 1 : end + 1]
        return t0 + (t1 - t0) * (max(progress, 0.0) - p0) / (p1 - p0)
