"""Open image files, which are not trusted.

Their content must be one of FORMATS regardless of their name (Pillow would start Ghostscript for PostScript), they must
not claim more than MAX_PIXELS, and opening never blocks, as on a named pipe. Every failure is a DataError.
"""

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from kd.errors import DataError, shown

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
MOST_BYTES = 2**30  # of a picture in memory, whatever its channels and depth
MAX_PIXELS = 2**30 // 12  # a quarter of a GiB as RGB: Pillow's own limit, which any import may have disabled


class TooLargeError(DataError):
    """A picture has more pixels than are read at once."""


class Header(NamedTuple):
    """The header of a file: Pillow's format and mode, and the size in pixels before applying the EXIF orientation."""

    format: str
    mode: str
    height: int
    width: int


def read_header(path: Path) -> Header:
    """Read format, mode and size without decoding pixels."""
    with opened(path, header_only) as picture:
        return Header(picture.format or "", picture.mode, picture.height, picture.width)


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading, without blocking; raises DataError if that fails."""
    try:
        _check_kind(path, path.stat().st_mode)  # before it is opened, which some devices act upon
        file = open(path, "rb", opener=_without_blocking)  # noqa: SIM115 (the caller closes it)
    except OSError as error:  # missing, no permission, a folder, too many links, a failing disk
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}): restore it or make it readable") from error
    try:
        _check_kind(path, os.fstat(file.fileno()).st_mode)  # it may have been replaced meanwhile
    except DataError:
        file.close()
        raise
    return file


def _check_kind(path: Path, mode: int) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder has an error of its own
        raise DataError(f"{shown(path)} is not a file but a pipe, socket or device: remove it")


def _without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block


@contextmanager
def opened(path: Path, prepare: Callable[["Picture"], None], content: bytes | None = None) -> "Iterator[Picture]":
    """Open a file as a Pillow image and `prepare` it: decode it, or read its header only.

    With its `content`, nothing is opened, and the path is only its name in messages.
    """
    from PIL import Image, UnidentifiedImageError

    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open_file(path) if content is None else BytesIO(content))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd metadata, which does not matter
                picture = stack.enter_context(Image.open(file, formats=FORMATS))
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                prepare(picture)
        except Image.DecompressionBombError as error:
            raise TooLargeError(
                f"{shown(path)} has more than {MAX_PIXELS} pixels: scale it down, or cut it up (kd predict also takes "
                "a tiled TIFF, with a student that was trained by data.fit=crop)"
            ) from error
        except Exception as error:  # decoders raise nearly anything: OSError, SyntaxError, struct.error
            known = ", ".join(FORMATS)
            reason = f"it is not one of {known}" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{shown(path)} cannot be read as an image ({reason}): replace or remove it (of a pair, both)"
            ) from error
        yield picture


def header_only(picture: "Picture") -> None:
    pass


def upright(picture: "Picture") -> None:
    """Decode a picture, and turn it as its EXIF orientation says."""
    from PIL import ImageOps

    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
