"""Which pictures without masks join which batch."""

from typing import NamedTuple

import numpy as np

from kd.data.layout.naming import UNLABELLED
from kd.data.random_streams import stream


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
