"""The folder of a run: the truth about it, written first and whole; MLflow is a mirror of it.

config.yaml           the composed configuration, every interpolation resolved
.hydra/overrides.yaml what was typed
run.json              id and name, when it began, how it ended, where its mirror is
metrics.jsonl         one line per epoch, with the time (seconds since 1970) at which it ended
checkpoint*           until the run ends: the state to resume from, and the one before
student.safetensors   the best student, with student.json beside it (teacher.* in a teacher's folder)
summary.json          the best epoch, the final table, test figures, cost
evidence.json         what `kd report` shows beside the figures, with evidence.safetensors
timeline.png  curves.png  predictions.png

`SavedRun` reads a folder that anybody may have written; `RunFolder` writes one as well.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from kd.data.files.image_file import PNG
from kd.errors import RunError
from kd.run import identity
from kd.system.files import finite, write_atomically, write_json, writing
from kd.system.untrusted import (
    UnreadableError,
    is_regular,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_yaml,
)

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"  # held by the process that is at work on a run
SIGNS = ("config.yaml", "run.json", "metrics.jsonl", "summary.json")  # files that make a folder one of a run
METRICS = 256 * 2**20  # bytes of metrics.jsonl: 100,000 epochs with 11 classes, or 20,000 with 255
LONGEST_LINE = 2**20  # bytes of a line of it: 255 classes take 30 KB
MOST_DAMAGED = 1000  # lines of metrics.jsonl, of a folder that is still read
PICTURE = 32 * 2**20  # bytes of a PNG
TENSORS = 512 * 2**20  # bytes of evidence.safetensors

T = TypeVar("T")


class SavedRun:
    """The files of one run under `path`, for reading; anybody may have written them.

    Each method raises UnreadableError for a damaged file, and returns an empty value for a missing one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def exists(self) -> bool:
        """Whether the folder has any file that makes it one of a run."""
        return any(is_regular(self.path, name) for name in SIGNS)

    def config(self) -> dict[str, Any]:
        """The configuration; a teacher's folder has none."""
        return self._read("config.yaml", read_yaml, dict)

    def overrides(self) -> list[Any]:
        """What was typed."""
        return self._read(".hydra/overrides.yaml", read_yaml, list)

    def identity(self) -> dict[str, Any]:
        """Content of run.json; each fact that is there has the kind that it is written with."""
        facts = self._read("run.json", read_json, dict)
        try:
            identity.check(facts)
        except ValueError as error:
            raise UnreadableError(self.path, "run.json", f"is damaged ({error})") from error
        return facts

    def summary(self) -> dict[str, Any]:
        """The summary; empty before the end of the run."""
        return self._read("summary.json", read_json, dict)

    def evidence(self) -> dict[str, Any]:
        """What the report shows beside the figures."""
        return self._read("evidence.json", read_json, dict)

    def _read(self, name: str, read: Callable[[Path, str, type[T]], T], kind: type[T]) -> T:
        try:
            return read(self.path, name, kind)
        except UnreadableError as error:
            if error.missing:
                return kind()
            raise

    def metrics(self, damaged: list[UnreadableError] | None = None) -> list[dict[str, Any]]:
        """Records of the epochs that are over; a last line that was cut short (power loss) is left out.

        `damaged` collects the errors of other damaged lines, which are left out then; without it, or if there are more
        than MOST_DAMAGED, one is raised.
        """
        records = []
        for number, line in enumerate(self._lines("metrics.jsonl", METRICS), 1):
            try:
                records.append(record(line))
            except ValueError as error:
                found = UnreadableError(self.path, "metrics.jsonl", f"is damaged in line {number} ({error})")
                if damaged is None or len(damaged) >= MOST_DAMAGED:
                    raise found from error
                damaged.append(found)
        return records

    def _lines(self, name: str, limit: int) -> list[bytes]:
        """The whole lines of a file."""
        try:
            return read_bytes(self.path, name, limit).split(b"\n")[:-1]
        except UnreadableError as error:
            if error.missing:
                return []
            raise

    def tensors(self) -> "dict[str, Tensor]":
        """Tensors of evidence.safetensors, by name."""
        from kd.system import tensor_file  # heavy: torch

        name = "evidence.safetensors"
        try:
            with open_regular(self.path, name) as file:
                if os.fstat(file.fileno()).st_size > TENSORS:
                    raise UnreadableError(self.path, name, f"is larger than {TENSORS} bytes")
            return tensor_file.read(self / name)[0]
        except UnreadableError as error:
            if error.missing:
                return {}
            raise
        except tensor_file.DAMAGES as error:
            raise UnreadableError(self.path, name, f"is damaged ({error})") from error

    def picture(self, name: str) -> bytes | None:
        """A PNG as it is; None if there is no such file or it does not begin as a PNG does."""
        return picture_in(self.path, name)

    def text(self, name: str) -> str | None:
        """A text file; None if missing or unreadable."""
        try:
            return read_bytes(self.path, name).decode("utf-8", errors="replace")
        except UnreadableError:
            return None


