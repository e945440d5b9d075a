"""Which folder holds which split: people spell them in several ways, and what is passed over is said."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kd.data.listing import counted, entries, is_clutter, is_folder
from kd.data.unlabelled import UNLABELLED
from kd.errors import DataError, shown

#: Names of the folder of each split, in any case; the first is ours.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    UNLABELLED: (UNLABELLED, "unlabeled"),
}


class Fault(NamedTuple):
    """One problem with the data; `kind` is a short name for similar problems."""

    kind: str
    split: str
    file: Path
    error: DataError


class Layout(NamedTuple):
    """The folders of a data set.

    Attributes:
        images, masks: all folders of each split that has any.
        notes: what is read under another name, and what is not read.
    """

    root: Path
    images: dict[str, list[Path]]
    masks: dict[str, list[Path]]
    notes: list[Fault]

    def images_of(self, split: str) -> Path:
        """The folder of a split's images, which may not exist; raises DataError if there are two."""
        return _only(self.images.get(split, [self.root / "images" / split]))

    def masks_of(self, split: str) -> Path:
        """The folder of a split's masks, which may not exist; raises DataError if there are two."""
        return _only(self.masks.get(split, [self.root / "masks" / split]))

    def is_flat(self) -> bool:
        """Whether there are images, but no folders for the splits."""
        return not self.images and any(note.kind == "loose" for note in self.notes)

    def is_inside_out(self) -> bool:
        """Whether the splits are the outer folders, as in train/images."""
        return os.path.isdir(self.root / "train" / "images")


def layout(root: Path) -> Layout:
    """The folders below `root`; raises DataError if it cannot be listed."""
    notes: list[Fault] = []
    images = _folders(root, "images", tuple(SPELLINGS), notes)
    return Layout(root, images, _folders(root, "masks", ("train", "val", "test"), notes), notes)


def _folders(root: Path, kind: str, splits: Sequence[str], notes: list[Fault]) -> dict[str, list[Path]]:
    """The folders of each split in root/`kind`; adds to `notes`."""
    found: dict[str, list[Path]] = {}
    loose = []
    for entry in entries(root / kind, root):
        path = Path(entry.path)
        split = next((split for split in splits if entry.name.lower() in SPELLINGS[split]), None)
        if not is_folder(entry):
            loose.append(path)
        elif split:
            found.setdefault(split, []).append(path)
            if entry.name not in (split, "unlabeled"):
                notes.append(Fault("spelling", split, path, DataError(f"{shown(path)} is read as {split}")))
        elif files := _all_files(path):
            known = ", ".join(splits)
            message = f"{shown(path)} is not read: {counted(files)}; the splits are {known}: rename it, or move it away"
            notes.append(Fault("no_split", "", path, DataError(message)))
    if loose:
        message = f"{shown(root / kind)} has {counted(loose)} outside of the splits, which are not read: move them"
        notes.append(Fault("loose", "", root / kind, DataError(f"{message} to {shown(root / kind / 'train')}")))
    return found


def _all_files(folder: Path) -> list[Path]:
    """The files below a folder that is not read, without hidden ones."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        found += [Path(place) / name for name in sorted(files) if not is_clutter(name)]
    return found


def _only(folders: list[Path]) -> Path:
    if len(folders) > 1:
        raise DataError(
            f"{shown(folders[0])} and {shown(folders[1])} are two spellings of one folder: keep one of them"
        )
    return folders[0]
