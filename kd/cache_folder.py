"""What `kd cache` shows and does: what stands below runs/cache, how full and whole it is, and how it gets less.

Only what the caches make is touched, and told by its name; a link is not followed, and is no entry. A run may be at
work on anything here: a file that it has open stays readable when it is deleted, and what is missing is made again.
"""

import json
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from kd.errors import ConfigError, shown
from kd.files import LEFTOVER
from kd.slots import FACTS, FileSlots
from kd.terminal import can_move

KINDS = ("teacher", "data", "figures")
LOCK = ".lock"
OURS = re.compile(r"(view-\d{6,}|train|val|test)\.slots|facts\.json")
ENTRY = {"teacher": r"[0-9a-f]{16}", "data": r"[0-9a-f]+", "figures": r"[0-9a-f]{16}\.safetensors"}
GB, DAY, HOUR = 10**9, 86400, 3600  # bytes, seconds
WIDE = 160  # characters of a line that goes into a file


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
                slots = FileSlots(path, writable=False)
                filled, count = filled + int(slots.filled().sum()), count + slots.count
        return filled / count if count else None

    def mend(self) -> Iterator[str]:
        """Read everything and empty what is damaged, so that it is computed again; a line for each file that was."""
        if self.kind == "figures":
            yield from _mend_figures(self.path)
        for path in self.slots:
            try:
                slots = FileSlots(path)
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


def show(cache: Path) -> None:
    """Print what there is."""
    found, console = entries(cache), _console()
    if not found:
        console.print(f"cache    {cache}: nothing there")
        return
    table = Table(title="cache", title_justify="left")
    for name in ("kind", "entry", "views", "full", "GB", "last used", "of"):
        table.add_column(name, justify="right" if name in ("views", "full", "GB") else "left", no_wrap=name != "of")
    for entry in found:
        facts, full = entry.facts(), entry.full()
        table.add_row(
            entry.kind, entry.path.stem[:8],
            str(len(entry.slots)) if entry.kind == "teacher" else "-", "-" if full is None else f"{full:.0%}",
            f"{entry.bytes / GB:.3f}", f"{datetime.fromtimestamp(entry.used):%Y-%m-%d}",
            Text(_of(facts, cache.parent), overflow="fold"),
        )  # fmt: skip
    console.print(table)
    console.print(f"cache    {cache}: {len(found)} entries, {_gb(found)}")


def verify(cache: Path) -> bool:
    """Read everything, empty what is damaged, and say what it was; returns whether all was whole."""
    found, console, errors = entries(cache), _console(), 0
    bar = Console(stderr=True)
    for entry in track(found, "reading", console=bar, disable=not can_move(bar), transient=True):
        for line in entry.mend():
            errors += 1
            console.print(f"damaged: {shown(line)}")
    verdict = f"{errors} files were damaged, and are computed again when they are asked for" if errors else "all whole"
    console.print(f"cache    {cache}: {len(found)} entries, {_gb(found)}: {verdict}")
    return not errors


def prune(cache: Path, older_than: float | None, keep_gb: float | None, everything: bool) -> None:
    """Delete entries: those not used for so many days, then the least recently used until so many GB are left.

    Raises:
        ConfigError: it is not said which, or by a number that is none.
    """
    if older_than is None and keep_gb is None and not everything:
        raise ConfigError("kd cache prune: say what to delete: --older-than DAYS, --keep-gb GB, or --all", page="cache")
    for option, value, unit in (("--older-than", older_than, "days"), ("--keep-gb", keep_gb, "gigabytes")):
        if value is not None and not value >= 0:
            raise ConfigError(f"{option} must be a number of {unit}, 0 or more, but got {value:g}", page="cache")
    found = entries(cache)
    doomed = found if everything else superfluous(found, older_than, keep_gb, time.time())
    for entry in doomed:
        with FileLock(entry.path.parent / LOCK) if entry.kind == "teacher" else nullcontext():
            entry.delete()  # nobody makes a file of slots in it meanwhile
    _clear(cache)
    kept = entries(cache)
    _console().print(f"cache    {cache}: deleted {len(doomed)} entries, {_gb(doomed)}; {len(kept)} left, {_gb(kept)}")


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
    from kd import sealed  # heavy: torch

    try:
        sealed.read(path)
    except sealed.DAMAGES as error:
        if path.exists():
            path.unlink(missing_ok=True)
            yield f"{path}: {str(error).splitlines()[0]}; deleted"


def _clear(cache: Path) -> None:
    """Delete what killed processes have left of their writes; what is younger than an hour may be one going on."""
    figures = cache / "figures"
    loose = [] if figures.is_symlink() else [*figures.glob(".*")]
    for path in [*loose, *(file for entry in entries(cache) for file in entry.files)]:
        state = _state(path)
        if LEFTOVER.fullmatch(path.name) and state and time.time() - state.st_mtime > HOUR:
            path.unlink(missing_ok=True)


def _of(facts: dict[str, Any], runs: Path) -> str:
    """Whose it is: a teacher, told by its folder where it has one of its own, or a data set."""
    told = str(facts.get("teacher") or facts.get("data") or "-")
    return shown(told.removesuffix("/teacher.safetensors").removeprefix(f"{runs}/"))


def _gb(found: Sequence[Entry]) -> str:
    return f"{sum(entry.bytes for entry in found) / GB:.3f} GB"


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, markup=False, width=WIDE)
