"""A teacher's logits on disk: raw logits for each view of each training sample, as `teacher.stored` encodes them.

The view of a sample is a pure function, so the teacher's logits for it are too: they are computed once for all epochs,
trials and processes. Logits rather than probabilities, so that any temperature, schedule and loss can use them. One
record file (`kd.system.record_file`) per view; damaged records are detected and computed again.

Not stored: probabilities at one temperature (FKD, arXiv 2112.01528) or the largest ones (TinyViT, arXiv 2207.10666),
since neither supports a temperature schedule.
"""

import logging
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from kd.system.record_file import FileRecords, create, file_bytes

SPARE = 10**9  # bytes of disk space always left free

log = logging.getLogger(__name__)


@dataclass
class LogitCache:
    """One teacher's logits for the views of one training split.

    Attributes:
        folder: the cache folder, specific to the teacher, data, augmentation and seed.
        samples: the number of samples in the training split.
        shape: the shape of one sample's record, such as C x H x W for exact logits.
        writable: whether missing logits may be added.
        budget: bytes that all record files in `folder`'s parent may take together.
        dtype: the type of the records' numbers.
        refused: the number of samples that did not fit or could not be written.
    """

    folder: Path
    samples: int
    shape: tuple[int, ...]
    writable: bool = True
    budget: float = float("inf")
    dtype: torch.dtype = torch.float16
    refused: int = 0
    _full: set[int] = field(default_factory=set, repr=False)
    _views: dict[int, FileRecords | None] = field(default_factory=dict, repr=False)
    _damaged: set[Path] = field(default_factory=set, repr=False)

    @property
    def record_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self, view: int, indices: Sequence[int]) -> Tensor | None:
        """The records of a batch, B of them; None unless all of them are stored intact."""
        records = self._records(view, create=False)
        if records is None:
            return None
        batch = torch.empty(len(indices), *self.shape, dtype=self.dtype)
        rows = batch.view(len(indices), -1).numpy()
        for row, index in zip(rows, indices, strict=True):
            if not records.read_into(index, memoryview(row).cast("B")):
                return None
        return batch

    def write(self, view: int, indices: Sequence[int], batch: Tensor) -> None:
        """Store the records of a batch, B of them on the CPU, if their view fits into the budget."""
        stored = 0
        try:
            records = self._records(view, create=True) if self.writable else None
            for index, row in zip(indices, batch.contiguous().view(len(indices), -1).numpy(), strict=True):
                stored += records is not None and records.write(index, memoryview(row).cast("B"))
        except OSError as error:  # a full disk disables the cache but does not stop the run
            log.warning("teacher.cache: %s; no more teacher logits are stored", error.strerror)
            self.writable = False
        self.refused += len(indices) - stored

    def room(self) -> int:
        """Bytes available to new record files."""
        return int(max(0, min(self.budget - reserved(self.folder.parent), _free(self.folder.parent) - SPARE)))

    def stored(self, views: int) -> int:
        """How many of the views 0, 1, ... `views` - 1 have a file, which may still be filling."""
        return sum(self._path(view).exists() for view in range(views))

    def fit(self, views: int, taken: int = 0) -> int:
        """How many of the views 0, 1, ... `views` - 1 are stored or fit, if others will take `taken` bytes."""
        stored = self.stored(views)
        room = max(0, self.room() - taken) if self.writable else 0
        return stored + min(views - stored, room // file_bytes(self.samples, self.record_bytes))

    def _records(self, view: int, create: bool) -> FileRecords | None:
        """The record file of a view. Thread-safe."""
        records = self._views.get(view)
        if records is None:
            path = self._path(view)
            if create and view not in self._full and not path.exists():
                self._reserve(path)
                self._full |= set() if path.exists() else {view}
            records = self._open(path)
            self._views[view] = records
            for old in [known for known in list(self._views) if known != view][:-1]:
                self._views.pop(old, None)  # the number of open files is limited
        return records

    def _open(self, path: Path) -> FileRecords | None:
        """Open a record file; None if it is missing, or damaged, in which case it is deleted if possible."""
        try:
            records = FileRecords(path, self.writable)
            if records.size != self.record_bytes or records.count != self.samples:
                raise ValueError(f"{path} has another number or size of records")
            return records
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if path not in self._damaged:
                log.warning("teacher.cache: %s; its logits are computed again", error)
            self._damaged.add(path)
            if self.writable:
                with suppress(OSError):
                    path.unlink()
            return None

    def _reserve(self, path: Path) -> None:
        """Create the file of a view if its full length fits into the shared budget.

        All of a view or nothing, since hardly any randomly drawn batch would lie entirely within a part of it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.parent / ".lock"):
            if not path.exists() and file_bytes(self.samples, self.record_bytes) <= self.room():
                create(path, self.samples, self.record_bytes)

    def _path(self, view: int) -> Path:
        return self.folder / f"view-{view:06}.records"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_views": {}}


def reserved(folder: Path) -> int:
    """Bytes reserved by all record files below a folder; files may disappear while it is scanned."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size if name.endswith(".records") else 0
    return total


def _free(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free
