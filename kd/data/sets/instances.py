"""COCO's instances files: which pictures there are, and where in the file each one's annotations are.

The file is scanned once, value by value, and only positions are kept: of a file of half a gigabyte with 860,000 objects
that is some twenty megabytes. The annotations of a picture are parsed when it is read. Files are not trusted: names
stay inside their folder, and only numbers are used as numbers.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kd.data.files.image_file import MAX_PIXELS, open_file
from kd.errors import DataError, shown

MOST_BYTES = 2**31  # of a file
SPACES = " \t\n\r"
WANTED = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Image:
    """A picture of the file: its name below the folder of pictures, and its (height, width)."""

    name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Instances:
    """An instances file.

    Attributes:
        images: in the order of their names.
        categories: the name of each category, by its id.
        spans: of the annotations of all images, one image after the other: where each begins and ends in the file.
        first: where those of each image begin in `spans`; one more than there are images.
    """

    path: Path
    images: tuple[Image, ...]
    categories: dict[int, str]
    spans: np.ndarray
    first: np.ndarray

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The annotations of an image; raises DataError if the file has changed."""
        spans = self.spans[self.first[index] : self.first[index + 1]].tolist()
        try:
            with open_file(self.path) as file:
                found = []
                for start, end in spans:
                    file.seek(start)
                    found.append(json.loads(file.read(end - start)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{shown(self.path)} has changed while it was read: start again") from error
        return found


def instances(path: Path) -> Instances:
    """Scan an instances file.

    Raises:
        DataError: it cannot be read, is not JSON, or is no instances file.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        if not 0 < size <= MOST_BYTES:
            raise _damaged(path, f"it has {size} bytes, and from 1 to {MOST_BYTES} are read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            text = str(content, "latin-1")  # a character is a byte, so that positions are those in the file
    try:
        return _read(path, text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, reason if not isinstance(error, RecursionError) else "it is nested too deep") from error


def _read(path: Path, text: str) -> Instances:
    found: dict[str, list[tuple[int, int, Any]]] = {}
    for key, start, end, value in _elements(text):
        if key == "annotations":
            value = value["image_id"]
        elif key == "images":
            value = _image(_utf8(text[start:end]))
        elif key == "categories":
            value = _category(_utf8(text[start:end]))
        found.setdefault(key, []).append((start, end, value))
    if missing := [key for key in WANTED if key not in found]:
        raise ValueError(f"it has no {missing[0]}")
    images = sorted((value for _, _, value in found["images"]), key=lambda each: each[1].name)
    place = {number: index for index, (number, _) in enumerate(images)}
    names = {image.name for _, image in images}
    if len(place) < len(images) or len(names) < len(images):
        raise ValueError("two of its images have the same id, or the same file_name")
    categories = dict(value for _, _, value in found["categories"])
    owners = np.array([place.get(value, -1) for _, _, value in found["annotations"]], np.int64)
    spans = np.array([(start, end) for start, end, _ in found["annotations"]], np.int64).reshape(-1, 2)
    if (owners < 0).any():
        raise ValueError("an annotation has an image_id that no image of the file has")
    order = np.argsort(owners, kind="stable")
    first = np.searchsorted(owners[order], np.arange(len(images) + 1))
    return Instances(path, tuple(image for _, image in images), categories, spans[order], first)


def _elements(text: str) -> Iterator[tuple[str, int, int, Any]]:
    """The elements of the wanted lists at the top: the list's key, where each begins and ends, and the value."""
    decoder = json.JSONDecoder()
    at = _past(text, 0, "{")
    while text[_blank(text, at)] != "}":
        key, at = decoder.raw_decode(text, _blank(text, at))
        at = _blank(text, _past(text, at, ":"))
        if key not in WANTED:
            _, at = decoder.raw_decode(text, at)
        else:
            at = _past(text, at, "[")
            while text[_blank(text, at)] != "]":
                start = _blank(text, at)
                value, at = decoder.raw_decode(text, start)
                yield key, start, at, value
                at = _comma(text, at, "]")
            at = _past(text, at, "]")
        at = _comma(text, at, "}")


def _blank(text: str, at: int) -> int:
    """The next position that is no blank; raises ValueError at the end."""
    while at < len(text) and text[at] in SPACES:
        at += 1
    if at >= len(text):
        raise ValueError("it ends too early")
    return at


def _past(text: str, at: int, sign: str) -> int:
    """The position after the next sign, which must be this one; raises ValueError."""
    at = _blank(text, at)
    if text[at] != sign:
        raise ValueError(f"there should be {sign} at byte {at}")
    return at + 1


def _comma(text: str, at: int, end: str) -> int:
    """The position after a comma, or of the sign that ends a list or a mapping; raises ValueError."""
    at = _blank(text, at)
    return at if text[at] == end else _past(text, at, ",")


def _utf8(text: str) -> dict[str, Any]:
    return dict(json.loads(text.encode("latin-1")))


def _image(said: dict[str, Any]) -> tuple[Any, Image]:
    name, number, sides = said["file_name"], _id(said["id"]), (said["height"], said["width"])
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
        raise ValueError(f"the file_name {name!r} is no path below the folder of pictures")
    if not all(type(side) is int and side > 0 for side in sides) or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"the image {name} has height and width {sides[0]!r} and {sides[1]!r}")
    return number, Image(name, sides)


def _category(said: dict[str, Any]) -> tuple[Any, str]:
    if not isinstance(said["name"], str):
        raise ValueError(f"a category has the name {said['name']!r}")
    return _id(said["id"]), said["name"]


def _id(value: Any) -> Any:
    """The id of an image or a category: a whole number, or a text."""
    if type(value) not in (int, str):
        raise ValueError(f"{str(value)[:40]!r} is no id")
    return value


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{shown(path)} cannot be read as COCO's instances ({reason[:200]}): replace it")
