"""What `kd cache` shows and does: what stands below runs/cache, how full and whole it is, and how it gets less.

Only what the caches make is touched, and told by its name; a link is not followed, and is no entry. A run may be at
work on anything here: a file that it has open stays readable when it is deleted, and what is missing is made again.
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

KINDS = ("teacher", "data", "figures")
LOCK = ".lock"
OURS = re.compile(r"(view-\d{6,}|train|val|test)\.slots|facts\.json")
ENTRY = {"teacher": r"[0-9a-f]{16}", "data": r"[0-9a-f]+", "figures": r"[0-9a-f]{16}\.safetensors"}
GB, DAY, HOUR = 10**9, 86400, 3600  # bytes, seconds


@dataclass(frozen=True)
class Entry:
    """One teacher's answers, one data set's samples (folders), or one teacher's figures (a file)."""

    kind: str
    path: Path

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """What is in it, the facts last: what is half deleted can still be told."""
        if self.kind == "figures":
            return (self.path,) if _state(self.path) else ()
        try:
            inside = [path for path in self.path.iterdir() if _state(path)]
        except OSError:  # deleted meanwhile
            return ()
        ours = [path for path in inside if OURS.fullmatch(path.name) or LEFTOVER.fullmatch(path.name)]
        return tuple(sorted(ours, key=lambda path: (path.name == FACTS, path)))

    @cached_property
    def bytes(self) -> int:
        """What it takes on the disk; files of slots are promised more than they hold, which Windows does not tell."""
        states = [state for path in self.files if (state := _state(path))]
        return sum(512 * state.st_blocks if hasattr(state, "st_blocks") else state.st_size for state in states)

    @cached_property
    def used(self) -> float:
        """When it was last used, seconds since 1970; 0 where nothing is in it."""
        return max((state.st_mtime for path in self.files if (state := _state(path))), default=0.0)

    @property
    def slots(self) -> list[Path]:
        return [path for path in self.files if OURS.fullmatch(path.name) and path.suffix == ".slots"]

    def facts(self) -> dict[str, Any]:
        """What it says of itself; nothing where that cannot be read."""
        try:
            if self.kind == "figures":
                with safe_open(self.path, framework="np") as file:  # without torch, which is heavy
                    text = file.metadata()["facts"]
            else:
                text = next(path for path in self.files if path.name == FACTS).read_text(encoding="utf-8")
            found = json.loads(text)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, StopIteration):
            return {}
        return found if isinstance(found, dict) else {}

    def full(self) -> float | None:
        """The part of its slots that is filled, in [0, 1]; None where there are none."""
        filled = count = 0
        for path in self.slots:
            with suppress(OSError, ValueError):
                slots = FileRecords(path, writable=False)
                filled, count = filled + int(slots.filled().sum()), count + slots.count
        return filled / count if count else None

    def mend(self) -> Iterator[str]:
        """Read everything and empty what is damaged, so that it is computed again; a line for each file that was."""
        if self.kind == "figures":
            yield from _mend_figures(self.path)
        for path in self.slots:
            try:
                slots = FileRecords(path)
                damaged = slots.damaged()
                for slot in damaged:
                    slots.empty(slot)
                if damaged:
                    yield f"{path}: {len(damaged)} of {int(slots.filled().sum()) + len(damaged)} records; emptied"
            except FileNotFoundError:  # deleted meanwhile
                continue
            except ValueError as error:
                path.unlink(missing_ok=True)
                yield f"{error}; deleted"
            except OSError as error:
                yield f"{path}: {error.strerror}; left as it is"

    def delete(self) -> None:
        """Delete what is in it, and the folder unless there is something else in it."""
        for path in self.files:
            path.unlink(missing_ok=True)
        if self.kind != "figures":
            with suppress(OSError):
                self.path.rmdir()


def entries(cache: Path) -> list[Entry]:
    """Everything below a cache folder: by kind, and what was used last first."""
    found = []
    for kind in KINDS:
        folder = cache / kind
        inside = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
        for path in inside:
            right = path.is_file() if kind == "figures" else path.is_dir()
            if right and not path.is_symlink() and re.fullmatch(ENTRY[kind], path.name):
                found.append(Entry(kind, path))
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.used, entry.path))


def superfluous(found: Sequence[Entry], older_than: float | None, keep_gb: float | None, now: float) -> list[Entry]:
    """The entries not used for `older_than` days, and then the least recently used until `keep_gb` are left."""
    doomed = [entry for entry in found if older_than is not None and now - entry.used > older_than * DAY]
    rest = sorted((entry for entry in found if entry not in doomed), key=lambda entry: entry.used)
    excess = 0.0 if keep_gb is None else sum(entry.bytes for entry in rest) - keep_gb * GB
    for entry in rest:
        if excess < 0.5:  # bytes are whole, and gigabytes are rounded
            break
        doomed.append(entry)
        excess -= entry.bytes
    return doomed


def _state(path: Path) -> Any:
    """A file's state; None where it is missing, a link, or no file."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _mend_figures(path: Path) -> Iterator[str]:
    from kd.system import tensor_file  # heavy: torch

    try:
        tensor_file.read(path)
    except tensor_file.DAMAGES as error:
        if path.exists():
            path.unlink(missing_ok=True)
            yield f"{path}: {str(error).splitlines()[0]}; deleted"


def clear(cache: Path) -> None:
    """Delete what killed processes have left of their writes; what is younger than an hour may be one going on."""
    figures = cache / "figures"
    loose = [] if figures.is_symlink() else [*figures.glob(".*")]
    for path in [*loose, *(file for entry in entries(cache) for file in entry.files)]:
        state = _state(path)
        if LEFTOVER.fullmatch(path.name) and state and time.time() - state.st_mtime > HOUR:
            path.unlink(missing_ok=True)
