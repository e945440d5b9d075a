"""The directories of a TIFF file: one for each picture in it, whose tags say where the tiles (or strips) lie.

A picture is read by rows of tiles, and Pillow decodes a tile that is given to it as a file of its own.

Files are not trusted: sizes and counts are compared with limits before anything is read. Reference: TIFF 6.0, sections
2 (structure), 3 (strips) and 15 (tiles); BigTIFF's larger offsets.
"""

import warnings
from abc import ABC, abstractmethod
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.files.image_file import open_file
from kd.errors import DataError, shown

TIFF_SUFFIXES = (".tif", ".tiff")
WIDTH, HEIGHT, STRIP_ROWS, STRIPS, STRIP_BYTES = 256, 257, 278, 273, 279
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325
#: KIND is 0 for a picture, and has a bit set for a smaller copy, a page, or a mask; EXTRA is 0 for no alpha.
KIND, SAMPLES, EXTRA = 254, 277, 338
PLANAR, ORIENTATION = 284, 274
MOST_PIXELS = 2**31  # of a whole picture that is read by rows: its labels alone are two gigabytes
LONGEST_CHAIN = 256  # directories of a file, at most, that are read


class Directory:
    """One picture of a TIFF file, and its tiles; strips are tiles as wide as the picture.

    Attributes:
        little: whether the file's byte order is little-endian.
        size: (height, width) in pixels.
        tile: those of a tile, or of a strip.
        tiled: whether it has tiles, whose last ones are padded, unlike strips.
        columns: tiles side by side.
        offsets, lengths: where the bytes of each tile begin, and how many they are.
    """

    def __init__(self, path: Path, tags: Any, little: bool) -> None:
        self.path, self.tags, self.little = path, tags, little
        self.tiled = TILES in tags
        self.size = height, width = self.number(HEIGHT), self.number(WIDTH)
        self.tile = (
            (self.number(TILE_HEIGHT), self.number(TILE_WIDTH))
            if self.tiled
            else (min(height, self.number(STRIP_ROWS, height)), width)
        )
        self.offsets, self.lengths = (
            self._list(tag) for tag in ((TILES, TILE_BYTES) if self.tiled else (STRIPS, STRIP_BYTES))
        )
        self.columns, self.rows = -(-width // self.tile[1]), -(-height // self.tile[0])

    def number(self, tag: int, default: int | None = None) -> int:
        """The positive whole number of a tag; raises DataError if it is anything else."""
        value = self.tags.get(tag, default)
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        if not isinstance(value, int) or not 0 < value < 2**32:
            raise self.refusal(f"its tag {tag} is {value!r}")
        return value

    def check_tiles(self, planes: int, most_bytes: int) -> None:
        """Raise DataError unless there are as many tiles as `planes` need, none longer than `most_bytes`."""
        wanted = self.columns * self.rows * planes
        if len(self.offsets) != wanted or len(self.lengths) != wanted:
            raise self.refusal(f"it has {len(self.offsets)} tiles instead of {wanted}")
        if any(length > most_bytes for length in self.lengths):
            raise self.refusal("a tile is too long")

    def stored(self, index: int) -> bytes:
        """The bytes of a tile as they are stored."""
        with open_file(self.path) as file:
            file.seek(self.offsets[index])
            return file.read(self.lengths[index])

    def refusal(self, reason: str) -> DataError:
        """The error that says that its tiles cannot be read."""
        return DataError(f"{shown(self.path)} cannot be read in tiles ({reason})")

    def _list(self, tag: int) -> tuple[int, ...]:
        found = self.tags.get(tag)
        return tuple(found) if isinstance(found, tuple) else () if found is None else (found,)


class ByRows(ABC):
    """A picture whose rows are decoded from rows of tiles, without the rest of it.

    Attributes:
        size: (height, width) in pixels.
        tile: those of a tile.
    """

    size: tuple[int, int]
    tile: tuple[int, int]

    @abstractmethod
    def decode_row(self, number: int) -> np.ndarray:
        """One row of tiles, side by side, without their padding: rows x W x channels."""

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom` - 1, rows x W x channels."""
        tall = self.tile[0]
        parts = [_decoded_row(self, number) for number in range(top // tall, -(-bottom // tall))]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        first = top // tall * tall
        return joined[top - first : bottom - first]


@lru_cache(maxsize=4)  # windows overlap, and a row of them may need tiles of the one before
def _decoded_row(picture: ByRows, number: int) -> np.ndarray:
    return picture.decode_row(number)


def as_a_file(tags: Any, size: tuple[int, int], data: bytes) -> BytesIO:
    """A TIFF file of one strip of `size`, (height, width), whose bytes are `data` and whose other `tags` are given."""
    tags[WIDTH], tags[HEIGHT], tags[STRIP_ROWS] = size[1], size[0], size[0]
    tags[STRIPS], tags[STRIP_BYTES] = (0,), (len(data),)  # the offset counts from the end of the header
    written = BytesIO()
    tags.save(written)
    written.write(data)
    written.seek(0)
    return written


def directories(path: Path, most: int = LONGEST_CHAIN) -> list[Directory]:
    """The first `most` directories of a file, without those of smaller copies and masks; raises DataError."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    found: list[Any] = []
    try:
        with open_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is damaged: what is needed and missing is refused
            head = file.read(8)
            big, little = head[2:4] in (b"\x2b\x00", b"\x00\x2b"), head[:2] == b"II"
            tags, seen = ImageFileDirectory_v2(head + file.read(8) if big else head), set[int]()
            while tags.next and tags.next not in seen and len(seen) < most:
                seen.add(tags.next)
                file.seek(tags.next)
                tags.load(file)
                found.append({tag: tags[tag] for tag in tags} | {"types": dict(tags.tagtype)})
    except DataError:
        raise
    except Exception as error:  # Pillow raises nearly anything
        raise DataError(f"{shown(path)} is not a TIFF file ({error})") from error
    if not found:
        raise DataError(f"{shown(path)} is not a TIFF file (it has no picture)")
    return [Directory(path, tags, little) for tags in found if len(found) == 1 or tags.get(KIND, 0) in (0, 2)]
