"""Cache of decoded samples: each image is read, decoded and resized once, not in every epoch of every trial.

In memory (shared by the loader's processes, by the successive trials of a process and, after `share`, by the processes
that train together on a machine) or on disk (shared by all processes and later runs). Samples beyond the budget are
read again each time. A sample is cached as returned by `Source.read`, before augmentation, under the fingerprint of its
source; pictures without masks have their own. Samples of their own sizes (fit=crop) are cached in memory only.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from kd.data.layout.naming import SPLITS, UNLABELLED
from kd.data.source import Source
from kd.system.files import json_digest
from kd.system.memory_records import LostRecords, MemoryRecords, UnequalRecords
from kd.system.record_file import FileRecords, Records, create, describe, file_bytes
from kd.system.resources import free_memory, trials_at_once
from kd.system.world import World

GB = 10**9
SPARE = 2  # at most 1 / SPARE of the free memory is used

log = logging.getLogger(__name__)

_memory: dict[tuple[str, str], MemoryRecords] = {}  # this process's caches, by fingerprint and split


class Samples:
    """The samples of a source, cached; `size` and `read` as in `Source`."""

    def __init__(self, source: Source, records: dict[str, Records]) -> None:
        self.source, self._records = source, records
        self._sizes: dict[tuple[str, int], tuple[int, int]] = {}  # of pictures of their own sizes, from headers

    def size(self, split: str) -> int:
        return self.source.size(split)

    def unlabelled_size(self) -> int:
        return self.source.unlabelled_size()

    @property
    def for_any_process(self) -> bool:
        """Whether processes that are not forked from this one share the cache."""
        return all(records.for_any_process for records in self._records.values())

    def cached_bytes(self, split: str) -> list[int]:
        """The bytes of each sample of a split that there is room for, which are the first ones."""
        records = self._records.get(split)
        return [records.size_of(index) for index in range(records.count)] if records else []

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image (H x W x channels) and the mask (H x W uint8) of one sample; see `Source.read`."""
        records = self._records.get(split)
        if records is None or not 0 <= index < records.count:
            return self.source.read(split, index)
        height, width = self._size(split, index)
        record, pixels = np.empty(records.size_of(index), dtype=np.uint8), self.source.pixels
        if record.size != pixels.record_bytes * height * width or not records.read_into(index, record.data):
            image, mask = self.source.read(split, index)
            if image.nbytes + mask.size != record.size or mask.shape != (height, width):  # the file has changed
                return image, mask
            record[: image.nbytes] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
            record[image.nbytes :] = mask.reshape(-1)
            self._store(split, records, index, record)
        end = record.size - height * width
        image = record[:end].view(pixels.dtype).reshape(height, width, pixels.channels)
        return image, record[end:].reshape(height, width)

    def _size(self, split: str, index: int) -> tuple[int, int]:
        if (split, index) not in self._sizes:
            self._sizes[split, index] = self.source.read_size(split, index)
        return self._sizes[split, index]

    def _store(self, split: str, records: Records, index: int, record: np.ndarray) -> None:
        try:
            records.write(index, record.data)
        except OSError as error:  # a full disk disables the cache but does not stop the run
            self._records.pop(split, None)
            log.warning("data.cache: %s; samples of %s are no longer cached", error.strerror, split)


def cached(source: Source, folder: Path) -> Samples:
    """The samples of a source, cached according to its `cache` and `cache_gb`; a disk cache is in `folder`."""
    if source.cache == "off":
        return Samples(source, {})
    try:
        return Samples(source, _in_memory(source) if source.cache == "ram" else _on_disk(source, folder))
    except OSError as error:
        log.warning("data.cache=%s: %s; samples are not cached", source.cache, error)
        return Samples(source, {})


def share(source: Source, world: World) -> bool:
    """Let the processes of a machine have one cache in memory; a collective, before they ask for `cached` samples.

    The first process of each machine makes it. One that cannot open it makes its own, in its part of the room; False if
    there is any.
    """
    if source.cache != "ram" or world.size == 1:
        return True
    first, offer = world.local_rank == 0, None
    with suppress(OSError):  # `cached` tries again and reports it
        if first:
            _in_memory(source)
            offer = dict(_memory)
    offers = world.gather(offer)  # pickled, and so opened
    opened = first or any(_take(offer) for offer in offers if offer)
    if not opened:
        with suppress(OSError):
            _in_memory(source, world.local_size)
    return not world.any(not opened)


