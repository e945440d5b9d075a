"""A worker: known on its own host to be alive or not, signalled only by the process that started it, and heartbeats."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import optuna
import psutil
import pytest
from waiting import LIMIT, until

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
    return {**worker.this_process(), "pid": pid, "started": worker._started(psutil.Process(pid))}


def counting(refused=()) -> SimpleNamespace:
    """A storage that counts heartbeats, some of which it refuses."""
    heard = []

    def record(trial):
        heard.append(trial)
        if len(heard) in refused:
            raise OSError("the server restarts")

    return SimpleNamespace(heard=heard, record_heartbeat=record, get_heartbeat_interval=lambda: 0.02)


def heartbeats_end(trial: int) -> None:
    """Wait until no thread sends heartbeats of a trial any more."""
    name = f"heartbeat of trial {trial}"
    until(lambda: name not in [thread.name for thread in threading.enumerate()], "the end of the heartbeats")


# alive or gone


def test_this_process_lives():
    assert worker.this_process()["pid"] == os.getpid()
    assert worker.this_process() == worker.this_process()
    assert not worker.has_ended(worker.this_process())


def test_a_worker_is_written_into_a_database_and_read_back(tmp_path):
    study = optuna.create_study(storage=Database(f"sqlite:///{tmp_path}/studies.db").open())
    trial = study.ask()
    trial.set_user_attr("worker", worker.this_process())
    (read,) = study.get_trials()
    assert read.user_attrs["worker"] == worker.this_process()
    assert not worker.has_ended(read.user_attrs["worker"])


def test_a_process_that_exited_has_ended():
    with process() as (started, _):
        runs = named(started.pid)
        assert not worker.has_ended(runs)
    assert worker.has_ended(runs)


def test_a_zombie_has_ended():
    with process() as (started, _):
        runs = named(started.pid)
        started.kill()
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(started.pid).status() == psutil.STATUS_ZOMBIE
        assert worker.has_ended(runs)


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the start of a process is a time of day")
def test_a_step_of_the_clock_ends_no_worker(monkeypatch):
    runs, real = worker.this_process(), psutil._pslinux.boot_time
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda *_: real() + 1)
    assert not worker.has_ended(runs)


def test_a_reused_pid_is_another_process():
    assert worker.has_ended({**worker.this_process(), "started": worker.this_process()["started"] - 1})


def test_a_worker_on_another_host_counts_as_alive():
    elsewhere = {**worker.this_process(), "host": "elsewhere", "started": 0.0}
    assert not worker.has_ended(elsewhere)
    assert not worker.has_ended(None)


def test_a_host_after_a_reboot_is_another_host(monkeypatch):
    before = worker.this_process()
    monkeypatch.setattr(worker, "_namespace", lambda: "pid:[1]")
    assert worker.this_process()["host"] != before["host"]


def test_a_host_without_proc_files_is_known_by_its_name(monkeypatch):
    def missing():
        raise FileNotFoundError

    monkeypatch.setattr(worker, "_namespace", missing)
    monkeypatch.setattr(worker.Path, "read_text", lambda path: missing())
    assert worker.this_process()["host"] == worker.platform.node()


# killing


def test_a_worker_that_was_started_here_is_killed():
    with process() as (started, _):
        assert worker.signal_child(named(started.pid), signal.SIGKILL)
        assert started.wait(timeout=LIMIT) != 0


def test_a_worker_of_a_worker_is_killed():
    with process(GRANDCHILD) as (_, pid):
        runs = named(pid)
        assert worker.signal_child(runs, signal.SIGKILL)
        until(lambda: worker.has_ended(runs))


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"started": 1.0}])
def test_another_process_with_the_same_pid_is_left_alone(change):
    with process() as (started, _):
        assert not worker.signal_child({**named(started.pid), **change}, signal.SIGKILL)
        assert started.poll() is None


def test_a_process_started_by_others_is_left_alone():
    parent = os.getppid()
    assert not worker.signal_child(named(parent), signal.SIGKILL)
    assert psutil.pid_exists(parent)


def test_a_worker_never_signals_itself():
    assert not worker.signal_child(worker.this_process(), signal.SIGKILL)
    assert not worker.signal_child(None, signal.SIGKILL)


def test_a_worker_that_ended_is_not_killed_again():
    with process() as (started, _):
        runs = named(started.pid)
    assert not worker.signal_child(runs, signal.SIGKILL)


def test_a_worker_may_end_while_it_is_looked_at(monkeypatch):
    """As workers do that have received the same Ctrl-C."""
    with process() as (started, _):
        runs = named(started.pid)
    monkeypatch.setattr(worker, "has_ended", lambda runs: False)
    assert not worker.signal_child(runs, signal.SIGTERM)


# heartbeats


def test_heartbeats_last_as_long_as_the_block():
    beats = counting()
    with worker.heartbeat(beats, 7):
        until(lambda: len(beats.heard) >= 4)
    heartbeats_end(7)
    assert set(beats.heard) == {7}


def test_a_heartbeat_that_failed_is_followed_by_others():
    beats = counting(refused=(2, 3))
    with worker.heartbeat(beats, 7):
        until(lambda: len(beats.heard) >= 6)


def test_heartbeats_end_when_another_process_sends_them():
    beats, asked = counting(), []
    with worker.heartbeat(beats, 7, over=lambda: asked.append(1) or len(asked) > 2):
        heartbeats_end(7)
    assert len(asked) == 3
    assert len(beats.heard) == 2


def test_heartbeats_end_with_an_error():
    beats = counting()
    with pytest.raises(ZeroDivisionError), worker.heartbeat(beats, 7):
        _ = 1 / 0
    heartbeats_end(7)
