"""The order in which training samples come, epoch by epoch: a pure function of the seed and the epoch."""

from dataclasses import dataclass

import numpy as np

from kd.data.random_streams import stream


@dataclass(frozen=True)
class Order:
    """Samples in a random order of their own in each epoch.

    `repeats` says how often each sample comes in relation to the others; None: each comes once. An epoch has as many
    samples with it as without: of N samples, one with repeat r comes N r / (sum of all r) times on average, and in each
    epoch that number rounded down or up (systematic sampling).

    >>> sorted(Order(seed=0).epoch(0, samples=4))
    [0, 1, 2, 3]
    >>> sorted(Order(seed=0, repeats=(1.0, 1.0, 2.0, 0.0)).epoch(0, samples=4))
    [0, 1, 2, 2]
    """

    seed: int
    repeats: tuple[float, ...] | None = None

    def epoch(self, epoch: int, samples: int) -> list[int]:
        """The indices of an epoch, as many as there are `samples`."""
        draws = stream("order", self.seed, epoch)
        order = draws.permutation(samples)
        if self.repeats is not None:
            reach = np.cumsum(np.asarray(self.repeats)[order])
            points = (np.arange(samples) + draws.random()) * (reach[-1] / samples)
            drawn = order[np.searchsorted(reach, points, side="right").clip(max=samples - 1)]
            order = draws.permutation(drawn)
        return order.tolist()
