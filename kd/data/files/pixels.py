"""What the pixels of pictures are: how many channels, and of which depth.

Three channels of 8 bits are the usual ones: any picture is made RGB (`decode`). All others are read as they are
stored (`stored`), and a file that stores anything else is refused: nothing is converted silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.files.decode import picture_size, read_image
from kd.data.files.image_file import Header, read_header
from kd.data.files.stored import MOST_CHANNELS, counted, read_stored, stored
from kd.data.files.tiff_directory import SAMPLES, TIFF_SUFFIXES, directories
from kd.errors import DataError, shown

FLOAT = "float"
DEPTHS = (8, 16, FLOAT)
#: By depth: the type of numbers in memory, what 1 is in a normalisation's numbers, and the words for it.
TYPES = {8: np.uint8, 16: np.uint16, FLOAT: np.float32}
LEVELS = {8: 255.0, 16: 65535.0, FLOAT: 1.0}
WORDS = {8: "8 bits", 16: "16 bits", FLOAT: "floating-point numbers"}


class OtherPixelsError(DataError):
    """A picture has other channels, or another type of numbers, than it should; `found` says what it has."""

    def __init__(self, found: str, message: str) -> None:
        self.found = found
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send it
        return type(self), (self.found, str(self))


@dataclass(frozen=True)
class Pixels:
    """How many `channels` pictures have, 1 to 16, and their `depth`: 8 or 16 bits, or float.

    Raises:
        ValueError: a value is not allowed.
    """

    channels: int = 3
    depth: int | str = 8

    def __post_init__(self) -> None:
        count = self.channels
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_CHANNELS:
            raise ValueError(f"channels must be a whole number, from 1 to {MOST_CHANNELS}, but got {count!r}")
        if isinstance(self.depth, bool) or self.depth not in DEPTHS:
            raise ValueError(f"depth must be 8 or 16 (bits), or float, but got {self.depth!r}")

    @property
    def usual(self) -> bool:
        """Whether they are RGB of 8 bits."""
        return self == USUAL

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The type of numbers that pictures are kept in."""
        return np.dtype(TYPES[self.depth])

    @property
    def level(self) -> float:
        """The stored value that is 1 in the numbers of a normalisation."""
        return LEVELS[self.depth]

    @property
    def deep(self) -> bool:
        """Whether networks take them as float32, and not as uint8."""
        return self.depth != 8

    def taken(self, images: np.ndarray) -> np.ndarray:
        """Stored images as networks take them: float32 of what is deeper than 8 bits, else as they are."""
        return images.astype(np.float32, copy=False) if self.deep else images

    @property
    def record_bytes(self) -> int:
        """Bytes of one pixel, and of its label."""
        return self.channels * self.dtype.itemsize + 1

    @property
    def in_words(self) -> str:
        return f"{counted(self.channels)} of {WORDS[self.depth]}"

    @property
    def values(self) -> str:
        """What a network's input is, for metadata and instructions."""
        if self.usual:
            return "RGB, 0..255"
        if not self.deep:
            return "as stored, 0..255"
        return "float32, as stored" + (", 0..65535" if self.depth == 16 else "")

    @property
    def options(self) -> str:
        """What says so in a configuration."""
        return f"data.channels={self.channels} data.depth={self.depth}"

    def facts(self) -> dict[str, Any]:
        """What a weights file and a fingerprint say of them; empty for the usual ones."""
        return {} if self.usual else {"channels": self.channels, "depth": self.depth}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Pixels":
        """What `facts` wrote, by anyone; raises ValueError."""
        return cls(**{name: facts[name] for name in ("channels", "depth") if name in facts})

    def read(self, path: Path) -> np.ndarray:
        """A picture, H x W x channels, in `dtype`.

        Raises:
            DataError: it cannot be read, or stores other channels or another type of numbers.
        """
        if self.usual:
            _check_colours(path)
            return read_image(path)
        self._check(path, *_shape(path))
        picture = read_stored(path)
        if self.depth != FLOAT:
            return picture
        with np.errstate(over="ignore", invalid="ignore"):
            found = picture.astype(np.float32)
        if not np.isfinite(found).all():
            count = int((~np.isfinite(found)).sum())
            raise DataError(
                f"{shown(path)} has {count} values that are no finite number of 32 bits: replace them (as by the "
                "channel's mean)"
            )
        return found

    def header(self, path: Path) -> Header:
        """What the header of a picture's file says; raises DataError."""
        if self.usual:
            _check_colours(path)
            return read_header(path)
        return stored(path).header

    def size(self, path: Path) -> tuple[int, int]:
        """(height, width) of a picture as it is read; raises DataError, also if its channels are others."""
        if self.usual:
            _check_colours(path)
            return picture_size(path)
        found = stored(path)
        self._check(path, found.channels, found.dtype)
        return found.height, found.width

    def noise(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Images for networks to compute on, where their content does not matter: count x channels x H x W."""
        random, shape = np.random.default_rng(0), (count, self.channels, *size)
        if self.depth == FLOAT:
            return random.random(shape, np.float32)
        found = random.integers(0, int(self.level) + 1, shape, self.dtype)
        return self.taken(found)

    def _check(self, path: Path, channels: int, dtype: "np.dtype[Any]") -> None:
        """Raise DataError unless a file stores these channels, at this depth; float takes any type of numbers."""
        if channels == self.channels and (self.depth == FLOAT or dtype == self.dtype):
            return
        found, depth = f"{shown(path)} has {counted(channels)} of {dtype.name}", self.depth
        if depth != FLOAT:
            depth = {"uint8": 8, "uint16": 16}.get(dtype.name, FLOAT)
        remedy = f"set data.channels={channels} data.depth={depth} if all pictures are like it"
        if channels > MOST_CHANNELS:
            remedy = f"choose {MOST_CHANNELS} of them at most, and save it again"
        raise OtherPixelsError(found, f"{found}, and {self.options}: {remedy}")


USUAL = Pixels()


def _check_colours(path: Path) -> None:
    """Raise DataError if a TIFF file has more channels than colours and alpha, of which Pillow would read three."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return
    try:
        samples = directories(path, most=1)[0].tags.get(SAMPLES, 1)
    except DataError:  # reading it says what is wrong
        return
    if isinstance(samples, int) and samples > 4:
        USUAL._check(path, *_shape(path))


def _shape(path: Path) -> "tuple[int, np.dtype[Any]]":
    found = stored(path)
    return found.channels, found.dtype
