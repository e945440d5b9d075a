"""TIFF files of any number of channels and any depth, with the numbers that they store.

Pillow knows few modes, and none of five channels, or of three with 16 bits. Here it only decompresses: the bytes of a
tile under the header of a grey picture of 8 bits, whose rows are as long as the tile's in bytes. Predictors are undone
here. Channels may be stored pixel by pixel, as planes, or as pages of one channel each. Reference: TIFF 6.0, sections 7
(planar configuration), 14 (differencing) and 19 (sample format); TIFF Technical Note 3 (floating-point predictor).
"""

import math
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.files.image_file import MAX_PIXELS, MOST_BYTES, TooLargeError
from kd.data.files.tiff_directory import (
    MOST_PIXELS,
    ORIENTATION,
    PLANAR,
    SAMPLES,
    ByRows,
    Directory,
    as_a_file,
    directories,
)
from kd.errors import DataError, shown

BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, PREDICTOR, FORMAT = 258, 259, 262, 266, 317, 339
NONE, DEFLATE, BY_PILLOW = 1, (8, 32946), (5, 32773, 50000, 34925)  # LZW, PackBits, Zstandard, LZMA
JPEG = (6, 7, 34933, 50001)  # JPEG, and WebP: of 8 bits, for Pillow alone
COLOURS = {1: "grey", 2: "RGB", 5: "CMYK"}
TYPES = {1: "u", 2: "i", 3: "f"}  # numpy's letters, by sample format


