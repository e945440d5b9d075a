"""What the pixels of a mask file stand for: classes and void, by stored values, by colours, or by a threshold.

A colour is the number 0xRRGGBB here, so that values and colours are looked up alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from kd.data.files.decode import ColourMaskError, read_colours, read_mask
from kd.errors import DataError, shown

VOID = 255  # the label of void pixels, unless one stored value that is no class's label stands for all of them
LARGEST = 2**16 - 1  # value of a stored pixel
MANY = 40  # values that are listed in advice at most
MOST_CLASSES = 255

Codes = tuple[int, ...]  # several stored values, or colours


class ValuesError(DataError):
    """A mask contains values or colours that are neither a class nor void."""


@dataclass(frozen=True, kw_only=True)
class MaskCoding:
    """How masks store classes.

    Attributes:
        classes: the number of logits, as in `Source`.
        labels: the number of classes, two if `classes` is 1.
        codes: the stored values, or colours, of each class; empty with a threshold.
        ignored: those of void.
        coloured: whether they are colours.
        threshold: from this value on pixels are foreground, and background below it.
        named: whether the classes have names of their own, so that advice must not change their number.
        typed: the options that have values, which advice takes back where it contradicts them.
    """

    classes: int
    labels: int
    codes: tuple[Codes, ...]
    ignored: Codes = ()
    coloured: bool = False
    threshold: int | None = None
    named: bool = field(default=False, compare=False)
    typed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def void(self) -> int | None:
        """The label of void pixels; None if no pixel is void."""
        if not self.ignored:
            return None
        alone = self.ignored[0]
        is_free = len(self.ignored) == 1 and not self.coloured and max(self.classes, 2) <= alone <= VOID
        return alone if is_free else VOID

    @property
    def is_natural(self) -> bool:
        """Whether masks store the labels themselves."""
        return not self.coloured and self.codes == tuple((label,) for label in range(self.labels))

    @property
    def written(self) -> tuple[int, ...]:
        """The value of each label in masks that are written: the first stored one; of colours, the label itself."""
        if self.coloured:
            return tuple(range(self.labels))
        if self.threshold is not None:
            return (0, 255 if self.threshold <= 255 else LARGEST)
        return tuple(codes[0] for codes in self.codes)

    @property
    def palette(self) -> bytes | None:
        """Red, green and blue of each label in masks that are written; None if they are not coloured."""
        return b"".join(codes[0].to_bytes(3, "big") for codes in self.codes) if self.coloured else None

    @property
    def void_option(self) -> str:
        """The option, and its value, that says what is void."""
        if self.coloured:
            return f"data.ignore_colours=[{','.join(map(triple, self.ignored))}]"
        key, value = ("index", self.ignored[0]) if len(self.ignored) == 1 else ("values", f"[{listed(self.ignored)}]")
        return f"data.ignore_{key}={value}"

    @property
    def fingerprint(self) -> list[object]:
        """What the labels of a mask depend on, besides `classes`."""
        is_plain = all(len(codes) == 1 for codes in self.codes) and self.ignored in ((), (self.void,))
        if is_plain and not self.coloured and self.threshold is None:  # as before there was more to say
            values = [codes[0] for codes in self.codes] if "mask_values" in self.typed else []
            return [self.void, *values]
        return [self.void, {"codes": self.codes, "ignored": self.ignored, "coloured": self.coloured,
                            "threshold": self.threshold}]  # fmt: skip

    def read(self, path: Path, content: bytes | None = None) -> np.ndarray:
        """The labels of a mask file, H x W uint8: classes and `void`; `content` is the file's, if it has been read.

        Raises:
            ValuesError: it contains another value or colour.
            DataError: it cannot be read.
        """
        if self.coloured:
            return self.labels_of(read_colours(path, content), shown(path))
        try:
            return self.labels_of(read_mask(path, content), shown(path))
        except ColourMaskError as error:
            raise DataError(f"{error}: {self._as_colours(np.unique(read_colours(path, content)).tolist())}") from error

    def labels_of(self, stored: np.ndarray, where: str) -> np.ndarray:
        """The labels (H x W uint8) of stored values or colours (H x W integers); raises ValuesError, naming `where`."""
        if self.threshold is not None:
            return self._split(stored, self.threshold)
        known = _table(self.codes, self.ignored, self.void)
        numbers = known[stored if stored.dtype.itemsize <= 2 else np.minimum(stored, len(known) - 1)]
        if numbers.min() == 0:
            raise ValuesError(f"{where} contains the {self._mistake(np.unique(stored).tolist())}")
        return (numbers - 1).astype(np.uint8)

    def _split(self, stored: np.ndarray, threshold: int) -> np.ndarray:
        labels = (stored >= threshold).astype(np.uint8)
        if self.void is not None:
            labels[np.isin(stored, self.ignored)] = self.void
        return labels

    def _mistake(self, found: list[int]) -> str:
        """What is wrong with the values or colours of a mask, and options that read it."""
        if self.coloured:
            return self._wrong_colours(found)
        ignored = f" with {self.void_option}" if self.ignored else ""
        if self.is_natural:
            allows = f"data.classes={self.classes} allows 0 to {self.labels - 1}"
        else:
            allows = f"data.mask_values is {_nested(self.codes)}"
        return f"values {_few(found)}, but {allows}{ignored}: {self._advice(found)}"

    def _advice(self, found: list[int]) -> str:
        """Options that read a mask of the values `found`, each with the case that it is for."""
        known = {*self.ignored, *(code for codes in self.codes for code in codes)}
        wrong = [value for value in found if value not in known]
        if wrong[-1] > LARGEST:
            return f"values above {LARGEST} cannot be read, save the mask with smaller ones"
        valid = [value for value in found if value not in self.ignored]
        options = [
            *self._as_classes(valid),
            *self._as_shades(valid, wrong),
            *self._as_void(wrong),
            *self._as_more_classes(valid, wrong),
        ]
        if options:
            return f"set {', or '.join(options[:3])}"
        return "list every class's values in data.mask_values, and all others in data.ignore_values"

    def _as_classes(self, valid: list[int]) -> Iterable[str]:
        if not self.is_natural:
            return
        if self.labels == 2 and len({0, *valid}) == 2 and 0 not in self.ignored:
            yield f"'data.mask_values=[0,{valid[-1]}]' if {valid[-1]} is the foreground"
        elif len(valid) == self.labels:
            yield f"'data.mask_values=[{listed(valid)}]' if these are the classes in order"

    def _as_shades(self, valid: list[int], wrong: list[int]) -> Iterable[str]:
        """A threshold for what may be the soft edges of one foreground."""
        if self.labels == 2 and len(valid) > 2 and not (self.is_natural and len(wrong) == 1):
            middle = max(1, (valid[0] + valid[-1] + 1) // 2)
            back = self._taken_back("mask_values")
            yield f"data.mask_threshold={middle}{back} if these are shades between background and foreground"

    def _as_void(self, wrong: list[int]) -> Iterable[str]:
        if len(wrong) == 1 and not self.ignored:
            yield f"data.ignore_index={wrong[0]} if it marks pixels to ignore"
        elif len(wrong) <= MANY:
            what = f"if {_few(wrong)} {'marks' if len(wrong) == 1 else 'mark'} pixels to ignore"
            yield f"'data.ignore_values=[{listed(sorted({*self.ignored, *wrong}))}]' {what}"

    def _as_more_classes(self, valid: list[int], wrong: list[int]) -> Iterable[str]:
        if self.named or self.classes == MOST_CLASSES:
            return
        if not self.is_natural:
            if len(wrong) == 1 and self.labels < MOST_CLASSES:
                codes = _nested((*self.codes, (wrong[0],)))
                yield f"data.classes={self.labels + 1} 'data.mask_values={codes}' if it is one more class"
        elif valid[-1] < MOST_CLASSES and not any(value <= valid[-1] for value in self.ignored):
            yield f"data.classes={valid[-1] + 1} if classes are numbered from 0 to {valid[-1]}"

    def _as_colours(self, found: list[int]) -> str:
        """Options that read a mask of the colours `found`."""
        if len(found) > MANY:
            return f"it has {len(found)} colours, as smoothing and compression make them: save it without"
        back = self._taken_back("mask_values", "mask_threshold", "ignore_index", "ignore_values")
        listed = f"'data.mask_colours=[{','.join(map(triple, found))}]'{back}"
        if len(found) == self.labels:
            return f"set {listed} if these are the classes in order"
        if not self.named:
            return f"set data.classes={len(found)} {listed} if these are the classes in order"
        return f"list the colour of each class in data.mask_colours, and those of void in data.ignore_colours{back}"

    def _taken_back(self, *keys: str) -> str:
        """What must be typed beside an option that contradicts `keys`."""
        return "".join(f" data.{key}=null" for key in keys if key in self.typed)

    def _wrong_colours(self, found: list[int]) -> str:
        known = {*self.ignored, *(code for codes in self.codes for code in codes)}
        wrong = [colour for colour in found if colour not in known]
        message = f"colours {_few([triple(colour) for colour in wrong])}, which are not in data.mask_colours"
        message += " or data.ignore_colours" if self.ignored else ""
        if len(wrong) > MANY:
            return f"{message}: save masks without compression or smoothing, which invent colours"
        void = ",".join(map(triple, sorted({*self.ignored, *wrong})))
        return f"{message}: add them to the colours of a class, or set 'data.ignore_colours=[{void}]' to ignore them"


@lru_cache(maxsize=8)
def _table(codes: tuple[Codes, ...], ignored: Codes, void: int | None) -> np.ndarray:
    """For every code its label plus 1, and 0 if it has none; the last one stands for all that are beyond the table.

    That of colours has 2^24 entries, of which the system gives memory to those that are not 0.
    """
    largest = max(code for group in (*codes, ignored) for code in group)
    table = np.zeros((LARGEST if largest <= LARGEST else 2**24 - 1) + 2, np.uint16)
    for label, group in enumerate(codes):
        table[list(group)] = label + 1
    table[list(ignored)] = 0 if void is None else void + 1
    return table


def listed(values: Iterable[int]) -> str:
    """Values as they are typed in a list."""
    return ",".join(map(str, values))


def _few(values: Sequence[object]) -> str:
    return ",".join(map(str, values[:8])) + (f",... ({len(values)} values)" if len(values) > 8 else "")


def triple(colour: int) -> str:
    """A colour as it is typed, [red,green,blue]."""
    return "[{},{},{}]".format(*colour.to_bytes(3, "big"))


def _nested(codes: Iterable[Codes]) -> str:
    """The codes of each class as they are typed."""
    each = (str(group[0]) if len(group) == 1 else f"[{listed(group)}]" for group in codes)
    return f"[{','.join(each)}]"
