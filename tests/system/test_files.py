"""A file is complete or absent, the old one stays until then, and JSON has no NaN."""

import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.system.files import (
    alone_in,
    clear_leftovers,
    finite,
    json_digest,
    remembered,
    touch,
    write_atomically,
    write_json,
)


def strict_json(text):
    """JSON as the standard has it: NaN and Infinity are not numbers."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def names(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


# write_atomically


def test_a_file_has_what_the_writer_wrote(tmp_path):
    write_atomically(tmp_path / "weights.bin", lambda file: file.write_bytes(b"\x00\xff whole"))
    assert (tmp_path / "weights.bin").read_bytes() == b"\x00\xff whole"
    assert names(tmp_path) == ["weights.bin"]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a long old text")
    write_atomically(path, lambda file: file.write_text("new"))
    assert path.read_text() == "new"
    assert names(tmp_path) == ["notes.txt"]


def test_missing_folders_are_created(tmp_path):
    write_atomically(tmp_path / "runs" / "one" / "a.txt", lambda file: file.write_text("a"))
    assert (tmp_path / "runs" / "one" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "best.json"
    path.write_text("old")

    def half(file):
        file.write_text("half of the n")
        raise error("disk full")

    with pytest.raises(error, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["best.json"]


def test_a_writer_that_raises_leaves_no_file_where_there_was_none(tmp_path):
    def half(file):
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "best.json", half)
    assert names(tmp_path) == []


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path, seen = tmp_path / "best.json", []
    path.write_text("old")

    def write(file):
        file.write_text("new")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"


def test_the_writer_gets_a_file_beside_the_target_with_its_suffix(tmp_path):
    # Beside it, as a rename is atomic within one file system only; the suffix, as savers choose a format by it.
    given_to_writer = []

    def write(file):
        given_to_writer.append(file)
        file.write_text("x")

    write_atomically(tmp_path / "curves.png", write)
    (temporary,) = given_to_writer
    assert temporary != tmp_path / "curves.png"
    assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")


@pytest.mark.parametrize("letter", ["x", "写"])
def test_a_name_of_the_greatest_length_can_be_written_and_its_leftover_is_cleared(tmp_path, letter):
    path = tmp_path / (letter * (251 // len(letter.encode())) + ".png")
    given_to_writer = []
    write_atomically(path, lambda file: (given_to_writer.append(file), file.write_text("x")))
    assert path.read_text() == "x"
    given_to_writer[0].touch()  # as a killed process leaves it
    clear_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [path]


def test_others_may_read_what_was_written(tmp_path):
    write_atomically(tmp_path / "a.txt", lambda file: file.write_text("a"))
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


# write_json and finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null_wherever_they_stand(tmp_path, value):
    write_json(tmp_path / "a.json", {"top": value, "list": [1.5, value], "deep": {"pair": (value, "x")}, "ok": 2})
    assert strict_json((tmp_path / "a.json").read_text()) == {
        "top": None,
        "list": [1.5, None],
        "deep": {"pair": [None, "x"]},
        "ok": 2,
    }


words = st.text('aZ0 é草"\\\n\t', max_size=6)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
@settings(deadline=None, max_examples=50)
def test_finite_changes_no_json_value(value):
    assert finite(value) == value


@given(json_values)
@settings(deadline=None, max_examples=30)
def test_json_written_reads_back_the_same(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round" / "trip.json"
    write_json(path, value)
    assert strict_json(path.read_text(encoding="utf-8")) == value


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"class": "草地", "iou": 0.5})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "class": "草地",\n  "iou": 0.5\n}\n'


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert strict_json((tmp_path / "a.json").read_text()) == {"old": True}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["a.json", "checkpoint.safetensors", "checkpoint.before.safetensors"])
def test_only_the_temporary_files_of_a_killed_process_are_deleted(tmp_path, name):
    """The process dies, for good, in the middle of its write."""
    code = (
        "import os, sys; from pathlib import Path; from kd.system.files import write_atomically\n"
        "write_atomically(Path(sys.argv[1]), lambda path: (path.write_text('half'), os.kill(os.getpid(), 9)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    kept = {".lock", ".hydra", "metrics.jsonl", ".profile.json", name}
    for other in kept:
        (tmp_path / other).write_text("")
    clear_leftovers(tmp_path)
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_what_safetensors_leaves_when_it_is_killed_is_deleted_and_no_other_file(tmp_path):
    """Its own temporary file has our file's contents, and another name than ours."""
    head = (72).to_bytes(8, "little") + b'{"a":'
    for name, content in ((".tmpabc123", head), (".tmpABC12z", b"")):
        (tmp_path / name).write_bytes(content)
    kept = {
        ".tmpabc12": head,
        ".tmpabc1234": head,
        "tmpabc123": head,
        ".tmpnote12": b"my notes",
        ".tmp12345": b"\0" * 9,
    }
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".tmplinked").symlink_to(tmp_path / ".tmpabc12")
    (tmp_path / ".student_smp.abcdefgh").mkdir()
    (tmp_path / ".student_smp.abcdefgh" / "config.json").touch()
    (tmp_path / ".mine.abcdefgh").mkdir()
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".tmplinked", ".mine.abcdefgh"}


def test_one_process_at_a_time_is_alone_in_a_folder(tmp_path):
    folder = tmp_path / "new"
    with alone_in(folder) as first, alone_in(folder) as second:
        assert (first, second) == (True, False)
    with alone_in(folder) as again:
        assert again
    assert list(folder.iterdir()) == []


def test_touching_sets_the_time_of_a_file_and_creates_none(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    os.utime(path, (0, 0))
    touch(path)
    assert path.stat().st_mtime > 0
    assert path.read_text() == "content"
    touch(tmp_path / "missing")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# json_digest


def test_a_json_digest_ignores_the_order_of_keys_and_nothing_else():
    assert json_digest({"a": 1, "b": [1, 2]}) == json_digest({"b": [1, 2], "a": 1})
    values = [{"a": 1}, {"a": "1"}, {"a": 1.5}, {"b": 1}, [1, 2], [2, 1], [[1], 2], [1, [2]], None, "", {}]
    assert len({json_digest(value) for value in values}) == len(values)


def test_a_json_digest_is_128_bits_of_hex():
    assert len(bytes.fromhex(json_digest({"class": "草地"}))) == 16


# remembered


def test_a_remembered_result_is_read_again_once_the_file_has_changed(tmp_path):
    seen = []

    @remembered
    def read(path, more=""):
        seen.append(path)
        return path.read_text() + more

    path = tmp_path / "a"
    path.write_text("one")
    assert [read(path), read(path), read(path, "!"), read(path, more="!")] == ["one", "one", "one!", "one!"]
    assert len(seen) == 3
    path.write_text("three")
    assert read(path) == "three"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read(path)
