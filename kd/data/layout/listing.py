"""List the files below a folder, those in its sub-folders too. Names are not trusted.

An entry must be a file, or a link to one below the same root, unless links may lead anywhere. Hidden entries and the
clutter of operating systems are skipped; any other file that is not of a known format is listed as ignored.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from kd.errors import DataError, shown

CLUTTER = ("thumbs.db", "desktop.ini")
MAX_NAMED = 3


class Found(NamedTuple):
    """The files below a folder.

    Attributes:
        files: those of a known format by key, which follows from the path below the folder without the suffix.
        twice: those whose key another file has.
        unusable: what only looks like a file, and why.
        ignored: files of other formats by key.
        others: files of a known format whose names have another form.
    """

    files: dict[str, Path]
    twice: list[tuple[str, Path]]
    unusable: list[tuple[str, Path, str]]
    ignored: dict[str, Path]
    others: list[Path]


def below(
    folder: Path,
    bounds: Path | None,
    suffixes: Sequence[str],
    key_of: Callable[[str], str | None] = lambda name: name,
    without: Collection[Path] = (),
) -> Found:
    """The files below `folder` but for those in `without`; none if it does not exist.

    `key_of` gives the key for a path below the folder without its suffix, or None if it is not of the right form. Links
    out of `bounds` are unusable; None: links may lead anywhere. Raises DataError if a folder cannot be listed.
    """
    found = Found({}, [], [], {}, [])
    for prefix, entry in _walk(folder, bounds, suffixes, "", (os.path.realpath(folder),)):
        path = Path(entry.path)
        key = key_of(prefix + path.stem)
        if path in without:
            continue
        if key is None:
            found.others.append(path)
        elif path.suffix.lower() not in suffixes and not is_folder(entry):
            found.ignored.setdefault(key, path)
        elif message := _unusable(entry, bounds):
            found.unusable.append((key, path, message))
        elif key in found.files:
            found.twice.append((key, path))
        else:
            found.files[key] = path
    return found


def entries(folder: Path, bounds: Path | None) -> list["os.DirEntry[str]"]:
    """The entries of a folder that are not hidden, sorted by name; empty if there is no such folder.

    Raises DataError if it cannot be listed, or lies out of `bounds`.
    """
    try:
        with os.scandir(folder) as listed:
            visible = [entry for entry in listed if not is_clutter(entry.name)]
        if bounds is not None and not inside(folder, bounds):
            raise DataError(f"{shown(folder)} {leads_out(bounds)}")
        return sorted(visible, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed ({error.strerror}): make it readable") from error


def is_clutter(name: str) -> bool:
    """Whether a name is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in CLUTTER


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def inside(path: Path, root: Path) -> bool:
    """Whether `path` is below `root`, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def leads_out(bounds: Path) -> str:
    """What is wrong with a link out of `bounds`, and what to do."""
    return f"is a link out of {shown(bounds)}: put what it names there, or, if you trust it, set data.follow_links=true"


def counted(paths: Sequence[PurePath]) -> str:
    """How many files there are, of which formats, and the names of the first.

    >>> counted([PurePath("a.avif"), PurePath("b.npy"), PurePath("c.avif")])
    '3 files (.avif 2, .npy 1: a.avif, b.npy, c.avif)'
    """
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in paths)
    of_each = ", ".join(f"{shown(suffix)} {count}" for suffix, count in suffixes.most_common(MAX_NAMED))
    names = ", ".join(shown(path.name) for path in paths[:MAX_NAMED]) + (", ..." if len(paths) > MAX_NAMED else "")
    return f"{len(paths)} {'file' if len(paths) == 1 else 'files'} ({of_each}: {names})"


def _walk(
    folder: Path, bounds: Path | None, suffixes: Sequence[str], prefix: str, around: tuple[str, ...]
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """The entries below a folder, each with its prefix: no folders but those that cannot be entered.

    `around` are the real paths of the folder and of those around it, which a link may lead back to.
    """
    for entry in entries(folder, bounds):
        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{around[-1]}/{entry.name}"
        loops = entry.is_symlink() and any(Path(place).is_relative_to(real) for place in around)
        astray = loops or (entry.is_symlink() and bounds is not None and not inside(Path(real), bounds))
        if not is_folder(entry) or astray or PurePath(entry.name).suffix.lower() in suffixes:
            yield prefix, entry
        else:
            yield from _walk(Path(entry.path), bounds, suffixes, f"{prefix}{entry.name}/", (*around, real))


def _unusable(entry: "os.DirEntry[str]", bounds: Path | None) -> str | None:
    """Why an entry of a folder is not a usable file; None if it is."""
    if entry.is_symlink() and bounds is not None and not inside(Path(entry.path), bounds):
        return leads_out(bounds)
    try:
        if entry.is_file():
            return None
        what = (
            "a folder" if entry.is_dir() else "a pipe, socket or device" if os.path.exists(entry) else "a broken link"
        )
    except OSError as error:
        return f"cannot be read ({error.strerror}): make it readable"
    fetch = ", or fetch the file that it stands for (dvc pull, git annex get)" if what == "a broken link" else ""
    return f"is not a file but {what}: remove it{fetch}"
