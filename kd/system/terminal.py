"""Terminal capabilities, and output that survives a closed terminal and characters its encoding lacks."""

import errno
import io
import logging
import os
import re
import sys
from typing import Any, Protocol, TextIO

from kd.errors import shown, without_credentials

CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor movements
GONE = {errno.EIO, errno.ENXIO}  # errors of a closed terminal; a closed pipe gives EPIPE instead


class ConsoleLike(Protocol):
    """The part of `rich.console.Console` that `can_move` needs."""

    file: Any

    @property
    def is_interactive(self) -> bool: ...


def can_move(console: ConsoleLike) -> bool:
    """Whether a progress bar can be redrawn: with FORCE_COLOR, a log file claims to be interactive but is not."""
    return console.is_interactive and console.file.isatty()


class _SurvivingFile(io.FileIO):
    """A file descriptor that discards output once its terminal is closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def to_log(text: str) -> None:
    """Write what the console says to the log files of this process (train.log): plain text, without passwords."""
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for line in text.splitlines() if files else ():
        plain = without_credentials(shown(CONTROL.sub("", line).rstrip(), longest=None))
        for handler in files:
            handler.handle(logging.LogRecord("kd", logging.INFO, "", 0, plain, None, None))


class _WithoutPasswords(logging.LogRecord):
    """A record that shows no password, whichever library logs an address: urllib3 logs what it retries."""

    def getMessage(self) -> str:
        return without_credentials(super().getMessage())


def discreet_logging() -> None:
    """Mask the passwords of addresses in whatever this process logs, on the terminal and in train.log."""
    logging.setLogRecordFactory(_WithoutPasswords)


def steady_output() -> None:
    """Make stdout and stderr escape characters that their encoding lacks, and survive a closed terminal.

    Otherwise a training whose terminal was closed (with SIGHUP ignored: nohup, disown) would crash at its next line of
    output. Streams that were replaced, such as a notebook's, are left alone.
    """
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _escaping(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _escaping(sys.stderr)


def _escaping(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if os.name == "nt":  # a console is not a file descriptor there, and does not fail when closed
        return stream
    stream.flush()
    raw = _SurvivingFile(stream.fileno(), "w", closefd=False)
    unbuffered = stream.write_through  # python -u, PYTHONUNBUFFERED=1
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # like the interpreter
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )
