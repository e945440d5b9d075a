"""A run folder with one of its files damaged or replaced, as hypothesis draws it, and what a command does about it."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import program
import yaml
from hypothesis import strategies as st
from safetensors import SafetensorError

from kd.system import tensor_file

SECONDS, MEMORY = 20, 2**30  # that a command may take, beyond what its libraries take
SECRET = "hunter2-of-the-environment"
NETWORK = 99  # exit code of a command that opens a connection

#: Texts and numbers that a program might resolve, open, build, overflow at, or print as they are.
ODD = st.sampled_from([
    None, True, -1, 0, 2**31, 2**62, 10**400, 1e308, 0.1, "", "1e999", "\x1b[31m", "a\nb", "\ud800", "${oc.env:SECRET}",
    "${nothing}", "../../outside/file", "/dev/zero", "/dev/stdin", "http://127.0.0.1:9", "postgresql://a:b@127.0.0.1:9/d",
    "sqlite:///../outside/new.db", "\0", "x" * 100_000, [], {}, [1], {"a": 1}, {"_target_": "os.abort"}, math.nan,
    [[0] * 1000] * 100, ["a", None],
])  # fmt: skip
DEEP = st.builds(lambda depth: b"[" * depth + b"]" * depth, st.sampled_from([40, 2000, 200_000]))
NOISE = st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode(errors="replace")) | DEEP


@dataclass(frozen=True, repr=False)
class Damage:
    """What happens to one file of a folder, which the function replaces; `outside` is a folder beside the root."""

    name: str
    what: str
    do: Callable[[Path, Path], object]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.what}>"


def damages(names: list[str]) -> st.SearchStrategy[Damage]:
    """A damage to one of the named files, which need not exist."""

    def of(name: str) -> st.SearchStrategy[Damage]:
        kinds = [_bytes(), _links()] + [_values(name)] * 2 * name.endswith((".json", ".jsonl", ".yaml", ".safetensors"))
        return st.one_of(*kinds).map(lambda found: Damage(name, *found))

    return st.sampled_from(names).flatmap(of)


def _bytes() -> st.SearchStrategy[tuple[str, Callable]]:
    """Truncated, overwritten in part, replaced, and emptied files."""
    share = st.floats(0, 1, exclude_max=True)

    def cut(at: float) -> tuple[str, Callable]:
        return f"cut at {at}", lambda path, _: os.truncate(path, int(path.stat().st_size * at))

    def flip(drawn: tuple[float, bytes]) -> tuple[str, Callable]:
        def do(path: Path, outside: Path) -> None:
            content = bytearray(path.read_bytes())
            start = int(len(content) * drawn[0])
            content[start : start + len(drawn[1])] = drawn[1]
            path.write_bytes(content)

        return f"{drawn[1][:40]!r} at {drawn[0]}", do

    def replace(new: bytes) -> tuple[str, Callable]:
        return f"replaced by {new[:40]!r}", lambda path, _: path.write_bytes(new)

    early = share | st.floats(0, 0.01)
    changes = early.map(cut) | st.tuples(early, st.binary(min_size=1, max_size=8)).map(flip)
    return changes.map(_if_there) | NOISE.map(replace).map(_instead)


def _links() -> st.SearchStrategy[tuple[str, Callable]]:
    """Something else in the place of a file."""

    def link(to: str) -> tuple[str, Callable]:
        return f"a link to {to}", lambda path, outside: path.symlink_to(to.replace("OUTSIDE", str(outside)))

    others: list[tuple[str, Callable]] = [
        ("a pipe", lambda path, _: os.mkfifo(path)),
        ("a folder", lambda path, _: (path / "in it").mkdir(parents=True)),
        ("gone", lambda path, _: None),
        ("a link to itself", lambda path, _: path.symlink_to(path.name)),
        ("a sparse file of 1 TB", lambda path, _: (path.touch(), os.truncate(path, 2**40))),
    ]
    targets = ["OUTSIDE/file", "OUTSIDE", "OUTSIDE/new", "/dev/zero", "/dev/full", "/proc/self/mem", ".", "run.json"]
    return (st.sampled_from(targets).map(link) | st.sampled_from(others)).map(_instead)


def _values(name: str) -> st.SearchStrategy[tuple[str, Callable]]:
    """One value of a structured file replaced: the file stays well-formed."""

    def at(drawn: tuple[float, Any]) -> tuple[str, Callable]:
        def do(path: Path, outside: Path) -> None:
            with suppress(ValueError, yaml.YAMLError, SafetensorError, KeyError, TypeError):
                FORMS[path.suffix](path, *drawn)

        return f"the value at {drawn[0]} is {str(drawn[1])[:60]!r}", do

    return st.tuples(st.floats(0, 1, exclude_max=True), ODD).map(at).map(_if_there)


def _if_there(found: tuple[str, Callable]) -> tuple[str, Callable]:
    """A change of a file, if there is one that this process can hold in memory."""
    what, do = found

    def change(path: Path, outside: Path) -> None:
        if path.is_file() and path.stat().st_size < 2**28:
            do(path, outside)

    return what, change


def _instead(found: tuple[str, Callable]) -> tuple[str, Callable]:
    """Something in the place of a file or a folder, which goes first."""
    what, do = found

    def replace(path: Path, outside: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        with suppress(OSError):  # what it lies in was replaced before
            path.unlink(missing_ok=True)
            path.parent.mkdir(exist_ok=True)
            do(path, outside)

    return what, replace


def _in_json(path: Path, share: float, new: Any) -> None:
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), share, new)))


def _in_lines(path: Path, share: float, new: Any) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in replaced(records, share, new)))


def _in_yaml(path: Path, share: float, new: Any) -> None:
    path.write_text(yaml.safe_dump(replaced(yaml.safe_load(path.read_text()), share, new)), errors="surrogatepass")


def _in_tensors(path: Path, share: float, new: Any) -> None:
    """A fact of a sealed file, which is sealed again."""
    tensors, facts = tensor_file.read(path)
    tensor_file.write(path, tensors, replaced(facts, share, new))


FORMS: dict[str, Callable[[Path, float, Any], None]] = {
    ".json": _in_json,
    ".jsonl": _in_lines,
    ".yaml": _in_yaml,
    ".safetensors": _in_tensors,
}


def replaced(value: Any, share: float, new: Any) -> Any:
    """A copy of plain containers in which the item at `share` of all their items, in order, is `new`."""
    copy = json.loads(json.dumps(value))
    places = list(_places(copy))
    if not places:
        return new
    container, key = places[int(len(places) * share)]
    container[key] = new
    return copy


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def within_bounds() -> None:
    """Bound this process's time and memory, and end it as soon as it opens a connection."""
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):  # the address of a file is a text
        print(f"a connection to {arguments[1]}", file=sys.stderr, flush=True)
        os._exit(NETWORK)


def complaints(done: subprocess.CompletedProcess, root: Path) -> list[str]:
    """What is wrong with the end of a command; empty if it kept its promises."""
    output = done.stdout + done.stderr
    last = done.stderr.rstrip("\n").rpartition("\n")[2]
    found = []
    if done.returncode not in (0, 1, 2):
        found.append(f"exit code {done.returncode}")
    if "Traceback" in output:
        found.append("a traceback")
    if (done.returncode and not last.startswith("error: ")) or done.stderr.count("error: ") > 1:
        found.append("no single line of an error")
    if not all(line.isprintable() for line in done.stderr.splitlines()):
        found.append("control characters")
    if SECRET in output or any(SECRET.encode() in path.read_bytes() for path in _files(root)):
        found.append("a secret of the environment")
    return [f"{each}\n{output[-3000:]}" for each in found]


def _files(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in found if path.stat().st_size < 2**26]


def run(root: Path, command: list[str]) -> subprocess.CompletedProcess:
    """Run `kd ...` or `train.py ...` within its bounds."""
    env = {**os.environ, "SECRET": SECRET}
    if command[0] == "train.py":
        return program.train(root, *command[1:], env=env, before=[within_bounds])
    return program.run_kd(root, *command, env=env, before=[within_bounds])
