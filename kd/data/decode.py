"""One picture file -> numpy, whatever the common format it comes in; every way of failing is one DataError.

Pillow decodes, as it refuses truncated files; OpenCV resizes. Both are imported on first use. A file is not trusted:
what it holds must be one of FORMATS whatever its name says (Pillow would start Ghostscript for PostScript), it must not
claim more than MOST_PIXELS, and opening it never waits, as a named pipe would make it. 16-bit grey is scaled by its
full range, 0..65535 -> 0..255, the same for every file, so a camera of 12 bits comes out dark. Alpha is dropped,
further frames are ignored, the EXIF orientation is carried out.
"""

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kd.errors import DataError, shown

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
MOST_PIXELS = 2**30 // 12  # a quarter of a GiB as RGB; Pillow's own limit, which any import may have switched off


class Header(NamedTuple):
    """What a file says of itself: format and mode in Pillow's names, size in pixels before any EXIF orientation."""

    format: str
    mode: str
    height: int
    width: int


def read_image(path: Path) -> np.ndarray:
    """The picture as RGB, H x W x 3 uint8."""
    with _opened(path) as picture:
        if picture.mode.startswith("I"):
            grey = np.asarray(picture).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise DataError(f"{shown(path)} has grey values beyond 16 bits: save it with 8 or 16 bits")
            return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if picture.mode == "F":
            raise DataError(f"{shown(path)} holds floating point numbers: save it with 8 or 16 bits")
        if picture.mode == "P":
            picture = picture.convert("RGBA")  # else a palette with transparency warns
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """The whole numbers stored in a mask, H x W: grey values or palette indices, or RGB where all three are equal."""
    with _opened(path) as picture:
        if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
            raw = np.asarray(picture)
            raw = raw.astype(np.uint8) if raw.dtype == bool else raw
        elif picture.mode in ("LA", "RGB", "RGBA"):
            bands = np.asarray(picture)
            raw = bands[..., 0]
            if picture.mode != "LA" and not (np.array_equal(raw, bands[..., 1]) and np.array_equal(raw, bands[..., 2])):
                raise DataError(
                    f"{shown(path)} is a colour picture, but a mask is one channel of class indices: convert its "
                    "colours to indices, or save it with a palette"
                )
        else:
            mode = picture.mode
            raise DataError(f"{shown(path)} is stored as {mode}, but a mask is one channel of 8-bit class indices")
    if raw.min() < 0:
        raise DataError(f"{shown(path)} holds the value {raw.min()}, but class indices start at 0")
    return raw


def read_header(path: Path) -> Header:
    """Format, mode and size, without decoding a pixel."""
    with _opened(path, _as_it_is) as picture:
        return Header(picture.format or "", picture.mode, picture.height, picture.width)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, upright."""
    with _opened(path, _with_exif) as picture:
        sideways = picture.getexif().get(0x0112, 1) >= 5  # the EXIF orientations that swap the sides
        return (picture.width, picture.height) if sideways else (picture.height, picture.width)


def resized(image: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H x W x 3) and mask (H x W), both uint8, brought to `size`, (height, width): no mask value is invented."""
    if image.shape[:2] == size:
        return image, mask
    import cv2

    return resized_image(image, size), cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


def resized_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H x W x 3 uint8) brought to `size`, (height, width)."""
    if image.shape[:2] == size:
        return image
    import cv2

    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def open_file(path: Path) -> BufferedReader:
    """The file, open for reading; never waits. Raises DataError where that fails, or where it is no regular file."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (whoever asked closes it)
    except OSError as error:  # vanished, not permitted, a folder, too many links, a disk that fails
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}): put it back or make it readable") from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise DataError(f"{shown(path)} is not a file but a pipe, socket or device: remove it")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else a pipe waits for somebody to write


def _decoded(picture: "Picture") -> None:
    from PIL import ImageOps

    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)


def _with_exif(picture: "Picture") -> None:
    picture.getexif()  # at the end of a PNG: it is read whole for it


def _as_it_is(picture: "Picture") -> None:
    pass


@contextmanager
def _opened(path: Path, prepare: Callable[["Picture"], None] = _decoded) -> "Iterator[Picture]":
    """The file as a Pillow image after `prepare`: upright and decoded, or its header only."""
    from PIL import Image, UnidentifiedImageError

    with ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd metadata: the pixels are what counts
                picture = stack.enter_context(Image.open(file, formats=FORMATS))
                if picture.width * picture.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                prepare(picture)
        except Image.DecompressionBombError as error:
            raise DataError(f"{shown(path)} has more than {MOST_PIXELS} pixels: scale it down") from error
        except Exception as error:  # decoders of broken files raise nearly anything: OSError, SyntaxError, struct.error
            known = ", ".join(FORMATS)
            reason = f"it is none of {known}" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{shown(path)} cannot be read as a picture ({reason}): replace or remove the pair"
            ) from error
        yield picture
