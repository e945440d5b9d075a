"""Memory that processes of a machine share: forked ones, and on Linux any others of the same user.

It is a file without a name, which ends with the last process that has it open, however that ends, and whose size is not
that of /dev/shm. Another process opens it through /proc. It is accessed by offset rather than mapped, since a page that
the kernel refuses is then an OSError, not the end of the process.

Elsewhere it is an anonymous map, which forked processes share. Reference:
https://man7.org/linux/man-pages/man2/memfd_create.2.html
"""

import errno
import mmap
import os
import stat
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from kd.system.files import read_at, write_at

PROCESSES = Path("/proc")
MARK = 16  # random bytes at the start of a file, by which it is known


@dataclass(frozen=True)
class Address:
    """Where a process of this machine has a memory open; the mark tells it from whatever is there later."""

    process: int
    file: int
    mark: bytes


class SharedMemory:
    """`length` bytes, 0 at first.

    Raises:
        OSError: there is not enough memory.
    """

    def __init__(self, length: int) -> None:
        self._mark = os.urandom(MARK)
        self._bytes: FileIO | mmap.mmap = _nameless(self._mark, length) or mmap.mmap(-1, MARK + length)

    @classmethod
    def at(cls, address: Address) -> "SharedMemory":
        """The memory that another process has open.

        Raises:
            OSError: it cannot be opened: that process has ended, or is another user's or another machine's.
        """
        path = PROCESSES / str(address.process) / "fd" / str(address.file)
        gone = OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device may block, or do something
            raise gone
        memory, found = cls.__new__(cls), bytearray(MARK)
        memory._mark, memory._bytes = address.mark, FileIO(path, "r+")
        if read_at(memory._bytes.fileno(), memoryview(found), 0) != MARK or found != address.mark:
            raise gone
        return memory

    @property
    def address(self) -> Address | None:
        """Where other processes open it while this one has it open; None if only forked ones share it."""
        return Address(os.getpid(), self._bytes.fileno(), self._mark) if isinstance(self._bytes, FileIO) else None

    def read(self, offset: int, target: memoryview) -> bool:
        """Fill `target` with the bytes from `offset` on; False if there are not as many."""
        if isinstance(self._bytes, FileIO):
            return read_at(self._bytes.fileno(), target, MARK + offset) == target.nbytes
        target[:] = memoryview(self._bytes)[MARK + offset : MARK + offset + target.nbytes]
        return True

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at `offset`.

        Raises:
            OSError: there is not enough memory.
        """
        if not isinstance(self._bytes, FileIO):
            self._bytes[MARK + offset : MARK + offset + data.nbytes] = data.tobytes() if data.nbytes <= 8 else data
        elif write_at(self._bytes.fileno(), data, MARK + offset) != data.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _nameless(mark: bytes, length: int) -> FileIO | None:
    """A sparse file without a name; None where there is no such thing, or none as long (`ulimit -f`)."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        file = FileIO(os.memfd_create("kd-samples"), "r+")
        file.truncate(MARK + length)
        write_at(file.fileno(), memoryview(mark), 0)
    except OSError:
        return None
    return file
