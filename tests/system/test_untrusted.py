"""Laws of reading strangers' files: nothing hangs, nothing outside the folder is read, every failure is one line."""

import json
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd.system import untrusted
from kd.system.untrusted import (
    DEEPEST,
    DOCUMENT,
    UnreadableError,
    check_below,
    check_plain,
    is_regular,
    mapping_at,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_named,
    read_yaml,
    regular,
)

NAME = "run.json"


def refused(folder: Path, name: str = NAME, read: Callable[[Path, str], object] = read_bytes) -> str:
    """The reason why a file is not read; the error is one line that names it."""
    with pytest.raises(UnreadableError) as caught:
        read(folder, name)
    error = caught.value
    assert "\n" not in str(error)
    assert Path(name).name in str(error)
    assert error.name == name
    return error.reason


def as_json(folder: Path, name: str) -> dict:
    return read_json(folder, name, dict)


def as_yaml(folder: Path, name: str) -> dict:
    return read_yaml(folder, name, dict)


# what is opened


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / NAME).write_bytes(b'{"id": "1"}')
    assert read_bytes(tmp_path, NAME) == b'{"id": "1"}'
    assert read_json(tmp_path, NAME, dict) == {"id": "1"}
    assert is_regular(tmp_path, NAME)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    assert refused(tmp_path) == "is missing"
    with pytest.raises(UnreadableError) as caught:
        read_json(tmp_path / "nowhere", NAME, dict)
    assert caught.value.missing


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_not_opened(tmp_path, target):
    (tmp_path / NAME).symlink_to(target)
    assert refused(tmp_path) == "is a link to a place outside its folder"
    assert "pipe or a device" in refused(Path(target).parent, Path(target).name)


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / NAME)
    assert refused(tmp_path) == "is a pipe or a device and should be a file"


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(NAME)
        assert refused(tmp_path) == "is a pipe or a device and should be a file"


def test_a_folder_is_refused(tmp_path):
    (tmp_path / NAME).mkdir()
    assert refused(tmp_path) == "is a folder and should be a file"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path, depth):
    folder = tmp_path / "run"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (folder / "inside" / "real.json").write_text("{}")
    outside, inside = tmp_path / "secret.json", folder / "inside" / "real.json"
    for number in range(depth):  # a link to a link
        for name, target in (("out", outside), ("in", inside)):
            (folder / f"{name}{number}.json").symlink_to(target)
        outside, inside = folder / f"out{number}.json", folder / f"in{number}.json"
    assert refused(folder, outside.name) == "is a link to a place outside its folder"
    assert read_json(folder, inside.name, dict) == {}


def test_a_link_of_a_parent_folder_is_no_way_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "overrides.yaml").write_text("[]")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hydra").symlink_to(tmp_path / "elsewhere")
    assert "outside its folder" in refused(tmp_path / "run", ".hydra/overrides.yaml")
    assert "outside its folder" in refused(tmp_path / "run", "../elsewhere/overrides.yaml")


def test_a_folder_may_itself_be_reached_by_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).write_text("{}")
    (tmp_path / "latest").symlink_to("run")
    assert read_json(tmp_path / "latest", NAME, dict) == {}


@pytest.mark.parametrize("target", [NAME, "gone.json"])
def test_a_loop_and_a_broken_link_are_refused(tmp_path, target):
    (tmp_path / NAME).symlink_to(target)
    assert "cannot be opened" in refused(tmp_path) or refused(tmp_path) == "is a broken link"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 3000])
def test_an_impossible_name_is_refused(tmp_path, name):
    with pytest.raises(UnreadableError) as caught:
        read_bytes(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_up_to_its_limit_only(tmp_path):
    (tmp_path / NAME).write_bytes(b" " * DOCUMENT)
    assert len(read_bytes(tmp_path, NAME)) == DOCUMENT
    with (tmp_path / NAME).open("ab") as file:
        file.truncate(2**40)  # sparse: a terabyte that takes no space
    assert refused(tmp_path) == f"is larger than {DOCUMENT} bytes"


# what is parsed


words = st.text(max_size=8).filter(lambda text: text.isprintable())
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(plain)
@settings(deadline=None, max_examples=100)
@example({"date": "2026-01-01", "time": "12:30:45", "no": "off", "<<": "=", "a": ["0x10", "1e5", "${oc.env:HOME}"]})
def test_what_json_and_yaml_wrote_reads_back_the_same(value):
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True).encode()) == value


SYNTAX = st.text("[]{}:,-?!&*|>'\"%@`#\n\t .019eE+_~<=abnull/\\\0\ud7ff\ufeff", max_size=60)


