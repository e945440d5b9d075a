"""Pair pictures and masks by what stands for {stem} in their names; every problem is a `Fault`."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from kd.data.layout.listing import Found, below, counted
from kd.data.layout.naming import ARRAY_SUFFIXES, MASK_SUFFIXES, UNLABELLED, Template, nfc
from kd.data.layout.split_folders import Fault, Layout
from kd.errors import DataError, shown

MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "label")  # names of the folder beside train/images


class Pair(NamedTuple):
    """The two files of one sample."""

    image: Path
    mask: Path


class Paired(NamedTuple):
    """The complete pairs of one split by stem, the faults of all other files, and notes on what is not read."""

    pairs: dict[str, Pair]
    faults: list[Fault]
    notes: list[Fault]


class Files(NamedTuple):
    """The files of one split below its two folders."""

    folders: tuple[Path, Path]
    images: Found
    masks: Found


def paired(layout: Layout, split: str, lossy_masks: bool = False) -> Paired:
    """Pair the files of one split, sorted by their stems; masks may be JPEGs if they are lossy.

    Raises DataError if one of its two folders cannot be read.
    """
    return pairs_of(layout, split, files_of(layout, split), lossy_masks)


def files_of(layout: Layout, split: str) -> Files:
    """The images and masks of one split; a file that fits both templates belongs to the stricter one.

    Raises DataError if one of the two folders cannot be read.
    """
    names, bounds = layout.names, layout.bounds
    folders = {names.images: layout.images_of(split), names.masks: layout.masks_of(split)}
    found: dict[Template, Found] = {}
    for template in sorted(folders, key=lambda template: -template.literal):
        taken = {path for each in found.values() for path in [*each.files.values(), *(path for _, path in each.twice)]}
        found[template] = below(folders[template], bounds, template.suffixes, template.stems_of(split), taken)
    return Files((folders[names.images], folders[names.masks]), found[names.images], found[names.masks])


def pairs_of(layout: Layout, split: str, files: Files, lossy_masks: bool = False) -> Paired:
    """Pair the files of one split, or of a part of one."""
    found = [Found({**each.files}, *each[1:]) for each in files[1:]]
    faults = [fault for each in found for fault in _unusable(split, each)]
    for key in {key for each in found for key in (*dict(each.twice), *(unusable[0] for unusable in each.unusable))}:
        for each in found:  # do not report their partners too
            each.files.pop(key, None)
    faults += _unpaired(layout, split, files.folders, *found)
    pairs = {}
    images, masks = found[0].files, found[1].files
    for key in sorted(images.keys() & masks.keys()):
        pair = Pair(images[key], masks[key])
        if lossy_masks or pair.mask.suffix.lower() in MASK_SUFFIXES:
            pairs[key] = pair
        else:
            advice = "save masks as PNG, or set data.mask_threshold=128 if they are of background and foreground"
            message = f"{shown(pair.mask)} is a JPEG, which does not keep class indices exactly: {advice}"
            faults.append(Fault("jpeg_mask", split, pair.mask, DataError(message)))
    return Paired(pairs, faults, notes_on(layout, split, files))


def notes_on(layout: Layout, split: str, files: Files) -> list[Fault]:
    """What is not read of the folders of one split."""
    masks = {*files.masks.files.values(), *files.masks.ignored.values()}
    return [
        *_notes(split, files.folders[0], layout.names.images, files.images, masks),
        *([] if layout.names.masks.names_files else _notes(split, files.folders[1], layout.names.masks, files.masks)),
    ]


def without_masks(layout: Layout, given: Path | None) -> tuple[dict[str, Path], list[Fault], list[Fault]]:
    """The pictures without masks by name, sorted, the faults of other files in their folder, and notes.

    The folder is `given`, relative to the root, or else that of the split `unlabelled`, if there is one. Raises
    DataError if it does not exist, has no pictures, or cannot be read.
    """
    if given is None and UNLABELLED not in layout.images:
        return {}, [], []
    names = layout.names
    if given is not None:
        _check_given(layout, given)
        folder = layout.root / given
        found = below(folder, names.bounds(folder), names.images.known)
    else:
        folder, template = layout.images_of(UNLABELLED), names.images
        found = below(folder, layout.bounds, template.suffixes, template.stems_of(UNLABELLED))
    pictures, faults = [*found.files.values(), *(path for _, path in found.twice)], _not_files(UNLABELLED, found)
    if not pictures and not faults and (given is not None or not names.images.names_files):
        raise DataError(f"{no_images(folder, found, names.images.known)}, or set data.unlabelled_share=0 to do without")
    named = {path.relative_to(folder).as_posix(): path for path in sorted(pictures)}
    return named, faults, _notes(UNLABELLED, folder, names.images, found)


def nothing_to_train(layout: Layout) -> str:
    """That there are no images in train, why, and what to do."""
    folder, template = layout.images_of("train"), layout.names.images
    images, masks = shown(layout.root / "images/train"), shown(layout.root / "masks/train")
    message = f"{shown(folder)} contains no images ({', '.join(template.suffixes)})"
    if layout.is_flat():
        there = template.top(layout.root).relative_to(layout.root).as_posix()
        others = layout.names.masks.top(layout.root).relative_to(layout.root).as_posix()
        return (
            f"{message}, but {shown(folder.parent)} does: set data.images={there} data.masks={others} to split them by "
            f"data.val_fraction and data.test_fraction, or move them to {images}, and their masks to {masks}"
        )
    if layout.is_inside_out():
        there = shown(layout.root / "train")
        name = next((each for each in MASK_FOLDERS if os.path.isdir(layout.root / "train" / each)), MASK_FOLDERS[0])
        return (
            f"{message}: set data.images={{split}}/images data.masks={{split}}/{name}, or move {there}/images to "
            f"{images}, {there}/{name} to {masks}, and the other splits alike"
        )
    if not os.path.lexists(folder):
        return f"{shown(folder)} does not exist: {_other_root(layout)}"
    if template.names_files:
        return f"{message} of the form data.images={shown(template.text)}: correct it, or data.root"
    return no_images(folder, below(folder, layout.bounds, template.known), template.known)


def _other_root(layout: Layout) -> str:
    """What to do where data.root has no folder of training images: perhaps the folder around it has."""
    around, templates = Path(os.path.abspath(layout.root)).parent, (layout.names.images, layout.names.masks)
    if all(any(map(os.path.isdir, each.folders_of(around, "train"))) for each in templates):
        return f"data.root is one level too deep, set {quote(f'data.root={shown(around)}')}"
    expected = " and ".join(shown(each.folder(Path(), "train")) for each in templates)
    return f"set data.root to the folder with {expected}, or say where they are by data.images and data.masks"


def no_images(folder: Path, found: Found, suffixes: Collection[str]) -> str:
    """That a folder has no images, and what to do."""
    message, others = f"{shown(folder)} contains no images ({', '.join(suffixes)})", [*found.ignored.values()]
    return f"{message}, but {counted(others)}: convert them to one of these" if others else f"{message}: add some"


def _check_given(layout: Layout, given: Path) -> None:
    """Raise DataError unless data.unlabelled is a folder that does not also contain the pictures with masks."""
    folder = layout.root / given
    if not os.path.isdir(folder):
        raise DataError(
            f"data.unlabelled={shown(given)}: {shown(folder)} is not a folder: give the folder of pictures without "
            "masks, absolute or relative to data.root"
        )
    template = layout.names.images
    labelled = [folder for split, folders in layout.images.items() if split != UNLABELLED for folder in folders]
    tops = labelled if template.split_at == 0 else [template.top(layout.root)]
    for top in tops:
        if Path(os.path.realpath(top)).is_relative_to(os.path.realpath(folder)):
            raise DataError(
                f"data.unlabelled={shown(given)} contains {shown(top)}, and so all pictures: give "
                "a folder of pictures without masks alone"
            )


def _unusable(split: str, found: Found) -> list[Fault]:
    """The faults of what only looks like a file, and of names that are there twice."""
    twice = [
        (path, f"{shown(found.files[key])} and {shown(path)} have {_same_name(found.files[key], path)}")
        for key, path in found.twice
    ]
    return [
        *_not_files(split, found),
        *(Fault("same_name", split, path, DataError(message)) for path, message in twice),
    ]


def _same_name(one: Path, other: Path) -> str:
    forms = one.name != other.name and nfc(one.name) == nfc(other.name)
    return f"the same name{' in two Unicode forms (NFC and NFD)' if forms else ''}: keep one of them"


def _not_files(split: str, found: Found) -> list[Fault]:
    return [
        Fault("not_a_file", split, path, DataError(f"{shown(path)} {message}")) for _, path, message in found.unusable
    ]


def _notes(split: str, folder: Path, template: Template, found: Found, taken: Collection[Path] = ()) -> list[Fault]:
    """That files of other formats, or of other names, are not read; those that are `taken` are."""
    ignored = [path for path in found.ignored.values() if path.suffix.lower() not in template.known]
    others = [path for path in (*found.others, *found.ignored.values()) if path.suffix.lower() in template.known]
    others = [path for path in others if path not in taken]
    faults = []
    if ignored:
        message = f"{shown(folder)} has {counted(ignored)} of formats that are not read"
        faults.append(Fault("format", split, folder, DataError(f"{message}: the formats are "
                                                               f"{', '.join(template.suffixes)}")))  # fmt: skip
    if others:
        message = f"{shown(folder)} has {counted(others)} that are not of the form data.{template.key}={template.text}"
        faults.append(Fault("form", split, folder, DataError(f"{message}, and not read: correct it, or move them")))
    return faults


def _unpaired(layout: Layout, split: str, folders: tuple[Path, Path], images: Found, masks: Found) -> Iterator[Fault]:
    """Images without a mask, then masks without an image; not those that another split may have."""
    of_images, of_masks = layout.names.images, layout.names.masks
    for these, those, missing, folder, (mine, other), suffix in (
        (images, masks, "mask", folders[1], (of_images, of_masks), ".png"),
        (masks, images, "image", folders[0], (of_masks, of_images), ".jpg or another format"),
    ):
        if other.has_split and not mine.has_split:
            continue
        unpaired = sorted(these.files.keys() - those.files.keys())
        for key in unpaired:
            expected = other.file(folder, split, key) + (other.suffix or suffix)
            message = f"{shown(these.files[key])} has no {missing}: expected {expected}"
            if path := those.ignored.get(key):
                why = "is of a format that is not read: convert it"
                if path.suffix.lower() in ARRAY_SUFFIXES and missing == "image":
                    why = "is read where data.channels and data.depth say what it stores, and not as RGB of 8 bits"
                message += f", and {shown(path)} {'has another suffix' if path.suffix in other.known else why}"
            count = f"{len(unpaired)} of {len(these.files)} files there have no partner"
            yield Fault(f"no_{missing}", split, these.files[key], DataError(f"{message} ({count})"))
