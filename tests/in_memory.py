"""Temporary files of the tests in memory, where there is room: a busy disk takes 20 ms for a commit of sqlite."""

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
NEEDED = 4 * 2**30  # bytes; a test's folder goes with it, unless it failed


def use() -> None:
    """Have `tempfile`, pytest and the processes that tests start put temporary files into memory.

    Not where TMPDIR names a place, little is free (64 MiB in a container of Docker), or programs cannot be executed.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return
    if shutil.disk_usage(MEMORY).free >= NEEDED and os.access(MEMORY, os.W_OK):
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
