"""What a data set is to the rest of the program: numbered image and mask pairs in three splits.

Constructors look at settings only, never at files or the network: a configuration mistake is told at once, and a model
can be exported or used on a machine that has none of the data. `check` is the first look at the files, without torch.
Masks hold class indices as uint8. Binary (classes=1) means one logit and mask values 0 and 1; n classes mean n logits
and mask values 0 to n-1. `ignore_index` marks pixels that count nowhere: in no loss, no metric.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd.data.pairing import Fault
from kd.errors import DataError

SPLITS = ("train", "val", "test")
CACHES = ("ram", "disk", "off")
SIDE = 32  # encoders halve the image five times


class ValuesError(DataError):
    """A mask holds numbers that stand for no class."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Settings that every data set shares; implementations add theirs.

    `image_size` is (height, width) in pixels, both multiples of 32: every sample is brought to it. `class_names` may
    be left empty: background and foreground where binary (always), otherwise class_0, class_1, ... `cache` says where
    decoded samples are kept (ram, disk or off), in at most `cache_gb` gigabytes; it changes no sample.
    """

    classes: int = 1
    image_size: tuple[int, int] = (256, 256)
    ignore_index: int | None = None
    class_names: tuple[str, ...] = ()
    cache: str = "ram"
    cache_gb: float = 8

    def __post_init__(self) -> None:
        whole_number("classes", self.classes, 1, 255)
        object.__setattr__(self, "image_size", _image_size(self.image_size))
        if self.ignore_index is not None:
            whole_number("ignore_index", self.ignore_index, max(self.classes, 2), 255)
        object.__setattr__(self, "class_names", _class_names(self.class_names, self.classes))
        if self.cache is False:  # type: ignore[comparison-overlap]  # what YAML makes of off
            object.__setattr__(self, "cache", "off")
        if self.cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, but got {self.cache!r}")
        if isinstance(self.cache_gb, bool) or not isinstance(self.cache_gb, int | float) or not self.cache_gb >= 0:
            raise ValueError(f"cache_gb must be a number of gigabytes, 0 or more, but got {self.cache_gb!r}")

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of samples in `split`, one of train, val and test; 0 where the data set has no such split."""

    @abstractmethod
    def name(self, split: str, index: int) -> str:
        """The name under which reports and messages speak of a sample; a file name where there is a file."""

    @abstractmethod
    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The RGB image (H x W x 3 uint8) and the mask (H x W uint8) of one sample, at `image_size`.

        Mask values are classes or `ignore_index`; raises DataError, naming the file, where that cannot be had.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of everything that determines what `read` returns: equal fingerprints, equal samples."""

    @abstractmethod
    def check(self) -> None:
        """A quick look at the data before anything slow starts; raises DataError."""

    def files(self, split: str, index: int) -> Sequence[Path]:
        """The files of one sample, image and mask; none where it is not made from files."""
        return ()

    def image(self, split: str, index: int) -> np.ndarray:
        """The RGB image of one sample, H x W x 3 uint8, as large as it is stored."""
        return self.read(split, index)[0]

    def mask(self, split: str, index: int) -> np.ndarray:
        """The mask of one sample, H x W uint8, as large as it is stored; values as `read` gives them."""
        return self.read(split, index)[1]

    def sound(self) -> "tuple[Source, list[Fault]]":
        """The same data without files that no sample can be made from, and what is wrong with those.

        Other methods raise the first of these faults. Raises DataError where there is nothing to list.
        """
        return self, []

    def recode(self, raw: np.ndarray, where: str, values: Sequence[int] = ()) -> np.ndarray:
        """Turn the whole numbers of a stored mask (H x W) into checked classes (H x W uint8).

        `values[i]` is stored where class i is meant; empty means that classes are stored as themselves. The stored
        value `ignore_index` stays. Raises ValuesError, naming `where`, for any other value.
        """
        values = values or range(len(self.class_names))
        table = np.full(2**16, -1, dtype=np.int16)
        table[np.asarray(values)] = np.arange(len(values))
        if self.ignore_index is not None:
            table[self.ignore_index] = self.ignore_index
        classes = table[raw if raw.dtype == np.uint8 else np.clip(raw.astype(np.int64), 0, 2**16 - 1)]
        if classes.min() < 0:
            raise ValuesError(f"{where} {self._wrong_values(np.unique(raw).tolist(), list(values))}")
        return classes.astype(np.uint8)

    def _wrong_values(self, found: list[int], values: list[int]) -> str:
        known = values if self.ignore_index is None else [*values, self.ignore_index]
        wrong = [value for value in found if value not in known]
        natural = values == list(range(len(values)))
        if not natural:
            advice = "list every class's value in data.mask_values, in the order of the classes"
        elif self.classes == 1 and len(set(found) | {0}) == 2:
            advice = f"set data.mask_values=[0,{found[-1]}] if {found[-1]} is the foreground"
        elif len(wrong) == 1 and self.ignore_index is None and wrong[0] <= 255:
            advice = f"set data.ignore_index={wrong[0]} if it marks pixels to ignore, or raise data.classes"
        elif len(found) == len(values):
            advice = f"set data.mask_values=[{_few(found)}] if these are the classes in order"
        else:
            advice = "set data.classes, or list every class's value in data.mask_values"
        allows = f"data.classes={self.classes} allows 0 to {values[-1]}" if natural else f"data.mask_values is {values}"
        ignored = "" if self.ignore_index is None else f" with data.ignore_index={self.ignore_index}"
        return f"holds the values {_few(found)}, but {allows}{ignored}: {advice}"


def whole_number(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}, but got {value!r}")


def _few(values: list[int]) -> str:
    return ",".join(map(str, values[:8])) + (f",... ({len(values)} values)" if len(values) > 8 else "")


def _image_size(size: Sequence[int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"image_size must be [height,width] in pixels, but got {size!r}")
    if any(side % SIDE for side in sides):
        down, up = ([max(SIDE, (side + more) // SIDE * SIDE) for side in sides] for more in (0, SIDE - 1))
        near = " or ".join(f"[{height},{width}]" for height, width in ([down] if down == up else [down, up]))
        raise ValueError(f"image_size must be multiples of {SIDE}, but got [{sides[0]},{sides[1]}]: use {near}")
    return sides[0], sides[1]


def _class_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    binary = ("background", "foreground")
    default = binary if classes == 1 else tuple(f"class_{index}" for index in range(classes))
    names = tuple(names or default)
    if classes == 1 and names != binary:
        raise ValueError(f"class_names must be left empty where classes is 1 (background, foreground), but got {names}")
    if len(names) != len(default) or len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"class_names must be {classes} different names, one for each class, but got {names}")
    return names


def known_split(split: str) -> str:
    """`split` itself; raises ValueError unless it is one of train, val and test."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
    return split


def spaced(samples: int, most: int) -> list[int]:
    """At most `most` of so many indices, at even distances, the first and the last among them."""
    count = min(samples, most)
    return sorted({round(i * (samples - 1) / max(count - 1, 1)) for i in range(count)})
