"""What the headers of all files of a data set show together; each is read once in a process."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd.data.files.decode import mask_colours, mask_palette
from kd.data.files.orientation import apart
from kd.data.files.pixels import FLOAT, Pixels
from kd.data.files.stored import MOST_CHANNELS, read_stored, stored
from kd.data.files.tiff_directory import EXTRA, SAMPLES, TIFF_SUFFIXES, directories
from kd.data.layout.pairing import Pair
from kd.data.layout.split_folders import Fault
from kd.data.masks.palettes import RAMP, Agreement, may_disagree
from kd.errors import DataError, shown
from kd.system.files import remembered

Pairs = Mapping[str, Sequence[Pair]]  # by split
DARK = 2**13  # an eighth of the range of 16 bits: below it, 8 bits have 33 levels at most


def palettes(pairs: Pairs) -> list[Fault]:
    """The masks whose palette gives a value another colour than an earlier mask's.

    Pixels are read only if palettes differ: the entries that a mask does not use may.
    """
    masks = [(split, pair.mask, mask_palette(pair.mask)) for split in pairs for pair in pairs[split]]
    if not may_disagree(palette for _, _, palette in masks):
        return []
    agreement, faults = Agreement(), []
    for split, path, palette in masks:
        if palette and palette != RAMP and (error := agreement.add(path, mask_colours(path))):
            faults.append(Fault("palette", split, path, error))
    return faults


def fourth_channels(paths: Iterable[tuple[str, Path]]) -> list[Fault]:
    """The TIFF files, each with its split, that have a fourth channel which is no alpha: reading RGB drops it."""
    found = []
    for split, path in paths:
        if path.suffix.lower() in TIFF_SUFFIXES and _has_fourth_channel(path):
            message = (
                f"{shown(path)} has a fourth channel that is no alpha, and is read as RGB: data.channels=4 reads it"
            )
            found.append(Fault("fourth_channel", split, path, DataError(message)))
    return found


@remembered
def _has_fourth_channel(path: Path) -> bool:
    try:
        tags = directories(path, most=1)[0].tags
    except DataError:  # reading it says what is wrong
        return False
    return tags.get(SAMPLES) == 4 and tags.get(EXTRA) in (0, (0,))


def dark_pictures(paths: Iterable[tuple[str, Path]]) -> list[Fault]:
    """A warning about the first picture of more than 8 bits that are read as 8, if all such are dark.

    `paths` are pictures, each with its split. Pixels are read of those deeper than 8 bits alone, until one is not dark.
    """
    first: tuple[str, Path, str] | None = None
    largest = 0
    for split, path in paths:
        if (found := _options_and_largest(path)) is None:
            continue
        options, value = found
        first, largest = first or (split, path, options), max(largest, value)
        if largest >= DARK:
            return []
    if first is None:
        return []
    split, path, options = first
    message = (
        f"{shown(path)} has more than 8 bits, which are read as 8 by the range 0 to 65535, but the largest value in "
        f"the pictures inspected is {largest}, so at most {(largest + 128) // 257 + 1} of 256 levels are left: set "
        f"{options} if all pictures are like it"
    )
    return [Fault("dark", split, path, DataError(message))]


@remembered
def _options_and_largest(path: Path) -> tuple[str, int] | None:
    """What reads a picture as it is stored, and its largest value, if it has integers deeper than 8 bits."""
    try:
        found = stored(path)
        if found.dtype.kind not in "ui" or found.dtype.itemsize == 1 or found.channels > MOST_CHANNELS:
            return None
        pixels = Pixels(found.channels, 16 if found.dtype == np.uint16 else FLOAT)
        return pixels.options, int(read_stored(path).max())
    except DataError:  # reading it says what is wrong
        return None


def orientations(pairs: Pairs) -> list[Fault]:
    """The pairs of which one file is turned when it is read, and the other is not."""
    return [
        Fault("orientation", split, pair.image, DataError(message))
        for split in pairs
        for pair in pairs[split]
        if (message := apart(*pair))
    ]
