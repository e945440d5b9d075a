"""The options of a data set about its masks, as they are typed, and what they say together.

Values are whole numbers, colours [red,green,blue] or '#rrggbb'; each class has one of them, or a list.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd.data.masks.coding import LARGEST, Codes, MaskCoding, listed, triple

COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """The options of a data set about its masks, as they were typed; see `kd.data.Folder`."""

    ignore_index: Any = None
    ignore_values: Any = ()
    mask_values: Any = ()
    mask_threshold: Any = None
    mask_colours: Any = ()
    ignore_colours: Any = ()

    def coding(self, classes: int, names: Sequence[str], named: bool = False) -> MaskCoding:
        """What they say together of masks of these classes.

        Raises:
            ValueError: one is invalid, or two contradict each other.
        """
        labels = len(names)
        values, colours = checked_values(self.mask_values, labels), checked_colours(self.mask_colours, labels)
        ignored = checked_ignored(self.ignore_index, self.ignore_values)
        ignored_colours = checked_ignored_colours(self.ignore_colours)
        typed = tuple(key for key, value in vars(self).items() if value is not None and value not in ((), []))
        self._check_threshold(labels)
        for one, other in CONTRADICTIONS:
            if one in typed and other in typed:
                raise ValueError(f"{self._as_typed(one)} and data.{self._as_typed(other)} contradict each other: set "
                                 f"data.{one}=null or data.{other}=null")  # fmt: skip
        if ignored_colours and not colours:
            raise ValueError(
                f"{self._as_typed('ignore_colours')} needs the colours of the classes, data.mask_colours: set both, or "
                "data.ignore_colours=null"
            )
        natural = tuple((label,) for label in range(labels))
        codes = colours or values or (() if self.mask_threshold is not None else natural)
        void = ignored_colours if colours else ignored
        self._check_apart(codes, void, names)
        return MaskCoding(
            classes=classes, labels=labels, codes=codes, ignored=void, coloured=bool(colours),
            threshold=self.mask_threshold, named=named, typed=typed,
        )  # fmt: skip

    def _check_threshold(self, labels: int) -> None:
        if self.mask_threshold is None:
            return
        if not _is_value(self.mask_threshold) or self.mask_threshold < 1:
            raise ValueError(f"mask_threshold must be a whole number, from 1 to {LARGEST}, but got "
                             f"{self.mask_threshold!r}")  # fmt: skip
        if labels != 2:
            raise ValueError(
                f"mask_threshold={self.mask_threshold} separates background and foreground, but there are {labels} "
                "classes: set data.classes=1 or data.mask_threshold=null"
            )

    def _check_apart(self, codes: tuple[Codes, ...], ignored: Codes, names: Sequence[str]) -> None:
        """Raise ValueError if a value or a colour is both a class and void."""
        both = next(((code, at) for at, group in enumerate(codes) for code in group if code in ignored), None)
        if both is None:
            return
        code, at = both
        if self.mask_colours:
            raise ValueError(f"ignore_colours has {triple(code)}, which is {names[at]} in data.mask_colours: a colour "
                             "is a class or void")  # fmt: skip
        key = "ignore_index" if code == self.ignore_index else "ignore_values"
        if self.mask_values:
            raise ValueError(
                f"{key} {code} must not be one of mask_values {_plain(self.mask_values)}: a value is a class or void"
            )
        free = [value for value in range(len(names) + len(ignored)) if value not in ignored][: len(names)]
        raise ValueError(
            f"{key} {code} is the value of {names[at]}, as masks store 0 to {len(names) - 1}: if it is void, say what "
            f"is stored for each class, as in 'data.mask_values=[{listed(free)}]'"
        )

    def _as_typed(self, key: str) -> str:
        value = getattr(self, key)
        return f"{key}={str(_plain(value)).replace(', ', ',')}"


CONTRADICTIONS = (
    ("mask_threshold", "mask_values"),
    ("mask_threshold", "mask_colours"),
    ("mask_values", "mask_colours"),
    ("ignore_index", "mask_colours"),
    ("ignore_values", "mask_colours"),
)


def checked_values(values: Any, labels: int) -> tuple[Codes, ...]:
    """`mask_values` as the stored values of each class; empty if it is. Raises ValueError."""
    groups = tuple(group if isinstance(group, Sequence) else (group,) for group in _sequence("mask_values", values))
    if any(not _is_value(value) for group in groups for value in group) or not all(groups):
        raise ValueError(
            f"mask_values must be whole numbers from 0 to {LARGEST}, one or a list of them per class, but got "
            f"{_plain(values)}"
        )
    every = [value for group in groups for value in group]
    if groups and (len(groups) != labels or len(set(every)) != len(every)):
        raise ValueError(
            f"mask_values must be {labels} different values, one (or a list) per class, the background first if "
            f"classes is 1, but got {_plain(values)}"
        )
    return tuple(tuple(group) for group in groups)


def checked_ignored(index: Any, values: Any) -> Codes:
    """`ignore_index` and `ignore_values` together, sorted. Raises ValueError."""
    if index is not None and not _is_value(index):
        raise ValueError(f"ignore_index must be a whole number, from 0 to {LARGEST}, but got {index!r}")
    several = (values,) if _is_value(values) else tuple(_sequence("ignore_values", values))
    if not all(map(_is_value, several)):
        raise ValueError(f"ignore_values must be whole numbers from 0 to {LARGEST}, but got {_plain(values)}")
    return tuple(sorted({*several, *(() if index is None else (index,))}))


def checked_colours(colours: Any, labels: int) -> tuple[Codes, ...]:
    """`mask_colours` as the colours of each class; empty if it is. Raises ValueError."""
    groups = [_colours("mask_colours", group) for group in _sequence("mask_colours", colours)]
    every = [colour for group in groups for colour in group]
    if groups and (len(groups) != labels or len(set(every)) != len(every)):
        raise ValueError(
            f"mask_colours must be {labels} different colours, one (or a list) per class, the background first if "
            f"classes is 1, but got {_plain(colours)}"
        )
    return tuple(groups)


def checked_ignored_colours(colours: Any) -> Codes:
    """`ignore_colours` as numbers, sorted. Raises ValueError."""
    several = _colours("ignore_colours", colours) if _is_colour(colours) else ()
    groups = () if several else _sequence("ignore_colours", colours)
    return tuple(sorted({*several, *(colour for group in groups for colour in _colours("ignore_colours", group))}))


def _colours(key: str, group: Any) -> Codes:
    """The colours of one class: a colour, or a list of them."""
    several = [group] if _is_colour(group) else list(group) if isinstance(group, list | tuple) else []
    if not several or not all(map(_is_colour, several)):
        raise ValueError(f"{key} must be colours, each [red,green,blue] from 0 to 255 or '#rrggbb', but got {group!r}")
    return tuple(
        int(colour[1:], 16) if isinstance(colour, str) else (colour[0] << 16) + (colour[1] << 8) + colour[2]
        for colour in several
    )


def _is_colour(value: Any) -> bool:
    if isinstance(value, str):
        return bool(COLOUR.fullmatch(value))
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_value(part) and part < 256 for part in value)


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _sequence(key: str, value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{key} must be a list, but got {value!r}")
    return value


def _plain(values: Any) -> Any:
    """Lists as they are typed, also where they arrived as tuples."""
    return [_plain(each) for each in values] if isinstance(values, list | tuple) else values
