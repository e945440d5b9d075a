"""Built-in data: textured shapes on textured ground, drawn as a pure function of (seed, split, index), without files.

Only the form determines the class. Colours and textures are drawn at random from one palette per image, including
background and distractors; shapes overlap, vary in radius by a factor of 2.5, and have uneven light and camera noise.
Neither a threshold nor a network with a small receptive field can solve it. Later classes are rarer. Plain numpy, so
that images do not depend on the version of a drawing library.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from kd.data.layout.labelled import kept_and_dropped
from kd.data.layout.naming import SPLITS, UNLABELLED
from kd.data.numbers import whole_number
from kd.data.random_streams import stream
from kd.data.sets.samples import sample_at
from kd.data.source import Source, known_split
from kd.system.files import json_digest

#: Settings that change no sample with a mask; which samples there are is in the fingerprint by itself.
FREE = (
    "class_names", "cache", "cache_gb", "labelled", "unlabelled", "unlabelled_share", "fit", "scale", "crop_foreground",
    "window_overlap", "limit", "channels", "depth", "mean", "std",
)  # fmt: skip
VERSION = 1  # part of every key: increase it whenever images change

# Whether (x, y) is inside. Every shape is about the size of the unit disc, and none is a rotation of another.
_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "star": lambda x, y: np.hypot(x, y) < 0.72 + 0.28 * np.cos(5 * np.arctan2(y, x)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) < 0.2,
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.25) & (np.maximum(np.abs(x), np.abs(y)) < 0.95),
    "triangle": lambda x, y: (y > -0.5) & (y + 1.732 * np.abs(x) < 1.0),
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.68,
    "disc": lambda x, y: np.hypot(x, y) < 0.78,
    "crescent": lambda x, y: (np.hypot(x, y) < 0.95) & (np.hypot(x - 0.45, y) > 0.72),
    "bar": lambda x, y: (np.abs(x) < 1.0) & (np.abs(y) < 0.26),
    "ell": lambda x, y: (np.maximum(np.abs(x), np.abs(y)) < 0.8) & (np.minimum(x, y) < -0.25),
    "frame": lambda x, y: np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.6) < 0.18,
    "half": lambda x, y: (np.hypot(x, y) < 0.98) & (y > 0.1),
    "blob": lambda x, y: np.hypot(x, y) < 0.75 + 0.15 * np.cos(2 * np.arctan2(y, x) + 1) + 0.1 * np.sin(3 * x),
}
KINDS = tuple(_INSIDE)
MAX_CLASSES = len(KINDS)  # the background and every kind except the blob, which is always a distractor
_BINARY_FOREGROUND = KINDS[:3]
_BINARY_DISTRACTORS = KINDS[3:6]


class _Shape(NamedTuple):
    """One shape to draw; class 0 is a distractor. `radius` in pixels, `at` is (y, x), `turn` in radians."""

    kind: str
    category: int
    at: tuple[float, float]
    radius: float
    turn: float


@dataclass(frozen=True)
class Shapes(Source):
    """`train`, `val` and `test` are numbers of samples, `unlabelled` of pictures without masks.

    `noise` is the standard deviation of noise in grey levels.

    Binary: stars, rings and crosses against other forms. n classes: the first n-1 of KINDS; the rest are distractors.
    With `ignore_index`, a one-pixel outline of the foreground is ignored.
    """

    image_size: tuple[int, int] = (96, 96)
    train: int = 192
    val: int = 48
    test: int = 48
    unlabelled: int = 0
    seed: int = 0
    noise: float = 12.0

    def __post_init__(self) -> None:
        whole_number("classes", self.classes, 1, MAX_CLASSES)
        if not self.class_names and self.classes > 1:
            object.__setattr__(self, "class_names", ("background", *KINDS)[: self.classes])
        super().__post_init__()
        for split in SPLITS:
            whole_number(split, getattr(self, split), 1)
        whole_number("unlabelled", self.unlabelled, 0)
        whole_number("seed", self.seed, 0)
        if not 0 <= self.noise <= 255:
            raise ValueError(f"noise must be in grey levels, from 0 to 255, but got {self.noise!r}")

    def size(self, split: str) -> int:
        return len(self._drawn[known_split(split)])

    def may_have_unlabelled(self) -> bool:
        return super().may_have_unlabelled() or (self.unlabelled > 0 and self.unlabelled_share > 0)

    def unlabelled_size(self) -> int:
        return len(self._drawn[UNLABELLED])

    def name(self, split: str, index: int) -> str:
        drawn_as, number = self._drawing(split, index)
        return f"{drawn_as}_{number:05d}"

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._draw_sample(*self._drawing(split, index))
        return self.fitted(image, None if split == UNLABELLED else mask)

    def _draw_sample(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        random = stream("shapes", VERSION, self.seed, split, index)
        colours = _palette(random)
        image = _texture(random, colours[0], *np.indices(self.image_size, dtype=np.float32))
        mask = np.zeros(self.image_size, dtype=np.uint8)
        for shape in self._scene(random):
            _draw(random, image, mask, shape, colours[1 + random.integers(len(colours) - 1)])
        if self.ignore_index is not None:
            mask[_outline(mask)] = self.ignore_index
        return self._photograph(random, image), mask

    def fingerprint(self) -> str:
        settings = {key: value for key, value in asdict(self).items() if key not in FREE}
        kept = [] if self.labelled is None else [self._drawn["train"]]
        kept += [] if self.limit is None else [self._drawn[split] for split in SPLITS]
        return json_digest(["shapes", VERSION, settings, *kept, *self._fit_facts()])

    def unlabelled_fingerprint(self) -> str | None:
        drawn = self._drawn[UNLABELLED]
        return json_digest([self.fingerprint(), drawn]) if drawn else None

    def check(self) -> None:
        """Check that there are as many samples as keep their masks; every sample follows from the settings."""
        self.size("train")

    @cached_property
    def _drawn(self) -> dict[str, list[tuple[str, int]]]:
        """What each sample of a split is drawn as: a training sample that loses its mask stays the same picture."""
        numbers = {split: self.limited(range(getattr(self, split))) for split in (*SPLITS, UNLABELLED)}
        drawn = {split: [(split, index) for index in indices] for split, indices in numbers.items()}
        train = drawn["train"]
        kept, dropped = kept_and_dropped([f"train_{index:05d}" for _, index in train], self.labelled)
        drawn["train"] = [train[index] for index in kept]
        drawn[UNLABELLED] = [*(train[index] for index in dropped), *drawn[UNLABELLED]] if self.unlabelled_share else []
        return drawn

    def _drawing(self, split: str, index: int) -> tuple[str, int]:
        return sample_at(self._drawn, split, index)

    def _scene(self, random: np.random.Generator) -> list[_Shape]:
        """Shapes in drawing order, later ones over earlier ones."""
        height, width = self.image_size
        side = min(height, width)
        shapes = []
        for _ in range(random.integers(4, 9)):
            kind, category = self._draw_kind(random)
            at = random.random() * height, random.random() * width
            shapes.append(_Shape(kind, category, at, side * 0.1 * 2.5 ** random.random(), random.random() * 2 * np.pi))
        return shapes

    def _draw_kind(self, random: np.random.Generator) -> tuple[str, int]:
        """A random kind and its class (0: distractor); each class is 0.8 times as frequent as the one before."""
        if self.classes == 1:
            kinds = _BINARY_FOREGROUND if random.random() < 0.45 else _BINARY_DISTRACTORS
            return kinds[random.integers(len(kinds))], int(kinds is _BINARY_FOREGROUND)
        known = self.classes - 1
        if random.random() < 0.2:
            return KINDS[random.integers(known, len(KINDS))], 0
        share = np.cumsum(0.8 ** np.arange(known))
        category = int(np.searchsorted(share, random.random() * share[-1], side="right"))
        return KINDS[category], category + 1

    def _photograph(self, random: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Add uneven light, blur and sensor noise: H x W x 3 float32 -> uint8."""
        height, width = self.image_size
        across, down = 0.5 * random.random(2) - 0.25
        light = 1 + across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, None]
        image = image * light[..., None].astype(np.float32)
        image[1:-1] = image[1:-1] / 2 + (image[:-2] + image[2:]) / 4
        image[:, 1:-1] = image[:, 1:-1] / 2 + (image[:, :-2] + image[:, 2:]) / 4
        image += self.noise * random.standard_normal(image.shape, dtype=np.float32)
        return image.clip(0, 255).astype(np.uint8)


