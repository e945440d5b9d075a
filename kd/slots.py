"""Slots: numbered records of one length, each of which is whole or not there, whoever writes, is killed, or meddles.

A record is written first and its checksum after it, and it counts only while the two fit: so writers need no locks, and
a reader never sees half a record or a damaged one. Two writers of one slot write the same bytes. A file of slots is
made whole and named afterwards; it is sparse, and takes the room of what was written.

Layout, little-endian: a header of 4096 bytes (JSON), 8 bytes of checksum for each slot (0: empty), the records.
Checksums are xxHash's XXH3, 64 bits, which finds damage and does not keep out forgers: https://xxhash.com
"""

import json
import mmap
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from io import FileIO
from pathlib import Path

import numpy as np
import xxhash

HEADER = 4096  # bytes
FORMAT = 1


class Slots(ABC):
    """`count` slots of `size` bytes each."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def read_into(self, slot: int, target: memoryview) -> bool:
        """Fill `target`, `size` bytes, with a record; False, and `target` is anything, where there is no whole one."""
        if slot >= self.count:
            return False
        known = np.zeros(1, dtype="<u8")
        return (
            self._load(HEADER + 8 * slot, memoryview(known).cast("B"))
            and known[0] != 0
            and self._load(self._place(slot), target)
            and int(known[0]) == _checksum(target, slot)
        )

    def write(self, slot: int, record: memoryview) -> bool:
        """Store a record, `size` bytes; False where there is no such slot.

        Raises:
            OSError: the disk is full, ...
        """
        if slot >= self.count:
            return False
        if record.nbytes != self.size:
            raise ValueError(f"a record here has {self.size} bytes, and not {record.nbytes}")
        self._store(self._place(slot), record)
        self._store(HEADER + 8 * slot, np.array([_checksum(record, slot)], dtype="<u8").data.cast("B"))
        return True

    def empty(self, slot: int) -> None:
        """Forget a record."""
        self._store(HEADER + 8 * slot, memoryview(bytes(8)))

    def filled(self) -> np.ndarray:
        """Which slots were written, count booleans; whether they are whole is seen when they are read."""
        table = np.zeros(self.count, dtype="<u8")
        self._load(HEADER, memoryview(table).cast("B"))
        return table != 0

    def damaged(self) -> list[int]:
        """The slots that were written and are not whole; reads everything."""
        target = memoryview(bytearray(self.size))
        return [int(slot) for slot in np.flatnonzero(self.filled()) if not self.read_into(int(slot), target)]

    def _place(self, slot: int) -> int:
        return HEADER + 8 * self.count + slot * self.size

    @abstractmethod
    def _load(self, offset: int, target: memoryview) -> bool: ...

    @abstractmethod
    def _store(self, offset: int, data: memoryview) -> None: ...


class MemorySlots(Slots):
    """Slots in memory, which processes that are forked later share; one that is spawned has none."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size)
        self._memory = mmap.mmap(-1, max(file_bytes(count, size), 1))

    def _load(self, offset: int, target: memoryview) -> bool:
        target[:] = memoryview(self._memory)[offset : offset + target.nbytes]
        return True

    def _store(self, offset: int, data: memoryview) -> None:
        self._memory[offset : offset + data.nbytes] = data.tobytes() if data.nbytes <= 8 else data

    def __reduce__(self) -> tuple:
        return MemorySlots, (0, self.size)


class FileSlots(Slots):
    """Slots in a file, for any number of processes."""

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path, self.writable = path, writable
        self._lock, self._file, self._owner = threading.Lock(), None, 0
        super().__init__(*_read_header(path))

    def _load(self, offset: int, target: memoryview) -> bool:
        with self._lock:
            file = self._opened()
            file.seek(offset)
            return file.readinto(target) == target.nbytes

    def _store(self, offset: int, data: memoryview) -> None:
        with self._lock:
            file = self._opened()
            file.seek(offset)
            written = file.write(data)
        if written != data.nbytes:
            raise OSError(28, "No space left on device", str(self.path))

    def _opened(self) -> FileIO:
        """The file, opened by this very process: a forked one would share the place to read at with its parent."""
        if self._file is None or self._owner != os.getpid():
            self._file, self._owner = FileIO(self.path, "r+" if self.writable else "r"), os.getpid()
        return self._file

    def __reduce__(self) -> tuple:
        return FileSlots, (self.path, self.writable)


def create(path: Path, count: int, size: int) -> None:
    """Make a file of empty slots, unless one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            facts = {"format": FORMAT, "slots": count, "bytes": size}
            file.write(json.dumps(facts).encode().ljust(HEADER))
            file.truncate(file_bytes(count, size))
        temporary.chmod(0o644)
        if not path.exists():  # another process may have been as quick: its file and ours are alike, and both empty
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_bytes(count: int, size: int) -> int:
    """How long a file of slots is."""
    return HEADER + count * (8 + size)


def _read_header(path: Path) -> tuple[int, int]:
    """How many slots a file has, of how many bytes.

    Raises:
        ValueError: it is not a file of slots, or not a whole one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        facts = json.loads(file.read(HEADER))
        length = file.seek(0, os.SEEK_END)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of slots")
    count, size = facts["slots"], facts["bytes"]
    if length != file_bytes(count, size):
        raise ValueError(f"{path} has {length} bytes where its header promises {file_bytes(count, size)}")
    return count, size


def _checksum(record: memoryview, slot: int) -> int:
    return xxhash.xxh3_64_intdigest(record, seed=slot) or 1
