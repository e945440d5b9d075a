"""What was found in the files of a data set, on disk until a file changes: 100,000 files are read once, not each time.

A file counts as unchanged if its inode, size and times of change (of content and of status) are what they were.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from kd.data.files.image_file import open_file
from kd.errors import DiskError
from kd.system.files import digest, file_state, json_digest, write_atomically
from kd.system.resources import cores

LEAST = 1000  # files of a data set that is worth a manifest


class Manifest:
    """Findings about files, {path: [inode, size, mtime, ctime, {what: found}]}, in a JSON file; None: in none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, list[Any]] = {}
        if path is not None:
            with suppress(OSError, ValueError, RecursionError):  # not there yet, or damaged: it is made again
                found = json.loads(path.read_bytes())
                self._entries = found if isinstance(found, dict) else {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (None,)  # another process is sent what was made of it

    def find(self, what: str, files: Sequence[Path], read: Callable[[Path], Any]) -> list[Any]:
        """`read(file)`, plain JSON, of each file; reads those that are new or have changed, on all cores."""
        states = [file_state(file) for file in files]
        entries = [self._entry(file, state) for file, state in zip(files, states, strict=True)]
        missing = [index for index, found in enumerate(entries) if what not in found]
        pool = ThreadPoolExecutor(min(8, cores()))  # reading and hashing leave the interpreter's lock
        try:
            for index, value in zip(missing, pool.map(lambda i: read(files[i]), missing), strict=True):
                entries[index][what] = value
        finally:
            pool.shutdown(cancel_futures=True)  # of files behind one that cannot be read
        if missing and self._path is not None:
            self._entries |= {
                str(file): [*state, found]
                for file, state, found in zip(files, states, entries, strict=True)
                if state is not None
            }
            self._save(self._path)
        return [found[what] for found in entries]

    def _entry(self, file: Path, state: tuple[int, ...] | None) -> dict[str, Any]:
        """What is known of a file in this state; a new dictionary if nothing is."""
        known = self._entries.get(str(file))
        if isinstance(known, list) and len(known) == 5 and known[:4] == [*(state or ())] and isinstance(known[4], dict):
            return known[4]
        return {}

    def _save(self, path: Path) -> None:
        if len(self._entries) < LEAST:
            return
        text = json.dumps({file: entry for file, entry in self._entries.items() if os.path.exists(file)})
        try:
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except DiskError:  # a disk that is full or read-only costs time alone
            self._path = None


class KeepsFindings:
    """A data set of files below its `root`, whose manifest outlives the process once a folder for it is given."""

    root: str | Path

    def keep_findings(self, folder: Path) -> None:
        """Keep what is found in files below `folder`, for other processes."""
        name = json_digest(str(Path(self.root).absolute()))[:16]
        self.__dict__["manifest"] = Manifest(folder / f"{name}.json")

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest(None)

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """The digest of each file's content."""
        return self.manifest.find("digest", paths, lambda path: digest(path, open_file))
