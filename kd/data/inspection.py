"""One sample looked at: what image and mask are, and all that is wrong with them; and many, over all cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kd.data.decode import Header, picture_size, read_header
from kd.data.source import Source, ValuesError
from kd.errors import DataError, shown

_source: Source  # in a worker process: what it looks at
CHUNK = 32  # samples that a worker process takes at a time

T = TypeVar("T")
Size = tuple[int, int] | None  # (height, width) in pixels; None where it could not be read


class Problem(NamedTuple):
    """One line of a report: `kind` is a short name for others like it, `file` is relative to the data's root."""

    kind: str
    split: str
    file: str
    says: str


@dataclass(frozen=True)
class Look:
    """What one sample turned out to be.

    Attributes:
        size: (height, width) of the image, where it could be read.
        formats: format and mode of image and mask, such as JPEG RGB and PNG L.
        digest: of the image's decoded pixels; None where they were not read.
        pixels: of the mask: how many hold each class, and last how many are void; None likewise.
    """

    split: str
    file: str
    size: Size
    formats: tuple[str | None, ...]
    digest: bytes | None
    pixels: tuple[int, ...] | None
    problems: tuple[Problem, ...]


def looks_at(source: Source, todo: list[tuple[str, int]], headers: bool, workers: int) -> Iterator[Look]:
    """A look at each of `todo`, in order, by as many processes as there is work for."""
    chunks = [todo[first : first + CHUNK] for first in range(0, len(todo), CHUNK)]
    if workers == 1 or len(chunks) < 2:
        return (look_at(source, split, index, headers) for split, index in todo)
    pool = ProcessPoolExecutor(min(workers, len(chunks)), initializer=_start_worker, initargs=(source,))
    # All is handed out here, before a progress display starts a thread that forked workers would inherit.
    return _gathered(pool, [pool.submit(_look_at_each, chunk, headers) for chunk in chunks])


def _start_worker(source: Source) -> None:
    global _source  # handed over once, as it may list a million files
    _source = source
    signal(SIGINT, SIG_IGN)  # Ctrl-C is the main process's business


def _look_at_each(chunk: list[tuple[str, int]], headers: bool) -> list[Look]:
    return [look_at(_source, split, index, headers) for split, index in chunk]


def _gathered(pool: ProcessPoolExecutor, results: list[Future[list[Look]]]) -> Iterator[Look]:
    try:
        for result in results:
            yield from result.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that read pictures was killed, most likely for want of memory: free some, or give --headers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(source: Source, split: str, index: int, headers: bool) -> Look:
    """One sample of `source`; whatever DataError it meets becomes one of its problems."""
    root, files = root_of(source), source.files(split, index)
    places = [place(file, root) for file in files] or [source.name(split, index)] * 2
    problems: list[Problem] = []

    def attempt(file: str, call: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return call(*arguments)
        except DataError as error:
            kind = "values" if isinstance(error, ValuesError) else "unreadable"
            problems.append(Problem(kind, split, file, told(error, root)))
            return None

    heads = [attempt(file, read_header, path) for file, path in zip(places, files, strict=False)]
    image, mask = (
        None if headers or (files and head is None) else attempt(file, read, split, index)
        for file, read, head in zip(places, (source.image, source.mask), heads or (None, None), strict=True)
    )
    sizes: list[Size] = [None if array is None else array.shape[:2] for array in (image, mask)]
    if headers:
        sizes = [head and (head.height, head.width) for head in heads] or sizes
        if None not in sizes and sizes[0] != sizes[1]:  # the image may lie on its side, which takes longer to find out
            sizes[0] = attempt(places[0], picture_size, files[0])
    problems += _quarrels(split, places, heads, sizes)
    return Look(
        split,
        places[0],
        size=sizes[0],
        formats=tuple(head and f"{head.format} {head.mode}" for head in heads),
        digest=None if image is None else _digest(image),
        pixels=None if mask is None else _counted(source, mask),
        problems=tuple(problems),
    )


def _quarrels(
    split: str, places: Sequence[str], heads: Sequence[Header | None], sizes: Sequence[Size]
) -> Iterator[Problem]:
    """What is wrong with an image and a mask of which each can be read."""
    if heads and heads[1] and heads[1].format in ("JPEG", "MPO"):
        says = f"{shown(places[1])} holds a JPEG, which does not keep class indices exactly: save masks as PNG"
        yield Problem("jpeg_mask", split, places[1], says)
    told_sizes = [f"{size[1]}x{size[0]}" for size in sizes if size]
    if len(set(told_sizes)) == 2:
        image, mask = told_sizes
        says = f"{shown(places[0])} is {image} pixels (width x height), but its mask {shown(places[1])} is {mask}"
        yield Problem("size", split, places[0], f"{says}: the two must match")


def _digest(image: np.ndarray) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode()).digest()


def _counted(source: Source, mask: np.ndarray) -> tuple[int, ...]:
    """Pixels of each class, and last the void ones."""
    counts = np.bincount(mask.ravel(), minlength=256)
    void = 0 if source.ignore_index is None else counts[source.ignore_index]
    return (*counts[: len(source.class_names)].tolist(), int(void))


def root_of(source: Source) -> Path:
    """The folder from which files are named; the working directory where the data has none."""
    return Path(getattr(source, "root", "."))


def place(file: Path, root: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def told(error: DataError, root: Path) -> str:
    """The error's line, with files named from the root on."""
    return str(error) if root == Path(".") else str(error).replace(f"{shown(root)}/", "")
