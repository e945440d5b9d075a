"""The interface of data sets: numbered image and mask pairs in three splits.

Constructors check settings only and access neither files nor the network, so configuration mistakes are reported at
once, and a model can be exported or used on a machine without the data. `check` first accesses the files, without
torch. Masks hold class indices as uint8. Binary (classes=1) means one logit and mask values 0 and 1; n classes mean n
logits and mask values 0 to n-1. Pixels of `void` count in no loss and no metric.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from kd.data.files.pixels import Pixels
from kd.data.layout.labelled import check_labelled, check_share, pictures_per_batch
from kd.data.layout.naming import SPLITS
from kd.data.layout.split_folders import Fault
from kd.data.numbers import is_number, whole_number
from kd.data.sizing import Sizing
from kd.data.statistics import check_stated

T = TypeVar("T")

CACHES = ("ram", "disk", "off")
SIDE = 32  # encoders halve the image five times


class Survey(NamedTuple):
    """What all files together show, from their names and headers: what stops a training, and what it says first."""

    errors: list[Fault]
    warnings: list[Fault]


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Settings shared by all data sets; implementations add their own.

    `image_size` is (height, width) in pixels, both multiples of 32. How pictures become that size is `fit` (with
    `scale` and `window_overlap`: see `kd.data.sizing`); `crop_foreground` is the share of crops that must show a pixel
    of a class other than the first. `class_names` may be empty: background and foreground for binary data (always),
    otherwise class_0, class_1, ... `limit` is the most samples that each split keeps, spread evenly over it. `labelled`
    is how many training samples keep their masks, a fraction or a number (None: all); the others become pictures
    without masks, which are `unlabelled_share` of each batch that a student learns from its teacher with. `channels`
    and `depth` are what pictures store (`kd.data.files.pixels`), `mean` and `std` their statistics by channel, in
    stored values (`kd.data.statistics`). `cache` is where decoded samples are cached (ram, disk or off), in at most
    `cache_gb` gigabytes; it changes no sample.
    """

    classes: int = 1
    image_size: tuple[int, int] = (256, 256)
    fit: str = "resize"
    scale: float = 1.0
    crop_foreground: float = 0.0
    window_overlap: float = 0.25
    ignore_index: int | None = None
    class_names: tuple[str, ...] = ()
    limit: int | None = None
    labelled: int | float | None = None
    unlabelled_share: float = 0.5
    channels: int = 3
    depth: int | str = 8
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    cache: str = "ram"
    cache_gb: float = 8

    #: Whether pictures come from files that may store other channels than RGB, and other numbers than 8 bits.
    any_pixels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole_number("classes", self.classes, 1, 255)
        self._check_pixels()
        object.__setattr__(self, "image_size", _image_size(self.image_size))
        self._check_sizing()
        self._check_ignored()
        object.__setattr__(self, "class_names", _class_names(self.class_names, self.classes))
        if self.limit is not None:
            whole_number("limit", self.limit, 1)
        check_labelled(self.labelled)
        check_share(self.unlabelled_share)
        if self.cache is False:  # type: ignore[comparison-overlap]  # YAML reads off as False
            object.__setattr__(self, "cache", "off")
        if self.cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, but got {self.cache!r}")
        if self.cache == "disk" and self.sizing.crops:
            raise ValueError(
                "cache=disk keeps samples of one size, and with fit=crop they have their own: use ram or off"
            )
        if not is_number(self.cache_gb) or not self.cache_gb >= 0:
            raise ValueError(f"cache_gb must be a number of gigabytes, 0 or more, but got {self.cache_gb!r}")

    def _check_pixels(self) -> None:
        pixels = self.pixels  # raises ValueError
        if not pixels.usual and not self.any_pixels:
            raise ValueError(f"channels and depth must be 3 and 8, as its pictures are RGB, but got {pixels.in_words}")
        check_stated(self.mean, self.std, self.channels, self.depth)
        for key in ("mean", "std"):
            values = getattr(self, key)
            object.__setattr__(self, key, None if values is None else tuple(map(float, values)))

    def _check_ignored(self) -> None:
        """Raise ValueError unless `ignore_index` can be a label beside the classes."""
        if self.ignore_index is not None:
            whole_number("ignore_index", self.ignore_index, max(self.classes, 2), 255)
        self._check_padding()

    @property
    def ignored(self) -> int | None:
        """The label of the pixels that masks say are void; None if they say so of none."""
        return self.ignore_index

    @property
    def void_option(self) -> str:
        """The option, and its value, that says what is void."""
        return f"data.ignore_index={self.ignore_index}"

    @property
    def lossy_masks(self) -> bool:
        """Whether masks may be stored as JPEG, which changes values a little."""
        return False

    @abstractmethod
    def size(self, split: str) -> int:
        """The number of samples in `split`, one of train, val and test; 0 if the data set has no such split."""

    @abstractmethod
    def name(self, split: str, index: int) -> str:
        """The name of a sample in reports and messages; its file name if there is a file."""

    @abstractmethod
    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image (H x W x channels) and the mask (H x W uint8) of one sample, at `image_size`.

        The type of the image's numbers is that of `pixels`: uint8 of RGB unless `channels` and `depth` say otherwise.

        With fit=crop they are at their own size times `scale`. `fitted` brings stored pictures there.

        Mask values are classes, `ignored`, or `padding`. Raises DataError, naming the file, if the sample cannot be
        read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest of everything that determines what `read` returns: equal fingerprints, equal samples.

        It is that of the samples with masks: pictures without masks, which a teacher is not trained on, have their own.
        """

    def keep_findings(self, folder: Path) -> None:  # noqa: B027 (most sources have no files)
        """Keep what is found in files below `folder`, for other processes; nothing where there are no files."""

    @abstractmethod
    def check(self) -> None:
        """Check the data quickly, before anything slow starts; raises DataError."""

    @property
    def sizing(self) -> Sizing:
        """How pictures are brought to the size of networks."""
        return Sizing(self.image_size, self.fit, self.scale, self.window_overlap)

    @property
    def pixels(self) -> Pixels:
        """What the pixels of pictures are."""
        return Pixels(self.channels, self.depth)

    @property
    def padding(self) -> int | None:
        """The value that masks have outside of their picture, which is no class and not void; None if nothing is."""
        return None if self.fit == "resize" else 255 if self.ignored != 255 else 254

    @property
    def void(self) -> int | None:
        """The value of pixels that count in no loss against labels, and in no metric; None if there can be none."""
        return self.padding if self.ignored is None else self.ignored

    def fitted(self, image: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """A picture and its mask, as they are stored, as `read` returns them; without a mask it is 0 in the picture."""
        mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
        return self.sizing.image(image), self.sizing.mask(mask, self.padding or 0)

    def voided(self, mask: np.ndarray) -> np.ndarray:
        """A mask as `read` returns it, with `void` where it is outside of its picture."""
        return mask if self.padding is None else np.where(mask == self.padding, np.uint8(self.void or 0), mask)

    def read_size(self, split: str, index: int) -> tuple[int, int]:
        """The (height, width) of what `read` returns, from the header of the file if there is one."""
        if not self.sizing.crops:
            return self.image_size
        files = self.files(split, index)
        if files:
            return self.sizing.size_of(self.pixels.size(files[0]))
        height, width = self.read(split, index)[1].shape
        return height, width

    def view_facts(self) -> dict[str, object]:
        """What decides the training views and their normalisation besides `fingerprint`; empty if nothing does."""
        crops: dict[str, object] = {"crop_foreground": self.crop_foreground} if self.crop_foreground else {}
        return crops if self.mean is None else {**crops, "mean": self.mean, "std": self.std}

    def measuring_facts(self) -> dict[str, object]:
        """What decides a network's metrics besides `fingerprint`; empty if nothing does."""
        return {"window_overlap": self.window_overlap} if self.sizing.crops else {}

    def limited(self, items: Sequence[T]) -> list[T]:
        """The samples of a split that `limit` leaves, spread evenly over all."""
        return [*items] if self.limit is None else [items[index] for index in spaced(len(items), self.limit)]

    def _fit_facts(self) -> list[object]:
        """What `read` depends on besides `image_size`; empty for fit=resize and the usual pixels."""
        fit: list[object] = [] if self.fit == "resize" else [self.fit, float(self.scale)]
        return fit if self.pixels.usual else [*fit, self.pixels.facts()]

    def _check_sizing(self) -> None:
        share, sizing = self.crop_foreground, self.sizing  # raises ValueError
        if not is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"crop_foreground must be a share from 0 to 1, but got {share!r}")
        if share and not sizing.crops:
            raise ValueError(f"crop_foreground={share:g} needs fit=crop, but fit is {self.fit}")

    def _check_padding(self) -> None:
        """Raise ValueError unless there is a value for padding beside the classes and void."""
        if self.padding is not None and self.padding < self.classes:
            raise ValueError(
                f"classes must be 254 at most for fit={self.fit} with {self.void_option}, as padding needs one"
            )

    def unlabelled_size(self) -> int:
        """The number of pictures without masks; 0 if the data has none, or `unlabelled_share` is 0.

        Where there are, `name`, `read`, `files` and `image` know them as the split `unlabelled`: their masks are 0, and
        their only file is the image.
        """
        return 0

    def unlabelled_fingerprint(self) -> str | None:
        """Like `fingerprint`, of the pictures without masks; None for data without any."""
        return None

    def may_have_unlabelled(self) -> bool:
        """Whether there can be pictures without masks; accesses no files."""
        return self.labelled is not None and self.unlabelled_share > 0

    def unlabelled_per_batch(self, batch_size: int) -> int:
        """How many pictures without masks join each training batch of `batch_size` labelled samples."""
        labelled = min(batch_size, self.size("train"))
        return min(self.unlabelled_size(), pictures_per_batch(labelled, self.unlabelled_share))

    def files(self, split: str, index: int) -> Sequence[Path]:
        """The files of one sample, image and mask; empty if it has none."""
        return ()

    def image(self, split: str, index: int) -> np.ndarray:
        """The image of one sample, H x W x channels, at its original size."""
        return self.read(split, index)[0]

    def mask(self, split: str, index: int) -> np.ndarray:
        """The mask of one sample, H x W uint8, at its original size, with values as in `read`."""
        return self.read(split, index)[1]

    def sound(self) -> "tuple[Source, list[Fault]]":
        """The same data without unusable files, and the faults of those.

        Other methods raise the first of these faults. Raises DataError if there is nothing to list.
        """
        return self, []

    def in_two_splits(self) -> list[tuple[Path, Path]]:
        """The pictures that are the same file in two splits, byte by byte, where that costs no reading."""
        return []

    def survey(self) -> Survey:
        """What is wrong with the files besides the faults of `sound`, by names and headers; reads hardly any pixels."""
        return Survey([], [])


