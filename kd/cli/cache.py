"""`kd cache`: list, verify and delete what is cached."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from kd.errors import ConfigError, shown
from kd.system.cache_folder import GB, LOCK, Entry, clear, entries, superfluous
from kd.system.terminal import can_move

WIDE = 160  # characters per line where the output is not a terminal


def show(cache: Path) -> None:
    """Print a table of the entries."""
    found, console = entries(cache), _console()
    if not found:
        console.print(f"cache    {cache}: empty")
        return
    table = Table(title="cache", title_justify="left")
    for name in ("kind", "entry", "views", "full", "GB", "last used", "of"):
        table.add_column(name, justify="right" if name in ("views", "full", "GB") else "left", no_wrap=name != "of")
    for entry in found:
        facts, full = entry.facts(), entry.full()
        table.add_row(
            entry.kind, entry.path.stem[:8],
            str(len(entry.record_files)) if entry.kind == "teacher" else "-", "-" if full is None else f"{full:.0%}",
            f"{entry.bytes / GB:.3f}", f"{datetime.fromtimestamp(entry.used):%Y-%m-%d}",
            Text(_owner(facts, cache.parent), overflow="fold"),
        )  # fmt: skip
    console.print(table)
    console.print(f"cache    {cache}: {len(found)} entries, {_gb(found)}")


def verify(cache: Path) -> bool:
    """Read all entries, drop damaged data and report it; returns whether everything was intact."""
    found, console, errors = entries(cache), _console(), 0
    bar = Console(stderr=True)
    for entry in track(found, "reading", console=bar, disable=not can_move(bar), transient=True):
        for line in entry.repair():
            errors += 1
            console.print(f"damaged: {shown(line)}")
    verdict = f"{errors} files were damaged; they are recomputed when needed" if errors else "intact"
    console.print(f"cache    {cache}: {len(found)} entries, {_gb(found)}: {verdict}")
    return not errors


def prune(cache: Path, older_than: float | None, keep_gb: float | None, everything: bool) -> None:
    """Delete entries: those unused for `older_than` days, then the least recently used until `keep_gb` GB are left.

    Raises:
        ConfigError: no option says what to delete, or its value is negative or NaN.
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
            entry.delete()  # the lock keeps runs from creating files in it meanwhile
    clear(cache)
    kept = entries(cache)
    _console().print(f"cache    {cache}: deleted {len(doomed)} entries, {_gb(doomed)}; {len(kept)} left, {_gb(kept)}")


def _owner(facts: dict[str, Any], runs: Path) -> str:
    """The teacher or data set that an entry was computed from; a teacher of ours by its folder below runs/."""
    owner = str(facts.get("teacher") or facts.get("data") or "-")
    return shown(owner.removesuffix("/teacher.safetensors").removeprefix(f"{runs}/"))


def _gb(found: Sequence[Entry]) -> str:
    return f"{sum(entry.bytes for entry in found) / GB:.3f} GB"


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, markup=False, width=WIDE)
