"""What a run leaves behind: one folder, written first and whole; everything else is a mirror of it.

config.yaml           the composed configuration, every interpolation resolved
.hydra/overrides.yaml what was typed
run.json              who it is: its id and name, when it began, how it ended, where its mirror is
metrics.jsonl         one line per epoch, with the time (seconds since 1970) at which it was over
checkpoint*           while the run goes on: what it goes on from after a kill, and the one before
student.safetensors   the best student, with student.json beside it (teacher.* in a teacher's folder)
summary.json          the best epoch, the final table, test figures, cost
evidence.json         what `kd report` shows beside the figures, with evidence.safetensors
timeline.png  curves.png  predictions.png
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kd.errors import RunError
from kd.system.files import finite, write_atomically, write_json, writing


class RunFolder:
    """The files of one run under `path`, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = threading.Lock()
        path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_config(self, config: dict[str, Any]) -> None:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_atomically(self / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    def write_overrides(self, overrides: list[str]) -> None:
        """What was typed, where hydra's users look for it; the first time only, and never a password."""
        path = self / ".hydra" / "overrides.yaml"
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_text(yaml.safe_dump(overrides), encoding="utf-8"))

    def config(self) -> dict[str, Any]:
        """The configuration, or nothing where there is none: a teacher's folder has none."""
        path = self / "config.yaml"
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}

    def identify(self, **facts: Any) -> dict[str, Any]:
        """Write facts into run.json, beside those that are there; returns all. Several threads may."""
        with self._identity:
            known = self.identity() | facts
            write_json(self / "run.json", known)
        return known

    def identity(self) -> dict[str, Any]:
        """What run.json says; nothing where there is none."""
        path = self / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line, and see it to the disk."""
        path = self / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Drop the lines of the epoch `epochs` and later, which will be trained again; returns those that stay."""
        kept = [record for record in self.metrics() if record["epoch"] < epochs]
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept)
        if kept:
            write_atomically(self / "metrics.jsonl", lambda path: path.write_text(text, encoding="utf-8"))
        else:
            (self / "metrics.jsonl").unlink(missing_ok=True)
        return kept

    def metrics(self) -> list[dict[str, Any]]:
        """The lines written so far, one per epoch; a last one that was cut short (power loss) is none."""
        path = self / "metrics.jsonl"
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in whole]

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """The summary; nothing before the end of the run."""
        path = self / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a run folder for as long as the block lasts.

    Raises:
        RunError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder}: another process is at work on this run; wait for it, or end it first") from None
    try:
        yield
    finally:
        lock.release()
