"""Inspect samples, over all cores: the properties of image and mask, and everything that is wrong with them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kd.data.files.decode import picture_size
from kd.data.files.image_file import Header, read_header
from kd.data.files.orientation import other_size
from kd.data.layout.naming import UNLABELLED
from kd.data.masks.coding import ValuesError
from kd.data.source import Source
from kd.data.statistics import Moments, moments
from kd.errors import DataError, shown
from kd.system import signals

_source: Source  # in a worker process: the data it inspects
CHUNK = 32  # samples per task of a worker process

T = TypeVar("T")
Size = tuple[int, int] | None  # (height, width) in pixels; None if it could not be read


class Problem(NamedTuple):
    """One line of a report: `kind` is a short name for similar problems, `file` is relative to the data's root."""

    kind: str
    split: str
    file: str
    message: str


@dataclass(frozen=True)
class InspectedSample:
    """The properties of one sample.

    Attributes:
        size: (height, width) of the image; None if it could not be read.
        formats: formats and modes of image and mask, such as JPEG RGB and PNG L; without a mask, of the image.
        digest: a hash of the image's decoded pixels; None if they were not read.
        pixels: the mask's pixels of each class, and last its void pixels; None if it was not read.
        moments: those of the image's channels; None if it was not read.
    """

    split: str
    file: str
    size: Size
    formats: tuple[str | None, ...]
    digest: bytes | None
    pixels: tuple[int, ...] | None
    problems: tuple[Problem, ...]
    moments: Moments | None = None


def inspect_samples(
    source: Source, todo: list[tuple[str, int]], headers: bool, workers: int
) -> Iterator[InspectedSample]:
    """Inspect each of the `todo` samples, in order, with at most `workers` processes."""
    chunks = [todo[first : first + CHUNK] for first in range(0, len(todo), CHUNK)]
    if workers == 1 or len(chunks) < 2:
        return (inspect_sample(source, split, index, headers) for split, index in todo)
    pool = ProcessPoolExecutor(min(workers, len(chunks)), initializer=_start_worker, initargs=(source,))
    # Everything is submitted here, before a progress bar starts a thread that forked workers would inherit.
    with signals.blocked():
        results = [pool.submit(_inspect_chunk, chunk, headers) for chunk in chunks]
    return _gathered(pool, results)


def _start_worker(source: Source) -> None:
    global _source  # sent once per worker, since it may list a million files
    _source = source
    signals.leave_to_main_process()


def _inspect_chunk(chunk: list[tuple[str, int]], headers: bool) -> list[InspectedSample]:
    return [inspect_sample(_source, split, index, headers) for split, index in chunk]


def _gathered(pool: ProcessPoolExecutor, results: list[Future[list[InspectedSample]]]) -> Iterator[InspectedSample]:
    try:
        for result in results:
            yield from result.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that read images was killed, probably for lack of memory: free some, or use --headers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def inspect_sample(source: Source, split: str, index: int, headers: bool) -> InspectedSample:
    """Inspect one sample of `source`; every DataError becomes one of its problems."""
    root, files = root_of(source), source.files(split, index)
    reads: Sequence[Callable[..., np.ndarray]] = [source.image, source.mask][: 1 if split == UNLABELLED else 2]
    names = [relative_name(file, root) for file in files] or [source.name(split, index)] * len(reads)
    problems: list[Problem] = []

    def attempt(file: str, call: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return call(*arguments)
        except DataError as error:
            kind = "values" if isinstance(error, ValuesError) else "unreadable"
            problems.append(Problem(kind, split, file, relative_message(error, root)))
            return None

    headers_of, sizes_of = (source.pixels.header, read_header), (source.pixels.size, picture_size)
    heads = [attempt(file, read, path) for file, read, path in zip(names, headers_of, files, strict=False)]
    arrays = [
        None if headers or (files and head is None) else attempt(file, read, split, index)
        for file, read, head in zip(names, reads, heads or [None] * len(reads), strict=True)
    ]
    image, mask = (*arrays, None)[:2]
    sizes: list[Size] = [None if array is None else array.shape[:2] for array in arrays]
    if headers and files:
        sizes = [
            head and attempt(file, size, path)
            for file, size, path, head in zip(names, sizes_of[: len(names)], files, heads, strict=True)
        ]
    if not source.lossy_masks and len(heads) > 1 and heads[1] and heads[1].format in ("JPEG", "MPO"):
        message = f"{shown(names[1])} holds a JPEG, which does not keep class indices exactly: save masks as PNG"
        problems.append(Problem("jpeg_mask", split, names[1], message))
    problems += _mismatches(split, names, heads, sizes, files[0] if files else None)
    return InspectedSample(
        split,
        names[0],
        size=sizes[0],
        formats=tuple(head and f"{head.format} {head.mode}" for head in heads),
        digest=None if image is None else _digest(image),
        pixels=None if mask is None else _counted(source, mask),
        problems=tuple(problems),
        moments=None if image is None or split != "train" else moments(image),
    )


def _mismatches(
    split: str, names: Sequence[str], heads: Sequence[Header | None], sizes: Sequence[Size], image: Path | None
) -> Iterator[Problem]:
    """Problems of an image and a mask that are both readable; `image` is the image's file, if it has one."""
    known = [size for size in sizes if size]
    if len(set(known)) == 2:
        yield Problem("size", split, names[0], other_size(names, known, image))


def _digest(image: np.ndarray) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode()).digest()


def _counted(source: Source, mask: np.ndarray) -> tuple[int, ...]:
    """The number of pixels of each class, and last of void pixels."""
    counts = np.bincount(mask.ravel(), minlength=256)
    void = 0 if source.ignored is None else counts[source.ignored]
    return (*counts[: len(source.class_names)].tolist(), int(void))


def root_of(source: Source) -> Path:
    """The folder that file names are relative to; the working directory if the data has no root."""
    return Path(getattr(source, "root", "."))


def relative_name(file: Path, root: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def relative_message(error: DataError, root: Path) -> str:
    """The error message, with file names relative to the root."""
    return str(error) if root == Path(".") else str(error).replace(f"{shown(root)}/", "")