def _take(offer: Mapping[tuple[str, str], MemoryRecords]) -> bool:
    """Use the records of another process; False if they cannot be opened here, as those of another machine."""
    if any(isinstance(records, LostRecords) for records in offer.values()):
        return False
    _memory.clear()
    _memory.update(offer)
    return True


def _in_memory(source: Source, sharing: int = 1) -> dict[str, Records]:
    """The records of every split, as many as there is room for if so many processes have their own, training first."""
    names = {split: (key, split) for split, key in _fingerprints(source).items()}
    for name in set(_memory) - set(names.values()):  # caches of other data are dropped to free their memory
        del _memory[name]
    room = min(source.cache_gb * GB, free_memory() / trials_at_once() / SPARE) / sharing
    for split, name in names.items():
        if name not in _memory:
            _memory[name] = _new(source, split, room)
        records = _memory[name]
        room -= sum(file_bytes(1, records.size_of(index)) for index in range(records.count))
    return {split: _memory[name] for split, name in names.items()}


def _new(source: Source, split: str, room: float) -> MemoryRecords:
    """Empty records for as many samples of a split as fit into `room` bytes."""
    count = _sizes(source)[split]
    if not source.sizing.crops:
        each = _record_bytes(source)
        return MemoryRecords(_fitting_count(count, each, room), each)
    sizes: list[int] = []
    for index in range(count):
        height, width = source.read_size(split, index)
        size = source.pixels.record_bytes * height * width
        if (room := room - file_bytes(1, size)) < 0:
            break
        sizes.append(size)
    return UnequalRecords(sizes)


def _on_disk(source: Source, caches: Path) -> dict[str, Records]:
    """The records of every split, below a folder for the samples with masks and one for the pictures without."""
    records: dict[str, Records] = {}
    sizes, keys = _sizes(source), _fingerprints(source)
    for split, count in _fitting(source, source.cache_gb * GB).items():
        path = caches / _name(keys[split]) / f"{split}.records"
        create(path, count, _record_bytes(source))
        try:
            records[split] = FileRecords(path)
            if records[split].size != _record_bytes(source) or records[split].count > sizes[split]:
                raise ValueError(f"{path} has another number or size of records")
        except ValueError as error:
            log.warning("data.cache: %s; it is created again", error)
            path.unlink(missing_ok=True)
            create(path, count, _record_bytes(source))
            records[split] = FileRecords(path)
    for key in set(keys.values()):
        facts = {
            "data": str(getattr(source, "root", type(source).__name__)),
            "image_size": source.image_size,
            "samples": {split: sizes[split] for split in keys if keys[split] == key},
        }
        describe(caches / _name(key), facts, "data.cache")
    return records


def _sizes(source: Source) -> dict[str, int]:
    """The number of samples of each split, in the order in which they are cached: training first."""
    return {**{split: source.size(split) for split in SPLITS}, UNLABELLED: source.unlabelled_size()}


def _fingerprints(source: Source) -> dict[str, str]:
    """The fingerprint that each split's samples are cached under."""
    unlabelled = source.unlabelled_fingerprint()
    return {**dict.fromkeys(SPLITS, source.fingerprint()), **({UNLABELLED: unlabelled} if unlabelled else {})}


def _name(key: str) -> str:
    """The name of the cache folder, which depends on the versions of the libraries that decode and resize."""
    import cv2
    import PIL

    return json_digest([key, PIL.__version__, cv2.__version__, np.__version__])[:16]


def _fitting(source: Source, room: float) -> dict[str, int]:
    """How many samples of each split fit into `room` bytes, training first."""
    counts, each = {}, _record_bytes(source)
    for split, size in _sizes(source).items():
        counts[split] = _fitting_count(size, each, room)
        room -= counts[split] * file_bytes(1, each)
    return {split: count for split, count in counts.items() if count}


def _fitting_count(count: int, each: int, room: float) -> int:
    return int(min(count, max(room, 0) // file_bytes(1, each)))


def _record_bytes(source: Source) -> int:
    height, width = source.image_size
    return source.pixels.record_bytes * height * width
