"""Rows of TIFF files too large to be read whole, from the tiles (or strips) that hold them.

Pillow decodes a file whole or not at all, but it decodes any single tile that is given to it as a file of its own: the
same bytes under a header that describes that tile alone. So every compression that it knows works here, and memory is
that of one row of tiles. Reference: TIFF 6.0, sections 3 (strips), 15 (tiles) and 22 (JPEG).
"""

from pathlib import Path

import numpy as np

from kd.data.files.image_file import MAX_PIXELS
from kd.data.files.tiff_directory import MOST_PIXELS, ORIENTATION, PLANAR, ByRows, as_a_file, directories
from kd.errors import DataError, shown

#: Bits, compression, colours, fill order, samples, predictor, palette, extra samples, format, JPEG tables, YCbCr.
COPIED = (258, 259, 262, 266, 277, 284, 317, 320, 338, 339, 347, 529, 530, 531, 532)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class TiledTiff(ByRows):
    """The RGB of a TIFF file of 8 bits, by rows. Raises DataError if it is not TIFF, or cannot be read in parts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = directories(path, most=1)[0]
        self.size, self.tile = self._file.size, self._file.tile
        self._check()

    def decode_row(self, number: int) -> np.ndarray:
        """One row of tiles, side by side, rows x W x 3 uint8."""
        first, columns = number * self._file.columns, self._file.columns
        tiles = [self._decode(index, number) for index in range(first, first + columns)]
        return np.concatenate(tiles, axis=1)[: self.size[0] - number * self.tile[0], : self.size[1]]

    def _decode(self, index: int, row: int) -> np.ndarray:
        from PIL import Image
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        tall, wide = self.tile
        height = tall if self._file.tiled else min(tall, self.size[0] - row * tall)
        tags, start = self._file.tags, b"II\x2a\x00" if self._file.little else b"MM\x00\x2a"
        alone = ImageFileDirectory_v2(start + bytes(4))
        try:
            data = self._file.stored(index)
            for tag in COPIED:
                if tag in tags:
                    alone.tagtype[tag] = tags["types"][tag]
                    alone[tag] = tags[tag]
            with Image.open(as_a_file(alone, (height, wide), data), formats=["TIFF"]) as picture:
                if picture.mode not in MODES:
                    raise ValueError(f"its pixels are {picture.mode}, and 8 bits are needed")
                return np.asarray(picture.convert("RGB"))
        except DataError:
            raise
        except Exception as error:  # decoders raise nearly anything
            raise DataError(
                f"{shown(self.path)} cannot be read in tiles ({error}): save it again, or cut it up"
            ) from error

    def _check(self) -> None:
        height, width = self.size
        if height * width > MOST_PIXELS:
            raise self._file.refusal(f"it has more than {MOST_PIXELS} pixels")
        if self.tile[0] * self.tile[1] > MAX_PIXELS:
            raise self._file.refusal("it is one piece, without tiles")
        if self._file.tags.get(PLANAR, 1) != 1:
            raise self._file.refusal("its channels are stored apart")
        if self._file.tags.get(ORIENTATION, 1) != 1:
            raise self._file.refusal("it is turned by its orientation")
        self._file.check_tiles(1, 8 * MAX_PIXELS)
