"""Decoded samples, kept: each picture is read, decoded and resized once, and not again in every epoch of every trial.

In memory (shared by the loader's processes, and by the trials that a process runs one after another) or on the disk
(shared by all processes, and by later runs). What does not fit into the budget is read anew each time. A sample is kept
as `Source.read` gives it, under the fingerprint of its source: augmentation comes after, and other data has other keys.
"""

import logging
from pathlib import Path

import numpy as np
import psutil

from kd.data.source import SPLITS, Source
from kd.system.files import json_digest
from kd.system.record_file import FileRecords, MemoryRecords, Records, create, describe, file_bytes

GB = 10**9
SPARE = 2  # at most one part in so many of the memory that is free

log = logging.getLogger(__name__)

_memory: dict[tuple[str, str], Records] = {}  # of this process, by fingerprint and split


class Samples:
    """The samples of a source, from a cache where they are in it; `size` and `read` are those of the source."""

    def __init__(self, source: Source, slots: dict[str, Records]) -> None:
        self.source, self._slots = source, slots

    def size(self, split: str) -> int:
        return self.source.size(split)

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The RGB image (H x W x 3 uint8) and the mask (H x W uint8) of one sample; see `Source.read`."""
        slots = self._slots.get(split)
        if slots is None or not 0 <= index < slots.count:
            return self.source.read(split, index)
        height, width = self.source.image_size
        record = np.empty(slots.size, dtype=np.uint8)
        if not slots.read_into(index, record.data):
            image, mask = self.source.read(split, index)
            record[: image.size], record[image.size :] = image.reshape(-1), mask.reshape(-1)
            self._keep(split, slots, index, record)
        pixels = height * width
        return record[: 3 * pixels].reshape(height, width, 3), record[3 * pixels :].reshape(height, width)

    def _keep(self, split: str, slots: Records, index: int, record: np.ndarray) -> None:
        try:
            slots.write(index, record.data)
        except OSError as error:  # a full disk takes the cache, not the run
            self._slots.pop(split, None)
            log.warning("data.cache: %s; samples of %s are read anew from here on", error.strerror, split)


def kept(source: Source, folder: Path) -> Samples:
    """The samples of a source, cached as its `cache` and `cache_gb` say; files of the disk cache stand in `folder`."""
    if source.cache == "off":
        return Samples(source, {})
    key = source.fingerprint()
    try:
        return Samples(
            source, _in_memory(source, key) if source.cache == "ram" else _on_disk(source, folder / _name(key))
        )
    except OSError as error:
        log.warning("data.cache=%s: %s; samples are read anew each time", source.cache, error)
        return Samples(source, {})


def _in_memory(source: Source, key: str) -> dict[str, Records]:
    for name in [name for name in _memory if name[0] != key]:  # another data set: its place is wanted
        del _memory[name]
    room = min(source.cache_gb * GB, psutil.virtual_memory().available / SPARE)
    slots = {split: _memory[key, split] for split in SPLITS if (key, split) in _memory}
    for split, count in _that_fit(source, room).items():
        if split not in slots:
            slots[split] = _memory[key, split] = MemoryRecords(count, _record_bytes(source))
    return slots


def _on_disk(source: Source, folder: Path) -> dict[str, Records]:
    slots: dict[str, Records] = {}
    for split, count in _that_fit(source, source.cache_gb * GB).items():
        path = folder / f"{split}.slots"
        create(path, count, _record_bytes(source))
        try:
            slots[split] = FileRecords(path)
            if slots[split].size != _record_bytes(source) or slots[split].count > source.size(split):
                raise ValueError(f"{path} holds other records")
        except ValueError as error:
            log.warning("data.cache: %s; it is made anew", error)
            path.unlink(missing_ok=True)
            create(path, count, _record_bytes(source))
            slots[split] = FileRecords(path)
    facts = {
        "data": str(getattr(source, "root", type(source).__name__)),
        "image_size": source.image_size,
        "samples": {split: source.size(split) for split in SPLITS},
    }
    describe(folder, facts, "data.cache")
    return slots


def _name(key: str) -> str:
    """Of a folder that outlives this process: what decodes and resizes may be another version in the next."""
    import cv2
    import PIL

    return json_digest([key, PIL.__version__, cv2.__version__, np.__version__])[:16]


def _that_fit(source: Source, room: float) -> dict[str, int]:
    """How many samples of each split fit into so many bytes, training first."""
    counts = {}
    for split in SPLITS:
        each = file_bytes(1, _record_bytes(source))
        counts[split] = int(min(source.size(split), max(room, 0) // each))
        room -= counts[split] * each
    return {split: count for split, count in counts.items() if count}


def _record_bytes(source: Source) -> int:
    height, width = source.image_size
    return 4 * height * width
