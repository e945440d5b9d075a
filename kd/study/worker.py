"""Who runs a trial: a process on a host, known well enough to say, on the same host, that it is gone."""

import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from optuna.storages import RDBStorage


def me() -> dict[str, Any]:
    """This process: its host, number, and start, so that a number used again is not taken for it."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(psutil.Process())}


def is_gone(worker: dict[str, Any] | None) -> bool:
    """Whether a worker of this host has ended; False where nobody here can tell."""
    if worker is None or worker["host"] != _host():
        return False
    try:
        process = psutil.Process(worker["pid"])
        return _started(process) != worker["started"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end_own(worker: dict[str, Any] | None, how: signal.Signals) -> bool:
    """Send a signal to a worker that this process started itself, and to no other; True where it was."""
    if worker is None or worker["host"] != _host() or is_gone(worker) or worker["pid"] == os.getpid():
        return False
    process = psutil.Process(worker["pid"])
    if os.getpid() not in [parent.pid for parent in process.parents()]:
        return False
    process.send_signal(how)
    return True


@contextmanager
def heartbeat(storage: RDBStorage, trial_id: int, over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Record signs of life of a trial, now and while the block lasts, or until it is `over`."""
    stop = threading.Event()

    def beat() -> None:
        pause: float | None = 0.0
        while not stop.wait(pause):
            pause = storage.get_heartbeat_interval()
            try:
                if over():
                    return
                storage.record_heartbeat(trial_id)
            except Exception:  # a server that restarts: the next beat may reach it, the grace period decides
                continue

    thread = threading.Thread(target=beat, name=f"heartbeat of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _started(process: psutil.Process) -> float:
    """When a process began, by a measure that a step of the clock does not move: ticks since boot where it can."""
    try:
        return float(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return process.create_time()


def _host() -> str:
    """The machine since its last start, and the container: process numbers mean the same within it."""
    parts = [platform.node()]
    for tell in (_boot, _namespace):
        try:
            parts.append(tell())
        except OSError:
            continue
    return " ".join(parts)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
