"""Templates that say where pictures and masks lie: which file belongs to which sample, and which folder to which split.

    images/{split}                    all files below images/train, images/val, ...
    masks/{split}/{stem}_mask.png     those whose names are of this form
    SegmentationClass/{stem}.png      the same ones for all splits

A sample is what stands for {stem}, which may have folders. Without {stem} a template names a folder; without a suffix
it stands for any that is read. Names are compared in Unicode's form NFC: macOS writes others (NFD) for the same text.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from kd.errors import shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (".npy",)  # read where pictures are no RGB of 8 bits
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
JPEG_SUFFIXES = (".jpg", ".jpeg")
SPLIT, STEM = "{split}", "{stem}"
SPLITS = ("train", "val", "test")
#: A fourth split, of pictures without masks: only a teacher can say anything about them, and nothing is measured on it.
UNLABELLED = "unlabelled"

#: Names of each split in folders and lists, in any case; the first is ours.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    UNLABELLED: (UNLABELLED, "unlabeled"),
}


@dataclass(frozen=True)
class Template:
    """A template of the paths, below a root, of pictures or masks; `key` is the option that it comes from.

    Raises:
        ValueError: it is invalid, naming `key`.
    """

    key: str
    text: str
    known: tuple[str, ...]  # suffixes of files that are read

    def __post_init__(self) -> None:
        check_path(self.key, self.text, (SPLIT, STEM))
        if self.suffix and self.suffix not in self.known:
            raise ValueError(
                f"{self.key}={self.text} ends in {self.suffix}, which is not read: the formats are "
                f"{', '.join(self.known)}"
            )

    @property
    def names_files(self) -> bool:
        """Whether it says how files are named, and not only where they lie."""
        return STEM in self.text

    @property
    def has_split(self) -> bool:
        return SPLIT in self.text

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders before the first {stem}."""
        return self._parts[0]

    @property
    def suffix(self) -> str:
        """The suffix that files must have, in small letters; empty if any will do."""
        found = re.search(r"\.\w+$", self.text) if self.names_files else None
        return found[0].lower() if found else ""

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (self.suffix,) if self.suffix else self.known

    @property
    def literal(self) -> int:
        """How many characters of a file's name it fixes: where two templates fit, the stricter one counts."""
        return len(self._parts[1].replace(STEM, "").replace(SPLIT, ""))

    def stems_of(self, split: str) -> Callable[[str], str | None]:
        """Gives the sample that a file of a split is of, by its path below its folder without suffix, if it is one."""
        pattern = _compiled(nfc(self._parts[1]), split)

        def stem(name: str) -> str | None:
            found = pattern.fullmatch(nfc(name))
            return found["stem"] if found else None

        return stem

    def folder(self, root: Path, split: str) -> Path:
        """The folder of a split where it is not spelled in another way."""
        return root.joinpath(*(part.replace(SPLIT, split) for part in self.folders))

    def folders_of(self, root: Path, split: str) -> list[Path]:
        """The folder of a split in each of its spellings."""
        return [self.folder(root, word) for word in SPELLINGS[split]]

    def top(self, root: Path) -> Path:
        """The folder that those of all splits lie in."""
        return root.joinpath(*(part for part in self.folders[: self.split_at] if part))

    @property
    def split_at(self) -> int | None:
        """Which of `folders` says the split; None if none does."""
        return next((at for at, part in enumerate(self.folders) if SPLIT in part), None)

    def file(self, folder: Path, split: str, stem: str) -> str:
        """The path, without suffix, that the file of a sample should have, for a message."""
        return shown(folder / self._parts[1].replace(SPLIT, split).replace(STEM, stem))

    @cached_property
    def _parts(self) -> tuple[tuple[str, ...], str]:
        """The folders before the first {stem}, and the rest without suffix."""
        parts = [part for part in self.text.split("/") if part not in ("", ".")]
        parts = parts if self.names_files else [*parts, STEM]
        at = next(at for at, part in enumerate(parts) if STEM in part)
        rest = "/".join(parts[at:])
        return tuple(parts[:at]), rest[: len(rest) - len(self.suffix)]


