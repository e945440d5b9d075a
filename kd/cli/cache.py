"""`kd cache`: what is kept, whether it is whole, and deleting it."""

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

WIDE = 160  # characters of a line that goes into a file


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
    clear(cache)
    kept = entries(cache)
    _console().print(f"cache    {cache}: deleted {len(doomed)} entries, {_gb(doomed)}; {len(kept)} left, {_gb(kept)}")


def _of(facts: dict[str, Any], runs: Path) -> str:
    """Whose it is: a teacher, told by its folder where it has one of its own, or a data set."""
    told = str(facts.get("teacher") or facts.get("data") or "-")
    return shown(told.removesuffix("/teacher.safetensors").removeprefix(f"{runs}/"))


def _gb(found: Sequence[Entry]) -> str:
    return f"{sum(entry.bytes for entry in found) / GB:.3f} GB"


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, markup=False, width=WIDE)
