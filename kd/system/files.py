"""Atomic writes: to a temporary file beside the target, flushed to disk, then renamed over it. And digests."""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, wraps
from io import BufferedReader
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from kd.errors import DiskError, UserError

P = ParamSpec("P")
T = TypeVar("T")

#: The temporary file of `name.suffix` is .name.suffix.<8 characters>.suffix
LEFTOVER = re.compile(r"\..+(\.\w+)\.[a-z0-9_]{8}\1")

LONGEST_NAME = 255  # bytes: what file systems allow

#: The temporary folder of a folder `name` is .name.<8 characters>: see kd.deploy.export.formats.
LEFTOVER_FOLDER = re.compile(r"\.\w+_smp\.[a-z0-9_]{8}")
SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file

_SEEKING = threading.Lock()  # for systems without pread and pwrite


def real(path: Path) -> Path:
    """The absolute path without links; at a loop of links, where `Path.resolve` may raise, the path as it is."""
    return Path(os.path.realpath(path))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`; an error leaves nothing behind.

    Raises:
        DiskError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_temporary_prefix(path), suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("r+b") as file:  # Windows flushes only files that are open for writing
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    """How the temporary file of a path begins: with its name, cut where eight characters more would be too many."""
    room = LONGEST_NAME - len("..") - 8 - 2 * len(os.fsencode(path.suffix))
    stem = path.stem
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return f".{stem}{path.suffix}."


def clear_leftovers(folder: Path) -> None:
    """Delete temporary files and folders of killed processes; no other process may be at work in the folder.

    Only names that we or safetensors give are recognised, never links.
    """
    for path in folder.glob(".*"):
        if path.is_symlink():
            continue
        if path.is_dir() and LEFTOVER_FOLDER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and (LEFTOVER.fullmatch(path.name) or _is_of_safetensors(path)):
            path.unlink(missing_ok=True)


def _is_of_safetensors(path: Path) -> bool:
    """Whether a file is what `safetensors` writes before it renames it: nothing yet, or a header."""
    if not SAFETENSORS.fullmatch(path.name):
        return False
    with suppress(OSError), path.open("rb") as file:
        head = file.read(9)
        return not head or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < LARGEST_HEADER)
    return False


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Whether this process is the only one in such a block for the folder; where that cannot be known, False.

    Raises:
        DiskError: the folder cannot be made, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DiskError(f"{folder} is a file, where a folder is needed: name another, or remove it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    alone = False
    with ExitStack() as stack:
        with suppress(ImportError), suppress(OSError):
            import fcntl  # not on Windows

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)  # which ends the lock, as the end of the process does
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        yield alone


def _for_reading(path: Path) -> BufferedReader:
    return path.open("rb")


def file_state(path: Path) -> tuple[int, ...] | None:
    """Numbers that change whenever a file does; None if it is missing, of which reading it raises a better error."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def remembered(read: Callable[P, T]) -> Callable[P, T]:
    """`read`, a function of a path and more, whose results are cached in the process until the file changes."""

    known: Callable[..., T] = lru_cache(maxsize=2**17)(lambda _, *arguments, **more: read(*arguments, **more))

    @wraps(read)
    def call(*arguments: P.args, **more: P.kwargs) -> T:
        state = file_state(cast(Path, arguments[0]))
        return known(state, *arguments, **more) if state else read(*arguments, **more)

    return call


@remembered
def digest(path: Path, opened: Callable[[Path], BufferedReader] = _for_reading) -> str:
    """Hash of a file's content, 128 bits as hex; cached in the process until the file changes.

    `opened` opens the file, and raises its own error if that fails.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def json_digest(value: Any) -> str:
    """Hash of a JSON value, 128 bits as hex; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_at(file: int, target: memoryview, offset: int) -> int:
    """Read an open file at `offset` into `target`; returns the number of bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [target], offset)
    with _SEEKING:  # Windows
        os.lseek(file, offset, os.SEEK_SET)
        data = os.read(file, target.nbytes)
    target[: len(data)] = data
    return len(data)


def write_at(file: int, data: memoryview, offset: int) -> int:
    """Write `data` to an open file at `offset`; returns the number of bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    with _SEEKING:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)


def touch(path: Path) -> None:
    """Set a file's modification time to now, if permitted."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system in the block into a DiskError that names `path`.

    Raises:
        DiskError: the file cannot be written. Rust libraries report this only in the text of their errors.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = re.search(r"([^:]+) \(os error \d+\)", str(error))
        reason = error.strerror if isinstance(error, OSError) else found and found.group(1).strip()
        if not reason:
            raise
        raise DiskError(
            f"{path}: {reason}; everything written before is intact: fix this and repeat the command (for a run, with "
            "resume=<its folder>)"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """Copy of `value` with every NaN and infinity replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