def nfc(name: str) -> str:
    """A name in Unicode's form NFC, in which names that read alike are equal."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=64)
def _compiled(form: str, split: str) -> re.Pattern[str]:
    pattern, seen = "", False
    for part in re.split(r"(\{split\}|\{stem\})", form):
        if part == STEM:
            pattern, seen = pattern + ("(?P=stem)" if seen else "(?P<stem>.+)"), True
        elif part == SPLIT:
            pattern += f"(?i:{'|'.join(SPELLINGS[split])})"
        else:
            pattern += re.escape(part)
    return re.compile(pattern, re.DOTALL)


def spelled(part: str, name: str, splits: Sequence[str]) -> tuple[str | None, str] | None:
    """Which split a folder of this name is of, by a part of a template, and how it spells that; None if it is not one.

    The split is None if the name has something else in its place.
    """
    pattern = re.escape(part).replace(re.escape(SPLIT), "(?P<split>.+)", 1).replace(re.escape(SPLIT), "(?P=split)")
    found = re.fullmatch(pattern, name, re.DOTALL)
    if not found:
        return None
    word = found["split"]
    return next((split for split in splits if word.lower() in SPELLINGS[split]), None), word


@dataclass(frozen=True)
class Names:
    """Where pictures and masks lie, which list says what is in a split, and whether links may lead out of the root.

    `split_lists` are paths by split, or one path with {split}; None: the folders, or a part of the files, are the
    splits.
    """

    images: Template
    masks: Template
    split_lists: str | tuple[tuple[str, str], ...] | None = None
    follow_links: bool = False

    @classmethod
    def of(
        cls, images: Any, masks: Any, split_lists: Any = None, follow_links: Any = False, arrays: bool = False
    ) -> "Names":
        """From the options of a data set; `arrays`: pictures may be in .npy files.

        Raises ValueError if one is invalid, or if two contradict each other.
        """
        if not isinstance(follow_links, bool):
            raise ValueError(f"follow_links must be true or false, but got {follow_links!r}")
        found = cls(
            Template("images", images, (*IMAGE_SUFFIXES, *(ARRAY_SUFFIXES if arrays else ()))),
            Template("masks", masks, (*MASK_SUFFIXES, *JPEG_SUFFIXES)),
            _checked_lists(split_lists),
            follow_links,
        )
        if os.path.normpath(images) == os.path.normpath(masks):
            raise ValueError(f"images and masks are both {images}: say what tells their files apart, as in "
                             f"data.masks={images.rstrip('/').partition(STEM)[0]}/{STEM}_mask.png")  # fmt: skip
        if found.split_lists and (found.images.has_split or found.masks.has_split):
            one = found.images if found.images.has_split else found.masks
            flat = re.sub(r"/?\{split\}", "", one.text).strip("/") or "."
            raise ValueError(
                f"split_lists says which pictures are in which split, and so does {SPLIT} in data.{one.key}={one.text}:"
                f" set data.{one.key}={flat}, or data.split_lists=null"
            )
        return found

    def bounds(self, root: Path) -> Path | None:
        """The folder that links must not lead out of; None if they may lead anywhere."""
        return None if self.follow_links else root


def check_path(key: str, text: Any, placeholders: Sequence[str], absolute: bool = False) -> None:
    """Raise ValueError, naming `key`, unless `text` is a path below a root with no other placeholders than these."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{key} must be a path below data.root, such as images/{SPLIT}, but got {text!r}")
    if wrong := [found for found in re.findall(r"\{[^{}]*\}?|\}", text) if found not in placeholders]:
        raise ValueError(f"{key}={text} has {wrong[0]}, but the placeholders are {' and '.join(placeholders)}")
    if ".." in text.split("/") or (not absolute and (text.startswith(("/", "~")) or "\\" in text)):
        raise ValueError(f"{key}={text} must be a path below data.root, with / between folders and without ..")


def _checked_lists(lists: Any) -> str | tuple[tuple[str, str], ...] | None:
    if lists is None or isinstance(lists, str):
        if lists is not None:
            check_path("split_lists", lists, (SPLIT,), absolute=True)
            if SPLIT not in lists:
                raise ValueError(f"split_lists={lists} must have {SPLIT} in it, as in lists/{SPLIT}.txt, or be a path "
                                 "for each split: {train: a.txt, val: b.txt}")  # fmt: skip
        return lists
    paths = dict(lists) if isinstance(lists, Mapping | list | tuple) else {}
    paths = {split: path for split, path in paths.items() if path is not None}
    if "train" not in paths or not set(paths) <= {*SPLITS}:
        raise ValueError(f"split_lists must have a path for train, and may have one for val and test, but got {lists}")
    for path in paths.values():
        check_path("split_lists", path, (), absolute=True)
    return tuple((split, paths[split]) for split in SPLITS if split in paths)
