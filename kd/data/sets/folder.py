"""Your own data: a folder of images and a folder of masks, paired by file name without suffix.

    root/images/{train,val,test}/<stem>.jpg ...     root/masks/{train,val,test}/<stem>.png ...

Other layouts are templates (`kd.data.layout.naming`). Splits may be spelled in other ways (`split_folders`), and a stem
may have folders before its name (`listing`). Without val, a validation split is taken from train by a hash of each
stem, so adding files never moves others between the splits (`splitting`). A missing test split is allowed. Pictures
without masks are in root/images/unlabelled, or in another folder. Files are listed once, at first use.
"""

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kd.data.checks import survey
from kd.data.files.decode import height_width, mask_palette
from kd.data.files.manifest import KeepsFindings
from kd.data.files.orientation import other_size
from kd.data.layout.labelled import kept_and_dropped
from kd.data.layout.naming import SPLITS, UNLABELLED, Names
from kd.data.layout.pairing import Pair, without_masks
from kd.data.layout.split_folders import Fault, layout
from kd.data.layout.splitting import Fractions, split
from kd.data.masks.palettes import renumbers
from kd.data.sets.coded import CodedMasks
from kd.data.source import Survey, known_split, spaced
from kd.errors import DataError, shown
from kd.system import files

VERSION = 1  # part of the fingerprint: increase it whenever `read` returns something else for the same files
SAMPLE = 64  # masks, and pictures without one, that `check` reads, and pictures that `survey` looks at


class _Listing(NamedTuple):
    """The pairs of each split and their stems, the faults of all other files, and what is not read.

    Pictures without masks have a name and a path.
    """

    pairs: dict[str, tuple[Pair, ...]]
    stems: dict[str, tuple[str, ...]]
    unlabelled: tuple[tuple[str, Path], ...]
    faults: list[Fault]
    notes: list[Fault]


