"""Pair the files of an image folder and a mask folder by their names without suffix; every problem is a `Fault`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.data.layout import Fault, Layout
from kd.data.listing import Found, below, counted
from kd.data.unlabelled import UNLABELLED
from kd.errors import DataError, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
JPEG_SUFFIXES = (".jpg", ".jpeg")


class Pair(NamedTuple):
    """The two files of one sample."""

    image: Path
    mask: Path


class Paired(NamedTuple):
    """The complete pairs of one split, the faults of all other files, and notes on what is not read."""

    pairs: tuple[Pair, ...]
    faults: list[Fault]
    notes: list[Fault]


def paired(layout: Layout, split: str, lossy_masks: bool = False) -> Paired:
    """Pair the files of one split, sorted by their names below its folders; masks may be JPEGs if they are lossy.

    Raises DataError if one of its two folders cannot be read.
    """
    folders = layout.images_of(split), layout.masks_of(split)
    known = IMAGE_SUFFIXES, (*MASK_SUFFIXES, *JPEG_SUFFIXES)
    found = [below(folder, layout.root, suffixes) for folder, suffixes in zip(folders, known, strict=True)]
    faults = [fault for each in found for fault in _unusable(split, each)]
    for key in {key for each in found for key in (*dict(each.twice), *(unusable[0] for unusable in each.unusable))}:
        for each in found:  # do not report their partners too
            each.files.pop(key, None)
    faults += _unpaired(split, folders, *found)
    pairs = []
    images, masks = found[0].files, found[1].files
    for pair in (Pair(images[key], masks[key]) for key in sorted(images.keys() & masks.keys())):
        if lossy_masks or pair.mask.suffix.lower() in MASK_SUFFIXES:
            pairs.append(pair)
        else:
            advice = "save masks as PNG, or set data.mask_threshold=128 if they are of background and foreground"
            message = f"{shown(pair.mask)} is a JPEG, which does not keep class indices exactly: {advice}"
            faults.append(Fault("jpeg_mask", split, pair.mask, DataError(message)))
    notes = [note for each in zip(folders, known, found, strict=True) for note in _notes(split, *each)]
    return Paired(tuple(pairs), faults, notes)


def without_masks(layout: Layout, given: Path | None) -> tuple[tuple[Path, ...], list[Fault], list[Fault]]:
    """The pictures without masks, sorted by name, the faults of other files in their folder, and notes.

    The folder is `given`, relative to the root, or else root/images/unlabelled, if there is one. Raises DataError if it
    does not exist, has no pictures, or cannot be read.
    """
    if given is None and UNLABELLED not in layout.images:
        return (), [], []
    root = layout.root if given is None else layout.root / given
    folder = layout.images_of(UNLABELLED) if given is None else root
    if given is not None:
        _check_given(layout.root, given)
    found = below(folder, root, IMAGE_SUFFIXES)
    pictures, faults = [*found.files.values(), *(path for _, path in found.twice)], _not_files(UNLABELLED, found)
    if not pictures and not faults:
        raise DataError(f"{no_images(folder, found)}, or set data.unlabelled_share=0 to do without")
    return tuple(sorted(pictures)), faults, _notes(UNLABELLED, folder, IMAGE_SUFFIXES, found)


def name_below(path: Path, root: Path) -> str:
    """The name of a file below the folder of its split, root/images/train for instance."""
    return "/".join(path.parts[len(root.parts) + 2 :])


def nothing_to_train(layout: Layout) -> str:
    """That there are no images in train, why, and what to do."""
    folder = layout.images_of("train")
    images, masks = shown(layout.root / "images/train"), shown(layout.root / "masks/train")
    message = f"{shown(folder)} contains no images ({', '.join(IMAGE_SUFFIXES)})"
    if layout.is_flat():
        return f"{message}, but {shown(folder.parent)} does: move them to {images}, and their masks to {masks}"
    if layout.is_inside_out():
        there = shown(layout.root / "train")
        return f"{message}: move {there}/images to {images}, {there}/masks to {masks}, and the other splits alike"
    return no_images(folder, below(folder, layout.root, IMAGE_SUFFIXES))


def no_images(folder: Path, found: Found) -> str:
    """That a folder has no images, and what to do."""
    message, others = f"{shown(folder)} contains no images ({', '.join(IMAGE_SUFFIXES)})", [*found.ignored.values()]
    return f"{message}, but {counted(others)}: convert them to one of these" if others else f"{message}: add some"


def _check_given(root: Path, given: Path) -> None:
    """Raise DataError unless data.unlabelled is a folder that does not also contain the pictures with masks."""
    folder = root / given
    if not os.path.isdir(folder):
        raise DataError(
            f"data.unlabelled={shown(given)}: {shown(folder)} is not a folder: give the folder of pictures without "
            "masks, absolute or relative to data.root"
        )
    if Path(os.path.realpath(root / "images")).is_relative_to(os.path.realpath(folder)):
        raise DataError(
            f"data.unlabelled={shown(given)} contains {shown(root / 'images')}, and so all pictures: give "
            "a folder of pictures without masks alone"
        )


def _unusable(split: str, found: Found) -> list[Fault]:
    """The faults of what only looks like a file, and of names that are there twice."""
    twice = [
        (path, f"{shown(found.files[key])} and {shown(path)} have the same name: keep one of them")
        for key, path in found.twice
    ]
    return [
        *_not_files(split, found),
        *(Fault("same_name", split, path, DataError(message)) for path, message in twice),
    ]


def _not_files(split: str, found: Found) -> list[Fault]:
    return [
        Fault("not_a_file", split, path, DataError(f"{shown(path)} {message}")) for _, path, message in found.unusable
    ]


def _notes(split: str, folder: Path, suffixes: Sequence[str], found: Found) -> list[Fault]:
    """That files of other formats are not read."""
    if not found.ignored:
        return []
    message = f"{shown(folder)} has {counted(list(found.ignored.values()))} of formats that are not read"
    return [Fault("format", split, folder, DataError(f"{message}: the formats are {', '.join(suffixes)}"))]


def _unpaired(split: str, folders: tuple[Path, Path], images: Found, masks: Found) -> Iterator[Fault]:
    """Images without a mask, then masks without an image."""
    for these, those, missing, folder, suffix in (
        (images, masks, "mask", folders[1], ".png"),
        (masks, images, "image", folders[0], ".jpg or another format"),
    ):
        unpaired = sorted(these.files.keys() - those.files.keys())
        for key in unpaired:
            message = f"{shown(these.files[key])} has no {missing}: expected {shown(folder / key)}{suffix}"
            if other := those.ignored.get(key):
                message += f", and {shown(other)} is of a format that is not read: convert it"
            count = f"{len(unpaired)} of {len(these.files)} files there have no partner"
            yield Fault(f"no_{missing}", split, these.files[key], DataError(f"{message} ({count})"))
