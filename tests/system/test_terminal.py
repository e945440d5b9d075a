"""Output survives its terminal and escapes what it cannot encode; progress bars move on terminals only."""

import io
import logging
import os
import select
import subprocess
import sys

import pytest
from rich.console import Console

from kd.config.compose import PROJECT
from kd.system.terminal import can_move, discreet_logging, to_log

SETUP = "import sys; from kd.system.terminal import steady_output; steady_output(); "


class Terminal(io.StringIO):
    def isatty(self):
        return True


def python(code, **env):
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")} | env
    command = [sys.executable, "-c", SETUP + code]
    return subprocess.run(command, capture_output=True, env=environment, cwd=PROJECT, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_the_encoding_lacks_are_escaped(encoding):
    done = python("print('a\\u2713b'); print('c\\udcffd', file=sys.stderr)", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\\u2713b\n", b"c\\udcffd\n")


def test_characters_of_the_encoding_are_written_unchanged():
    assert python("print('\\u2713')", PYTHONIOENCODING="utf-8").stdout == "\u2713\n".encode()


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_program_survives_its_terminal(unbuffered, tmp_path, monkeypatch):
    import pty

    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)

    ours, theirs = pty.openpty()
    code = (
        "print('begun'); sys.stdin.read();"
        "[print('lost', file=stream, flush=True) for stream in (sys.stdout, sys.stderr) for _ in range(3)];"
        "open(sys.argv[1], 'w').write(str(sys.stdout.isatty()))"
    )
    command = [sys.executable, "-c", SETUP + code, str(tmp_path / "over")]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, cwd=PROJECT)
    os.close(theirs)
    assert select.select([ours], [], [], 600)[0]
    assert os.read(ours, 100).startswith(b"begun")
    os.close(ours)
    program.communicate(timeout=600)
    assert (tmp_path / "over").exists()
    assert program.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_still_an_error():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", SETUP + "print('x', flush=True)"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, cwd=PROJECT, check=False)
    assert done.returncode != 0


def test_replaced_streams_are_left_alone(capsys):
    from kd.system.terminal import steady_output

    before = sys.stdout, sys.stderr
    steady_output()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    ("env", "file", "moves"),
    [
        ({}, Terminal, True),
        ({}, io.StringIO, False),
        ({"FORCE_COLOR": "1"}, io.StringIO, False),
        ({"FORCE_COLOR": "1"}, Terminal, True),
        ({"NO_COLOR": "1"}, Terminal, True),
        ({"TERM": "dumb"}, Terminal, False),
    ],
)
def test_a_bar_moves_only_on_terminals_with_a_movable_cursor(env, file, moves, monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert can_move(Console(file=file())) is moves


def test_the_log_is_plain_text_without_passwords(tmp_path):
    handler = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(handler)
    try:
        to_log("\x1b[1;31mred\x1b[0m\nhttp://me:secret@host/x \x07")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert (tmp_path / "train.log").read_text() == "red\nhttp://***@host/x \\x07\n"


def test_no_library_logs_the_password_of_an_address(monkeypatch, caplog):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    discreet_logging()
    logging.getLogger("a.library").warning("retrying %s", "http://me:s3cret@host/db?api_key=s3cret")
    assert caplog.messages == ["retrying http://***@host/db?api_key=***"]