@dataclass(frozen=True)
class Folder(KeepsFindings, CodedMasks):
    """Images and masks under `root`, which may start with ~ or be relative to the working directory.

    `mask_values[i]` is the value, or the list of values, of class i in the mask files, such as 0 and 255; empty means
    that masks store class indices. Instead, binary masks may be foreground from `mask_threshold` on, and
    `mask_colours[i]` may be the colour, or the list of colours, of class i, each [red, green, blue] or '#rrggbb'.
    `ignore_index` and `ignore_values` are stored values, and `ignore_colours` colours, of void.

    `images` and `masks` are templates of paths below `root`, and `split_lists` of the text files that list the stems of
    each split, or those files by split. Without either, `val_fraction` and `test_fraction` of train become val and
    test, chosen by `split_seed`. Links may lead out of `root` only with `follow_links`. `unlabelled` is the folder of
    pictures without masks, which may start with ~ or be relative to `root`; None: that of `images` whose split is
    unlabelled, if there is one.
    """

    root: str | Path
    names: Names = field(init=False, repr=False, compare=False)
    fractions: Fractions = field(init=False, repr=False, compare=False)
    images: str = field(default="images/{split}", kw_only=True)
    masks: str = field(default="masks/{split}", kw_only=True)
    split_lists: Any = field(default=None, kw_only=True)
    val_fraction: float = field(default=0.15, kw_only=True)
    test_fraction: float = field(default=0.0, kw_only=True)
    split_seed: int = field(default=0, kw_only=True)
    follow_links: bool = field(default=False, kw_only=True)
    unlabelled: str | Path | None = field(default=None, kw_only=True)
    any_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not str(self.root).strip():
            raise ValueError("root must name the folder with images/ and masks/, but is empty")
        object.__setattr__(self, "root", Path(self.root).expanduser())
        self._read_mask_options()
        names = Names.of(self.images, self.masks, self.split_lists, self.follow_links, arrays=not self.pixels.usual)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "split_lists", names.split_lists)
        object.__setattr__(self, "fractions", Fractions(self.val_fraction, self.test_fraction, self.split_seed))
        if self.unlabelled is not None:
            if not isinstance(self.unlabelled, str | Path) or not str(self.unlabelled).strip():
                raise ValueError(f"unlabelled must be a folder of pictures without masks, but got {self.unlabelled!r}")
            object.__setattr__(self, "unlabelled", Path(self.unlabelled).expanduser())

    def size(self, split: str) -> int:
        return len(self._sound.pairs[known_split(split)])

    def may_have_unlabelled(self) -> bool:
        return self.unlabelled_share > 0

    def unlabelled_size(self) -> int:
        return len(self._sound.unlabelled)

    def name(self, split: str, index: int) -> str:
        if split == UNLABELLED:
            self._unlabelled(index)  # checks it
            return self._sound.unlabelled[index][0]
        return self._sound.stems[split][index] + self._pair(split, index).image.suffix

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        if split == UNLABELLED:
            return self.fitted(self.image(split, index))
        pair = self._pair(split, index)
        image, mask = self.pixels.read(pair.image), self._mask(pair)
        _same_size(pair, height_width(image), height_width(mask))
        return self.fitted(image, mask)

    def files(self, split: str, index: int) -> tuple[Path, ...]:
        return self._unlabelled(index) if split == UNLABELLED else self._pair(split, index)

    def image(self, split: str, index: int) -> np.ndarray:
        return self.pixels.read(self.files(split, index)[0])

    def mask(self, split: str, index: int) -> np.ndarray:
        return self._mask(self._pair(split, index))

    def sound(self) -> "tuple[Folder, list[Fault]]":
        whole = replace(self)
        whole.__dict__["_sound"] = self._listing
        return whole, self._listing.faults

    def fingerprint(self) -> str:
        return self._fingerprint

    def unlabelled_fingerprint(self) -> str | None:
        return self._unlabelled_fingerprint

    def in_two_splits(self) -> list[tuple[Path, Path]]:
        found: list[tuple[Path, Path]] = []
        before: dict[str, Path] = {}
        for name in SPLITS:
            images = [pair.image for pair in self._sound.pairs[name]]
            own = dict(zip(self.digests(images), images, strict=True))
            found += [(before[digest], image) for digest, image in own.items() if digest in before]
            before = own | before
        return found

    def survey(self) -> Survey:
        return self._survey

    def check(self) -> None:
        if errors := self.survey().errors:
            raise errors[0].error
        pairs = [pair for split in SPLITS for pair in self._sound.pairs[split]]
        for index in spaced(len(pairs), SAMPLE):
            _same_size(pairs[index], self.pixels.size(pairs[index].image), height_width(self._mask(pairs[index])))
        for index in spaced(self.unlabelled_size(), SAMPLE):
            self.pixels.size(self._sound.unlabelled[index][1])

    @cached_property
    def _survey(self) -> Survey:
        pairs = self._sound.pairs
        palettes = [] if self.coding.coloured else survey.palettes(pairs)
        warnings = [*self._sound.notes, *survey.orientations(pairs)]
        if self.pixels.usual:
            images = [(split, pair.image) for split in pairs for pair in pairs[split]]
            warnings += survey.fourth_channels([*images, *((UNLABELLED, path) for _, path in self._sound.unlabelled)])
            warnings += survey.dark_pictures(images[index] for index in spaced(len(images), SAMPLE))
        return Survey(errors=palettes, warnings=warnings)

    @cached_property
    def _fingerprint(self) -> str:
        settings: list[object] = [VERSION, self.classes, *self.image_size, *self.coding.fingerprint, *self._fit_facts()]
        listed = [
            (split, stem, path)
            for split in SPLITS
            for stem, pair in zip(self._sound.stems[split], self._sound.pairs[split], strict=True)
            for path in pair
        ]
        digests = self.digests([path for _, _, path in listed])
        content = [
            [split, stem + path.suffix, digest] for (split, stem, path), digest in zip(listed, digests, strict=True)
        ]
        masks = [pair.mask for split in SPLITS for pair in self._sound.pairs[split]]
        if not self.coding.coloured and any(self.manifest.find("greys", masks, _has_greys)):
            settings.append("greys")  # of palettes are the values, and not the indices
        return files.json_digest([settings, content])

    @cached_property
    def _unlabelled_fingerprint(self) -> str | None:
        pictures = self._sound.unlabelled
        digests = self.digests([path for _, path in pictures])
        content = [[name, digest] for (name, _), digest in zip(pictures, digests, strict=True)]
        return files.json_digest([VERSION, *self.image_size, *self._fit_facts(), content]) if content else None

    @cached_property
    def _sound(self) -> _Listing:
        """The listing; raises its first fault."""
        if self._listing.faults:
            raise self._listing.faults[0].error
        return self._listing

    @cached_property
    def _listing(self) -> _Listing:
        root = Path(self.root)
        if not os.path.isdir(root):
            parts = (shown(template.folder(Path(), "train")) for template in (self.names.images, self.names.masks))
            raise DataError(
                f"data.root={shown(root)} is not a folder (working directory: {shown(Path.cwd())}): give the folder "
                f"with {' and '.join(parts)}"
            )
        found = layout(root, self.names)
        pairs, faults, notes = split(found, self.fractions, self.lossy_masks)
        pairs = {name: dict(self.limited([*each.items()])) for name, each in pairs.items()}
        kept, dropped = kept_and_dropped([*pairs["train"]], self.labelled)
        train = [*pairs["train"].items()]
        without = tuple((stem + pair.image.suffix, pair.image) for stem, pair in (train[index] for index in dropped))
        pairs["train"] = dict(train[index] for index in kept)
        stems = {name: tuple(each) for name, each in pairs.items()}
        listed = {name: tuple(each.values()) for name, each in pairs.items()}
        if not self.unlabelled_share:
            return _Listing(listed, stems, (), faults, notes)
        given = None if self.unlabelled is None else Path(self.unlabelled)
        pictures, more, also = without_masks(found, given)
        beside = self.limited([*without, *pictures.items()])
        return _Listing(listed, stems, (*beside,), [*faults, *more], [*notes, *also])

    def _pair(self, split: str, index: int) -> Pair:
        if not 0 <= index < self.size(split):
            raise IndexError(f"index must be in 0..{self.size(split) - 1} for {split}, but got {index}")
        return self._sound.pairs[split][index]

    def _unlabelled(self, index: int) -> tuple[Path]:
        if not 0 <= index < self.unlabelled_size():
            raise IndexError(f"index must be in 0..{self.unlabelled_size() - 1} for unlabelled, but got {index}")
        return (self._sound.unlabelled[index][1],)

    def _mask(self, pair: Pair) -> np.ndarray:
        return self.coding.read(pair.mask)


def _has_greys(mask: Path) -> bool:
    """Whether a mask's palette numbers greys in another order than their values."""
    palette = mask_palette(mask)
    return palette is not None and renumbers(palette)


def _same_size(pair: Pair, image: tuple[int, int], mask: tuple[int, int]) -> None:
    if image != mask:
        raise DataError(other_size([str(path) for path in pair], [image, mask], pair.image))
