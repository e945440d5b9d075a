"""Which folder holds which split: people spell them in several ways, and what is passed over is said."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kd.data.layout.listing import counted, entries, is_clutter, is_folder
from kd.data.layout.naming import SPELLINGS, SPLIT, SPLITS, Names, Template, spelled
from kd.errors import DataError, shown

DEFAULT = Names.of(images="images/{split}", masks="masks/{split}")


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
    names: Names = DEFAULT

    @property
    def bounds(self) -> Path | None:
        """The folder that links must not lead out of; None if they may lead anywhere."""
        return self.names.bounds(self.root)

    def images_of(self, split: str) -> Path:
        """The folder of a split's images, which may not exist; raises DataError if there are two."""
        return _only(self.images.get(split, [self.names.images.folder(self.root, split)]))

    def masks_of(self, split: str) -> Path:
        """The folder of a split's masks, which may not exist; raises DataError if there are two."""
        return _only(self.masks.get(split, [self.names.masks.folder(self.root, split)]))

    def is_flat(self) -> bool:
        """Whether there are images, but no folders for the splits."""
        return not self.images and any(note.kind == "loose" for note in self.notes)

    def is_inside_out(self) -> bool:
        """Whether the splits are the outer folders, as in train/images."""
        return self.names.images == DEFAULT.images and os.path.isdir(self.root / "train" / "images")


def layout(root: Path, names: Names = DEFAULT) -> Layout:
    """The folders below `root`; raises DataError if it cannot be listed."""
    found = Layout(root, {}, {}, [], names)
    of_images = tuple(SPELLINGS) if names.images.has_split else SPLITS
    found.images.update(_folders(found, names.images, of_images))
    found.masks.update(_folders(found, names.masks, SPLITS))
    return found


def _folders(layout: Layout, template: Template, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The folders of each split that a template says; adds to the notes."""
    at, found, loose = template.split_at, dict[str, list[Path]](), list[Path]()
    if at is None:
        folder = template.folder(layout.root, "")
        return {split: [folder] for split in splits} if os.path.isdir(folder) else {}
    top = template.top(layout.root)
    for entry in entries(top, layout.bounds):
        split, word = spelled(template.folders[at], entry.name, splits) or (None, None)
        path = Path(entry.path).joinpath(*(part.replace(SPLIT, word or "") for part in template.folders[at + 1 :]))
        if not is_folder(entry):
            loose.append(path)
        elif word is None or not os.path.isdir(path):
            continue
        elif split:
            found.setdefault(split, []).append(path)
            if word not in (split, "unlabeled"):
                layout.notes.append(Fault("spelling", split, path, DataError(f"{shown(path)} is read as {split}")))
        elif files := _all_files(path):
            known = ", ".join(splits)
            message = f"{shown(path)} is not read: {counted(files)}; the splits are {known}: rename it, or move it away"
            layout.notes.append(Fault("no_split", "", path, DataError(message)))
    if loose and at == len(template.folders) - 1 > 0:
        message = f"{shown(top)} has {counted(loose)} outside of the splits, which are not read: move them"
        there = shown(template.folder(layout.root, "train"))
        layout.notes.append(Fault("loose", "", top, DataError(f"{message} to {there}")))
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
