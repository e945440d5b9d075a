"""Decode image files of any common format into numpy arrays; every failure is a DataError.

Pillow decodes, because it refuses truncated files; OpenCV resizes. Both are imported at first use. 16-bit grey is
scaled by its full range, 0..65535 -> 0..255, equally for every file, so images of a 12-bit camera are dark, which
`checks.survey` warns of. Alpha is dropped, further frames are ignored, the EXIF orientation is applied.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd.data.files.image_file import PNG, header_only, open_file, opened, read_header, upright
from kd.data.files.orientation import SIDEWAYS, orientation
from kd.data.masks.palettes import Colour, Palette, colours_used, palette_of, values_of
from kd.errors import DataError, shown
from kd.system.files import remembered

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PNG_WITH_PALETTE = b"\3"  # what byte 25 says of the pixels
_PALETTES: dict[Palette, Palette] = {}  # each once, since most files of a data set share one


def read_image(path: Path, content: bytes | None = None) -> np.ndarray:
    """Read an image as RGB, H x W x 3 uint8; `content` is the file's, if it has been read."""
    with opened(path, upright, content) as picture:
        if picture.mode.startswith("I"):
            grey = np.asarray(picture).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise DataError(f"{shown(path)} has grey values of more than 16 bits: save it with 8 or 16 bits")
            return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if picture.mode == "F":
            raise DataError(
                f"{shown(path)} contains floating-point values: save it with 8 or 16 bits, or set data.depth=float "
                "data.channels=1"
            )
        if picture.mode == "P":
            picture = picture.convert("RGBA")  # avoids a warning about palettes with transparency
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def height_width(array: np.ndarray) -> tuple[int, int]:
    """The size of an image (H x W x channels) or of a mask (H x W)."""
    return array.shape[0], array.shape[1]


class ColourMaskError(DataError):
    """A mask is in colour where one channel of values is expected."""


def read_mask(path: Path, content: bytes | None = None) -> np.ndarray:
    """Read the integers stored in a mask, H x W: grey values, also of a palette or of RGB, or indices of a palette.

    Raises ColourMaskError if it is in colour, and DataError if it cannot be read.
    """
    with opened(path, _decoded_mask, content) as picture:
        _check_alpha(picture, path)
        if palette := palette_of(picture):
            raw = values_of(np.asarray(picture), palette, path)
        elif picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
            raw = np.asarray(picture)
            raw = raw.astype(np.uint8) if raw.dtype == bool else raw
        elif picture.mode in ("LA", "RGB", "RGBA"):
            bands = np.asarray(picture)
            raw = bands[..., 0]
            if picture.mode != "LA" and not (np.array_equal(raw, bands[..., 1]) and np.array_equal(raw, bands[..., 2])):
                raise ColourMaskError(f"{shown(path)} is a colour image, but a mask is one channel of class indices")
        else:
            mode = picture.mode
            raise DataError(
                f"{shown(path)} is stored as {mode}, but a mask is one channel of class indices: convert it to "
                "integers of 8 or 16 bits"
            )
    if raw.min() < 0:
        raise DataError(f"{shown(path)} contains the value {raw.min()}, but class indices start at 0")
    return raw


def read_colours(path: Path, content: bytes | None = None) -> np.ndarray:
    """Read the colours of a mask as numbers 0xRRGGBB, H x W int32; grey and palettes count as what they show.

    Raises DataError if it cannot be read, or stores no 8-bit colours.
    """
    with opened(path, _decoded_mask, content) as picture:
        _check_alpha(picture, path)
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise DataError(
                f"{shown(path)} is stored as {picture.mode}, but data.mask_colours is about 8-bit colours: save it as "
                "RGB, or set data.mask_colours=null if it stores values"
            )
        bands = np.asarray(picture.convert("RGBA"))[..., :3].astype(np.int32)
    return (bands[..., 0] << 16) | (bands[..., 1] << 8) | bands[..., 2]


