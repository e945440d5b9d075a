"""Rows of TIFF files too large to be read whole, from the tiles (or strips) that hold them.

Pillow decodes a file whole or not at all, but it decodes any single tile that is given to it as a file of its own: the
same bytes under a header that describes that tile alone. So every compression that it knows works here, and memory is
that of one row of tiles. Reference: TIFF 6.0, sections 3 (strips), 15 (tiles) and 22 (JPEG); BigTIFF's larger offsets.
"""

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.image_file import MAX_PIXELS, open_file
from kd.errors import DataError, shown

MOST_PIXELS = 2**31  # of a whole picture: its labels alone are two gigabytes
WIDTH, HEIGHT, STRIP_ROWS, STRIPS, STRIP_BYTES = 256, 257, 278, 273, 279
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325
PLANAR, ORIENTATION = 284, 274
#: Bits, compression, colours, fill order, samples, predictor, palette, extra samples, format, JPEG tables, YCbCr.
COPIED = (258, 259, 262, 266, 277, 284, 317, 320, 338, 339, 347, 529, 530, 531, 532)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class TiledTiff:
    """A TIFF file, by rows. Raises DataError if it is not TIFF, or cannot be read in parts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tags = self._read_tags()
        tiled = TILES in self._tags
        self.size = height, width = self._number(HEIGHT), self._number(WIDTH)
        self.tile = (
            (self._number(TILE_HEIGHT), self._number(TILE_WIDTH))
            if tiled
            else (min(height, self._number(STRIP_ROWS, height)), width)
        )
        self._offsets, self._lengths = (
            self._tags[tag] for tag in ((TILES, TILE_BYTES) if tiled else (STRIPS, STRIP_BYTES))
        )
        self._tiled, self._columns = tiled, -(-width // self.tile[1])
        self._check()

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """RGB rows `top` to `bottom` - 1, rows x W x 3 uint8."""
        tall = self.tile[0]
        parts = [self._row_of_tiles(number) for number in range(top // tall, -(-bottom // tall))]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        first = top // tall * tall
        return joined[top - first : bottom - first]

    def _row_of_tiles(self, number: int) -> np.ndarray:
        return _decoded_row(self, number)

    def decode_row(self, number: int) -> np.ndarray:
        """One row of tiles, side by side."""
        first = number * self._columns
        tiles = [self._decode(index, number) for index in range(first, first + self._columns)]
        return np.concatenate(tiles, axis=1)[: self.size[0] - number * self.tile[0], : self.size[1]]

    def _decode(self, index: int, row: int) -> np.ndarray:
        from PIL import Image
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        tall, wide = self.tile
        height = tall if self._tiled else min(tall, self.size[0] - row * tall)
        alone = ImageFileDirectory_v2(b"II\x2a\x00\x00\x00\x00\x00" if self._little else b"MM\x00\x2a\x00\x00\x00\x00")
        try:
            with open_file(self.path) as file:
                file.seek(self._offsets[index])
                data = file.read(self._lengths[index])
            for tag in COPIED:
                if tag in self._tags:
                    alone.tagtype[tag] = self._tags.tagtype[tag]
                    alone[tag] = self._tags[tag]
            alone[WIDTH], alone[HEIGHT], alone[STRIP_ROWS] = wide, height, height
            alone[STRIPS], alone[STRIP_BYTES] = (0,), (len(data),)  # the offset counts from the end of the header
            written = BytesIO()
            alone.save(written)
            written.write(data)
            with Image.open(BytesIO(written.getvalue()), formats=["TIFF"]) as picture:
                if picture.mode not in MODES:
                    raise ValueError(f"its pixels are {picture.mode}, and 8 bits are needed")
                return np.asarray(picture.convert("RGB"))
        except DataError:
            raise
        except Exception as error:  # decoders raise nearly anything
            raise DataError(
                f"{shown(self.path)} cannot be read in tiles ({error}): save it again, or cut it up"
            ) from error

    def _read_tags(self) -> Any:
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        try:
            with open_file(self.path) as file:
                head = file.read(8)
                big = head[2:4] in (b"\x2b\x00", b"\x00\x2b")
                tags = ImageFileDirectory_v2(head + file.read(8) if big else head)
                self._little = head[:2] == b"II"
                file.seek(tags.next)
                tags.load(file)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{shown(self.path)} is not a TIFF file ({error})") from error
        return tags

    def _number(self, tag: int, default: int | None = None) -> int:
        value = self._tags.get(tag, default)
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        if not isinstance(value, int) or not 0 < value < 2**32:
            raise self._refusal(f"its tag {tag} is {value!r}")
        return value

    def _check(self) -> None:
        height, width = self.size
        tiles = self._columns * -(-height // self.tile[0])
        if height * width > MOST_PIXELS:
            raise self._refusal(f"it has more than {MOST_PIXELS} pixels")
        if self.tile[0] * self.tile[1] > MAX_PIXELS:
            raise self._refusal("it is one piece, without tiles")
        if self._tags.get(PLANAR, 1) != 1:
            raise self._refusal("its channels are stored apart")
        if self._tags.get(ORIENTATION, 1) != 1:
            raise self._refusal("it is turned by its orientation")
        if len(self._offsets) != tiles or len(self._lengths) != tiles:
            raise self._refusal(f"it has {len(self._offsets)} tiles instead of {tiles}")
        if any(length > 8 * MAX_PIXELS for length in self._lengths):
            raise self._refusal("a tile is too long")

    def _refusal(self, reason: str) -> DataError:
        return DataError(f"{shown(self.path)} cannot be read in tiles ({reason})")


@lru_cache(maxsize=4)  # windows overlap, and a row of them may need tiles of the one before
def _decoded_row(picture: TiledTiff, number: int) -> np.ndarray:
    return picture.decode_row(number)
