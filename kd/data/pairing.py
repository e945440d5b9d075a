"""Pair the files of an image folder and a mask folder by stem; every problem is a `Fault`.

Names are not trusted: an entry must be a file, or a link to one below the same root.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.data.unlabelled import UNLABELLED
from kd.errors import DataError, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
JPEG_SUFFIXES = (".jpg", ".jpeg")
SPELLINGS = (UNLABELLED, "unlabeled")  # of the folder of pictures without masks


class Pair(NamedTuple):
    """The two files of one sample."""

    image: Path
    mask: Path


class Fault(NamedTuple):
    """One problem with the data; `kind` is a short name for similar problems."""

    kind: str
    split: str
    file: Path
    error: DataError


def paired(root: Path, split: str) -> tuple[tuple[Pair, ...], list[Fault]]:
    """The complete pairs of one split, sorted by stem, and the faults of all other files.

    Raises DataError if one of its two folders cannot be read.
    """
    faults: list[Fault] = []
    images = _by_stem(root, "images", split, IMAGE_SUFFIXES, faults)
    masks = _by_stem(root, "masks", split, (*MASK_SUFFIXES, *JPEG_SUFFIXES), faults)
    for stem in {fault.file.stem for fault in faults}:  # do not report their partners too
        images.pop(stem, None)
        masks.pop(stem, None)
    faults += _unpaired(root, split, images, masks)
    pairs = []
    for pair in (Pair(images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys())):
        if pair.mask.suffix.lower() in MASK_SUFFIXES:
            pairs.append(pair)
        else:
            message = f"{shown(pair.mask)} is a JPEG, which does not keep class indices exactly: save masks as PNG"
            faults.append(Fault("jpeg_mask", split, pair.mask, DataError(message)))
    return tuple(pairs), faults


def without_masks(root: Path, given: Path | None) -> tuple[tuple[Path, ...], list[Fault]]:
    """The pictures without masks, sorted by name, and the faults of the other files in their folder.

    The folder is `given`, relative to `root`, or else root/images/unlabelled, if there is one. Raises DataError if it
    does not exist, has no pictures, or cannot be read.
    """
    if given is None:
        found = [path for path in (root / "images" / name for name in SPELLINGS) if os.path.isdir(path)]
    else:
        root = root / given
        found = [root]
        if not os.path.isdir(root):
            raise DataError(
                f"data.unlabelled={shown(given)}: {shown(root)} is not a folder: give the folder of pictures without "
                "masks, absolute or relative to data.root"
            )
    if len(found) > 1:
        raise DataError(f"{shown(found[0])} and {shown(found[1])} are two spellings of one folder: keep one of them")
    if not found:
        return (), []
    pictures, faults = _pictures(found[0], root)
    if not pictures and not faults:
        raise DataError(
            f"{shown(found[0])} contains no images ({', '.join(IMAGE_SUFFIXES)}): add some, or set "
            "data.unlabelled_share=0 to do without"
        )
    return pictures, faults


def _pictures(folder: Path, root: Path) -> tuple[tuple[Path, ...], list[Fault]]:
    """The images of a folder below `root`, and the faults of what only look like images."""
    found, faults = [], []
    for entry in _entries(folder, root):
        path = folder / entry.name
        if path.suffix.lower() not in IMAGE_SUFFIXES or entry.name.startswith("."):
            continue
        if message := _unusable(entry, root):
            faults.append(Fault("not_a_file", UNLABELLED, path, DataError(f"{shown(path)} {message}")))
        else:
            found.append(path)
    return tuple(found), faults


def _unpaired(root: Path, split: str, images: dict[str, Path], masks: dict[str, Path]) -> Iterator[Fault]:
    """Images without a mask, then masks without an image."""
    for these, those, missing, folder, suffix in (
        (images, masks, "mask", "masks", ".png"),
        (masks, images, "image", "images", ".jpg or another format"),
    ):
        unpaired = sorted(these.keys() - those.keys())
        for stem in unpaired:
            wanted = f"{shown(root / folder / split / stem)}{suffix}"
            message = f"{shown(these[stem])} has no {missing}: expected {wanted}"
            count = f"{len(unpaired)} of {len(these)} files there have no partner"
            yield Fault(f"no_{missing}", split, these[stem], DataError(f"{message} ({count})"))


def _by_stem(root: Path, kind: str, split: str, suffixes: Sequence[str], faults: list[Fault]) -> dict[str, Path]:
    """The usable files of one folder, empty if it does not exist; adds to `faults`."""
    folder = root / kind / split
    found: dict[str, Path] = {}
    for entry in _entries(folder, root):
        path = folder / entry.name
        if path.suffix.lower() not in suffixes or entry.name.startswith("."):
            continue
        if message := _unusable(entry, root):
            faults.append(Fault("not_a_file", split, path, DataError(f"{shown(path)} {message}")))
        elif path.stem in found:
            message = f"{shown(found[path.stem])} and {shown(path)} have the same name: keep one of them"
            faults.append(Fault("same_name", split, path, DataError(message)))
        else:
            found[path.stem] = path
    return found


def _entries(folder: Path, root: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        if not inside(folder, root):
            raise DataError(f"{shown(folder)} is a link out of {shown(root)}: move the files, or set data.root there")
        return listed
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed ({error.strerror}): make it readable") from error


def _unusable(entry: "os.DirEntry[str]", root: Path) -> str | None:
    """Why an entry of a folder is not a usable file; None if it is."""
    if entry.is_symlink() and not inside(Path(entry.path), root):
        return f"is a link out of {shown(root)}: put the file itself there"
    try:
        if entry.is_file():
            return None
        what = (
            "a folder" if entry.is_dir() else "a pipe, socket or device" if os.path.exists(entry) else "a broken link"
        )
    except OSError as error:
        return f"cannot be read ({error.strerror}): make it readable"
    return f"is not a file but {what}: remove it"


def inside(path: Path, root: Path) -> bool:
    """Whether `path` is below `root`, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
