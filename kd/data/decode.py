"""One picture file -> numpy, whatever the common format it comes in; every way of failing is one DataError.

Pillow decodes, as its decompression-bomb limit and its refusal of truncated files stay in force; OpenCV resizes. Both
are imported on first use. 16-bit grey is scaled by its full range, 0..65535 -> 0..255, the same for every file, so a
camera of 12 bits comes out dark. Alpha is dropped, further frames are ignored, the EXIF orientation is carried out.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def read_image(path: Path) -> np.ndarray:
    """The picture as RGB, H x W x 3 uint8."""
    with _opened(path) as picture:
        if picture.mode.startswith("I"):
            grey = np.asarray(picture).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise DataError(f"{path} has grey values beyond 16 bits: save it with 8 or 16 bits")
            return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if picture.mode == "F":
            raise DataError(f"{path} holds floating point numbers: save it with 8 or 16 bits")
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
                    f"{path} is a colour picture, but a mask is one channel of class indices: convert its colours to "
                    "indices, or save it with a palette"
                )
        else:
            raise DataError(f"{path} is stored as {picture.mode}, but a mask is one channel of 8-bit class indices")
    if raw.min() < 0:
        raise DataError(f"{path} holds the value {raw.min()}, but class indices start at 0")
    return raw


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the file's header."""
    with _opened(path, pixels=False) as picture:
        sideways = picture.getexif().get(0x0112, 1) >= 5  # the EXIF orientations that swap the sides
        return (picture.width, picture.height) if sideways else (picture.height, picture.width)


def resized(image: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H x W x 3) and mask (H x W), both uint8, brought to `size`, (height, width): no mask value is invented."""
    if image.shape[:2] == size:
        return image, mask
    import cv2

    (height, width), shrinks = size, image.shape[0] >= size[0] and image.shape[1] >= size[1]
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image, cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)


@contextmanager
def _opened(path: Path, pixels: bool = True) -> "Iterator[Picture]":
    """The file as a Pillow image, upright and decoded (or with `pixels` false its header only)."""
    from PIL import Image, ImageOps

    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = stack.enter_context(Image.open(path))
                if pixels:
                    picture.load()
                    ImageOps.exif_transpose(picture, in_place=True)
                else:
                    picture.getexif()  # at the end of a PNG: it is read whole for it
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels: scale it down") from error
        except Exception as error:  # decoders of broken files raise nearly anything: OSError, SyntaxError, struct.error
            raise DataError(f"{path} cannot be read as a picture ({error}): replace or remove the pair") from error
        yield picture
