"""Who runs a trial: known on his own host to live or not, killed only by who started him, alive while he says so."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import optuna
import psutil
import pytest

from kd.study import worker
from kd.study.storage import Database

GRANDCHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str = "import sys; print(0, flush=True); sys.stdin.read()"):
    """A process that lives until its input ends, and what it said first."""
    started = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield started, int(started.stdout.readline())
    finally:
        started.kill()
        started.communicate()


def named(pid: int) -> dict:
    """A process of this host as a worker."""
    return {**worker.me(), "pid": pid, "started": worker._started(psutil.Process(pid))}


def counting(refused=()) -> SimpleNamespace:
    """A storage that counts signs of life, some of which it refuses."""
    heard = []

    def record(trial):
        heard.append(trial)
        if len(heard) in refused:
            raise OSError("the server restarts")

    return SimpleNamespace(heard=heard, record_heartbeat=record, get_heartbeat_interval=lambda: 0.02)


def soon(condition) -> bool:
    """Whether something becomes true, sooner or later."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


# alive or gone


def test_this_process_lives():
    assert worker.me()["pid"] == os.getpid()
    assert worker.me() == worker.me()
    assert not worker.is_gone(worker.me())


def test_a_worker_is_written_into_a_database_and_read_back(tmp_path):
    study = optuna.create_study(storage=Database(f"sqlite:///{tmp_path}/studies.db").open())
    trial = study.ask()
    trial.set_user_attr("worker", worker.me())
    (read,) = study.get_trials()
    assert read.user_attrs["worker"] == worker.me()
    assert not worker.is_gone(read.user_attrs["worker"])


def test_a_process_that_ended_is_gone():
    with process() as (started, _):
        runs = named(started.pid)
        assert not worker.is_gone(runs)
    assert worker.is_gone(runs)


def test_a_process_that_nobody_has_buried_yet_is_gone():
    with process() as (started, _):
        runs = named(started.pid)
        started.kill()
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(started.pid).status() == psutil.STATUS_ZOMBIE
        assert worker.is_gone(runs)


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the start of a process is a time of day")
def test_a_step_of_the_clock_ends_nobody(monkeypatch):
    runs, real = worker.me(), psutil._pslinux.boot_time
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda *_: real() + 1)
    assert not worker.is_gone(runs)


def test_a_number_that_is_used_again_is_another_process():
    assert worker.is_gone({**worker.me(), "started": worker.me()["started"] - 1})


def test_nobody_here_can_tell_of_another_host():
    elsewhere = {**worker.me(), "host": "elsewhere", "started": 0.0}
    assert not worker.is_gone(elsewhere)
    assert not worker.is_gone(None)


def test_a_host_that_was_started_anew_is_another(monkeypatch):
    before = worker.me()
    monkeypatch.setattr(worker, "_namespace", lambda: "pid:[1]")
    assert worker.me()["host"] != before["host"]


def test_a_host_without_these_files_has_a_name_still(monkeypatch):
    def missing():
        raise FileNotFoundError

    monkeypatch.setattr(worker, "_namespace", missing)
    monkeypatch.setattr(worker.Path, "read_text", lambda path: missing())
    assert worker.me()["host"] == worker.platform.node()


# killing


def test_a_worker_that_was_started_here_is_killed():
    with process() as (started, _):
        assert worker.end_own(named(started.pid), signal.SIGKILL)
        assert started.wait(timeout=30) != 0


def test_a_worker_of_a_worker_is_killed():
    with process(GRANDCHILD) as (_, pid):
        runs = named(pid)
        assert worker.end_own(runs, signal.SIGKILL)
        assert soon(lambda: worker.is_gone(runs))


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"started": 1.0}])
def test_who_only_has_its_number_is_left_alone(change):
    with process() as (started, _):
        assert not worker.end_own({**named(started.pid), **change}, signal.SIGKILL)
        assert started.poll() is None


def test_who_was_started_by_others_is_left_alone():
    parent = os.getppid()
    assert not worker.end_own(named(parent), signal.SIGKILL)
    assert psutil.pid_exists(parent)


def test_nobody_kills_himself_or_nobody():
    assert not worker.end_own(worker.me(), signal.SIGKILL)
    assert not worker.end_own(None, signal.SIGKILL)


def test_a_worker_that_ended_is_not_killed_again():
    with process() as (started, _):
        runs = named(started.pid)
    assert not worker.end_own(runs, signal.SIGKILL)


# signs of life


def test_a_trial_lives_as_long_as_the_block():
    beats = counting()
    with worker.heartbeat(beats, 7):
        assert soon(lambda: len(beats.heard) >= 4)
    heard = len(beats.heard)
    time.sleep(0.1)
    assert len(beats.heard) == heard
    assert set(beats.heard) == {7}


def test_a_sign_that_did_not_arrive_is_followed_by_others():
    beats = counting(refused=(2, 3))
    with worker.heartbeat(beats, 7):
        assert soon(lambda: len(beats.heard) >= 6)


def test_signs_end_when_another_gives_them():
    beats, asked = counting(), []
    with worker.heartbeat(beats, 7, over=lambda: asked.append(1) or len(asked) > 2):
        assert soon(lambda: len(asked) == 3)
        heard = len(beats.heard)
        time.sleep(0.1)
    assert len(asked) == 3
    assert len(beats.heard) == heard > 0


def test_signs_end_with_an_error():
    beats = counting()
    with pytest.raises(ZeroDivisionError), worker.heartbeat(beats, 7):
        _ = 1 / 0
    heard = len(beats.heard)
    time.sleep(0.1)
    assert len(beats.heard) == heard