@given(st.binary(max_size=60) | SYNTAX.map(str.encode))
@settings(deadline=None, max_examples=500)
@example(b"!!bool maybe")
@example(b"!!int ''")
@example(b"!!float [1]")
@example(b"? [1]\n: 2")
@example(b"? {a: 1}\n: 2")
@example(b"1:" * 2000 + b"1")
@example(b'"\\ud800"')
@example(b"!!python/object/apply:os.system ['true']")
@example(b"--- 1\n--- 2")
def test_any_content_is_a_value_or_a_value_error(content):
    for parse in (parse_json, parse_yaml):
        with suppress(ValueError):
            parse(content)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2026-01-01", "2026-01-01"), ("a: 2026-01-01 12:00:00", "2026-01-01 12:00:00"), ("a: <<", "<<"),
        ("a: =", "="), ("a: ${oc.env:HOME}", "${oc.env:HOME}"), ("a: .inf", math.inf), ("a: 1e3", "1e3"),
        ("a: 0.5", 0.5), ("a: yes", True), ("a: ~", None), ("a: 12", 12),
    ],
)  # fmt: skip
def test_dates_and_interpolations_are_texts_and_numbers_are_numbers(text, value):
    assert parse_yaml(text.encode()) == {"a": value}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1", "a: &x [*x]", "a: &x [1]\nb: *x", "a: !!python/name:os.system x", "a: !!set {x}", "a: !!binary aGk=",
        "a: !!timestamp 2026-01-01", "a: !mine x", "1: a", "null: a", "[a]: b", "a: " + "9" * 400, "a: 0x" + "f" * 17,
        "a: " + "1:" * 300 + "1", "a: 9223372036854775808", "a: [", "a: b\n--- c", "\t- a", "a: \x01",
    ],
)  # fmt: skip
def test_yaml_that_is_more_than_plain_data_or_out_of_bounds_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert refused(tmp_path, "config.yaml", as_yaml).startswith("is damaged (")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "9" * 400 + "}",
        '{"a": ' + "9" * 5000 + "}", '{"a": 9223372036854775808}', '{"a": -9223372036854775809}', '{"a": "\\ud800"}',
        '{"\\udfff": 1}', "\xff", "[]", "3", "null", '"text"',
    ],
)  # fmt: skip
def test_json_that_is_damaged_or_out_of_bounds_is_refused(tmp_path, text):
    (tmp_path / NAME).write_text(text, encoding="latin-1")
    assert refused(tmp_path, read=as_json).startswith("is damaged (")


@pytest.mark.parametrize("depth", [DEEPEST - 1, DEEPEST, DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize("form", ["lists", "mappings"])
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_depth_is_bounded(depth, form, parse):
    opening, closing = ("[", "]") if form == "lists" else ('{"a": ', "}")
    text = (opening * depth + "1" + closing * depth).encode()
    if depth <= DEEPEST:
        assert parse(text) is not None
    else:
        with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels deep"):
            parse(text)


BOMBS = {
    "aliases": b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 121)),
    "itself": b"&a [*a]",
    "values": b"[" + b"1," * (DOCUMENT // 2 - 2) + b"]",
    "keys": b"? " * (DOCUMENT // 2),
    "blocks": b"- " * (DOCUMENT // 2),
    "open lists": b"[" * DOCUMENT,
    "base 60": b"1:" * (DOCUMENT // 2 - 1) + b"1",
    "quotes": b'"' * DOCUMENT,
    "text": b"a" * DOCUMENT,
    "digits": b"9" * DOCUMENT,
    "comments": b"#" * DOCUMENT,
    "pipe": b"|\n" + b" \n" * (DOCUMENT // 2 - 1),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("read", [as_json, as_yaml])
def test_a_bomb_is_refused(tmp_path, bomb, read):
    (tmp_path / NAME).write_bytes(bomb[:DOCUMENT])
    refused(tmp_path, read=read)


def test_the_number_of_values_is_bounded_in_yaml(monkeypatch):
    monkeypatch.setattr(untrusted, "MOST_NODES", 100)
    assert len(parse_yaml(b"- 1\n" * 99)) == 99  # the list is one of them
    with pytest.raises(ValueError, match="more than 100 values"):
        parse_yaml(b"- 1\n" * 100)


@pytest.mark.parametrize(("kind", "content"), [(dict, "[]"), (list, "{}"), (dict, "3"), (list, ""), (dict, "text")])
def test_another_kind_of_value_is_refused(tmp_path, kind, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UnreadableError, match=r"it should be a (mapping|list), not"):
        read_yaml(tmp_path, "config.yaml", kind)


@pytest.mark.parametrize(
    ("value", "found"), [({"a": {"b": 1}}, {"b": 1}), ({"a": [1]}, {}), ({"a": None}, {}), ({}, {})]
)
def test_a_mapping_below_a_key_is_empty_if_it_is_none(value, found):
    assert mapping_at(value, "a") == found


# what is written to


@pytest.mark.parametrize("name", ["train.log", ".lock", "new.txt", ".hydra/overrides.yaml"])
def test_a_folder_to_be_written_to_has_no_pipe_and_no_link_out_of_it(tmp_path, name):
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "export").mkdir()
    (run / "train.log").touch()
    (run / "latest.log").symlink_to("train.log")
    check_plain(run)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(UnreadableError, match="is a pipe or a device"):
        check_plain(run)
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UnreadableError, match=r"is a broken link|outside its folder"):
        check_plain(run)


@pytest.mark.parametrize("name", ["export", ".hydra"])
def test_a_folder_to_be_written_to_has_no_folder_elsewhere(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UnreadableError, match=f"{name} is a link to a place outside its folder"):
        check_plain(tmp_path / "run")
    with pytest.raises(UnreadableError, match=f"{name} is a link to a place outside its folder"):
        check_below(tmp_path / "run", tmp_path / "run" / name / "file")
    check_below(tmp_path / "run", tmp_path / "run" / "not" / "there" / "yet")


def test_a_file_that_was_named_may_be_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to("a")
    assert read_named(tmp_path / "b") == b"x"
    assert regular(tmp_path / "b") == tmp_path / "b"
    for target in ("/dev/zero", tmp_path / "loop", tmp_path / "gone"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to(target)
        with pytest.raises(UnreadableError):
            read_named(tmp_path / "loop")
        with pytest.raises(UnreadableError):
            regular(tmp_path / "loop")
