"""How pictures of any size become what a network is trained on, measured on and asked about.

resize      Every picture becomes `image_size`; its aspect is lost.
letterbox   Every picture is scaled to fit into `image_size`, centred, and padded; its aspect is kept.
crop        Pictures keep their size (times `scale`): trained on are crops of `image_size`, and measured are whole
            pictures, seen through overlapping windows of `image_size`.

Padding is black. It shows nothing, so it counts in no metric and in no term of any loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd.data.files.decode import height_width, resized_image, resized_labels
from kd.data.numbers import is_number

FITS = ("resize", "letterbox", "crop")
LEAST_SCALE, MOST_SCALE = 1 / 64, 64.0


@dataclass(frozen=True)
class Sizing:
    """How pictures are brought to a network of the size `image_size`, (height, width) in pixels.

    Attributes:
        fit: one of FITS.
        scale: what the sides of pictures are multiplied by first, for crops.
        window_overlap: the share of a window's side that the next one shows, too, in [0, 1).

    Raises:
        ValueError: a value is not allowed.
    """

    image_size: tuple[int, int]
    fit: str = "resize"
    scale: float = 1.0
    window_overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, but got {self.fit!r}")
        if not is_number(self.scale) or not LEAST_SCALE <= self.scale <= MOST_SCALE:
            raise ValueError(f"scale must be a number from 1/64 to 64, but got {self.scale!r}")
        if self.scale != 1 and self.fit != "crop":
            raise ValueError(f"scale={self.scale:g} needs fit=crop: with fit={self.fit} image_size says the size")
        if not is_number(self.window_overlap) or not 0 <= self.window_overlap <= 0.9:
            raise ValueError(f"window_overlap must be a share from 0 to 0.9, but got {self.window_overlap!r}")

    @property
    def crops(self) -> bool:
        """Whether pictures keep their own sizes, so that they are cropped, or seen through windows."""
        return self.fit == "crop"

    @property
    def in_words(self) -> str:
        """The size that pictures are measured at."""
        height, width = self.image_size
        if not self.crops:
            return f"{height} x {width} pixels ({'resized' if self.fit == 'resize' else 'letterboxed'})"
        own = "the pictures' own size" if self.scale == 1 else f"{self.scale:g} times the pictures' own size"
        return f"{own} (windows of {height} x {width})"

    def facts(self) -> dict[str, Any]:
        """What a weights file says of this, besides `image_size`; empty for `resize`."""
        if not self.crops:
            return {} if self.fit == "resize" else {"fit": self.fit}
        return {"fit": self.fit, "scale": self.scale, "window_overlap": self.window_overlap}

    @classmethod
    def of(cls, image_size: tuple[int, int], facts: Mapping[str, Any]) -> "Sizing":
        """What `facts` wrote, by anyone; raises ValueError."""
        found = {name: facts[name] for name in ("fit", "scale", "window_overlap") if name in facts}
        return cls(image_size, **found)

    def size_of(self, own: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of a picture of the size `own` before it is padded, cropped or seen through windows."""
        if self.crops:
            return _times(own, self.scale)
        return self.image_size if self.fit == "resize" else inside(own, self.image_size)[2:]

    def image(self, picture: np.ndarray) -> np.ndarray:
        """An image (H x W x channels) at its size, padded with black to `image_size` if letterboxed."""
        return self._padded(resized_image(picture, self.size_of(height_width(picture))), 0)

    def mask(self, labels: np.ndarray, padding: int) -> np.ndarray:
        """Labels (H x W uint8) aligned with `image`; those of the padding are `padding`."""
        return self._padded(resized_labels(labels, self.size_of(height_width(labels))), padding)

    def _padded(self, array: np.ndarray, value: int) -> np.ndarray:
        if self.fit != "letterbox" or array.shape[:2] == self.image_size:
            return array
        top, left, height, width = inside(height_width(array), self.image_size)
        padded = np.full((*self.image_size, *array.shape[2:]), value, array.dtype)
        padded[top : top + height, left : left + width] = array
        return padded

    def without_padding(self, planes_CHW: np.ndarray, own: tuple[int, int]) -> np.ndarray:
        """What a network says (C x H x W) of a picture of the size `own`, without what it says of the padding."""
        if self.fit != "letterbox":
            return planes_CHW
        top, left, height, width = inside(own, self.image_size)
        return np.ascontiguousarray(planes_CHW[:, top : top + height, left : left + width])


def inside(own: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a picture of the size `own`, scaled to fit, lies centred inside `size`: top, left, height, width.

    >>> inside((100, 200), (64, 64))
    (16, 0, 32, 64)
    """
    height, width = (min(side, most) for side, most in zip(_times(own, _factor(own, size)), size, strict=True))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def _factor(own: tuple[int, int], size: tuple[int, int]) -> float:
    return min(size[0] / own[0], size[1] / own[1])


def _times(own: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(own[0] * factor)), max(1, round(own[1] * factor))
