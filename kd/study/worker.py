"""The process that runs a trial, identified so that others on its host can tell whether it has ended."""

import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from kd.study.storage import Storage


def this_process() -> dict[str, Any]:
    """This process by host, pid and start time, so that a reused pid is not mistaken for it."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(psutil.Process())}


def has_ended(worker: dict[str, Any] | None) -> bool:
    """Whether a worker on this host has ended; False if that cannot be known here."""
    if worker is None or worker["host"] != _host():
        return False
    try:
        process = psutil.Process(worker["pid"])
        return _started(process) != worker["started"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def signal_child(worker: dict[str, Any] | None, which: signal.Signals) -> bool:
    """Send a signal to a worker if it is a descendant of this process; returns whether it was sent."""
    if worker is None or worker["host"] != _host() or has_ended(worker) or worker["pid"] == os.getpid():
        return False
    try:
        process = psutil.Process(worker["pid"])
        if os.getpid() not in [parent.pid for parent in process.parents()]:
            return False
        process.send_signal(which)
    except psutil.NoSuchProcess:  # it has ended in the meantime
        return False
    return True


@contextmanager
def heartbeat(storage: Storage, trial_id: int, over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Record heartbeats of a trial from a thread until the block ends, or until `over` returns True."""
    stop = threading.Event()

    def beat() -> None:
        pause: float | None = 0.0
        while not stop.wait(pause):
            pause = storage.get_heartbeat_interval()
            try:
                if over():
                    return
                storage.record_heartbeat(trial_id)
            except Exception:  # the server may be restarting: the next beat retries, the grace period decides
                continue

    thread = threading.Thread(target=beat, name=f"heartbeat of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _started(process: psutil.Process) -> float:
    """A process's start: in clock ticks since boot on Linux, which clock changes do not affect; else in seconds."""
    try:
        return float(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return process.create_time()


def _host() -> str:
    """The machine since its last boot, and the container: the scope within which pids are unique."""
    parts = [platform.node()]
    for read in (_boot, _namespace):
        try:
            parts.append(read())
        except OSError:
            continue
    return " ".join(parts)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
