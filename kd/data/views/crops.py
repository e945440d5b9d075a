"""Crops as part of a view: a pure function of (seed, view, index), like the rest of it."""

from dataclasses import dataclass

import numpy as np

from kd.data.random_streams import stream


@dataclass(frozen=True)
class Crop:
    """Cuts a crop of `size`, (height, width), out of a picture and its mask.

    All places are equally likely. With the probability `foreground`, one of the classes in the mask is drawn first, and
    one of its pixels: all places that show this pixel are equally likely. Class 0 is no foreground. Where a picture is
    smaller than the crop, it lies anywhere inside, on black, and the mask has the value `padding` around it.

    `labels` is the number of labels: what is above, void and padding, is no foreground.
    """

    size: tuple[int, int]
    seed: int
    padding: int
    labels: int
    foreground: float = 0.0

    def __call__(self, image: np.ndarray, mask: np.ndarray, view: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The crop of view `view` of sample `index`: image H x W x channels and mask H x W uint8."""
        random = stream("crop", self.seed, view, index)
        shown = self._pixel(random, mask)
        corner = tuple(
            _start(random, length, side, pixel)
            for length, side, pixel in zip(mask.shape, self.size, shown or (None, None), strict=True)
        )
        return cut(image, corner, self.size, 0), cut(mask, corner, self.size, self.padding)

    def _pixel(self, random: np.random.Generator, mask: np.ndarray) -> tuple[int, int] | None:
        """The (row, column) of a pixel that the crop must show; None for any crop."""
        if not self.foreground or random.random() >= self.foreground:
            return None
        counts = np.bincount(mask.reshape(-1), minlength=256)
        present = np.flatnonzero(counts[1 : self.labels]) + 1
        if not len(present):
            return None
        label = present[random.integers(len(present))]
        place = np.flatnonzero(mask.reshape(-1) == label)[random.integers(counts[label])]
        return int(place) // mask.shape[1], int(place) % mask.shape[1]


def _start(random: np.random.Generator, length: int, side: int, pixel: int | None) -> int:
    """Where a crop of `side` starts on an axis of `length`: below 0 if that is shorter; it shows `pixel`, if given."""
    low, high = min(0, length - side), max(0, length - side)
    if pixel is not None:
        low, high = max(low, pixel - side + 1), min(high, pixel)
    return int(random.integers(low, high + 1))


def cut(array: np.ndarray, corner: tuple[int, ...], size: tuple[int, int], value: int) -> np.ndarray:
    """`size` pixels of an array (H x W or H x W x channels) from `corner`, (row, column); `value` outside of it."""
    rows, columns = (slice(start, start + side) for start, side in zip(corner, size, strict=True))
    if min(corner) >= 0 and rows.stop <= array.shape[0] and columns.stop <= array.shape[1]:
        return array[rows, columns]
    found = np.full((*size, *array.shape[2:]), value, array.dtype)
    top, left = max(0, rows.start), max(0, columns.start)
    part = array[top : max(0, rows.stop), left : max(0, columns.stop)]
    at_top, at_left = top - rows.start, left - columns.start
    found[at_top : at_top + part.shape[0], at_left : at_left + part.shape[1]] = part
    return found