def picture_in(folder: Path, name: str) -> bytes | None:
    """A PNG of a folder, as it is; None if there is no such file or it does not begin as a PNG does."""
    try:
        content = read_bytes(folder, name, PICTURE)
    except UnreadableError:
        return None
    return content if content.startswith(PNG) else None


def record(line: bytes) -> dict[str, Any]:
    """One epoch's numbers by name, from a line of metrics.jsonl; raises ValueError for anything else."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"it has {len(line)} bytes")
    found = parse_json(line)
    if not isinstance(found, dict) or not _is_count(found.get("epoch")):
        raise ValueError("it should be a mapping with an epoch")
    for name, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} should be a number")
    if not identity.is_time(found.get("time", 0)):
        raise ValueError("time should be in seconds since 1970")
    return found


def as_lines(records: Iterable[dict[str, Any]]) -> str:
    """Records as the lines of metrics.jsonl."""
    return "".join(json.dumps(finite(each), allow_nan=False) + "\n" for each in records)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


class RunFolder(SavedRun):
    """The files of one run under `path`, which is made if it does not exist, for reading and writing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._identity = threading.Lock()
        path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: dict[str, Any]) -> None:
        text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        write_atomically(self / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    def write_overrides(self, overrides: list[str]) -> None:
        """Keep what was typed where hydra's users look for it; the first time only, and never a password."""
        path = self / ".hydra" / "overrides.yaml"
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_text(yaml.safe_dump(overrides), encoding="utf-8"))

    def identify(self, **facts: Any) -> dict[str, Any]:
        """Write facts into run.json beside those already there; returns all. Safe to call from several threads."""
        with self._identity:
            known = self.identity() | facts
            write_json(self / "run.json", known)
        return known

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line and flush it to the disk."""
        path = self / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(as_lines([record]))
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Drop the lines of epoch `epochs` and later, which will be trained again; returns the remaining records."""
        kept = [each for each in self.metrics() if each["epoch"] < epochs]
        self.write_metrics(kept)
        return kept

    def write_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Replace the lines of metrics.jsonl; without records the file is deleted."""
        text = as_lines(records)
        if records:
            write_atomically(self / "metrics.jsonl", lambda path: path.write_text(text, encoding="utf-8"))
        else:
            (self / "metrics.jsonl").unlink(missing_ok=True)

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self / "summary.json", summary)


class _Dumper(yaml.SafeDumper):
    """YAML without aliases, which no reader of a run folder accepts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@contextmanager
def only_one(folder: Path, on_wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold a run folder for as long as the block lasts.

    Args:
        on_wait: called if another process holds it, which is then waited for.

    Raises:
        RunError: another process holds it, and `on_wait` is None; or it cannot be locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is None:
            raise RunError(f"{folder}: another process is at work on this run; wait for it, or stop it first") from None
        on_wait()
        lock.acquire()
    except OSError as error:  # a link, a folder, ...
        raise RunError(f"{folder / LOCK} cannot be locked ({error.strerror}); delete it, and repeat") from error
    try:
        yield
    finally:
        lock.release()
