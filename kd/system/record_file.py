"""Numbered records of equal length: each reads as written or as missing, despite killed writers, races and damage.

A record is written before its checksum and is valid only while the two match, so writers need no locks and a reader
never sees a partial or damaged record. Two writers of the same index write the same bytes. A file is created complete,
under a temporary name, and then renamed; it is sparse, so only written records take up disk space.

Files are accessed by offset (pread, pwrite), so threads and forked processes share no file position and no lock that
could be held during a fork.

Layout, little-endian: a header of 4096 bytes (JSON), an 8-byte checksum per record (0: empty), the records. Checksums
are 64-bit XXH3, which detects damage but not forgery: https://xxhash.com
"""

import errno
import json
import logging
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
    """`count` records of `size` bytes each."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    @property
    def for_any_process(self) -> bool:
        """Whether processes that unpickle them share them; forked ones always do."""
        return True

    def read_into(self, index: int, target: memoryview) -> bool:
        """Read a record into `target` (`size` bytes); False, with `target` undefined, if it is missing or damaged."""
        if index >= self.count:
            return False
        stored = np.zeros(1, dtype="<u8")
        try:
            return (
                self._load(HEADER + 8 * index, stored.data.cast("B"))
                and stored[0] != 0
                and self._load(self._offset(index), target)
                and int(stored[0]) == _checksum(target, index)
            )
        except OSError:  # a failing disk, or a file deleted by another machine
            return False

    def write(self, index: int, record: memoryview) -> bool:
        """Store a record (`size` bytes); False if `index` is out of range.

        Raises:
            OSError: the write failed, for example because the disk is full.
        """
        if index >= self.count:
            return False
        if record.nbytes != self.size_of(index):
            raise ValueError(f"a record must have {self.size_of(index)} bytes, but got {record.nbytes}")
        self._store(self._offset(index), record)
        self._store(HEADER + 8 * index, np.array([_checksum(record, index)], dtype="<u8").data.cast("B"))
        return True

    def empty(self, index: int) -> None:
        """Erase a record."""
        self._store(HEADER + 8 * index, memoryview(bytes(8)))

    def filled(self) -> np.ndarray:
        """Which records were written, `count` booleans; damage is only detected on reading."""
        table = np.zeros(self.count, dtype="<u8")
        self._load(HEADER, table.data.cast("B"))
        return table != 0

    def damaged(self) -> list[int]:
        """The indices of damaged records; reads everything."""
        target = memoryview(bytearray(self.size))
        return [int(index) for index in np.flatnonzero(self.filled()) if not self.read_into(int(index), target)]

    def size_of(self, index: int) -> int:
        """The bytes of a record."""
        return self.size

    def _offset(self, index: int) -> int:
        return HEADER + 8 * self.count + index * self.size

    @abstractmethod
    def _load(self, offset: int, target: memoryview) -> bool: ...

    @abstractmethod
    def _store(self, offset: int, data: memoryview) -> None: ...


class FileRecords(Records):
    """Records in a file, for any number of processes; the file may be deleted at any time.

    Raises:
        ValueError: not a record file, or a truncated one.
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path, self.writable = path, writable
        flags = os.O_RDWR if writable else os.O_RDONLY
        flags |= getattr(os, "O_NONBLOCK", 0)  # opening a named pipe would block; not on Windows
        flags |= getattr(os, "O_BINARY", 0)  # Windows only
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
    """Create a file of empty records unless it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_header(count, size))
            file.truncate(file_bytes(count, size))
        temporary.chmod(0o644)
        if not path.exists():  # another process may have created the same empty file
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(folder: Path, facts: Mapping[str, Any], option: str) -> None:
    """Write facts.json, which says what a folder of records holds; its modification time is the folder's last use.

    `option` is the configuration key to name in the warning if writing fails.
    """
    try:
        write_json(folder / FACTS, dict(facts))
    except DiskError as error:
        log.warning("%s: %s", option, error)


def file_bytes(count: int, size: int) -> int:
    """The length of a record file."""
    return HEADER + count * (8 + size)


def _header(count: int, size: int) -> bytes:
    return json.dumps({"format": FORMAT, "records": count, "bytes": size}).encode().ljust(HEADER)


def _read_header(file: int, path: Path) -> tuple[int, int]:
    """The number and the size of the records in an open file; raises like `FileRecords`."""
    state = os.fstat(file)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path} is not a file")
    header = bytearray(HEADER)
    del header[read_at(file, memoryview(header), 0) :]
    try:
        facts = json.loads(header)
        count, size = facts["records"], facts["bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a record file") from error
    if {type(count), type(size)} != {int} or min(count, size) < 0 or header != _header(count, size):
        raise ValueError(f"{path} is not a record file of this version")
    if state.st_size != file_bytes(count, size):
        raise ValueError(f"{path} has {state.st_size} bytes, but its header says {file_bytes(count, size)}")
    return count, size


def _checksum(record: memoryview, index: int) -> int:
    return xxhash.xxh3_64_intdigest(record, seed=index) or 1
