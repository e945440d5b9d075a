"""The EXIF orientation of an image file: how it is turned when it is read, found without decoding its pixels.

Cameras store pictures as the sensor was held, with a tag. A mask drawn on the stored pixels has no tag, and so does not
lie on its picture once that is turned upright; where the sizes still match, nothing else can notice.
"""

import os
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from kd.data.files.image_file import PNG, open_file, opened
from kd.errors import DataError, shown
from kd.system.files import remembered

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

TAG, UPRIGHT, SIDEWAYS = 0x0112, 1, 5  # from SIDEWAYS on, height and width change places
TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "flipped",
    5: "turned and mirrored",
    6: "turned by 90 degrees",
    7: "turned and mirrored",
    8: "turned by 270 degrees",
}
APP1, START_OF_SCAN = 0xE1, 0xDA  # markers of a JPEG
#: How a PNG's chunk with an orientation begins; text chunks have others too.
IN_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@remembered
def orientation(path: Path) -> int:
    """The EXIF orientation that reading a file applies, 1 to 8; 1, upright, if it has none or cannot be read."""
    try:
        with open_file(path) as file:
            if not any(_metadata(file)):
                return UPRIGHT  # at a tenth of the cost of asking Pillow
        with opened(path, _with_exif) as picture:
            found = picture.getexif().get(TAG, UPRIGHT)
    except (DataError, OSError):
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def turn(path: Path) -> str:
    """What reading a file does to its pixels, in words; empty if it does nothing."""
    found = orientation(path)
    return f"{TURNS[found]} by its EXIF orientation ({found})" if found in TURNS else ""


def apart(image: Path, mask: Path) -> str:
    """Why a mask may not lie on its picture although the sizes match; empty if both are turned alike."""
    if orientation(image) == orientation(mask):
        return ""
    turned, other = (image, mask) if turn(image) else (mask, image)
    also = f"is {turn(other)}" if turn(other) else "has no such tag"
    return (
        f"{shown(turned)} is {turn(turned)}, but {shown(other)} {also}: look at the two together, and if the mask was "
        "drawn on the stored pixels, remove the tag (exiftool -Orientation= FILE)"
    )


def other_size(names: Sequence[str], sizes: Sequence[tuple[int, int]], image: Path | None = None) -> str:
    """That a picture and its mask differ in size, (height, width), and why if an orientation explains it."""
    picture, mask = (f"{width}x{height}" for height, width in sizes)
    message = f"{shown(names[0])} is {picture} pixels (width x height), but its mask {shown(names[1])} is {mask}"
    if image is None or orientation(image) < SIDEWAYS or sizes[0][::-1] != sizes[1]:
        return f"{message}: the two must match"
    return (
        f"{message}: the picture is {turn(image)}, and the mask was drawn on the stored pixels; remove the tag "
        "(exiftool -Orientation= FILE), or turn the mask like the picture"
    )


def _metadata(file: BufferedReader) -> Iterator[bool]:
    """Whether each part of a file, up to its pixels or its end, may hold an orientation."""
    start = file.read(8)
    if start == PNG:
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            text = head[4:] in (b"tEXt", b"zTXt", b"iTXt")
            yield (file.peek(32)[:32] if text else head[4:]).startswith(IN_PNG)
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    elif start.startswith(b"\xff\xd8\xff"):
        file.seek(2)
        while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != START_OF_SCAN:
            yield head[1] == APP1 or head[1] == 0xFF  # a filler byte, which is left to Pillow
            file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    else:
        yield not start.startswith((b"BM", b"GIF8"))


def _with_exif(picture: "Picture") -> None:
    picture.getexif()  # may be at the end of a PNG, which is then read completely
