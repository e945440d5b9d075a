"""Records in memory, for forked processes and, where it has an address, for all of a machine that unpickle them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

from kd.system.record_file import HEADER, Records
from kd.system.shared_memory import Address, SharedMemory


class MemoryRecords(Records):
    """Records in memory; unpickled where it cannot be opened, they are `LostRecords`.

    Raises:
        OSError: there is not enough memory.
    """

    def __init__(self, count: int, size: int, memory: SharedMemory | None = None) -> None:
        super().__init__(count, size)
        self._memory = memory or SharedMemory(self._offset(count))

    @property
    def for_any_process(self) -> bool:
        return self._memory.address is not None

    def _load(self, offset: int, target: memoryview) -> bool:
        return self._memory.read(offset, target)

    def _store(self, offset: int, data: memoryview) -> None:
        self._memory.write(offset, data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (MemoryRecords, (self.count, self.size), self._memory.address)


class UnequalRecords(MemoryRecords):
    """Records in memory of `sizes` bytes each."""

    def __init__(self, sizes: Sequence[int], memory: SharedMemory | None = None) -> None:
        self._sizes, self._starts = sizes, [0, *accumulate(sizes)]
        super().__init__(len(sizes), max(sizes, default=0), memory)

    def size_of(self, index: int) -> int:
        return self._sizes[index]

    def _offset(self, index: int) -> int:
        return HEADER + 8 * self.count + self._starts[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (UnequalRecords, (self._sizes,), self._memory.address)


class LostRecords(MemoryRecords):
    """No records, in place of those whose memory cannot be opened."""

    def __init__(self) -> None:
        super().__init__(0, 0)


def _opened(kind: Callable[..., MemoryRecords], described: tuple[Any, ...], address: Address | None) -> MemoryRecords:
    if address is not None:
        with suppress(OSError):
            return kind(*described, SharedMemory.at(address))
    return LostRecords()
