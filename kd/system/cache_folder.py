"""The contents of runs/cache, as `kd cache` lists, verifies and prunes them.

Only files that the caches create are touched; they are recognised by name, and links are never followed. Runs may use
anything here at the same time: an open file stays readable after deletion, and missing files are created again.
"""

import json
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kd.system.files import LEFTOVER
from kd.system.record_file import FACTS, FileRecords
from kd.system.untrusted import UnreadableError, read_bytes

KINDS = ("teacher", "data", "figures", "files")
SINGLE_FILES = ("figures", "files")
LOCK = ".lock"
OURS = re.compile(r"(view-\d{6,}|train|val|test|unlabelled)\.records|facts\.json")
ENTRY = {
    "teacher": r"[0-9a-f]{16}", "data": r"[0-9a-f]+", "figures": r"[0-9a-f]{16}\.safetensors",
    "files": r"[0-9a-f]{16}\.json",
}  # fmt: skip
GB, DAY, HOUR = 10**9, 86400, 3600  # bytes, seconds


@dataclass(frozen=True)
class Entry:
    """A teacher's logits or a data set's samples (a folder); a teacher's metrics or a data set's manifest (a file)."""

    kind: str
    path: Path

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Its files, facts.json last, so that a partly deleted entry can still be identified."""
        if self.kind in SINGLE_FILES:
            return (self.path,) if _state(self.path) else ()
        try:
            inside = [path for path in self.path.iterdir() if _state(path)]
        except OSError:  # deleted in the meantime
            return ()
        ours = [path for path in inside if OURS.fullmatch(path.name) or LEFTOVER.fullmatch(path.name)]
        return tuple(sorted(ours, key=lambda path: (path.name == FACTS, path)))

    @cached_property
    def bytes(self) -> int:
        """Disk usage; sparse record files use less than their length, which Windows does not report."""
        states = [state for path in self.files if (state := _state(path))]
        return sum(512 * state.st_blocks if hasattr(state, "st_blocks") else state.st_size for state in states)

    @cached_property
    def used(self) -> float:
        """When it was last used, in seconds since 1970; 0 if it is empty."""
        return max((state.st_mtime for path in self.files if (state := _state(path))), default=0.0)

    @property
    def record_files(self) -> list[Path]:
        return [path for path in self.files if OURS.fullmatch(path.name) and path.suffix == ".records"]

    def facts(self) -> dict[str, Any]:
        """The entry's description of itself; empty if it has none, or it cannot be read."""
        if self.kind == "files":
            return {}
        try:
            if self.kind == "figures":
                with safe_open(self.path, framework="np") as file:  # without torch, which is slow to import
                    text = file.metadata()["facts"]
            else:
                text = read_bytes(self.path, FACTS).decode()
            found = json.loads(text)
        except (UnreadableError, SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def full(self) -> float | None:
        """The fraction of its records that are filled; None if it has none."""
        filled = count = 0
        for path in self.record_files:
            with suppress(OSError, ValueError):
                records = FileRecords(path, writable=False)
                filled, count = filled + int(records.filled().sum()), count + records.count
        return filled / count if count else None

    def repair(self) -> Iterator[str]:
        """Read everything and erase damaged records, to be computed again; yields one line per damaged file."""
        if self.kind == "figures":
            yield from _repair_figures(self.path)
        for path in self.record_files:
            try:
                records = FileRecords(path)
                damaged = records.damaged()
                for index in damaged:
                    records.empty(index)
                if damaged:
                    yield f"{path}: {len(damaged)} of {int(records.filled().sum()) + len(damaged)} records; emptied"
            except FileNotFoundError:  # deleted in the meantime
                continue
            except ValueError as error:
                path.unlink(missing_ok=True)
                yield f"{error}; deleted"
            except OSError as error:
                yield f"{path}: {error.strerror}; left as it is"

    def delete(self) -> None:
        """Delete its files, and its folder unless that holds anything else."""
        for path in self.files:
            path.unlink(missing_ok=True)
        if self.kind not in SINGLE_FILES:
            with suppress(OSError):
                self.path.rmdir()


def entries(cache: Path) -> list[Entry]:
    """All entries of a cache folder, by kind, the most recently used first."""
    found = []
    for kind in KINDS:
        folder = cache / kind
        inside = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
        for path in inside:
            expected = path.is_file() if kind in SINGLE_FILES else path.is_dir()
            if expected and not path.is_symlink() and re.fullmatch(ENTRY[kind], path.name):
                found.append(Entry(kind, path))
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.used, entry.path))


def superfluous(found: Sequence[Entry], older_than: float | None, keep_gb: float | None, now: float) -> list[Entry]:
    """The entries unused for `older_than` days, then the least recently used until `keep_gb` GB remain."""
    doomed = [entry for entry in found if older_than is not None and now - entry.used > older_than * DAY]
    rest = sorted((entry for entry in found if entry not in doomed), key=lambda entry: entry.used)
    excess = 0.0 if keep_gb is None else sum(entry.bytes for entry in rest) - keep_gb * GB
    for entry in rest:
        if excess < 0.5:  # less than a byte is rounding of the gigabytes
            break
        doomed.append(entry)
        excess -= entry.bytes
    return doomed


def _state(path: Path) -> Any:
    """A file's `lstat`; None if it is missing, a link or not a regular file."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _repair_figures(path: Path) -> Iterator[str]:
    from kd.system import tensor_file  # slow to import: torch

    try:
        tensor_file.read(path)
    except tensor_file.DAMAGES as error:
        if path.exists():
            path.unlink(missing_ok=True)
            yield f"{path}: {tensor_file.reason(error)}; deleted"


def clear(cache: Path) -> None:
    """Delete temporary files of killed processes; those younger than an hour may still be being written."""
    folders = [cache / kind for kind in SINGLE_FILES]
    loose = [path for folder in folders if not folder.is_symlink() for path in folder.glob(".*")]
    for path in [*loose, *(file for entry in entries(cache) for file in entry.files)]:
        state = _state(path)
        if LEFTOVER.fullmatch(path.name) and state and time.time() - state.st_mtime > HOUR:
            path.unlink(missing_ok=True)