def _palette(random: np.random.Generator) -> np.ndarray:
    """The colours of one image, 4 x 3 in grey levels: a dull background, then three vivid ones for shapes."""
    ground = 70 + 90 * random.random() + 30 * random.random(3)
    vivid = np.array([random.permutation(3) for _ in range(3)]) * 90 + 40 * random.random((3, 3)) + 15
    return np.concatenate([ground[None], vivid])


def _texture(random: np.random.Generator, colour: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`colour` with stripes, checks or no pattern at pixel positions y and x: their shape x 3, float32."""
    turn, pitch, phase = 2 * np.pi * random.random(), 3 + 6 * random.random(), 2 * np.pi * random.random()
    strength = 50 * random.random(3) - 25
    style = random.integers(3)
    pattern = np.zeros_like(x)
    if style > 0:
        pattern = np.sin(2 * np.pi / pitch * (np.cos(turn) * x + np.sin(turn) * y) + phase)
    if style > 1:
        pattern = pattern * np.sin(2 * np.pi / pitch * (np.cos(turn) * y - np.sin(turn) * x))
    return (colour + strength * pattern[..., None]).astype(np.float32)


def _draw(random: np.random.Generator, image: np.ndarray, mask: np.ndarray, shape: _Shape, colour: np.ndarray) -> None:
    """Draw the visible part of a shape into the image (H x W x 3 float32) and its class into the mask (H x W)."""
    (centre_y, centre_x), radius = shape.at, shape.radius
    rows, columns = (
        slice(max(0, int(centre - radius)), min(limit, int(centre + radius) + 2))
        for centre, limit in zip(shape.at, mask.shape, strict=True)
    )
    y, x = np.mgrid[rows, columns].astype(np.float32)
    v, u = (y - centre_y) / radius, (x - centre_x) / radius
    cos, sin = np.cos(shape.turn), np.sin(shape.turn)
    inside = _INSIDE[shape.kind](cos * u + sin * v, cos * v - sin * u)
    image[rows, columns][inside] = _texture(random, colour, y, x)[inside]
    mask[rows, columns][inside] = shape.category


def _outline(mask: np.ndarray) -> np.ndarray:
    """Where a pixel of the H x W mask differs from the one below or to its right: H x W bool."""
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return edge
