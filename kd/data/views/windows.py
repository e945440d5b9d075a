"""Windows over a picture of any size: where they lie, and how much each of their pixels counts in the blend."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """How whole pictures are seen by a network of a fixed size.

    Attributes:
        size: (height, width) of a window.
        overlap: the share of a window's side that the next one shows, too, at least; in [0, 1).
        batch: windows that are computed together.
    """

    size: tuple[int, int]
    overlap: float
    batch: int

    def starts(self, length: int, axis: int) -> list[int]:
        """Where windows begin on an axis (0: rows) of `length` pixels, at equal distances; the last one ends there.

        A single 0 if one window shows all of it.
        """
        side = self.size[axis]
        if length <= side:
            return [0]
        stride = max(1, round(side * (1 - self.overlap)))
        steps = math.ceil((length - side) / stride)
        return [round(step * (length - side) / steps) for step in range(steps + 1)]

    def weights(self) -> np.ndarray:
        """How much each pixel of a window counts, H x W float32 in (0, 1]: it falls linearly towards the border.

        A network knows least about the border, where it does not see what lies beyond.
        """
        rows, columns = (_falling(side) for side in self.size)
        return (rows[:, None] * columns[None, :]).astype(np.float32)


def _falling(side: int) -> np.ndarray:
    """1 in the middle of an axis, and 1 / (half of it) at its ends."""
    from_ends = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1
    return from_ends / from_ends.max()