class RawTiff(ByRows):
    """A TIFF file by rows, as H x W x channels of the type of numbers that it stores.

    Raises:
        DataError: it is not TIFF, or stores its numbers in a way that is not read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        pages = directories(path)
        self._pages = [pages[0]] if pages[0].tags.get(SAMPLES, 1) != 1 else pages
        self.size, self.tile = pages[0].size, pages[0].tile
        self.dtype = _dtype(pages[0])
        self._planes = pages[0].tags.get(SAMPLES, 1) if self._is_planar else 1
        for page in self._pages:
            self._check(page)

    @property
    def channels(self) -> int:
        """Samples of each pixel, or pages of one channel each."""
        return int(self._pages[0].tags.get(SAMPLES, 1)) * len(self._pages)

    def is_for_pillow(self) -> bool:
        """Whether it is compressed in a way that stores colours of 8 bits, and no numbers."""
        return self._pages[0].tags.get(COMPRESSION, NONE) in JPEG

    def read(self) -> np.ndarray:
        """The whole picture; raises TooLargeError if it does not fit into memory."""
        height, width = self.size
        if height * width > MAX_PIXELS or height * width * self.channels * self.dtype.itemsize > MOST_BYTES:
            raise TooLargeError(
                f"{shown(self.path)} has {width}x{height} pixels of {self.channels} channels: cut it up (kd predict "
                "also takes a tiled TIFF, with a student that was trained by data.fit=crop)"
            )
        rows = [self.decode_row(number) for number in range(self._pages[0].rows)]  # not kept, unlike those of `rows`
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def decode_row(self, number: int) -> np.ndarray:
        """One row of tiles, side by side, of all channels."""
        whole = [
            np.concatenate([self._decoded(page, plane, number, column) for column in range(page.columns)], axis=1)
            for page in self._pages
            for plane in range(self._planes)
        ]
        row = whole[0] if len(whole) == 1 else np.concatenate(whole, axis=2)
        return row[: self.size[0] - number * self.tile[0], : self.size[1]]

    def _decoded(self, page: Directory, plane: int, row: int, column: int) -> np.ndarray:
        """One tile, rows x columns x samples, in the machine's byte order."""
        tall, wide = self.tile
        height = tall if page.tiled else min(tall, self.size[0] - row * tall)
        shape = (height, wide, 1 if self._planes > 1 else page.tags.get(SAMPLES, 1))
        size, index = math.prod(shape) * self.dtype.itemsize, (plane * page.rows + row) * page.columns + column
        try:
            data = _decompressed(page, index, height, size // height)
            if len(data) < size:
                raise ValueError(f"{size - len(data)} bytes of a tile are missing")
            return self._numbers(np.frombuffer(data[:size], np.uint8), shape, page)
        except DataError:
            raise
        except Exception as error:  # decoders raise nearly anything
            raise DataError(
                f"{shown(self.path)} cannot be read ({error}): save it again, or remove it (of a pair, both)"
            ) from error

    def _numbers(self, data: np.ndarray, shape: tuple[int, ...], page: Directory) -> np.ndarray:
        predictor, native = page.tags.get(PREDICTOR, 1), self.dtype.newbyteorder("=")
        if predictor == 3:
            height, wide, samples = shape
            summed = np.cumsum(data.reshape(height, -1, samples), axis=1, dtype=np.uint8)  # of bytes, a pixel apart
            planes = summed.reshape(height, self.dtype.itemsize, wide * samples)  # the most significant bytes first
            big_endian = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(self.dtype.newbyteorder(">"))
            return big_endian.reshape(shape).astype(native)
        numbers = data.view(self.dtype).reshape(shape).astype(native)
        if predictor == 2:
            whole = numbers.view(f"u{self.dtype.itemsize}")
            return np.cumsum(whole, axis=1, dtype=whole.dtype).view(native)
        return numbers

    @cached_property
    def _is_planar(self) -> bool:
        return bool(self._pages[0].tags.get(PLANAR, 1) == 2)

    def _check(self, page: Directory) -> None:
        """Raise DataError unless a page can be read, and is like the first one."""
        tags, first = page.tags, self._pages[0]
        if page.size != first.size or page.tile != first.tile or _dtype(page) != self.dtype:
            raise self._refusal("its pages differ in size or type")
        if page is not first and tags.get(SAMPLES, 1) != 1:
            raise self._refusal("its pages have several channels each")
        if page.size[0] * page.size[1] > MOST_PIXELS:
            raise self._refusal(f"it has more than {MOST_PIXELS} pixels")
        if tags.get(COMPRESSION, NONE) in JPEG:
            return
        if tags.get(COMPRESSION, NONE) not in (NONE, *DEFLATE, *BY_PILLOW):
            raise self._refusal(f"its compression {tags[COMPRESSION]} is not read: save it with deflate")
        if tags.get(PHOTOMETRIC, 1) not in COLOURS:
            raise self._refusal(f"its photometric interpretation is {tags[PHOTOMETRIC]}: save it as grey or RGB")
        if tags.get(PREDICTOR, 1) not in (1, 2, 3) or (tags.get(PREDICTOR, 1) == 3 and self.dtype.kind != "f"):
            raise self._refusal(f"its predictor {tags[PREDICTOR]} is not read")
        if tags.get(FILL_ORDER, 1) != 1 or tags.get(ORIENTATION, 1) != 1:
            raise self._refusal("it is turned by its orientation, or its bits are in reverse order: save it again")
        self._check_tiles(page)

    def _check_tiles(self, page: Directory) -> None:
        samples = page.tags.get(SAMPLES, 1)
        if page.tile[0] * page.tile[1] * samples * self.dtype.itemsize > MOST_BYTES:
            raise self._refusal("it is one large piece: save it in tiles")
        page.check_tiles(self._planes, 2 * MOST_BYTES)

    def _refusal(self, reason: str) -> DataError:
        return DataError(f"{shown(self.path)} cannot be read ({reason})")


def _dtype(page: Directory) -> np.dtype[Any]:
    """The type of a page's numbers, in the byte order of the file."""
    samples = page.tags.get(SAMPLES, 1)
    if not isinstance(samples, int) or not 1 <= samples <= 2**16:
        raise page.refusal(f"it has {samples} channels")
    bits, kinds = ({*_all(page.tags.get(tag, 1))} for tag in (BITS, FORMAT))
    kind = TYPES.get(next(iter(kinds), 1)) if len(kinds) == 1 else None
    size = next(iter(bits)) if len(bits) == 1 else 0
    if kind is None or size not in ((8, 16, 32, 64) if kind != "f" else (16, 32, 64)):
        raise DataError(
            f"{shown(page.path)} stores {'/'.join(map(str, sorted(bits)))} bits a channel (sample format "
            f"{'/'.join(map(str, sorted(kinds)))}): save all channels as one type of 8, 16, 32 or 64 bits"
        )
    return np.dtype(f"{'<' if page.little else '>'}{kind}{size // 8}")


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _decompressed(page: Directory, index: int, rows: int, row_bytes: int) -> bytes:
    """The bytes of a tile, `rows` of `row_bytes` each."""
    data, how = page.stored(index), page.tags.get(COMPRESSION, NONE)
    if how == NONE:
        return data
    if how in DEFLATE:
        return zlib.decompressobj().decompress(data, rows * row_bytes)
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    alone = ImageFileDirectory_v2(b"II\x2a\x00\x00\x00\x00\x00")
    for tag, value in {BITS: 8, COMPRESSION: how, PHOTOMETRIC: 1, SAMPLES: 1}.items():
        alone[tag] = value
    with Image.open(as_a_file(alone, (rows, row_bytes), data), formats=["TIFF"]) as picture:
        return picture.tobytes()
