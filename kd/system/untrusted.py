"""Files that somebody else may have written: run folders are copied, mailed and shared.

A file is opened only if it is a regular file inside the folder that was named (no pipe, device, or link to elsewhere),
read only up to a size limit, and parsed to plain containers: no anchors or aliases, no dates, bounded depth and
numbers. Nothing is instantiated and no interpolation is resolved.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from kd.errors import RunError, one_line, shown

DOCUMENT = 2**20  # bytes of a JSON or YAML file; ours have a few thousand
DEEPEST = 32  # mappings and lists within each other
MOST_NODES = 50_000  # values in a YAML file, which is parsed in Python
LARGEST = 2**63  # of an integer: one of 400 digits fits no float, no database and no column
LONGEST_NUMBER = 64  # characters in YAML, whose base 60 takes quadratic time
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")  # YAML tags that are constructed

T = TypeVar("T")


class UnreadableError(RunError):
    """A file is missing, damaged, or not one that may be opened.

    Attributes:
        name: the file, relative to its folder.
        reason: what is wrong with it, as the rest of a sentence: "is a pipe or a device".
        missing: whether there is no such file.
    """

    def __init__(self, folder: Path, name: str, reason: str, missing: bool = False) -> None:
        self.name, self.reason, self.missing = name, one_line(reason)[:300], missing
        super().__init__(f"{shown(folder / name)} {self.reason}; restore it, or use another run folder")


def open_regular(folder: Path, name: str) -> BufferedReader:
    """Open a regular file below a folder for reading; never blocks.

    Raises:
        UnreadableError: it is missing, outside the folder, no regular file, or cannot be opened.
    """
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder.resolve()):
            raise UnreadableError(folder, name, "is a link to a place outside its folder")
        _check_regular(folder, name, path.stat().st_mode)  # before it is opened, which some devices act upon
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = open(os.open(path, flags), "rb")  # noqa: SIM115 (the caller closes it)
    except FileNotFoundError as error:
        is_link = os.path.lexists(folder / name)
        raise UnreadableError(folder, name, "is a broken link" if is_link else "is missing", not is_link) from error
    except (OSError, ValueError, RuntimeError) as error:  # a name with a NUL is a ValueError, a loop a RuntimeError
        raise UnreadableError(folder, name, f"cannot be opened ({_brief(error)})") from error
    try:
        _check_regular(folder, name, os.fstat(file.fileno()).st_mode)  # it may have been replaced meanwhile
    except UnreadableError:
        file.close()
        raise
    return file


def regular_in(folder: Path, name: str) -> Path:
    """The path of a regular file below a folder, for a library that opens it by name; raises like `open_regular`."""
    open_regular(folder, name).close()
    return folder / name


def read_named(path: Path) -> bytes:
    """Content of a file that the user named, wherever its links lead; else like `read_bytes`."""
    real = _resolved(path)
    return read_bytes(real.parent, real.name)


def regular(path: Path) -> Path:
    """A path that the user named, if it leads to a regular file; raises like `open_regular`."""
    real = _resolved(path)
    open_regular(real.parent, real.name).close()
    return path


def _resolved(path: Path) -> Path:
    """Where a path leads; the path itself if that cannot be said, as opening it then says what is wrong with it."""
    try:
        return path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return path


def check_plain(folder: Path) -> None:
    """Check that a folder which is to be written to has no pipe, no device and no link to elsewhere in it.

    Raises:
        UnreadableError: an entry of the folder, or of its .hydra, is one.
    """
    for place in (folder, folder / ".hydra"):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if os.path.isdir(path):
                check_below(folder, path / "any")
            else:
                open_regular(folder, str(path.relative_to(folder))).close()


def check_below(folder: Path, path: Path) -> None:
    """Check that writing to `path`, below a folder by its name, follows no link out of that folder.

    Raises:
        UnreadableError: a folder on the way is such a link.
    """
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder)):
        raise UnreadableError(folder, str(path.parent.relative_to(folder)), "is a link to a place outside its folder")


def _check_regular(folder: Path, name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UnreadableError(folder, name, "is a folder and should be a file")
    if not stat.S_ISREG(mode):
        raise UnreadableError(folder, name, "is a pipe or a device and should be a file")


def is_regular(folder: Path, name: str) -> bool:
    """Whether a folder has a regular file of that name, which no link outside it stands for."""
    try:
        open_regular(folder, name).close()
    except UnreadableError:
        return False
    return True


def read_bytes(folder: Path, name: str, limit: int = DOCUMENT) -> bytes:
    """Content of a file below a folder.

    Raises:
        UnreadableError: as `open_regular`, or it has more than `limit` bytes.
    """
    with open_regular(folder, name) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UnreadableError(folder, name, f"cannot be read ({_brief(error)})") from error
    if len(content) > limit:
        raise UnreadableError(folder, name, f"is larger than {limit} bytes")
    return content


def read_json(folder: Path, name: str, kind: type[T]) -> T:
    """Value of a JSON file: a mapping or a list, as `kind` (dict or list) says.

    Raises:
        UnreadableError: as `read_bytes`, or it is not JSON, out of bounds, or another kind of value.
    """
    return _read(folder, name, kind, parse_json)


def read_yaml(folder: Path, name: str, kind: type[T]) -> T:
    """Value of a YAML file: a mapping or a list, as `kind` (dict or list) says; dates and interpolations are texts.

    Raises:
        UnreadableError: as `read_bytes`, or it is not plain YAML, out of bounds, or another kind of value.
    """
    return _read(folder, name, kind, parse_yaml)


def _read(folder: Path, name: str, kind: type[T], parse: Callable[[bytes], Any]) -> T:
    text = read_bytes(folder, name)
    try:
        value = parse(text)
    except ValueError as error:
        raise UnreadableError(folder, name, f"is damaged ({error})") from error
    if not isinstance(value, kind):
        wanted = "mapping" if kind is dict else "list"
        raise UnreadableError(folder, name, f"is damaged (it should be a {wanted}, not {type(value).__name__})")
    return value


def mapping_at(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping below a key; empty if missing."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def parse_json(text: bytes) -> Any:
    """A JSON value in plain containers; raises ValueError with a reason of one line."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from error
    _check_bounds(value)
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def parse_yaml(text: bytes) -> Any:
    """A YAML value in plain containers; raises ValueError with a reason of one line."""
    try:
        value = _PlainLoader(text).get_single_data()
    except (yaml.YAMLError, LookupError, ArithmeticError) as error:  # `!!bool x` is a KeyError
        raise ValueError(_brief(error)) from error
    _check_bounds(value)
    return value


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors, dates, sets, merged keys and binary data, of bounded depth and size."""

    yaml_constructors: ClassVar[Any] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in PLAIN
    }
    yaml_implicit_resolvers: ClassVar[Any] = {  # type: ignore[misc]  # an instance's, say its stubs
        first: [(tag, form) for tag, form in resolvers if tag.rpartition(":")[2] in PLAIN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError("anchors and aliases are not allowed")
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.depth > DEEPEST + 1:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        if self.nodes > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES} values")
        node = super().compose_node(parent, index)
        if node is not None and node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        self.depth -= 1
        return node


def _check_bounds(value: Any) -> None:
    """Raise ValueError unless keys are texts, texts can be written, and integers and depth are within bounds."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise ValueError("a key that is not a text")
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                item.encode()  # half a surrogate pair is a ValueError
            elif isinstance(item, int) and not -LARGEST <= item < LARGEST:
                raise ValueError("an integer of more than 64 bits")
        level = inner
    if level:
        raise ValueError(f"nested more than {DEEPEST} levels deep")


def _brief(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__)
