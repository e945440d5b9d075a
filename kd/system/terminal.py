"""What a terminal can show, and output that does not end a run when the terminal is gone or knows few letters."""

import errno
import io
import os
import sys
from typing import Any, Protocol, TextIO

GONE = {errno.EIO, errno.ENXIO}  # what a terminal says that was closed; a pipe's reader who has seen enough says EPIPE


class Shown(Protocol):
    """What is asked of a `rich.console.Console`."""

    file: Any

    @property
    def is_interactive(self) -> bool: ...


def can_move(console: Shown) -> bool:
    """Whether a progress bar can move there: FORCE_COLOR colours a log, and makes no terminal of it."""
    return console.is_interactive and console.file.isatty()


class _Lasting(io.FileIO):
    """A file descriptor that goes on as if nothing were there, once its terminal is closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def steady_output() -> None:
    """Have this process's output escape letters that its encoding lacks, and outlive its terminal.

    A training whose terminal was closed (SIGHUP ignored: nohup, disown) would otherwise end at its next line. Streams
    that somebody else has put in place, such as a notebook's, are left alone.
    """
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _steady(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _steady(sys.stderr)


def _steady(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if os.name == "nt":  # a console there is no file descriptor, and says nothing when it is gone
        return stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    unbuffered = stream.write_through  # python -u, PYTHONUNBUFFERED=1
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # as the interpreter itself does
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )
