"""What the palette of a mask says about its values.

Writers number colours anew: GIF writers and optimisers of PNG drop the entries that a picture does not use, and sort
the others. So an index alone means nothing. A palette of greys says the value of each index. The indices of a coloured
palette count only if a data set's files agree on the colour of each (`Agreement`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd.errors import DataError, shown

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Palette = bytes  # red, green and blue of each entry
Colour = tuple[int, int, int]
REMEDY = "save masks as 8-bit grey PNG, whose values are the class indices"
RAMP = bytes(value for value in range(256) for _ in range(3))


def palette_of(picture: "Picture") -> Palette | None:
    """The palette of a picture, decoded or not; None if it has none."""
    if picture.mode != "P" or picture.palette is None:
        return None
    from PIL import Image

    swatch = Image.new("P", (1, 1))
    swatch.putpalette(picture.palette.getdata()[1], picture.palette.getdata()[0])
    return bytes(swatch.getpalette("RGB") or b"")


def is_grey(palette: Palette) -> bool:
    """Whether all entries are greys."""
    return palette[0::3] == palette[1::3] == palette[2::3]


def renumbers(palette: Palette) -> bool:
    """Whether the palette is grey, and some entry before the black ones at its end is another grey than its index."""
    greys = palette[0::3].rstrip(b"\0")
    return is_grey(palette) and greys != RAMP[0::3][: len(greys)]


def values_of(indices: np.ndarray, palette: Palette, path: Path) -> np.ndarray:
    """The values of a mask (H x W uint8): its greys, or its indices if the palette is in colour.

    Raises DataError, naming `path`, if the greys tell the indices less well apart than they are.
    """
    if not is_grey(palette):
        return indices
    used, greys = np.flatnonzero(np.bincount(indices.reshape(-1), minlength=256)), palette[0::3]
    if used[-1] >= len(greys):
        raise DataError(f"{shown(path)} uses entry {used[-1]} of a palette of {len(greys)}: {REMEDY}")
    if len({greys[index] for index in used}) < len(used):
        raise DataError(f"{shown(path)} uses two entries of its palette that are the same grey: {REMEDY}")
    return np.frombuffer(greys, np.uint8)[indices]


class Agreement:
    """Compares the colours that the values of masks stand for, file after file."""

    def __init__(self) -> None:
        self._colours: dict[int, tuple[Colour, Path]] = {}
        self._values: dict[Colour, tuple[int, Path]] = {}

    def add(self, path: Path, colours: Mapping[int, Colour]) -> DataError | None:
        """Compare the colour of each value that a file uses with those of earlier files; the first contradiction."""
        for value, colour in colours.items():
            there, other = self._colours.setdefault(value, (colour, path))
            if there != colour:
                return _contradiction(path, f"{value} is {_named(colour)}", other, _named(there))
            number, other = self._values.setdefault(colour, (value, path))
            if number != value and other != path:
                return _contradiction(path, f"{_named(colour)} is {value}", other, str(number))
        return None


def may_disagree(palettes: Iterable[Palette | None]) -> bool:
    """Whether files of these palettes may mean different things by one value; False without looking into them."""
    found = {palette for palette in palettes if palette is not None and palette != RAMP}
    return len(found) > 1 and not all(map(is_grey, found))


def colours_used(values: np.ndarray, indices: np.ndarray, palette: Palette) -> dict[int, Colour]:
    """The colour of each value in a mask; `values` are those that its indices stand for."""
    used, first = np.unique(indices, return_index=True)
    entries = [tuple(palette[3 * index : 3 * index + 3]) for index in used.tolist()]
    return {int(values.flat[at]): entry for at, entry in zip(first, entries, strict=True) if len(entry) == 3}


def _contradiction(path: Path, here: str, other: Path, there: str) -> DataError:
    return DataError(
        f"{shown(path)} has another palette than {shown(other)}: {here} here and {there} there, so the same class has "
        f"different values: {REMEDY}"
    )


def _named(colour: Colour) -> str:
    return "colour ({}, {}, {})".format(*colour)