def _image_size(size: Sequence[int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"image_size must be [height,width] in pixels, but got {size!r}")
    if any(side % SIDE for side in sides):
        down, up = ([max(SIDE, (side + more) // SIDE * SIDE) for side in sides] for more in (0, SIDE - 1))
        near = " or ".join(f"[{height},{width}]" for height, width in ([down] if down == up else [down, up]))
        raise ValueError(f"image_size must be multiples of {SIDE}, but got [{sides[0]},{sides[1]}]: use {near}")
    return sides[0], sides[1]


def default_names(classes: int) -> tuple[str, ...]:
    """The names of classes that were given none."""
    return ("background", "foreground") if classes == 1 else tuple(f"class_{index}" for index in range(classes))


def _class_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    default = default_names(classes)
    names = tuple(names or default)
    if classes == 1 and names != default:
        raise ValueError(f"class_names must be empty if classes is 1 (background, foreground), but got {names}")
    if len(names) != len(default) or len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"class_names must be {classes} different names, one per class, but got {names}")
    return names


def known_split(split: str) -> str:
    """`split`; raises ValueError unless it is one of train, val and test."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
    return split


def spaced(samples: int, most: int) -> list[int]:
    """At most `most` evenly spaced indices of `samples`, including the first and the last."""
    count = min(samples, most)
    return sorted({round(i * (samples - 1) / max(count - 1, 1)) for i in range(count)})