def _check_alpha(picture: "Picture", path: Path) -> None:
    """Raise DataError if only the alpha channel of a mask shows anything, which reading its values would lose."""
    if picture.mode not in ("LA", "RGBA") and not (picture.mode == "P" and "transparency" in picture.info):
        return
    bands = np.asarray(picture.convert("RGBA"))
    colours, alpha = bands[..., :3], bands[..., 3]
    if alpha.min() < alpha.max() and (colours == colours[0, 0]).all():
        raise DataError(
            f"{shown(path)} has its shape in the alpha channel ({alpha.min()} to {alpha.max()}), while its colour is "
            "the same everywhere: save the alpha channel alone, as an 8-bit grey PNG"
        )


@remembered
def mask_palette(path: Path) -> Palette | None:
    """The palette of a mask, without decoding pixels; None if it has none or cannot be read."""
    try:
        with open_file(path) as file:
            if (start := file.read(26)).startswith(PNG) and start[25:] not in (b"", PNG_WITH_PALETTE):
                return None  # at a tenth of the cost of asking Pillow
        with opened(path, header_only) as picture:
            palette = palette_of(picture)
    except DataError:
        return None
    return palette and _PALETTES.setdefault(palette, palette)


@remembered
def mask_colours(path: Path) -> dict[int, Colour]:
    """The colour of each value in a mask with a palette; empty if it has none or cannot be read."""
    try:
        with opened(path, upright) as picture:
            palette, indices = palette_of(picture), np.asarray(picture)
        return colours_used(values_of(indices, palette, path), indices, palette) if palette else {}
    except DataError:
        return {}


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, with the EXIF orientation applied."""
    head = read_header(path)
    swaps = orientation(path) >= SIDEWAYS and head.format != "TIFF"  # whose header says the size after turning
    return (head.width, head.height) if swaps else (head.height, head.width)


def resized_labels(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H x W uint8) brought to `size`, (height, width), aligned with `resized_image`: none is invented.

    Each cell takes the label at its centre. Where the centre lies between two or four pixels (even factors), the most
    frequent of them; of equally frequent ones the rarest in the mask, so that thin structures stay whole. ADR 13 has
    the measurements.
    """
    if mask.shape == size:
        return mask
    (top, bottom), (left, right) = (_around_centres(old, new) for old, new in zip(mask.shape, size, strict=True))
    nearest = mask[np.ix_(top, left)]
    if np.array_equal(top, bottom) and np.array_equal(left, right):
        return nearest
    others = (mask[np.ix_(top, right)], mask[np.ix_(bottom, left)], mask[np.ix_(bottom, right)])
    mixed = np.flatnonzero((nearest != others[0]) | (nearest != others[1]) | (nearest != others[2]))
    around = np.stack([corner.reshape(-1)[mixed] for corner in (nearest, *others)])  # 4 x cells that are not uniform
    votes = (around[:, None] == around).sum(1)
    rarity = np.empty(256, np.int64)
    rarity[np.argsort(-np.bincount(mask.reshape(-1), minlength=256), kind="stable")] = np.arange(256)
    nearest.reshape(-1)[mixed] = np.take_along_axis(around, (256 * votes + rarity[around]).argmax(0)[None], 0)[0]
    return nearest


def _around_centres(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels below and above the centre of each of `new` cells over `old` pixels; the same one unless they tie."""
    twice = (2 * np.arange(new) + 1) * old - new  # the centre's coordinate, times 2 * new: whole numbers tie exactly
    return np.clip(-((new - twice) // (2 * new)), 0, old - 1), np.clip((twice + new) // (2 * new), 0, old - 1)


def resized_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H x W x channels, uint8, uint16 or float32) to `size`, (height, width).

    Other images than RGB channel by channel, so that none depends on how many there are: OpenCV averages four at most.
    """
    if image.shape[:2] == size:
        return image
    import cv2

    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if image.shape[2] == 3:
        return cv2.resize(image, size[::-1], interpolation=how)
    planes = (np.ascontiguousarray(image[..., channel]) for channel in range(image.shape[2]))
    return np.stack([cv2.resize(plane, size[::-1], interpolation=how) for plane in planes], axis=2)


def _decoded_mask(picture: "Picture") -> None:
    wide = any(";16" in str(tile) for tile in getattr(picture, "tile", ())) and not picture.mode.startswith("I")
    if wide:  # Pillow keeps the upper 8 bits only, which are 0 for class indices
        raise ValueError("a mask of 16 bits must have one channel")
    upright(picture)
