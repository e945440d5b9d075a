"""Records: numbered records of one length, each of which is whole or not there, whoever writes, is killed, or meddles.

A record is written first and its checksum after it, and it counts only while the two fit: so writers need no locks, and
a reader never sees half a record or a damaged one. Two writers of one slot write the same bytes. A file of slots is
made whole and named afterwards; it is sparse, and takes the room of what was written.

Files are read and written at a place (pread, pwrite): no two threads, and no forked process, share one to seek in, or a
lock that could be held while a process is forked.

Layout, little-endian: a header of 4096 bytes (JSON), 8 bytes of checksum for each slot (0: empty), the records.
Checksums are xxHash's XXH3, 64 bits, which finds damage and does not keep out forgers: https://xxhash.com
"""

import errno
import json
import logging
import mmap
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kd.errors import DiskError
from kd.system.files import read_at, write_at, write_json

HEADER = 4096  # bytes
FACTS = "facts.json"
FORMAT = 1

log = logging.getLogger(__name__)


class Records(ABC):
    """`count` slots of `size` bytes each."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def read_into(self, slot: int, target: memoryview) -> bool:
        """Fill `target`, `size` bytes, with a record; False, and `target` is anything, where there is no whole one."""
        if slot >= self.count:
            return False
        known = np.zeros(1, dtype="<u8")
        try:
            return (
                self._load(HEADER + 8 * slot, known.data.cast("B"))
                and known[0] != 0
                and self._load(self._place(slot), target)
                and int(known[0]) == _checksum(target, slot)
            )
        except OSError:  # a disk that fails, a file that another machine has deleted
            return False

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
        self._load(HEADER, table.data.cast("B"))
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


class MemoryRecords(Records):
    """Records in memory, which processes that are forked later share; one that is spawned has none."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size)
        self._memory = mmap.mmap(-1, max(file_bytes(count, size), 1))

    def _load(self, offset: int, target: memoryview) -> bool:
        target[:] = memoryview(self._memory)[offset : offset + target.nbytes]
        return True

    def _store(self, offset: int, data: memoryview) -> None:
        self._memory[offset : offset + data.nbytes] = data.tobytes() if data.nbytes <= 8 else data

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryRecords, (0, self.size)


class FileRecords(Records):
    """Records in a file, for any number of processes; the file may be deleted meanwhile.

    Raises:
        ValueError: it is not a file of slots, or not a whole one.
        OSError: it cannot be opened, or read.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path, self.writable = path, writable
        flags = os.O_RDWR if writable else os.O_RDONLY
        flags |= getattr(os, "O_NONBLOCK", 0)  # a named pipe would have us wait; Windows has none
        flags |= getattr(os, "O_BINARY", 0)  # Windows'
        self._file = FileIO(os.open(path, flags), "r+" if writable else "r")
        super().__init__(*_read_header(self._file.fileno(), path))

    def _load(self, offset: int, target: memoryview) -> bool:
        return read_at(self._file.fileno(), target, offset) == target.nbytes

    def _store(self, offset: int, data: memoryview) -> None:
        if write_at(self._file.fileno(), data, offset) != data.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRecords, (self.path, self.writable)


def create(path: Path, count: int, size: int) -> None:
    """Make a file of empty slots, unless one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_header(count, size))
            file.truncate(file_bytes(count, size))
        temporary.chmod(0o644)
        if not path.exists():  # another process may have been as quick: its file and ours are alike, and both empty
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(folder: Path, facts: Mapping[str, Any], option: str) -> None:
    """Say in words what a folder of slots is; the time of what is said is when the folder was last used.

    `option` is the key of the configuration that asked for the folder, for a warning where it cannot be written.
    """
    try:
        write_json(folder / FACTS, dict(facts))
    except DiskError as error:
        log.warning("%s: %s", option, error)


def file_bytes(count: int, size: int) -> int:
    """How long a file of slots is."""
    return HEADER + count * (8 + size)


def _header(count: int, size: int) -> bytes:
    return json.dumps({"format": FORMAT, "slots": count, "bytes": size}).encode().ljust(HEADER)


def _read_header(file: int, path: Path) -> tuple[int, int]:
    """How many slots an open file has, of how many bytes; raises as `FileRecords` does."""
    state = os.fstat(file)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path} is not a file")
    header = bytearray(HEADER)
    del header[read_at(file, memoryview(header), 0) :]
    try:
        facts = json.loads(header)
        count, size = facts["slots"], facts["bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of slots") from error
    if {type(count), type(size)} != {int} or min(count, size) < 0 or header != _header(count, size):
        raise ValueError(f"{path} is not a file of slots that this version knows")
    if state.st_size != file_bytes(count, size):
        raise ValueError(f"{path} has {state.st_size} bytes where its header promises {file_bytes(count, size)}")
    return count, size


def _checksum(record: memoryview, slot: int) -> int:
    return xxhash.xxh3_64_intdigest(record, seed=slot) or 1
