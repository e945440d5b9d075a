"""Pictures without masks: which training masks are kept, and which pictures without one join which batch.

They are a fourth split, `unlabelled`, which is read like the others but has no masks, and which nothing is measured on:
only a teacher can say anything about them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kd.data.numbers import is_number
from kd.data.random_streams import key, stream
from kd.errors import DataError

UNLABELLED = "unlabelled"  # the split


def check_labelled(value: int | float | None) -> None:
    """Raise ValueError unless `value` is None, a fraction between 0 and 1, or a number of samples."""
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is not None and not count and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            f"labelled must be a fraction between 0 and 1, both excluded, or a number of training samples, 1 or more, "
            f"but got {value!r}: leave it out to keep all masks"
        )


def check_share(value: float) -> None:
    """Raise ValueError unless `value` is a share of a batch that leaves room for labelled samples."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"unlabelled_share must be a share of each batch, 0 (none) or more and below 1, but got {value!r}"
        )


def kept_and_dropped(names: Sequence[str], labelled: int | float | None) -> tuple[list[int], list[int]]:
    """The positions in `names` of the samples that keep their masks, and of the others, both in order.

    The choice follows from the names alone, so it is the same for every seed, and a smaller one is part of a larger.
    Raises DataError if there are fewer samples than `labelled`.
    """
    positions = range(len(names))
    if labelled is None or not names:
        return list(positions), []
    count = max(1, round(labelled * len(names))) if isinstance(labelled, float) else labelled
    if count > len(names):
        raise DataError(
            f"data.labelled={labelled}, but there are only {len(names)} training samples: lower it, or leave it out"
        )
    kept = set(sorted(positions, key=lambda position: key("labelled", names[position]))[:count])
    return sorted(kept), [position for position in positions if position not in kept]


def pictures_per_batch(labelled: int, share: float) -> int:
    """How many pictures without masks beside `labelled` samples make up `share` of a batch, at least one."""
    return max(1, round(labelled * share / (1 - share))) if share else 0


class BatchSize(NamedTuple):
    """Samples in a batch, over all processes: `labelled` ones, and `unlabelled` pictures without masks beside them."""

    labelled: int
    unlabelled: int = 0


class Part(NamedTuple):
    """Samples of one split, all in the same view."""

    split: str
    view: int
    indices: list[int]


class Passes:
    """Which pictures without masks come with which step: pass after pass over all, in an order of its own.

    As in an epoch of labelled samples, no picture comes twice in a pass, an incomplete last batch of a pass is dropped,
    and pass p uses view p modulo `views` (None: a new one in every pass).
    """

    def __init__(self, pictures: int, batch_size: int, seed: int, views: int | None) -> None:
        self._pictures, self._batch_size, self._seed, self._views = pictures, batch_size, seed, views
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def steps(self) -> int:
        """Batches in a pass."""
        return self._pictures // self._batch_size

    def part(self, step: int) -> Part:
        """The pictures of a step, which is counted over all epochs: a function of it and of the seed alone."""
        number, position = divmod(step, self.steps())
        if number != self._pass:
            self._pass, self._order = number, stream(UNLABELLED, self._seed, number).permutation(self._pictures)
        indices = self._order[position * self._batch_size :][: self._batch_size].tolist()
        return Part(UNLABELLED, number if self._views is None else number % self._views, indices)
