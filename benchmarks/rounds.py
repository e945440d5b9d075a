"""Contestants that take turns, and the ratios of what they took.

A machine that others share is now faster and now slower. So nothing is timed alone: in each round everybody has a turn,
in one order and, in the next round, in the other; a ratio is taken within a round, where drift cancels; and what is
told is the median of the rounds' ratios, with the least and the greatest of them.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

Spread = dict[str, float]  # median, min, max and rounds
Times = dict[str, list[float]]  # seconds of each contestant's turns, round by round


def race(
    contestants: Mapping[str, Iterator[object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    said: Callable[[int], None] = lambda turn: None,
) -> Times:
    """Seconds that each contestant took for its turns, `next()` on it; the first `warm_up` rounds are not counted.

    `said` is passed the number of every round that is over, the uncounted ones included.
    """
    seconds: Times = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        order = list(contestants) if turn % 2 == 0 else list(reversed(contestants))
        for name in order:
            begun = clock()
            next(contestants[name])
            took = clock() - begun
            if turn >= warm_up:
                seconds[name].append(took)
        said(turn)
    return seconds


def ratios(over: Sequence[float], under: Sequence[float], *more: Sequence[float]) -> list[float]:
    """`over` to `under`, or to the sum of `under` and `more`, round by round."""
    return [one / sum(others) for one, *others in zip(over, under, *more, strict=True)]


def spread(values: Sequence[float]) -> Spread:
    """The median, the least and the greatest of some values, and how many they were."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def cpu_of_children() -> float:
    """CPU seconds, user and system, of the processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size that the seconds grow with: the slope of a straight line through their logarithms."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(s) for s in seconds]).slope
