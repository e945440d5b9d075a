"""albumentations' fog, bit for bit, at the cost of the other transforms.

albumentations blends the whole picture with each of some hundred white circles in turn: 356 ms at 640 x 640 pixels.
What becomes of a pixel depends only on its value and on how many circles cover it, so here the circles are counted
first, and a table says what so many blends make of a value, with the rounding of each.
"""

import albumentations
import cv2
import numpy as np


class RandomFog(albumentations.RandomFog):  # type: ignore[misc]  # albumentations has no types
    """albumentations.RandomFog with the same draws and the same result."""

    def apply(
        self,
        img: np.ndarray,
        particle_positions: list[tuple[int, int]],
        radiuses: list[int],
        intensity: float,
        **params: object,
    ) -> np.ndarray:
        """The picture, H x W x 3 uint8, in fog; others (float32) as albumentations does it."""
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            return super().apply(img, particle_positions, radiuses, intensity, **params)
        height, width = img.shape[:2]
        counts_HW = _covering(height, width, particle_positions, radiuses)
        table = _blended(int(counts_HW.max()), self.alpha_coef * intensity)
        foggy = table.ravel().take(counts_HW[..., None] * 256 + img)
        size = max(3, min(height, width) // 30) | 1  # odd
        return cv2.GaussianBlur(foggy, (size, size), 0)


def _covering(height: int, width: int, centres: list[tuple[int, int]], radii: list[int]) -> np.ndarray:
    """How many of the circles cover each pixel, H x W int32."""
    counts_HW = np.zeros((height, width), dtype=np.int32)
    discs = {r: _disc(r) for r in set(radii)}
    for (x, y), r in zip(centres, radii, strict=False):
        top, left = max(0, r - y), max(0, r - x)  # rows and columns of the disc outside the picture
        inside = counts_HW[max(0, y - r) : max(0, y + r + 1), max(0, x - r) : max(0, x + r + 1)]
        inside += discs[r][top : top + inside.shape[0], left : left + inside.shape[1]]
    return counts_HW


def _disc(radius: int) -> np.ndarray:
    """1 within the radius of the centre, 0 elsewhere, as OpenCV draws it."""
    disc = np.zeros((2 * radius + 1, 2 * radius + 1), dtype=np.uint8)
    cv2.circle(disc, (radius, radius), radius, 1, thickness=-1)
    return disc


def _blended(most: int, alpha: float) -> np.ndarray:
    """(most + 1) x 256 uint8: each value after 0, 1, ... `most` blends with white."""
    table = np.empty((most + 1, 256), dtype=np.uint8)
    table[0] = np.arange(256)
    white = np.full((1, 256), 255, dtype=np.uint8)
    for row in range(most):
        table[row + 1] = cv2.addWeighted(white, alpha, table[row : row + 1], 1 - alpha, 0)
    return table
