"""Pictures as they are stored: every channel that a file has, in the type of numbers that it has.

TIFF is read by `raw_tiff`, .npy by `array_file`, and all else by Pillow, which knows pictures of 8 bits
and grey of 16; PNG in colour of 16 bits is decoded by OpenCV after Pillow has found it to be complete.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kd.data.files.array_file import array_header, read_array
from kd.data.files.image_file import PNG, Header, header_only, open_file, opened, upright
from kd.data.files.orientation import SIDEWAYS, orientation
from kd.data.files.raw_tiff import RawTiff
from kd.errors import DataError, shown

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_CHANNELS = 16  # that a configuration may ask for
ARRAY = ".npy"
TIFF = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b")
CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4}  # of Pillow's modes of 8 bits
WIDE_COLOURS = {2: 3, 6: 4}  # channels of PNG's colour types that Pillow squeezes to 8 bits


class Stored(NamedTuple):
    """What a file says that it stores: its format, channels, the type of its numbers, and the size as it is read."""

    format: str
    channels: int
    dtype: "np.dtype[Any]"
    height: int
    width: int

    @property
    def header(self) -> Header:
        """The same in the words of other files."""
        return Header(self.format, f"{self.channels} x {self.dtype.name}", self.height, self.width)


def stored(path: Path) -> Stored:
    """What a file stores, without decoding pixels; raises DataError if it is not a picture."""
    if path.suffix.lower() == ARRAY:
        (height, width, channels), dtype = array_header(path)
        return Stored("NPY", channels, dtype.newbyteorder("="), height, width)
    tiff, wide = _beyond_pillow(path)
    if tiff:
        return Stored("TIFF", tiff.channels, tiff.dtype.newbyteorder("="), *tiff.size)
    with opened(path, header_only) as picture:
        channels, dtype = (wide, np.dtype(np.uint16)) if wide else _of_mode(path, picture)
        height, width = picture.height, picture.width
        kind = picture.format or ""
    turned = orientation(path) >= SIDEWAYS and kind != "TIFF"  # whose header says the size after turning
    return Stored(kind, channels, dtype, *((width, height) if turned else (height, width)))


def read_stored(path: Path) -> np.ndarray:
    """The picture in a file, H x W x channels, as it is stored, upright; raises DataError."""
    if path.suffix.lower() == ARRAY:
        return read_array(path)
    tiff, wide = _beyond_pillow(path)
    if tiff:
        return tiff.read()
    with opened(path, upright) as picture:  # refuses what is cut off
        if not wide:
            _of_mode(path, picture)
            array = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
            array = array.astype(np.uint16) if picture.mode.startswith("I") else array
            return array.reshape(*array.shape[:2], -1)
    return _wide_picture(path)


def _beyond_pillow(path: Path) -> tuple[RawTiff | None, int | None]:
    """What Pillow cannot read as it is stored: TIFF of numbers, or the channels of a PNG in colour of 16 bits."""
    with open_file(path) as file:
        start = file.read(26)
    if start[:4] in TIFF:
        tiff = RawTiff(path)
        return (None if tiff.is_for_pillow() else tiff), None
    is_wide = start.startswith(PNG) and len(start) == 26 and start[24] == 16
    return None, WIDE_COLOURS.get(start[25]) if is_wide else None


def _of_mode(path: Path, picture: "Picture") -> "tuple[int, np.dtype[Any]]":
    """The channels and the type of numbers of a picture that Pillow opened."""
    if picture.mode.startswith("I"):
        return 1, np.dtype(np.uint16)
    if picture.mode not in CHANNELS:
        what = "colours of a palette" if picture.mode in ("P", "PA") else picture.mode
        raise DataError(f"{shown(path)} stores {what}, whose channels are no measurements: save it as grey or RGB")
    return CHANNELS[picture.mode], np.dtype(np.uint8)


def _wide_picture(path: Path) -> np.ndarray:
    import cv2

    with open_file(path) as file:
        found = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3:
        raise DataError(f"{shown(path)} cannot be read as an image of 16 bits: save it as TIFF")
    colours = cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA if found.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if orientation(path) != 1:
        raise DataError(
            f"{shown(path)} has 16 bits and an EXIF orientation: remove the tag (exiftool -Orientation= FILE)"
        )
    return colours


def counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"
