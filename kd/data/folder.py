"""Your own data: a folder of images and a folder of masks, paired by file name without suffix.

    root/images/{train,val,test}/<stem>.jpg ...     root/masks/{train,val,test}/<stem>.png ...

Splits may be spelled in other ways, and a stem may have folders before its name (`kd.data.layout`, `kd.data.listing`).
Without images/val, a validation split is taken from train by a hash of each stem, so adding files never moves others
between the splits. A missing test split is allowed. Pictures without masks are in root/images/unlabelled, or in another
folder. Files are listed once, at first use.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.data import survey
from kd.data.decode import mask_palette, picture_size, read_image, read_mask
from kd.data.image_file import open_file
from kd.data.layout import Fault, Layout, layout
from kd.data.orientation import other_size
from kd.data.pairing import Pair, name_below, nothing_to_train, paired, without_masks
from kd.data.palettes import renumbers
from kd.data.random_streams import key
from kd.data.source import SPLITS, Source, Survey, known_split, spaced
from kd.data.unlabelled import UNLABELLED, kept_and_dropped
from kd.errors import DataError, shown
from kd.system import files

VERSION = 1  # part of the fingerprint: increase it whenever `read` returns something else for the same files
SAMPLE = 64  # number of masks, and of pictures without one, that `check` reads


class _Listing(NamedTuple):
    """The pairs of each split, the pictures without masks, the faults of all other files, and what is not read."""

    pairs: dict[str, tuple[Pair, ...]]
    unlabelled: tuple[Path, ...]
    faults: list[Fault]
    notes: list[Fault]


@dataclass(frozen=True)
class Folder(Source):
    """Images and masks under `root`, which may start with ~ or be relative to the working directory.

    `mask_values[i]` is the value of class i in the mask files, such as 0 and 255; empty means that masks store class
    indices. `val_fraction` of train becomes val if the folder has no val. `unlabelled` is the folder of pictures
    without masks, which may start with ~ or be relative to `root`; None: images/unlabelled, if there is one.
    """

    root: str | Path
    mask_values: tuple[int, ...] = field(default=(), kw_only=True)
    val_fraction: float = field(default=0.15, kw_only=True)
    unlabelled: str | Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not str(self.root).strip():
            raise ValueError("root must name the folder with images/ and masks/, but is empty")
        object.__setattr__(self, "root", Path(self.root).expanduser())
        object.__setattr__(self, "mask_values", self._checked_values(tuple(self.mask_values or ())))
        check_val_fraction(self.val_fraction)
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
        return self._name(self.files(split, index)[0])

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        if split == UNLABELLED:
            return self.fitted(self.image(split, index))
        pair = self._pair(split, index)
        image, mask = read_image(pair.image), self._mask(pair)
        _same_size(pair, _size(image), _size(mask))
        return self.fitted(image, mask)

    def files(self, split: str, index: int) -> tuple[Path, ...]:
        return self._unlabelled(index) if split == UNLABELLED else self._pair(split, index)

    def image(self, split: str, index: int) -> np.ndarray:
        return read_image(self.files(split, index)[0])

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

    def survey(self) -> Survey:
        return self._survey

    def check(self) -> None:
        if errors := self.survey().errors:
            raise errors[0].error
        pairs = [pair for split in SPLITS for pair in self._sound.pairs[split]]
        for index in spaced(len(pairs), SAMPLE):
            _same_size(pairs[index], picture_size(pairs[index].image), _size(self._mask(pairs[index])))
        for index in spaced(self.unlabelled_size(), SAMPLE):
            picture_size(self._sound.unlabelled[index])

    @cached_property
    def _survey(self) -> Survey:
        pairs = self._sound.pairs
        return Survey(errors=survey.palettes(pairs), warnings=[*self._sound.notes, *survey.orientations(pairs)])

    @cached_property
    def _fingerprint(self) -> str:
        settings: list[object] = [VERSION, self.classes, *self.image_size, self.ignore_index, *self.mask_values]
        settings += self._fit_facts()
        content = [
            [split, self._name(path), files.digest(path, open_file)]
            for split in SPLITS
            for pair in self._sound.pairs[split]
            for path in pair
        ]
        masks = (pair.mask for split in SPLITS for pair in self._sound.pairs[split])
        if any(renumbers(palette) for palette in map(mask_palette, masks) if palette):
            settings.append("greys")  # of palettes are the values, and not the indices
        return files.json_digest([settings, content])

    @cached_property
    def _unlabelled_fingerprint(self) -> str | None:
        content = [[self._name(path), files.digest(path, open_file)] for path in self._sound.unlabelled]
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
            raise DataError(
                f"data.root={shown(root)} is not a folder (working directory: {shown(Path.cwd())}): give the folder "
                "with images/train and masks/train"
            )
        found = layout(root)
        pairs, faults, notes = self._listed_pairs(found)
        kept, dropped = kept_and_dropped(self._stems(pairs["train"]), self.labelled)
        without = tuple(pairs["train"][index].image for index in dropped)
        pairs["train"] = tuple(pairs["train"][index] for index in kept)
        if not self.unlabelled_share:
            return _Listing(pairs, (), faults, notes)
        given = None if self.unlabelled is None else Path(self.unlabelled)
        pictures, more, also = without_masks(found, given)
        return _Listing(pairs, (*without, *pictures), [*faults, *more], [*notes, *also])

    def _listed_pairs(self, found: Layout) -> tuple[dict[str, tuple[Pair, ...]], list[Fault], list[Fault]]:
        """The complete pairs of every split, the faults of all other files with masks, and what is not read."""
        listed = {split: paired(found, split) for split in SPLITS}
        pairs = {split: listed[split].pairs for split in SPLITS}
        faults = [fault for split in SPLITS for fault in listed[split].faults]
        notes = [*found.notes, *(note for split in SPLITS for note in listed[split].notes)]
        if not pairs["train"] and not faults:
            raise DataError(nothing_to_train(found))
        if not pairs["val"] and not any(fault.split == "val" for fault in faults):
            train = found.images_of("train")
            try:
                held_out = val_stems(self._stems(pairs["train"]), self.val_fraction, shown(train))
            except DataError as error:
                faults.append(Fault("no_val", "val", train, error))
            else:
                stems = list(zip(self._stems(pairs["train"]), pairs["train"], strict=True))
                pairs["val"] = tuple(pair for stem, pair in stems if stem in held_out)
                pairs["train"] = tuple(pair for stem, pair in stems if stem not in held_out)
        return pairs, faults, notes

    def _stems(self, pairs: Sequence[Pair]) -> list[str]:
        """The names of pairs below the folder of their split, without suffixes."""
        return [os.path.splitext(name_below(pair.image, Path(self.root)))[0] for pair in pairs]

    def _name(self, path: Path) -> str:
        """The name of a file below the folder of its split, or of the pictures without masks."""
        root = Path(self.root)
        given = root / self.unlabelled if self.unlabelled is not None else None
        return path.relative_to(given).as_posix() if given and given in path.parents else name_below(path, root)

    def _pair(self, split: str, index: int) -> Pair:
        if not 0 <= index < self.size(split):
            raise IndexError(f"index must be in 0..{self.size(split) - 1} for {split}, but got {index}")
        return self._sound.pairs[split][index]

    def _unlabelled(self, index: int) -> tuple[Path]:
        if not 0 <= index < self.unlabelled_size():
            raise IndexError(f"index must be in 0..{self.unlabelled_size() - 1} for unlabelled, but got {index}")
        return (self._sound.unlabelled[index],)

    def _mask(self, pair: Pair) -> np.ndarray:
        return self.recode(read_mask(pair.mask), shown(pair.mask), self.mask_values)

    def _checked_values(self, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**16 - 1 for value in values):
            raise ValueError(f"mask_values must be whole numbers from 0 to {2**16 - 2}, but got {list(values)}")
        if values and (len(values) != len(self.class_names) or len(set(values)) != len(values)):
            raise ValueError(
                f"mask_values must be {len(self.class_names)} different values, one per class, the background first "
                f"if classes is 1, but got {list(values)}"
            )
        if self.ignore_index in values:
            raise ValueError(f"ignore_index {self.ignore_index} must not be one of mask_values {list(values)}")
        return values


def check_val_fraction(value: float) -> None:
    """Raise ValueError unless `value` is a valid fraction of train to become val."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, both excluded, but got {value!r}")


def val_stems(stems: Sequence[str], fraction: float, where: str) -> frozenset[str]:
    """The stems that become the validation split: about `fraction` of them, by the hash of each, at least one.

    Raises DataError, naming `where`, if there are too few for two splits.
    """
    if len(stems) < 2:
        raise DataError(f"{where} contains {len(stems)} image, too few to split off a validation set: add images/val")
    position = {stem: key("val", stem) / 2**128 for stem in stems}
    chosen = {stem for stem in stems if position[stem] < fraction}
    ranked = sorted(stems, key=position.__getitem__)
    return frozenset((chosen | {ranked[0]}) - {ranked[-1]})


def _same_size(pair: Pair, image: tuple[int, int], mask: tuple[int, int]) -> None:
    if image != mask:
        raise DataError(other_size([str(path) for path in pair], [image, mask], pair.image))


def _size(array: np.ndarray) -> tuple[int, int]:
    return array.shape[0], array.shape[1]
