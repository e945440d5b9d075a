"""A teacher's answers on the disk: raw logits of each view of each training sample, in half precision.

The view of a sample is a pure function, so a teacher's answer to it is one too: it is computed once, for every epoch,
trial and process that asks for it. Logits and not probabilities, so that any temperature, schedule and loss can use
them. One file of slots (`kd.slots`) for each view; a damaged answer is found, and computed again.

Not stored: probabilities at one temperature (FKD, arXiv 2112.01528) or the largest of them (TinyViT, arXiv 2207.10666),
neither of which serves a temperature that falls.
"""

import logging
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

SPARE = 10**9  # bytes of a disk that are left to others
HALF = torch.finfo(torch.float16).max

log = logging.getLogger(__name__)


def rounded(logits: Tensor) -> Tensor:
    """Logits as they are stored: half precision, its largest number where they are beyond it."""
    return logits.clamp(-HALF, HALF).half()


@dataclass
class LogitCache:
    """The answers of one teacher to the views of one training split.

    Attributes:
        folder: where they are; belongs to this teacher, data, augmentation and seed alone.
        samples: of the training split.
        shape: of one answer, C x H x W.
        writable: whether missing answers may be added.
        budget: bytes that all files of slots in `folder`'s parent may take together.
        refused: how many did not fit, or could not be written.
    """

    folder: Path
    samples: int
    shape: tuple[int, int, int]
    writable: bool = True
    budget: float = float("inf")
    refused: int = 0
    _full: set[int] = field(default_factory=set, repr=False)
    _views: dict[int, FileRecords | None] = field(default_factory=dict, repr=False)
    _damaged: set[Path] = field(default_factory=set, repr=False)

    @property
    def record_bytes(self) -> int:
        channels, height, width = self.shape
        return 2 * channels * height * width

    def read(self, view: int, indices: Sequence[int]) -> Tensor | None:
        """The answers to a batch, B x C x H x W float16; None unless all of them are there and whole."""
        slots = self._slots(view, make=False)
        if slots is None:
            return None
        answers = torch.empty(len(indices), *self.shape, dtype=torch.float16)
        rows = answers.view(len(indices), -1).numpy()
        for row, index in zip(rows, indices, strict=True):
            if not slots.read_into(index, memoryview(row).cast("B")):
                return None
        return answers

    def write(self, view: int, indices: Sequence[int], answers: Tensor) -> None:
        """Store the answers to a batch, B x C x H x W float16 on the CPU, where their view fits."""
        kept = 0
        try:
            slots = self._slots(view, make=True) if self.writable else None
            for index, row in zip(indices, answers.contiguous().view(len(indices), -1).numpy(), strict=True):
                kept += slots is not None and slots.write(index, memoryview(row).cast("B"))
        except OSError as error:  # a full disk takes the cache, not the run
            log.warning("teacher.cache: %s; the teacher's answers are stored no longer", error.strerror)
            self.writable = False
        self.refused += len(indices) - kept

    def room(self) -> int:
        """Bytes that new files of slots may take."""
        return int(max(0, min(self.budget - taken(self.folder.parent), _free(self.folder.parent) - SPARE)))

    def fit(self, views: int) -> int:
        """How many of the views 0, 1, ... `views` - 1 are there or fit."""
        there = sum(self._path(view).exists() for view in range(views))
        room = self.room() if self.writable else 0
        return there + min(views - there, room // file_bytes(self.samples, self.record_bytes))

    def _slots(self, view: int, make: bool) -> FileRecords | None:
        """The file of a view; several threads may ask."""
        slots = self._views.get(view)
        if slots is None:
            path = self._path(view)
            if make and view not in self._full and not path.exists():
                self._reserve(path)
                self._full |= set() if path.exists() else {view}
            slots = self._opened(path)
            self._views[view] = slots
            for old in [known for known in list(self._views) if known != view][:-1]:
                self._views.pop(old, None)  # a process may only open so many files
        return slots

    def _opened(self, path: Path) -> FileRecords | None:
        """A file of slots; None where it is missing, or damaged, and then out of the way."""
        try:
            slots = FileRecords(path, self.writable)
            if slots.size != self.record_bytes or slots.count != self.samples:
                raise ValueError(f"{path} holds other records")
            return slots
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if path not in self._damaged:
                log.warning("teacher.cache: %s; its answers are computed again", error)
            self._damaged.add(path)
            if self.writable:
                with suppress(OSError):
                    path.unlink()
            return None

    def _reserve(self, path: Path) -> None:
        """Make the file of a view, if it fits: its length is taken from the budget of everybody.

        A whole view or nothing, since of batches that are drawn at random hardly any would lie within a part.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.parent / ".lock"):
            if not path.exists() and file_bytes(self.samples, self.record_bytes) <= self.room():
                create(path, self.samples, self.record_bytes)

    def _path(self, view: int) -> Path:
        return self.folder / f"view-{view:06}.slots"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_views": {}}


def taken(folder: Path) -> int:
    """Bytes that all files of slots below a folder have been promised; others may delete some meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size if name.endswith(".slots") else 0
    return total


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free
