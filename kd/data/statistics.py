"""Mean and standard deviation of each channel, stated or measured (`kd.data.measuring`).

They normalise the input of networks whose weights do not say how, and they tell augmentation what is bright and what is
dark where values are no colours from 0 to 255. They are in stored values.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kd.data.numbers import is_number

SPAN = 6  # standard deviations that become 0 to 1 for augmentation, the mean 0.5: those of a photo are some 4.5
DIGITS = 6  # significant ones, so that stating what was printed changes nothing


@dataclass(frozen=True)
class Statistics:
    """The `mean` and the standard deviation `std` of each channel, in stored values."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def options(self) -> str:
        """What states them in a configuration, for a shell."""
        mean, std = (",".join(f"{value:.{DIGITS}g}" for value in values) for values in (self.mean, self.std))
        return f"'data.mean=[{mean}]' 'data.std=[{std}]'"

    def facts(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """An image (H x W x channels) as float32, with each channel's mean at 0.5, and SPAN deviations from 0 to 1."""
        mean, span = self._arrays()
        return (image.astype(np.float32) - mean) / span + np.float32(0.5)

    def unscaled(self, image: np.ndarray) -> np.ndarray:
        """The inverse of `scaled`, but for rounding."""
        mean, span = self._arrays()
        return (image - np.float32(0.5)) * span + mean

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.mean, np.float32), SPAN * np.array(self.std, np.float32)


class Moments(NamedTuple):
    """How many pixels were seen, the mean of each channel, and the sum of squared distances from it, in float64."""

    pixels: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]


def moments(image: np.ndarray) -> Moments:
    """The moments of one image, H x W x channels."""
    flat = image.reshape(-1, image.shape[-1])
    mean = flat.mean(axis=0, dtype=np.float64)
    squares = [float(np.square(flat[:, channel] - mean[channel]).sum()) for channel in range(len(mean))]
    return Moments(len(flat), tuple(mean.tolist()), tuple(squares))


def combined(parts: Iterable[Moments]) -> Statistics | None:
    """The statistics of all pixels, whatever the sizes of images; None if there are no parts.

    Reference: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979,
    equation 2.1: sums of squares about a mean that is far from 0 lose no digits.
    """
    pixels, mean, squares = 0, np.zeros(0), np.zeros(0)
    for part in parts:
        one, other = np.array(part.mean), np.array(part.squares)
        if not pixels:
            pixels, mean, squares = part.pixels, one, other
            continue
        apart, total = one - mean, pixels + part.pixels
        squares = squares + other + apart**2 * (pixels * part.pixels / total)
        mean = mean + apart * (part.pixels / total)
        pixels = total
    if not pixels:
        return None
    rounded = [[float(f"{value:.{DIGITS}g}") for value in values] for values in (mean, np.sqrt(squares / pixels))]
    return Statistics(*map(tuple, rounded))


def check_stated(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, depth: int | str) -> None:
    """Raise ValueError unless both are None, or a number for each channel, in stored values."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together, but one of them is null: kd check prints both")
    if mean is None or std is None:
        return
    for name, values, least in (("mean", mean, -math.inf), ("std", std, 0.0)):
        if (
            not isinstance(values, list | tuple)
            or len(values) != channels
            or not all(is_number(value) and math.isfinite(value) for value in values)
        ):
            raise ValueError(
                f"{name} must be a list with a number for each of the {channels} channels, but got {values}"
            )
        if not all(value > least for value in values):
            raise ValueError(f"{name} must be above 0 for each channel, but got {list(values)}")
    if depth != 8 and depth != 16:
        return
    if max(std) <= 1 and max(mean) <= 1:
        raise ValueError(
            f"mean={list(mean)} and std={list(std)} are of values from 0 to 1, but must be in stored values, from 0 to "
            f"{255 if depth == 8 else 65535}: kd check prints them"
        )
