"""Runs one item in a process of its own, for a limited time, and makes a JSON line of whatever becomes of it.

Light: no torch here. An item writes its figures to a file as it finds them, so that one that hangs or crashes loses
only what it had not found yet. Its output goes to a log, whose end is kept where something went wrong.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

forks = multiprocessing.get_context("forkserver")
GRACE = 5.0  # seconds in which a killed process has to go
TAIL = 600  # characters of a log that are kept


@dataclass(frozen=True)
class Item:
    """A question for the GPU: a function `module:name` in this package, its arguments and its time limit in seconds."""

    name: str
    where: str
    limit: float
    arguments: tuple[Any, ...] = ()


@dataclass
class On:
    """What an item is given.

    Attributes:
        small: everything as small as it can be, so that all items can be tried on a CPU.
        shared: a folder that outlives the item, for what later items may use again.
        found: figures of the items before it, by their names.
    """

    small: bool
    shared: Path
    found: Mapping[str, Mapping[str, Any]]
    figures: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    file: Path | None = None

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def note(self, **figures: Any) -> None:
        """Keep figures, which are reported even if the item fails later."""
        self.figures |= figures
        self.write()

    def check(self, law: str, holds: bool) -> None:
        """Keep whether something that must be so is so."""
        self.checks[law] = bool(holds)
        self.write()

    def write(self, **more: Any) -> None:
        if self.file is not None:
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps({"figures": self.figures, "checks": self.checks, **more}))
            new.replace(self.file)


def run(item: Item, small: bool, shared: Path, found: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """The line of an item: its status (ok, wrong, failed, crashed, hung), seconds, checks and figures."""
    with TemporaryDirectory() as place:
        file, log = Path(place) / "found.json", Path(place) / "log"
        begun = time.monotonic()
        process = forks.Process(target=_item, args=(item, On(small, shared, found, file=file), log))
        process.start()
        process.join(limit)
        hung = process.is_alive()
        if hung:
            end(process.pid)
            process.join(GRACE)
        said = json.loads(file.read_text()) if file.exists() else {"figures": {}, "checks": {}}
        line = {"item": item.name, "status": _status(said, hung), "seconds": round(time.monotonic() - begun, 1)}
        if hung:
            line["error"] = f"cut off after {limit:.0f} s"
        elif not said.pop("done", False) and "error" not in said:
            line["error"] = f"its process ended with {process.exitcode}"
        if line["status"] not in ("ok", "wrong") and log.exists():
            line["log"] = log.read_text(errors="replace")[-TAIL:]
        return line | said


def _status(said: Mapping[str, Any], hung: bool) -> str:
    if hung:
        return "hung"
    if "error" in said:
        return "failed"
    if not said.get("done"):
        return "crashed"
    return "ok" if all(said["checks"].values()) else "wrong"


def end(pid: int | None) -> None:
    """Kill a process and all that it started."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                each.kill()


def end_children() -> None:
    """Kill all that this process started."""
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            each.kill()


def _item(item: Item, on: On, log: Path) -> None:
    """In the item's process."""
    multiprocessing.set_start_method(None, force=True)  # loaders in here start their workers as anywhere else
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    ended: dict[str, Any] = {"done": True}
    try:
        import torch

        on.small = on.small or not torch.cuda.is_available()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # a dry run may share its cores
        on.note(device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", small=on.small)
        _function(item)(on, *item.arguments)
    except BaseException as error:
        traceback.print_exc()
        ended["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    on.write(**ended)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    end_children()
    os._exit(0)  # a CUDA that is broken may hang in its own clean-up


def _function(item: Item) -> Callable[..., None]:
    module, _, name = item.where.partition(":")
    return getattr(import_module(module), name)
