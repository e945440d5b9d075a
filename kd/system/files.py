"""Writes that are whole or absent: a temporary file beside the target, flushed to the disk, then renamed over it."""

import hashlib
import json
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from kd.errors import DiskError, UserError

#: The temporary file of `name.suffix` is .name.suffix.<8 characters>.suffix
LEFTOVER = re.compile(r"\..+(\.\w+)\.[a-z0-9_]{8}\1")

_SEEKING = threading.Lock()  # where a system can only seek first and read then


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, and put it in place whole; an error leaves nothing behind.

    Raises:
        DiskError: the system refused to write.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("r+b") as file:  # Windows flushes what is open for writing only
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed process left of its writes; only for whoever holds the folder alone."""
    for path in folder.glob(".*"):
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _for_reading(path: Path) -> BufferedReader:
    return path.open("rb")


def digest(path: Path, opened: Callable[[Path], BufferedReader] = _for_reading) -> str:
    """A digest of a file's content, 128 bits as hex; taken once in a process, unless the file changes meanwhile.

    `opened` opens it, and says in its own words where that cannot be.
    """
    try:
        state = path.stat()
    except OSError:  # whoever opens it says what is wrong
        return _digest(path, opened)
    return _digest(path, opened, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=2**17)
def _digest(path: Path, opened: Callable[[Path], BufferedReader], *_state: int) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def json_digest(value: Any) -> str:
    """Hash of a JSON value, 128 bits as hex; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_at(file: int, target: memoryview, offset: int) -> int:
    """Fill `target` from an open file's bytes at `offset`; returns how many there were."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [target], offset)
    with _SEEKING:  # Windows
        os.lseek(file, offset, os.SEEK_SET)
        data = os.read(file, target.nbytes)
    target[: len(data)] = data
    return len(data)


def write_at(file: int, data: memoryview, offset: int) -> int:
    """Write `data` into an open file at `offset`; returns how many bytes were written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    with _SEEKING:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)


def touch(path: Path) -> None:
    """Have a file's time say that it was used just now, where that may be."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of `path` what kept the block from writing it.

    Raises:
        DiskError: the system refused; libraries that are not written in Python say so in words only.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = re.search(r"([^:]+) \(os error \d+\)", str(error))
        reason = error.strerror if isinstance(error, OSError) else told and told.group(1).strip()
        if not reason:
            raise
        raise DiskError(
            f"{path}: {reason}; what was written before is whole: mend that and go on (a run with resume=<its folder>)"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity in it replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
